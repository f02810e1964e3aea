import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import flat, inputs, vectors

from safeladder.policies.corrections import CORRECTIONS, diagnose, log_ratios, off, token_mask, token_truncate, veto

RATIOS = st.lists(st.floats(-25, 25), min_size=1, max_size=12).map(lambda v: torch.tensor(v, dtype=torch.float64))


def test_truncated_weights_equal_the_independent_implementation():
    cases = vectors("rollout_correction")
    for case in cases:
        if case.get("level") == "token":
            given_inputs = inputs(cases, case["seed"])
            mask = given_inputs["mask"]
            log_ratio = log_ratios(flat(given_inputs["old"], mask), flat(given_inputs["rollout"], mask))
            weights = token_truncate(log_ratio, 0.0, case["cap"])
            torch.testing.assert_close(weights, flat(case["weights"], mask), atol=1e-6, rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(log_ratio=RATIOS, cap=st.floats(1.0, 10.0))
def test_weights_stay_in_their_bounds(log_ratio, cap):
    log_ratio = log_ratios(log_ratio, torch.zeros_like(log_ratio))
    for rule in CORRECTIONS.values():
        weights = rule(log_ratio, 0.5, cap)
        assert bool((weights >= 0).all())
        assert bool((weights <= cap).all())
    assert bool((token_truncate(log_ratio, 0.5, cap) > 0).all())


@pytest.mark.parametrize("name", sorted(CORRECTIONS))
def test_equal_policies_have_weight_one(name):
    assert CORRECTIONS[name](torch.zeros(3), 0.5, 2.0).tolist() == [1.0, 1.0, 1.0]


def test_the_window_drops_and_never_clips():
    log_ratio = torch.tensor([0.4, 1.0, 1.9, 2.1], dtype=torch.float64).log()
    torch.testing.assert_close(token_mask(log_ratio, 0.5, 2.0), torch.tensor([0.0, 1.0, 1.9, 0.0], dtype=torch.float64))


def test_an_impossible_token_vetoes_its_sequence_and_no_other():
    log_ratio = torch.tensor([0.0, math.log(1e-5), 0.0, 0.1, -0.1])
    assert veto(log_ratio, [3, 0, 2], 1e-4).tolist() == [False, False, False, True, True]
    assert veto(log_ratio, [3, 0, 2], 0.0).all()


def test_log_ratios_are_clamped_and_carry_no_gradient():
    proximal = torch.tensor([0.0, -500.0], requires_grad=True)
    found = log_ratios(proximal, torch.tensor([-500.0, 0.0]))
    assert found.tolist() == [20.0, -20.0]
    assert not found.requires_grad


@settings(max_examples=60, deadline=None)
@given(log_ratio=RATIOS)
def test_diagnostics_are_in_their_ranges(log_ratio):
    log_ratio = log_ratios(log_ratio, torch.zeros_like(log_ratio))
    for rule in (off, token_truncate, token_mask):
        found = diagnose(log_ratio, rule(log_ratio, 0.5, 2.0))
        assert 0 <= found.ess <= 1 + 1e-9
        assert found.mismatch >= 0
        assert 0 <= found.truncated + found.masked <= 1


def test_diagnostics_by_hand():
    log_ratio = torch.tensor([0.0, math.log(4.0)])
    found = diagnose(log_ratio, token_truncate(log_ratio, 0.0, 2.0))
    assert found.ess == pytest.approx(9 / (2 * 5))
    assert found.log_ratio_mean == pytest.approx(math.log(4) / 2)
    assert found.log_ratio_max == pytest.approx(math.log(4))
    assert found.mismatch == pytest.approx((3 - math.log(4)) / 2)
    assert (found.truncated, found.masked) == (0.5, 0.0)
    assert diagnose(torch.zeros(0), torch.zeros(0)).ess == 1.0
