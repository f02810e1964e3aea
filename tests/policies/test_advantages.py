from dataclasses import dataclass, field, replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safeladder.policies import values
from safeladder.policies.advantages import ADVANTAGES, Dense, Scores, is_per_token, per_token

NAMES = sorted(ADVANTAGES)
PER_TOKEN = ["gae", "reinforce_plus_plus", "tree", "vtrace"]
WITH_KL = ["gae", "reinforce_plus_plus", "vtrace"]
WITHIN_GROUP = ["cpgd", "dr_grpo", "gdpo", "gpg", "grpo", "opo", "rloo"]
NAN = float("nan")


@dataclass
class Completion:
    """One completion in plain numbers: what a group of Scores is built from, and easy to permute or to spoil."""

    reward: float
    valid: bool = True
    kept: list[bool] = field(default_factory=lambda: [True])
    second: float = 0.0
    values: list[float] | None = None
    kl: list[float] | None = None
    log_ratio: list[float] | None = None
    nodes: list[int] | None = None

    def column(self, name):
        return getattr(self, name) or [0.0] * len(self.kept)


def scores(group):
    def row(numbers):
        return torch.tensor(list(numbers), dtype=torch.float64)

    dense = {name: [row(c.column(name)) for c in group] for name in ("values", "kl", "log_ratio")}
    dense["nodes"] = [torch.tensor(c.column("nodes"), dtype=torch.int64) for c in group]
    return Scores(
        rewards=row(c.reward for c in group),
        valid=torch.tensor([c.valid for c in group], dtype=torch.bool),
        channels={"first": row(c.reward for c in group), "second": row(c.second for c in group)},
        lengths=row(len(c.kept) for c in group),
        dense=Dense(kept=[torch.tensor(c.kept, dtype=torch.bool) for c in group], **dense),
    )


def by_completion(name, batch, **options):
    """For every group, the K tensors of its completions: [1] of a number a completion, [n_k] of numbers a token."""
    estimated = ADVANTAGES[name]([scores(group) for group in batch], **options)
    sizes = [[len(c.kept) if name in PER_TOKEN else 1 for c in group] for group in batch]
    return [list(torch.split(row, size)) for row, size in zip(estimated, sizes, strict=True)]


def assert_same(found, expected, **tolerance):
    for group, expected_group in zip(found, expected, strict=True):
        for completion, expected_completion in zip(group, expected_group, strict=True):
            torch.testing.assert_close(completion, expected_completion, **tolerance)


# Eighths add and subtract without rounding, so equality of rewards survives a shift exactly.
EIGHTHS = st.integers(-32, 32).map(lambda eighths: eighths / 8)


@st.composite
def completions(draw):
    tokens = draw(st.integers(1, 4))
    column = st.lists(EIGHTHS, min_size=tokens, max_size=tokens)
    return Completion(
        reward=draw(EIGHTHS),
        valid=draw(st.booleans()),
        kept=draw(st.lists(st.booleans(), min_size=tokens, max_size=tokens)),
        second=draw(st.one_of(EIGHTHS, st.just(NAN))),
        values=draw(column),
        kl=draw(column),
        log_ratio=draw(column),
        nodes=sorted(draw(st.lists(st.integers(0, 3), min_size=tokens, max_size=tokens))),
    )


GROUPS = st.lists(completions(), min_size=1, max_size=5)
BATCHES = st.lists(GROUPS, min_size=1, max_size=3)
CLOSE = {"atol": 1e-8, "rtol": 1e-8}


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(batch=BATCHES, data=st.data())
def test_permuting_completions_and_groups_permutes_the_advantages(name, batch, data):
    expected = by_completion(name, batch)
    groups = data.draw(st.permutations(range(len(batch))))
    orders = [data.draw(st.permutations(range(len(batch[g])))) for g in groups]
    shuffled = [[batch[g][k] for k in order] for g, order in zip(groups, orders, strict=True)]
    wanted = [[expected[g][k] for k in order] for g, order in zip(groups, orders, strict=True)]
    assert_same(by_completion(name, shuffled), wanted, **CLOSE)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("gae", "vtrace")])
@settings(max_examples=30, deadline=None)
@given(batch=BATCHES, shift=EIGHTHS)
def test_a_shift_of_all_rewards_changes_nothing(name, batch, shift):
    shifted = [[replace(c, reward=c.reward + shift) for c in group] for group in batch]
    assert_same(by_completion(name, shifted), by_completion(name, batch), **CLOSE)


@pytest.mark.parametrize("name", WITHIN_GROUP)
@settings(max_examples=30, deadline=None)
@given(
    reward=st.floats(-1e6, 1e6, allow_subnormal=False),
    valid=st.lists(st.booleans(), min_size=1, max_size=9),
    others=st.lists(GROUPS, max_size=2),
)
def test_a_group_without_spread_gets_exactly_zero_whatever_the_others_hold(name, reward, valid, others):
    flat = [Completion(reward, ok, second=reward) for ok in valid]
    found = by_completion(name, [*others, flat])[-1]
    assert not torch.cat(found).any()


@pytest.mark.parametrize("name", [*WITHIN_GROUP, "reinforce_plus_plus", "reinforce_plus_plus_baseline"])
@settings(max_examples=30, deadline=None)
@given(
    reward=st.floats(-1e6, 1e6, allow_subnormal=False),
    valid=st.lists(st.lists(st.booleans(), min_size=1, max_size=5), min_size=1, max_size=3),
)
def test_a_batch_without_spread_gets_exactly_zero(name, reward, valid):
    batch = [[Completion(reward, ok, kept=[True] * (k + 1)) for k, ok in enumerate(group)] for group in valid]
    assert not torch.cat([row for group in by_completion(name, batch) for row in group]).any()


@pytest.mark.parametrize("name", WITHIN_GROUP)
def test_a_single_valid_completion_has_no_advantage(name):
    group = [Completion(1.0, False), Completion(5.0, True, second=2.0), Completion(0.0, False)]
    assert not torch.cat(by_completion(name, [group])[0]).any()


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(batch=BATCHES, junk=st.sampled_from([NAN, float("inf"), -1e9, 0.0]))
def test_nothing_of_an_invalid_completion_is_read(name, batch, junk):
    options = {"beta": 0.5} if name in WITH_KL else {}

    def spoil(c):
        column = [junk] * len(c.kept)
        return c if c.valid else replace(c, reward=junk, second=junk, values=column, kl=column, log_ratio=column)

    expected = by_completion(name, batch, **options)
    found = by_completion(name, [[spoil(c) for c in group] for group in batch], **options)
    assert_same(found, expected, atol=0, rtol=0)
    invalid = [row for g, group in enumerate(batch) for c, row in zip(group, found[g], strict=True) if not c.valid]
    assert not any(row.any() for row in invalid)
    alone = by_completion(name, [[c for c in group if c.valid] for group in batch], **options)
    valid = [[row for c, row in zip(group, found[g], strict=True) if c.valid] for g, group in enumerate(batch)]
    assert_same(alone, valid, atol=0, rtol=0)


@pytest.mark.parametrize("name", ["cpgd", "dr_grpo", "gdpo", "gpg", "grpo", "rloo"])
@settings(max_examples=30, deadline=None)
@given(batch=BATCHES)
def test_advantages_of_a_group_sum_to_zero(name, batch):
    for group in by_completion(name, batch):
        assert abs(float(torch.cat(group).sum())) < 1e-8


@settings(max_examples=40, deadline=None)
@given(batch=BATCHES)
def test_opo_sums_to_zero_over_the_tokens_of_a_group(batch):
    for group, rows in zip(batch, by_completion("opo", batch), strict=True):
        assert abs(sum(float(row) * sum(c.kept) for c, row in zip(group, rows, strict=True) if c.valid)) < 1e-8


@pytest.mark.parametrize("name", ["reinforce_plus_plus", "reinforce_plus_plus_baseline", "gae"])
@settings(max_examples=40, deadline=None)
@given(batch=BATCHES)
def test_whitened_advantages_have_mean_0_and_variance_1_over_the_own_tokens_of_the_batch(name, batch):
    tokens = []
    for group, rows in zip(batch, by_completion(name, batch), strict=True):
        for c, row in zip(group, rows, strict=True):
            if c.valid:
                tokens.append(row[torch.tensor(c.kept)] if name in PER_TOKEN else row.expand(sum(c.kept)))
    everything = torch.cat([torch.zeros(0, dtype=torch.float64), *tokens])
    if everything.any():
        assert abs(float(everything.mean())) < 1e-8
        assert float(everything.var()) < 1 + 1e-8
        if name != "gae":  # what the 1e-8 added to the variance takes off is small only where advantages are not
            assert float(everything.var()) > 0.99


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch_and_a_batch_of_invalid_groups_are_answered(name):
    assert ADVANTAGES[name]([]) == []
    found = by_completion(name, [[Completion(NAN, False), Completion(1.0, False)]])
    assert not torch.cat(found[0]).any()


@pytest.mark.parametrize("name", NAMES)
def test_the_result_has_one_entry_for_each_and_the_dtype_of_the_rewards(name):
    group = scores([Completion(1.0, kept=[True, False, True]), Completion(0.0, kept=[True])])
    (found,) = ADVANTAGES[name]([replace(group, rewards=group.rewards.float())])
    assert found.dtype == torch.float32
    assert is_per_token(ADVANTAGES[name]) == is_per_token(partial(ADVANTAGES[name], beta=1)) == (name in PER_TOKEN)
    assert found.shape == ((4,) if name in PER_TOKEN else (2,))


def test_a_users_own_estimator_can_be_marked():
    assert is_per_token(per_token(lambda batch: [torch.zeros(int(s.own_tokens().sum())) for s in batch]))


# ------------------------------------------------------------------------------------------- rules one by one


def test_ones_are_one_whatever_the_reward():
    (found,) = ADVANTAGES["ones"]([scores([Completion(-3.0), Completion(9.0, False), Completion(-3.0)])])
    assert found.tolist() == [1.0, 0.0, 1.0]


def test_reinforce_plus_plus_takes_kl_off_every_own_token_and_adds_the_reward_at_the_last_one():
    group = [
        Completion(1.0, kept=[True, False, True, False], kl=[0.5, NAN, 0.25, NAN]),
        Completion(0.0, kept=[True], kl=[1.0]),
    ]
    found = torch.cat(by_completion("reinforce_plus_plus", [group], beta=2.0, gamma=0.5)[0])
    # r = -1 and 1/2 in the first: returns -3/4 and 1/2; -2 in the second.
    returns = torch.tensor([-0.75, 0.5, -2.0], dtype=torch.float64)
    expected = (returns - returns.mean()) / returns.std()
    assert found[1] == found[3] == 0.0
    torch.testing.assert_close(found[[0, 2, 4]], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["gae", "vtrace"])
def test_the_environments_tokens_are_cut_out_before_the_recursion(name):
    with_search = Completion(
        1.0,
        kept=[True, False, False, True],
        values=[0.5, NAN, 9.0, -0.25],
        log_ratio=[0.25, 3.0, NAN, -0.5],
    )
    without = Completion(1.0, kept=[True, True], values=[0.5, -0.25], log_ratio=[0.25, -0.5])
    ((found,),) = by_completion(name, [[with_search]], whiten=False)
    ((expected,),) = by_completion(name, [[without]], whiten=False)
    torch.testing.assert_close(found[[0, 3]], expected, atol=0, rtol=0)
    assert found[1] == found[2] == 0.0
    rewards, numbers = torch.tensor([0.0, 1.0]), torch.tensor([0.5, -0.25])
    of_sequence = {
        "gae": lambda: values.gae(rewards, numbers),
        "vtrace": lambda: values.vtrace(rewards, numbers, torch.tensor([0.25, -0.5])),
    }
    torch.testing.assert_close(expected, of_sequence[name]()[0], atol=1e-12, rtol=0)
