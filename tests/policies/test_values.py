import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safeladder.policies.values import gae, returns_to_go, vtrace

# vectors/vtrace_gae.json: made with torchrl 0.14.1, cross-checked with rlax 0.1.9, float64. Value 0 after the end.
CASES = json.loads((Path(__file__).parent / "vectors" / "vtrace_gae.json").read_text())["cases"]
NUMBERS = st.floats(-10, 10, allow_subnormal=False)
CLOSE = {"atol": 1e-9, "rtol": 1e-9}


def row(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


@st.composite
def sequences(draw):
    length = draw(st.integers(1, 8))
    column = st.lists(NUMBERS, min_size=length, max_size=length)
    ratio = st.lists(st.floats(-3, 3, allow_subnormal=False), min_size=length, max_size=length)
    return row(draw(column)), row(draw(column)), row(draw(ratio))


@pytest.mark.parametrize("case", CASES)
def test_vtrace_and_gae_equal_the_independent_implementation(case):
    rewards, values, log_ratio = row(case["reward"]), row(case["value"]), row(case["log_pi"]) - row(case["log_mu"])
    advantages, targets = vtrace(
        rewards,
        values,
        log_ratio,
        gamma=case["gamma"],
        rho_cap=case["rho_bar"],
        c_cap=case["c_bar"],
        policy_cap=case["rho_bar"],
    )
    torch.testing.assert_close(targets, row(case["target"]), atol=1e-6, rtol=0)
    torch.testing.assert_close(advantages, row(case["advantage"]), atol=1e-6, rtol=0)
    estimated, _ = gae(rewards, values, gamma=case["gamma"], gae_lambda=0.95)
    torch.testing.assert_close(estimated, row(case["gae_lambda95"]), atol=1e-6, rtol=0)


@settings(max_examples=60, deadline=None)
@given(sequence=sequences(), gamma=st.floats(0.1, 1.0), bootstrap=NUMBERS)
def test_on_policy_vtrace_without_caps_is_the_return_with_bootstrap(sequence, gamma, bootstrap):
    rewards, values, _ = sequence
    caps = {"rho_cap": math.inf, "c_cap": math.inf, "policy_cap": math.inf}
    advantages, targets = vtrace(rewards, values, torch.zeros_like(rewards), gamma=gamma, bootstrap=bootstrap, **caps)
    monte_carlo = returns_to_go(torch.cat([rewards, row([bootstrap])]), gamma=gamma)[:-1]
    torch.testing.assert_close(targets, monte_carlo, atol=1e-7, rtol=1e-9)
    torch.testing.assert_close(advantages, monte_carlo - values, atol=1e-7, rtol=1e-9)


@settings(max_examples=60, deadline=None)
@given(sequence=sequences(), gamma=st.floats(0.1, 1.0))
def test_gae_with_lambda_1_is_the_return_minus_the_value_and_with_0_one_step(sequence, gamma):
    rewards, values, _ = sequence
    full, targets = gae(rewards, values, gamma=gamma, gae_lambda=1.0)
    torch.testing.assert_close(full, returns_to_go(rewards, gamma=gamma) - values, **CLOSE)
    torch.testing.assert_close(targets, returns_to_go(rewards, gamma=gamma), **CLOSE)
    one_step, _ = gae(rewards, values, gamma=gamma, gae_lambda=0.0)
    following = torch.cat([values[1:], row([0.0])])
    torch.testing.assert_close(one_step, rewards + gamma * following - values, **CLOSE)


@settings(max_examples=60, deadline=None)
@given(sequence=sequences(), gamma=st.floats(0.1, 1.0))
def test_returns_to_go_satisfy_their_recursion(sequence, gamma):
    rewards, _, _ = sequence
    returns = returns_to_go(rewards, gamma=gamma)
    torch.testing.assert_close(returns, rewards + gamma * torch.cat([returns[1:], row([0.0])]), **CLOSE)


@settings(max_examples=60, deadline=None)
@given(sequence=sequences())
def test_values_that_are_right_leave_no_advantage(sequence):
    rewards, _, log_ratio = sequence
    values = returns_to_go(rewards)
    nothing = torch.zeros_like(rewards)
    torch.testing.assert_close(gae(rewards, values)[0], nothing, **CLOSE)
    advantages, targets = vtrace(rewards, values, log_ratio)
    torch.testing.assert_close(advantages, nothing, **CLOSE)
    torch.testing.assert_close(targets, values, **CLOSE)


@settings(max_examples=60, deadline=None)
@given(sequence=sequences())
def test_the_policys_ratio_can_be_left_to_the_importance_weights(sequence):
    rewards, values, log_ratio = sequence
    weighted, targets = vtrace(rewards, values, log_ratio, policy_cap=1.0)
    bare, same_targets = vtrace(rewards, values, log_ratio, policy_cap=None)
    torch.testing.assert_close(weighted, bare * log_ratio.exp().clamp(max=1.0), **CLOSE)
    torch.testing.assert_close(targets, same_targets, atol=0, rtol=0)


def test_a_ratio_beyond_every_float_is_capped():
    advantages, targets = vtrace(row([1.0, 1.0]), row([0.0, 0.0]), row([1e6, -1e6]))
    assert advantages.tolist() == [1.0, 0.0]
    assert targets.tolist() == [1.0, 0.0]


def test_an_empty_sequence_has_no_returns():
    assert returns_to_go(row([])).shape == gae(row([]), row([]))[0].shape == (0,)


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="one entry a token"):
        gae(row([1.0, 2.0]), row([1.0]))
    with pytest.raises(ValueError, match="one entry a token"):
        vtrace(row([1.0]), row([1.0]), row([1.0, 2.0]))
