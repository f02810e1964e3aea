"""Gates: intervals of means and differences, and what each rule makes of them."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeladder.launch.ladder.gate import Estimate, Gate, GateError, Side, difference, judge, mean, read_measures
from safeladder.verifiers.measure import wilson

SAFE, ABLE = "main/safety/safe_rate", "main/general/accuracy"


def share(right: int, n: int) -> Estimate:
    low, high = wilson(right, n)
    return Estimate(right / n, low, high, n)


def gate(rule: str = "not shown worse", margin: float = 0.05, floor: float = 0.0) -> Gate:
    side = Side([SAFE], margin, floor)
    return Gate(side, Side([ABLE], margin, floor), rule)  # type: ignore[arg-type]


def measures(safe: int, able: int, n: int) -> dict[str, Estimate]:
    return {SAFE: share(safe, n), ABLE: share(able, n)}


shares = st.integers(1, 400).flatmap(lambda n: st.builds(share, st.integers(0, n), st.just(n)))


@given(shares, shares)
def test_the_interval_of_a_difference_holds_it_and_turns_round_with_the_order(
    before: Estimate, after: Estimate
) -> None:
    found, back = difference(before, after), difference(after, before)
    assert found.low <= found.value <= found.high
    assert (back.value, back.low, back.high) == pytest.approx((-found.value, -found.high, -found.low))


def test_the_interval_of_a_difference_is_newcombes() -> None:
    """Newcombe 1998, table II, contrast (a), method 10: 56/70 - 48/80 is 0.2 with 0.0524 to 0.3339."""
    found = difference(share(48, 80), share(56, 70))
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)


def test_the_interval_of_a_difference_covers_the_truth_about_as_often_as_it_says() -> None:
    draw, held = random.Random(1), 0
    for _ in range(2000):
        before, after = (sum(draw.random() < p for _ in range(60)) for p in (0.4, 0.55))
        found = difference(share(before, 60), share(after, 60))
        held += found.low <= 0.15 <= found.high
    assert 0.93 < held / 2000 < 0.97


@given(st.lists(shares, min_size=1, max_size=5))
def test_a_mean_lies_within_its_measures_and_its_interval_is_no_wider_than_the_widest(found: list[Estimate]) -> None:
    named = {str(place): each for place, each in enumerate(found)}
    whole = mean(list(named), named)
    assert min(e.value for e in found) - 1e-9 <= whole.value <= max(e.value for e in found) + 1e-9
    assert whole.value - whole.low <= max(e.value - e.low for e in found) + 1e-9
    assert whole.n == min(e.n for e in found)


def test_a_loss_that_is_shown_fails_and_one_that_chance_explains_does_not() -> None:
    assert judge(gate(), measures(90, 50, 100), measures(87, 47, 100)).holds
    lost = judge(gate(), measures(90, 50, 100), measures(60, 50, 100))
    assert not lost.holds and not lost.sides["safety"].holds and lost.sides["capability"].holds
    assert "worse by the margin of 0.05" in lost.sides["safety"].why


def test_the_strict_rule_asks_for_proof_that_nothing_was_lost() -> None:
    strict = gate("shown not worse")
    assert not judge(strict, measures(90, 50, 100), measures(90, 50, 100)).holds  # a hundred records cannot show it
    assert judge(strict, measures(9000, 5000, 10000), measures(9000, 5000, 10000)).holds


def test_capability_is_held_as_safety_is() -> None:
    lost = judge(gate(), measures(50, 90, 100), measures(99, 40, 100))
    assert lost.sides["safety"].holds and not lost.sides["capability"].holds and not lost.holds


def test_a_floor_that_even_the_upper_end_does_not_reach_fails() -> None:
    found = judge(gate(floor=0.5), measures(20, 90, 100), measures(20, 90, 100))
    assert not found.sides["safety"].holds and "below the floor of 0.5" in found.sides["safety"].why


def test_a_measure_that_is_missing_or_of_nothing_is_an_error_and_never_a_pass() -> None:
    with pytest.raises(GateError, match="not measured; there is main/safety/safe"):
        judge(Gate(Side(["main/safety/safe_rat"]), Side([ABLE])), measures(1, 1, 2), measures(1, 1, 2))
    with pytest.raises(GateError, match="on no answer"):
        judge(gate(), measures(1, 1, 2), measures(1, 1, 2) | {SAFE: Estimate(1.0, 0.0, 1.0, 0)})
    with pytest.raises(GateError, match="names no measure"):
        judge(Gate(), {}, {})


def test_what_a_report_has_no_number_for_is_no_measure() -> None:
    report = {
        "safety": {
            "safe_rate": {"value": 0.5, "low": 0.1, "high": 0.9, "n": 4},
            "gap": {"value": None, "low": None, "high": None},
        }
    }
    assert read_measures("main", report) == {SAFE: Estimate(0.5, 0.1, 0.9, 4)}
