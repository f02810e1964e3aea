import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import vectors

from safeladder.policies.advantages import ADVANTAGES, grpo

NAMES = sorted(ADVANTAGES)
# Eighths add and subtract without rounding, so equality of rewards survives a shift exactly.
REWARDS = st.integers(-32, 32).map(lambda eighths: eighths / 8)
GROUPS = st.lists(st.tuples(REWARDS, st.booleans()), min_size=1, max_size=9)


def tensors(group):
    rewards, valid = zip(*group, strict=True)
    return torch.tensor(rewards, dtype=torch.float64), torch.tensor(valid)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(group=GROUPS, data=st.data())
def test_permuting_the_samples_permutes_the_advantages(name, group, data):
    rewards, valid = tensors(group)
    order = torch.tensor(data.draw(st.permutations(range(len(group)))))
    torch.testing.assert_close(
        ADVANTAGES[name](rewards, valid)[order], ADVANTAGES[name](rewards[order], valid[order]), atol=1e-9, rtol=1e-9
    )


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(group=GROUPS, shift=REWARDS)
def test_a_shift_of_all_rewards_changes_nothing(name, group, shift):
    rewards, valid = tensors(group)
    torch.testing.assert_close(
        ADVANTAGES[name](rewards, valid), ADVANTAGES[name](rewards + shift, valid), atol=1e-9, rtol=1e-9
    )


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(reward=st.floats(-1e6, 1e6), valid=st.lists(st.booleans(), min_size=1, max_size=9))
def test_equal_rewards_give_exactly_zero(name, reward, valid):
    advantages = ADVANTAGES[name](torch.full((len(valid),), reward), torch.tensor(valid))
    assert not advantages.any()


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(group=GROUPS, junk=st.sampled_from([float("nan"), float("inf"), -1e9, 0.0]))
def test_the_reward_of_an_invalid_sample_is_never_read(name, group, junk):
    rewards, valid = tensors(group)
    advantages = ADVANTAGES[name](torch.where(valid, rewards, junk), valid)
    torch.testing.assert_close(advantages, ADVANTAGES[name](rewards, valid), atol=0, rtol=0)
    assert not advantages[~valid].any()
    alone = ADVANTAGES[name](rewards[valid], torch.ones(int(valid.sum()), dtype=torch.bool))
    torch.testing.assert_close(advantages[valid], alone, atol=0, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(group=GROUPS)
def test_advantages_of_a_group_sum_to_zero(name, group):
    assert abs(float(ADVANTAGES[name](*tensors(group)).sum())) < 1e-9


def test_a_single_valid_sample_has_no_advantage():
    for estimate in ADVANTAGES.values():
        assert not estimate(torch.tensor([1.0, 5.0, 0.0]), torch.tensor([False, True, False])).any()


def test_bad_arguments_are_refused_by_name():
    with pytest.raises(ValueError, match="one entry a sample"):
        grpo(torch.zeros(3), torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="bool"):
        grpo(torch.zeros(2), torch.ones(2))
    with pytest.raises(ValueError, match="not finite"):
        grpo(torch.tensor([1.0, float("nan")]), torch.ones(2, dtype=torch.bool))


@pytest.mark.parametrize(("name", "column"), [("grpo", "grpo"), ("dr_grpo", "grpo_nostd"), ("rloo", "rloo")])
def test_values_equal_the_independent_implementation(name, column):
    for case in vectors("advantages"):
        scores = torch.tensor(case["scores"], dtype=torch.float64)
        for group in sorted(set(case["groups"])):
            rows = [row for row, member in enumerate(case["groups"]) if member == group]
            expected = torch.tensor([case["out"][column][row][0] for row in rows], dtype=torch.float64)
            advantages = ADVANTAGES[name](scores[rows], torch.ones(len(rows), dtype=torch.bool))
            torch.testing.assert_close(advantages, expected, atol=2e-6, rtol=1e-6)
