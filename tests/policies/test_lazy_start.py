import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safeladder.policies.lazy_start import LazyStart

CURVES = st.lists(
    st.fixed_dictionaries(
        {
            "reward": st.one_of(st.floats(-1, 1), st.just(float("nan"))),
            "unsafe": st.floats(0, 0.25),
        }
    ),
    max_size=40,
)


def watched(window=4, ramp_steps=5, **options):
    return LazyStart({"reward": 0.5, "unsafe": 0.1}, window=window, ramp_steps=ramp_steps, **options)


def test_the_ramp_begins_when_every_curve_is_flat_and_grows_linearly():
    start = LazyStart({"reward": 0.1, "unsafe": 0.1}, window=4, ramp_steps=4)
    rewards = [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    unsafe = [0.9, 0.9, 0.9, 0.9, 0.9, 0.5, 0.1, 0.1, 0.1, 0.1, 0.1]
    found = [start.update({"reward": r, "unsafe": u}) for r, u in zip(rewards, unsafe, strict=True)]
    # The reward's halves agree from the 6th value on; the unsafe rate's, (0.1, 0.1) and (0.1, 0.1), from the 10th.
    assert found == [0.0] * 10 + [0.25]
    assert [start.update({"reward": 0.0, "unsafe": 1.0}) for _ in range(4)] == [0.5, 0.75, 1.0, 1.0]


@settings(max_examples=60, deadline=None)
@given(steps=CURVES)
def test_the_factor_stays_in_0_to_1_and_never_goes_back(steps):
    start = watched()
    factors = [start.update(values) for values in steps]
    assert all(0.0 <= factor <= 1.0 for factor in factors)
    assert factors == sorted(factors)
    assert all(factor == 0.0 for factor in factors[:4])


@settings(max_examples=60, deadline=None)
@given(steps=CURVES, cut=st.integers(0, 40))
def test_a_restored_start_goes_on_exactly_as_the_first_would_have(steps, cut):
    whole, before, after = watched(), watched(), watched()
    expected = [whole.update(values) for values in steps]
    for values in steps[:cut]:
        before.update(values)
    state = json.loads(json.dumps(before.state(), allow_nan=False))
    after.restore(state)
    assert after.factor == before.factor
    assert [after.update(values) for values in steps[cut:]] == expected[cut:]
    assert after.state() == whole.state()


def test_a_state_is_not_reached_by_later_updates():
    start = watched()
    start.update({"reward": 0.0, "unsafe": 0.0})
    state = start.state()
    start.update({"reward": 1.0, "unsafe": 0.0})
    assert state["curves"]["reward"] == [0.0]


def test_a_step_that_measured_nothing_is_not_a_value():
    start = LazyStart({"reward": 0.0}, window=2, ramp_steps=0)
    values = [0.5, float("nan"), float("nan"), 0.5]
    assert [start.update({"reward": value}) for value in values] == [0.0, 0.0, 0.0, 1.0]


def test_the_ramp_waits_for_the_least_number_of_steps():
    start = LazyStart({"reward": 0.0}, window=2, ramp_steps=2, min_steps=5)
    assert [start.update({"reward": 0.0}) for _ in range(7)] == [0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 1.0]


def test_a_shorter_window_takes_the_newest_values_of_a_state():
    first = LazyStart({"reward": 0.0}, window=8)
    for value in (9.0, 8.0, 7.0, 1.0, 1.0, 1.0):
        first.update({"reward": value})
    second = LazyStart({"reward": 0.0}, window=4, ramp_steps=0)
    second.restore(first.state())
    assert second.update({"reward": 1.0}) == 1.0


def test_other_curves_are_ignored_and_missing_ones_refused():
    start = watched()
    start.update({"reward": 0.0, "unsafe": 0.0, "length": 900.0})
    before = start.state()
    with pytest.raises(ValueError, match="unsafe"):
        start.update({"reward": 0.0})
    with pytest.raises(ValueError, match="infinite"):
        start.update({"reward": float("inf"), "unsafe": 0.0})
    assert start.state() == before
    with pytest.raises(ValueError, match="watched"):
        LazyStart({"accuracy": 0.1}).restore(before)


@pytest.mark.parametrize(
    ("tolerances", "options", "message"),
    [
        ({}, {}, "at least one"),
        ({"reward": -0.1}, {}, "reward"),
        ({"reward": float("nan")}, {}, "reward"),
        ({"reward": 0.1}, {"window": 3}, "window"),
        ({"reward": 0.1}, {"ramp_steps": -1}, "ramp_steps"),
    ],
)
def test_bad_options_are_refused_by_name(tolerances, options, message):
    with pytest.raises(ValueError, match=message):
        LazyStart(tolerances, **options)
