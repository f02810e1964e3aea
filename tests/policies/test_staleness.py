"""The four staleness policies against every order of completion: the bound, the progress, what may pass what."""

import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safeladder.policies.arrivals import Arrivals
from safeladder.policies.selection import LengthSelection
from safeladder.policies.staleness import create, staleness

POLICIES = ("pace", "drop", "wait", "windowed")


@dataclasses.dataclass
class Bounds:
    policy: str
    eta: int
    max_in_flight: int
    window: int | None = None


class World:
    """Feeder, generators and learner, whose events a schedule orders. What the feeder knows may lag behind."""

    def __init__(self, bounds, batch, steps=None, total=None):
        self.bounds, self.batch, self.steps, self.total = bounds, batch, steps, total
        self.policy = create(bounds, batch)
        self.arrivals = Arrivals()
        self.step = self.admitted = 0
        self.known = (0, 0)  # step, accounted: the learner's last message that the feeder has read
        self.said = (0, 0)
        self.running = {}  # number -> step known at its admission
        self.trained, self.ages, self.dropped = [], [], []

    def admit(self):
        step, accounted = self.known
        running = self.admitted - accounted
        capacity = self.policy.capacity(running)
        if self.steps is not None:
            capacity = min(capacity, (self.steps - step) * self.batch - running)
        if capacity > 0 and self.admitted != self.total:
            self.running[self.admitted] = step
            self.admitted += 1

    def finish(self, choice, version_choice):
        if self.running:
            number = sorted(self.running)[choice % len(self.running)]
            oldest = self.running.pop(number)  # any weights from those to the newest may have sampled
            self.arrivals.add(number, oldest + version_choice % (self.step - oldest + 1))

    def drop(self, choice):
        if self.running:
            number = sorted(self.running)[choice % len(self.running)]
            del self.running[number]
            self.arrivals.drop(number)
            self.dropped.append(number)

    def train(self):
        """One round of the learner's loop."""
        if self.policy.drops:
            for number in self.arrivals.numbers():
                if self.step - self.version_of(number) > self.bounds.eta:
                    self.arrivals.withdraw(number)
                    self.arrivals.drop(number)
                    self.dropped.append(number)
        if numbers := self.policy.choose(self.arrivals, self.step):
            self.ages += [self.step - version for version in self.arrivals.take(numbers)]
            self.trained.append(numbers)
            self.step += 1
        self.said = (self.step, self.arrivals.accounted)

    def version_of(self, number):
        return dict(zip(self.arrivals.numbers(), self.arrivals.items(), strict=True))[number]

    def learn(self):
        self.known = self.said

    def play(self, events):
        for event, choice in events:
            {
                "admit": self.admit,
                "finish": lambda choice=choice: self.finish(choice, choice // 3),
                "drop": lambda choice=choice: self.drop(choice),
                "train": self.train,
                "learn": self.learn,
            }[event]()
            assert self.admitted - self.arrivals.accounted <= self.policy.limit <= self.bounds.max_in_flight


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["admit", "admit", "finish", "finish", "finish", "drop", "train", "train", "learn"]),
        st.integers(0, 50),
    ),
    max_size=250,
)


@st.composite
def worlds(draw, policies=POLICIES):
    eta, batch = draw(st.integers(0, 4)), draw(st.integers(1, 4))
    policy = draw(st.sampled_from(policies))
    window = draw(st.none() | st.integers(1, eta * batch + 1)) if policy == "windowed" else None
    room = draw(st.sampled_from([0, 1, eta * batch, (eta + 3) * batch]))
    return Bounds(policy, eta, batch + room, window), batch


@settings(max_examples=400, deadline=None)
@given(world=worlds(), events=EVENTS)
def test_no_token_is_older_than_eta_at_its_gradient_step_and_none_is_trained_twice(world, events):
    world = World(*world)
    world.play(events)
    numbers = [number for batch in world.trained for number in batch]
    assert max(world.ages, default=0) <= world.bounds.eta
    assert len(numbers) == len(set(numbers)) == world.step * world.batch
    assert not set(numbers) & set(world.dropped)


@settings(max_examples=300, deadline=None)
@given(world=worlds(policies=("pace", "wait", "windowed")), events=EVENTS, choice=st.integers(0, 10**9))
def test_the_bound_holds_when_the_learner_never_pauses_and_stragglers_are_as_slow_as_they_can_be(world, events, choice):
    """The worst schedule: the oldest groups come last, and a step is made whenever one may be."""
    world, chance = World(*world), random.Random(choice)
    world.play(events)
    for _ in range(120):
        world.learn()
        world.admit()
        if chance.random() < 0.8:
            world.finish(-1 - chance.randrange(2), 0)  # the youngest first, each sampled by the oldest weights allowed
        world.train()
    assert max(world.ages, default=0) <= world.bounds.eta


@settings(max_examples=200, deadline=None)
@given(world=worlds(), events=EVENTS)
def test_no_policy_stands_still(world, events):
    """From wherever a schedule leads, admitting and finishing brings the next batch."""
    world = World(*world)
    world.play(events)
    for _ in range(3):
        before = world.step
        for _ in range(4 * world.bounds.max_in_flight + 4 * world.batch):
            world.train()
            world.learn()
            world.admit()
            world.finish(0, 0)
        assert world.step > before


@settings(max_examples=200, deadline=None)
@given(world=worlds(), events=EVENTS, steps=st.integers(1, 5))
def test_a_run_of_so_many_steps_makes_them_all_and_admits_what_it_trains_or_drops(world, events, steps):
    """Numbers beyond the end are never admitted; nobody waits for them. Every drop is made up for by exactly one."""
    world = World(*world, steps=steps)
    world.play(events)
    for _ in range(60 * world.bounds.max_in_flight):
        if world.step == steps:
            break
        world.train()
        world.learn()
        world.admit()
        world.finish(-1, 0)
    assert world.step == steps
    if not world.policy.drops:
        assert world.admitted == steps * world.batch + len(world.dropped)


@settings(max_examples=150, deadline=None)
@given(world=worlds(), events=EVENTS, total=st.integers(0, 13))
def test_a_finite_stream_is_trained_to_its_end(world, events, total):
    world = World(*world, total=total)
    world.play(events)
    for _ in range(20 * total + 20):
        if world.admitted == total and world.arrivals.total is None:
            world.arrivals.end(total)
        world.train()
        world.learn()
        world.admit()
        world.finish(-1, 0)
    assert world.arrivals.finished
    assert sorted([n for batch in world.trained for n in batch] + world.dropped) == list(range(total))


# ----------------------------------------------------------------------------------------------------------- order


@settings(max_examples=150, deadline=None)
@given(world=worlds(policies=("pace",)), events=EVENTS)
def test_pace_trains_in_order_of_admission(world, events):
    world = World(*world)
    world.play(events)
    numbers = [number for batch in world.trained for number in batch]
    assert numbers == sorted(numbers)


@settings(max_examples=150, deadline=None)
@given(world=worlds(policies=("windowed",)), events=EVENTS)
def test_a_group_is_passed_by_at_most_the_rest_of_the_window(world, events):
    world = World(*world)
    world.play(events)
    numbers = [number for batch in world.trained for number in batch]
    ever = set(range(world.admitted)) - set(world.dropped)
    for number in ever:
        before = numbers[: numbers.index(number)] if number in numbers else numbers
        assert sum(other > number for other in before) <= world.policy.window - 1


@given(batch=st.integers(1, 4), fates=st.lists(st.booleans(), max_size=20), data=st.data())
@settings(max_examples=100, deadline=None)
def test_eta_zero_makes_the_same_batches_under_every_policy(batch, fates, data):
    """Synchronous: what a policy could choose otherwise does not exist."""
    histories = []
    for policy in POLICIES:
        world = World(Bounds(policy, 0, batch), batch)
        for _ in range(8):
            world.learn()
            while world.admitted < world.arrivals.accounted + batch:
                world.admit()
            order = data.draw(st.permutations(sorted(world.running)))
            for number in order:
                world.finish(sorted(world.running).index(number), 0)
                world.train()
        histories.append(world.trained)
    assert all(history == histories[0] for history in histories)
    assert histories[0] == [list(range(step * batch, (step + 1) * batch)) for step in range(8)]


def test_wait_takes_what_comes_first_and_waits_for_what_would_be_too_old():
    policy, arrivals = create(Bounds("wait", 1, 4), 2), Arrivals()
    for number in (3, 2):
        arrivals.add(number, None)
    assert policy.choose(arrivals, 0) == [2, 3]  # 0 and 1 may still come for the next step
    arrivals.take([2, 3])
    arrivals.add(4, None)
    arrivals.add(5, None)
    assert policy.choose(arrivals, 1) is None  # 0 and 1 fill it
    arrivals.add(0, None)
    arrivals.add(1, None)
    assert policy.choose(arrivals, 1) == [0, 1]


def test_wait_looks_further_ahead_than_one_step():
    policy, arrivals = create(Bounds("wait", 2, 3), 1), Arrivals()
    arrivals.add(2, None)
    arrivals.take(policy.choose(arrivals, 0))
    arrivals.add(3, None)
    # with 3 taken at step 1, both 0 and 1 would be due at step 2, which trains one
    assert policy.choose(arrivals, 1) is None
    arrivals.add(1, None)
    assert policy.choose(arrivals, 1) == [1]


def test_drop_takes_what_comes_first():
    policy, arrivals = create(Bounds("drop", 1, 9), 2), Arrivals()
    for number in (7, 3, 5):
        arrivals.add(number, None)
    assert policy.choose(arrivals, 0) == [3, 7]


def test_what_a_straggler_costs_is_paid_by_admission():
    assert create(Bounds("pace", 2, 99), 4).limit == 12
    assert create(Bounds("wait", 2, 99), 4).limit == 12
    assert create(Bounds("windowed", 2, 99, 9), 4).limit == 4
    assert create(Bounds("windowed", 2, 99), 4).limit == 8  # half of the room: a window of 5
    assert create(Bounds("drop", 2, 99), 4).limit == 99
    assert create(Bounds("pace", 2, 6), 4).limit == 6


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        (Bounds("pace", -1, 4), "eta must be"),
        (Bounds("pace", 0, 3), "max_in_flight is 3"),
        (Bounds("drop", 0, 3), "can never come together"),
        (Bounds("windowed", 1, 16, 6), "eta \\* batch \\+ 1 = 5"),
        (Bounds("windowed", 0, 16, 2), "eta \\* batch \\+ 1 = 1"),
        (Bounds("wait", 1, 16, 2), "only 'windowed' has"),
    ],
)
def test_a_policy_that_could_not_move_is_refused(bounds, said):
    with pytest.raises(ValueError, match=said):
        create(bounds, 4)


def test_age_is_that_of_the_oldest_token():
    assert staleness([[3, 5], [5], []], learner_version=6) == [3, 1, 0]


# ----------------------------------------------------------------------------------------------------- selection


def simulate(policy, slots=8, steps=400):
    """A generator that decodes `slots` groups at once, a token a tick; a step takes 20 ticks. Lengths are log-normal."""
    world, chance, selection = World(Bounds(policy, 1, 8), 4), random.Random(7), LengthSelection(window=10**6)
    lengths, left = {}, {}
    trained_ticks = 0
    for tick in range(10**6):
        if world.step == steps:
            break
        for number in sorted(world.running)[:slots]:
            if number not in lengths:
                lengths[number] = min(2000, max(1, round(chance.lognormvariate(4, 1))))
                left[number] = lengths[number]
            left[number] -= 1
            if left[number] == 0:
                selection.draw([lengths[number]])
                world.finish(sorted(world.running).index(number), 0)
        if tick >= trained_ticks:
            made = world.step
            world.train()
            world.learn()
            if world.step > made:
                trained_ticks = tick + 20
                selection.train([lengths[number] for number in world.trained[-1]])
        for _ in range(8):
            world.admit()
    assert world.step == steps
    return selection.bias


@pytest.mark.parametrize("policy", ["pace", "wait", "windowed"])
def test_what_is_never_dropped_is_trained_as_it_was_drawn(policy):
    assert simulate(policy) < 0.001


def test_dropping_by_age_starves_long_answers_and_the_figure_says_so():
    assert simulate("drop") > 0.02
