import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safeladder.policies.staleness import Order, Pace, staleness


class World:
    """Feeder, generators and learner, whose events a random schedule orders. Feeder knowledge may lag."""

    def __init__(self, pace, steps):
        self.pace, self.steps = pace, steps
        self.step = self.known_step = 0
        self.admitted = self.dropped = self.known_dropped = 0
        self.running = {}  # sequence -> version that samples it, None while it has not begun
        self.admitted_at = {}
        self.buffer = Order(pace.batch, window=pace.window)
        self.trained, self.ages = [], []

    def admit(self):
        if self.pace.capacity(self.known_step, self.admitted, self.known_dropped, len(self.running)) > 0:
            self.admitted_at[self.admitted] = self.known_step
            self.running[self.admitted] = None
            self.admitted += 1
            return True
        return False

    def finish(self, choice, version_choice):
        if self.running:
            sequence = sorted(self.running)[choice % len(self.running)]
            del self.running[sequence]
            oldest = self.admitted_at[sequence]  # min_version: anything from it to the newest may have sampled
            self.buffer.add(sequence, (sequence, oldest + version_choice % (self.step - oldest + 1)))

    def drop(self, choice):
        if self.running:
            sequence = sorted(self.running)[choice % len(self.running)]
            del self.running[sequence]
            self.buffer.skip(sequence)
            self.dropped += 1

    def train(self):
        batch = self.buffer.take()
        if batch:
            self.trained += [sequence for sequence, _ in batch]
            self.ages += [self.step - version for _, version in batch]
            self.step += 1

    def learn(self):
        self.known_step, self.known_dropped = self.step, self.dropped


EVENTS = st.lists(
    st.tuples(st.sampled_from(["admit", "admit", "finish", "finish", "drop", "train", "learn"]), st.integers(0, 50)),
    max_size=200,
)


@settings(max_examples=300, deadline=None)
@given(
    eta=st.integers(0, 4), batch=st.integers(1, 4), in_flight=st.integers(1, 20), overtaking=st.integers(0, 16),
    events=EVENTS,
)  # fmt: skip
def test_no_token_is_older_than_eta_at_its_gradient_step(eta, batch, in_flight, overtaking, events):
    window = 1 + min(overtaking, eta * batch)
    world = World(Pace(eta, batch, in_flight, window), steps=0)
    for event, choice in events:
        if event == "admit":
            world.admit()
        elif event == "finish":
            world.finish(choice, choice // 3)
        elif event == "drop":
            world.drop(choice)
        elif event == "train":
            world.train()
        else:
            world.learn()
        assert len(world.running) <= in_flight
    assert all(age <= eta for age in world.ages)
    assert len(world.trained) == len(set(world.trained))
    for place, sequence in enumerate(world.trained):  # nobody was passed by more than the window allows
        assert sequence > max(world.trained[:place], default=-1) - window


@settings(max_examples=60, deadline=None)
@given(
    eta=st.integers(0, 3),
    batch=st.integers(1, 4),
    extra=st.integers(0, 9),
    overtaking=st.integers(0, 12),
    events=EVENTS,
)
def test_pace_never_stands_still(eta, batch, extra, overtaking, events):
    """From wherever a random schedule leads, admitting and finishing fills the next batch."""
    window = 1 + min(overtaking, eta * batch)
    world = World(Pace(eta, batch, batch + window - 1 + extra, window), steps=0)
    for event, choice in events:
        getattr(world, event)(*{"finish": (choice, 0), "drop": (choice,)}.get(event, ()))
    for _ in range(3):
        before = world.step
        for _ in range(4 * batch + len(world.running) + extra):
            world.learn()
            world.admit()
            world.finish(0, 0)
            world.train()
        assert world.step > before


def test_eta_zero_is_synchronous():
    pace = Pace(eta=0, batch=4, max_in_flight=64)
    assert pace.capacity(step=0, admitted=0, dropped=0, running=0) == 4
    assert pace.capacity(step=0, admitted=4, dropped=0, running=4) == 0
    assert pace.capacity(step=0, admitted=4, dropped=1, running=3) == 1
    assert pace.capacity(step=1, admitted=4, dropped=0, running=0) == 4


@pytest.mark.parametrize("wrong", [(-1, 1, 1), (0, 0, 1), (0, 1, 0)])
def test_a_pace_that_cannot_move_is_refused(wrong):
    with pytest.raises(ValueError, match="pace needs"):
        Pace(*wrong)
    with pytest.raises(ValueError, match=r"from 1 to eta \* batch \+ 1 = 5"):
        Pace(2, 2, 8, 6)


def test_a_straggler_is_passed_within_the_window_and_no_further():
    buffer = Order(batch=2, window=3)
    for sequence in (1, 2, 3, 4):
        buffer.add(sequence, sequence)
    assert buffer.take() == [1, 2]  # 0 is missing, and 3 would be three places ahead of it
    assert (buffer.cursor, buffer.ahead) == (0, 2)
    assert buffer.take() is None
    buffer.add(0, 0)
    assert buffer.take() == [0, 3]
    assert (buffer.cursor, buffer.ahead) == (4, 0)


def test_without_a_window_items_are_taken_as_they_arrive():
    buffer = Order(batch=2, window=None)
    for sequence in (7, 3):
        buffer.add(sequence, sequence)
    assert buffer.take() == [7, 3]
    buffer.skip(0)
    buffer.add(1, 1)
    buffer.add(2, 2)
    assert buffer.take() == [1, 2]
    assert (buffer.cursor, buffer.passed, buffer.ahead) == (4, [0], 1)  # 7 is ahead


def test_an_order_goes_on_where_it_was_with_what_had_passed_others():
    buffer = Order(batch=1, start=2, window=4, accounted=[1, 3])
    with pytest.raises(ValueError, match="seen before"):
        buffer.add(3, "again")
    buffer.add(2, "b")
    assert buffer.take() == ["b"]
    assert buffer.cursor == 4


def test_age_is_that_of_the_oldest_token():
    assert staleness([[3, 5], [5], []], learner_version=6) == [3, 1, 0]


# ------------------------------------------------------------------------------------------------------ order


@settings(max_examples=100, deadline=None)
@given(
    batch=st.integers(1, 4),
    start=st.integers(0, 5),
    fates=st.lists(st.booleans(), max_size=30),
    data=st.data(),
)
def test_every_item_comes_once_in_order_whatever_the_arrival(batch, start, fates, data):
    buffer = Order(batch, start)
    taken, passed = [], []
    for place in data.draw(st.permutations(range(len(fates)))):
        sequence = start + place
        if fates[place]:
            buffer.add(sequence, sequence)
        else:
            buffer.skip(sequence)
        while items := buffer.take():
            assert len(items) == batch
            taken, passed = taken + items, passed + buffer.passed
    buffer.end(start + len(fates))
    while (items := buffer.take()) is not None:
        taken, passed = taken + items, passed + buffer.passed
    assert taken == [start + place for place, kept in enumerate(fates) if kept]
    assert sorted(passed) == [start + place for place, kept in enumerate(fates) if not kept]
    assert buffer.finished
    assert len(buffer) == 0


def test_a_missing_item_holds_the_batch_back():
    buffer = Order(2)
    buffer.add(1, "b")
    buffer.add(2, "c")
    assert buffer.take() is None
    buffer.add(0, "a")
    assert buffer.take() == ["a", "b"]
    assert buffer.take() is None
    buffer.end(3)
    assert buffer.take() == ["c"]
    assert buffer.take() is None


def test_a_stream_that_ends_in_tombstones_accounts_for_them():
    buffer = Order(1)
    buffer.add(0, "a")
    assert buffer.take() == ["a"]
    buffer.skip(1)
    buffer.end(2)
    assert buffer.take() == []
    assert buffer.passed == [1]
    assert buffer.take() is None


def test_what_was_seen_is_refused():
    buffer = Order(1)
    buffer.add(0, "a")
    buffer.skip(1)
    for again in (0, 1):
        with pytest.raises(ValueError, match="seen before"):
            buffer.add(again, "x")
        with pytest.raises(ValueError, match="seen before"):
            buffer.skip(again)
    buffer.take()
    with pytest.raises(ValueError, match="seen before"):
        buffer.add(0, "x")
    with pytest.raises(ValueError, match="was seen"):
        buffer.end(1)
    buffer.end(2)
    with pytest.raises(ValueError, match="beyond the end"):
        buffer.add(2, "x")
