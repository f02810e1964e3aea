"""Multipliers rise above the limit and fall below it, within their bounds, on costs that are known."""

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import vectors

from safeladder.policies.advantages import Scores, grpo
from safeladder.policies.constraints import Constraint, ConstraintOptions, Constraints

METHODS = ["dual", "multiplicative", "lagrangian", "pid"]
PLAIN = ConstraintOptions(limit=0.1, min_episodes=1)


def fresh(*costs):
    return list(costs), [1.0] * len(costs), [0] * len(costs)


def columns(episodes):
    return [e[0] for e in episodes], [e[1] for e in episodes], [e[2] for e in episodes]


def options_of(case):
    """A case of the independent implementation in the names of this one; it has no lower bound but 0."""
    gains = ("proportional", "integral", "derivative", "smoothing", "derivative_delay")
    chosen = {name: case[name] for name in gains if name in case}
    upper = math.inf if case["upper"] is None else case["upper"]
    if case["kind"] == "pid":
        return replace(
            PLAIN, method="pid", limit=case["limit"], init=case["init"], minimum=0.0, maximum=upper, **chosen
        )
    return replace(
        PLAIN, method="lagrangian", limit=case["limit"], init=case["init"], minimum=0.0, maximum=upper, rate=case["lr"]
    )


@pytest.mark.parametrize("case", vectors("lagrange"), ids=lambda case: f"{case['kind']} to {case['limit']}")
def test_projected_ascent_and_controller_equal_the_independent_implementation(case):
    constraint = Constraint(replace(options_of(case), window=1))
    for step, (cost, expected) in enumerate(zip(case["costs"], case["multiplier"], strict=True), 1):
        constraint.observe(*fresh(cost))
        constraint.move(step)
        assert constraint.multiplier == pytest.approx(expected, abs=1e-6)


def test_dual_ascent_in_log_space_and_the_controller_by_hand():
    dual = Constraint(replace(PLAIN, rate=0.5, init=2.0))
    assert dual.next_multiplier(0.3) == pytest.approx(2.0 * math.exp(0.5 * 2.0 * 0.2))
    pid = Constraint(
        replace(PLAIN, method="pid", init=0.4, proportional=1.0, integral=0.5, derivative=2.0, smoothing=0.0,
                derivative_delay=1)
    )  # fmt: skip
    assert pid.next_multiplier(0.3) == pytest.approx(0.2 + (0.4 + 0.1) + 2.0 * 0.3)
    assert pid.next_multiplier(0.2) == pytest.approx(0.1 + (0.5 + 0.05) + 0.0)  # the cost falls: no derivative


@settings(max_examples=60, deadline=None)
@given(method=st.sampled_from(METHODS), costs=st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_a_multiplier_never_leaves_its_bounds(method, costs):
    constraint = Constraint(replace(PLAIN, method=method, rate=50.0, init=1.0, minimum=0.01, maximum=3.0))
    for step, cost in enumerate(costs, 1):
        constraint.observe(*fresh(cost))
        constraint.move(step)
        assert 0.01 <= constraint.multiplier <= 3.0


@pytest.mark.parametrize("method", METHODS)
def test_it_rises_above_the_limit_and_falls_below_it(method):
    for cost, sign in ((0.5, 1), (0.0, -1)):
        constraint = Constraint(replace(PLAIN, method=method, smoothing=0.0, derivative=0.0))
        before = constraint.multiplier
        constraint.observe(*fresh(cost, cost))
        constraint.move(1)
        assert math.copysign(1, constraint.multiplier - before) == sign


def test_an_unknown_cost_counts_as_nothing_and_too_few_known_ones_move_nothing():
    constraint = Constraint(replace(PLAIN, min_episodes=3))
    constraint.observe(*fresh(1.0, math.nan, math.nan, 1.0))
    constraint.move(1)
    assert constraint.estimate().episodes == 2
    assert constraint.multiplier == 1.0
    constraint.observe(*fresh(1.0))
    constraint.move(2)
    assert constraint.multiplier > 1.0


EPISODES = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 2), st.integers(0, 4)), max_size=12)


@settings(max_examples=60, deadline=None)
@given(method=st.sampled_from(METHODS), known=EPISODES, fresh_only=st.booleans(), data=st.data())
def test_episodes_of_unknown_cost_leave_no_trace(method, known, fresh_only, data):
    plain, holed = (
        Constraints({"unsafe": replace(PLAIN, method=method, window=8, fresh_only=fresh_only)}) for _ in range(2)
    )
    with_holes = list(known)
    for place in data.draw(st.lists(st.integers(0, len(known)), max_size=10)):
        with_holes.insert(place, (data.draw(st.sampled_from([math.nan, math.inf])), 1.0, 0))
    for step in (1, 2, 3):
        plain.update(step, {"unsafe": columns(known)})
        holed.update(step, {"unsafe": columns(with_holes)})
    assert holed.state() == plain.state()


@pytest.mark.parametrize("method", METHODS)
def test_a_silent_verifier_lets_the_multiplier_stay_where_it_is(method):
    constraints = Constraints({"unsafe": replace(PLAIN, method=method)})
    constraints.update(1, {"unsafe": fresh(1.0, 1.0)})
    before = constraints.multipliers()
    for step in range(2, 30):
        constraints.update(step, {"unsafe": fresh(math.nan, math.nan)})
    assert constraints.multipliers() == before
    constraints.update(30, {"unsafe": fresh(1.0)})
    assert constraints.multipliers()["unsafe"] > before["unsafe"]


@settings(max_examples=60, deadline=None)
@given(
    method=st.sampled_from(METHODS),
    costs=st.lists(st.floats(0, 1), min_size=1, max_size=12),
    more=st.floats(0, 0.5),
)
def test_a_higher_cost_never_makes_a_lower_multiplier(method, costs, more):
    cheap, dear = Constraint(replace(PLAIN, method=method)), Constraint(replace(PLAIN, method=method))
    for step, cost in enumerate(costs, 1):
        for constraint, value in ((cheap, cost), (dear, cost + more)):
            constraint.observe(*fresh(value))
            constraint.move(step)
        assert dear.multiplier >= cheap.multiplier - 1e-9


def test_a_weight_that_is_no_weight_is_refused_and_nothing_has_changed():
    constraint = Constraint(PLAIN)
    for weight in (math.nan, math.inf, -0.5):
        with pytest.raises(ValueError, match="weights"):
            constraint.observe([1.0, 0.0], [1.0, weight], [1, 1])
    with pytest.raises(ValueError):
        constraint.observe([1.0, 0.0], [1.0], [1, 1])
    assert constraint.state() == Constraint(PLAIN).state()


def test_nothing_moves_before_the_delay_is_over_nor_a_fixed_penalty_ever():
    late, fixed = Constraint(replace(PLAIN, delay=2)), Constraint(replace(PLAIN, method="fixed"))
    for step in (1, 2, 3):
        for constraint in (late, fixed):
            constraint.observe(*fresh(1.0))
            constraint.move(step)
        assert (late.multiplier > 1.0) == (step == 3)
    assert fixed.multiplier == 1.0


@settings(max_examples=60, deadline=None)
@given(
    costs=st.lists(st.floats(0, 1), min_size=1, max_size=20),
    weight=st.floats(0.01, 2.0),
)
def test_equal_weights_give_the_plain_mean_and_its_standard_error(costs, weight):
    constraint = Constraint(PLAIN)
    constraint.observe(costs, [weight] * len(costs), [1] * len(costs))
    found = constraint.estimate()
    mean = sum(costs) / len(costs)
    assert found.cost == pytest.approx(mean, abs=1e-9)
    spread = math.sqrt(sum((c - mean) ** 2 for c in costs)) / len(costs)
    assert found.error == pytest.approx(spread, abs=1e-7)


def test_stale_completions_count_by_their_weight_or_not_at_all():
    weighted, only = Constraint(PLAIN), Constraint(replace(PLAIN, fresh_only=True))
    for constraint in (weighted, only):
        constraint.observe([1.0, 0.0], [0.5, 1.7], [3, 0])  # the fresh one weighs 1 whatever it is given
    assert weighted.estimate().cost == pytest.approx(0.5 / 1.5)
    assert only.estimate().cost == 0.0


def test_a_window_forgets_the_oldest():
    constraint = Constraint(replace(PLAIN, window=2))
    constraint.observe(*fresh(1.0, 0.0, 0.0))
    assert constraint.estimate().cost == 0.0


def test_several_constraints_are_weighed_against_the_reward():
    made = {"b": replace(PLAIN, init=2.0), "a": replace(PLAIN, init=0.5)}
    forwards, backwards = Constraints(made), Constraints(dict(reversed(made.items())))
    reward, costs = torch.tensor([1.0, -1.0]), {"a": torch.tensor([2.0, 0.0]), "b": torch.tensor([0.0, 1.0])}
    for constraints in (forwards, backwards):
        torch.testing.assert_close(constraints.combine(reward, costs), torch.tensor([0.0, -3.0]) / 3.5)
    none = {name: torch.zeros(2) for name in costs}
    torch.testing.assert_close(forwards.combine(reward, none), reward / 3.5)
    before = forwards.state()
    with pytest.raises(KeyError, match="constraint b"):
        forwards.update(1, {"a": fresh(1.0)})
    assert forwards.state() == before


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8))
def test_the_order_of_constraints_does_not_matter(steps):
    methods = {"unsafe": "dual", "false certain": "pid", "rude": "lagrangian"}
    made = {name: replace(PLAIN, method=method) for name, method in methods.items()}
    first, second = Constraints(made), Constraints(dict(reversed(made.items())))
    for step, costs in enumerate(steps, 1):
        episodes = {name: fresh(cost) for name, cost in zip(methods, costs, strict=True)}
        first.update(step, episodes)
        second.update(step, dict(reversed(episodes.items())))
    assert json.dumps(first.state()) == json.dumps(second.state())
    columns = {name: torch.tensor(steps[0][:2]) * place for place, name in enumerate(methods)}
    reward = torch.tensor([1.0, -1.0])
    assert torch.equal(first.combine(reward, columns), second.combine(reward, dict(reversed(columns.items()))))


@settings(max_examples=40, deadline=None)
@given(cost=st.floats(0, 1), multiplier=st.floats(1e-3, 5.0), size=st.integers(1, 6))
def test_equal_costs_leave_only_the_reward(cost, multiplier, size):
    constraints = Constraints({"unsafe": replace(PLAIN, init=multiplier)})
    (spread,) = grpo([Scores(rewards=torch.full((size,), cost, dtype=torch.float64), valid=torch.ones(size).bool())])
    reward = torch.linspace(-1, 1, size, dtype=torch.float64)
    assert torch.equal(constraints.combine(reward, {"unsafe": spread}), reward / (1 + multiplier))


@pytest.mark.parametrize("method", METHODS)
def test_a_restored_constraint_goes_on_bit_for_bit(method):
    options = {"unsafe": replace(PLAIN, method=method, window=5)}
    first, second = Constraints(options), Constraints(options)
    for step in (1, 2, 3):
        first.update(step, {"unsafe": fresh(0.3 * step, 0.1)})
    second.restore(json.loads(json.dumps(first.state())))
    for step in (4, 5):
        for constraints in (first, second):
            constraints.update(step, {"unsafe": fresh(0.2, 0.7)})
    assert first.state() == second.state()
    assert first.version == 5


def test_the_report_says_margin_and_saturation():
    constraints = Constraints({"unsafe": replace(PLAIN, maximum=1.0), "rude": PLAIN})
    constraints.update(1, {"unsafe": fresh(0.5, 0.5), "rude": fresh(math.nan)})
    report = constraints.report()
    assert report["unsafe"] == {
        "multiplier": 1.0, "cost": 0.5, "error": 0.0, "limit": 0.1, "margin": -0.4, "episodes": 2, "saturated": True,
    }  # fmt: skip
    assert report["rude"]["cost"] is None and report["rude"]["episodes"] == 0


@pytest.mark.parametrize(
    "changes",
    [{"limit": math.nan}, {"rate": -1}, {"init": 9}, {"minimum": 0.0}, {"window": 0}, {"min_episodes": 1000},
     {"smoothing": 1.0}, {"derivative_delay": 0}, {"method": "duel"}, {"delay": -1}, {"integral": math.inf},
     {"derivative": -0.1}, {"minimum": math.nan}],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused_by_name(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        ConstraintOptions(**{"limit": 0.1, **changes})
