import json
import math
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safeladder.policies import values
from safeladder.policies.advantages import ADVANTAGES, Dense, Scores, is_per_token, per_token

NAMES = sorted(ADVANTAGES)
PER_TOKEN = ["gae", "reinforce_plus_plus", "vtrace"]
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

    def column(self, name):
        return getattr(self, name) or [0.0] * len(self.kept)


def scores(group):
    def row(numbers):
        return torch.tensor(list(numbers), dtype=torch.float64)

    dense = {name: [row(c.column(name)) for c in group] for name in ("values", "kl", "log_ratio")}
    return Scores(
        rewards=row(c.reward for c in group),
        valid=torch.tensor([c.valid for c in group], dtype=torch.bool),
        channels={"first": row(c.reward for c in group), "second": row(c.second for c in group)},
        lengths=row(len(c.kept) for c in group),
        dense=Dense(kept=[torch.tensor(c.kept, dtype=torch.bool) for c in group], **dense),
    )


def of(rewards, lengths=None, **more):
    rewards = torch.tensor(rewards, dtype=torch.float64)
    lengths = torch.ones_like(rewards) if lengths is None else torch.tensor(lengths)
    return Scores(rewards, torch.ones(len(rewards), dtype=torch.bool), lengths=lengths, **more)


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
    options = {"beta": 0.5} if name in PER_TOKEN else {}

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


def test_cpgd_weights():
    batch = [of([1.0, 0.0, 0.0, 0.0]), of([2.0, 2.0]), of([0.5, 0.5]), of([3.0, 1.0])]
    plain, scaled = ADVANTAGES["cpgd"](batch, weight="equal"), ADVANTAGES["cpgd"](batch, weight="clip_filter")
    torch.testing.assert_close(plain, ADVANTAGES["dr_grpo"](batch))
    torch.testing.assert_close(ADVANTAGES["cpgd"](batch), ADVANTAGES["grpo"](batch))
    torch.testing.assert_close(scaled, [2 * row for row in plain])  # four prompts, two of them with spread
    capped = ADVANTAGES["cpgd"](batch[1:3] * 4 + batch[:1], weight="clip_filter", cap=3.0)
    torch.testing.assert_close(capped[-1], 3 * plain[0])  # nine prompts, one with spread


def test_gdpo_hears_a_quiet_channel_as_loudly_as_a_loud_one():
    def batch(factor):
        quiet = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64) * factor
        return [of([0.0] * 4, channels={"loud": torch.tensor([0.0, 100.0, 0.0, 100.0]), "quiet": quiet})]

    (found,) = ADVANTAGES["gdpo"](batch(1.0))
    # Both terms are +-sqrt(3)/2; their sums -sqrt(3), 0, 0, sqrt(3) have standard deviation sqrt(2).
    expected = torch.tensor([-1.0, 0.0, 0.0, 1.0], dtype=torch.float64) * math.sqrt(3 / 2)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(ADVANTAGES["gdpo"](batch(0.25))[0], found, atol=1e-5, rtol=0)
    (against,) = ADVANTAGES["gdpo"](batch(-1.0))  # a negative weight is in the score's sign
    torch.testing.assert_close(against, found[[2, 3, 0, 1]], atol=1e-5, rtol=0)


def test_gdpo_puts_the_size_of_a_weight_back():
    channels = {"a": torch.tensor([0.0, 1.0, 0.0, 1.0]), "b": torch.tensor([0.0, 0.0, 2.0, 2.0])}
    (found,) = ADVANTAGES["gdpo"]([of([0.0] * 4, channels=channels, channel_weights={"b": -2.0})])
    # The sums are (-1 - 2, 1 - 2, -1 + 2, 1 + 2) times sqrt(3)/2.
    torch.testing.assert_close(found / found[2], torch.tensor([-3.0, -1.0, 1.0, 3.0]).double(), atol=1e-4, rtol=0)


def test_gdpo_gives_a_completion_without_a_score_neither_credit_nor_blame():
    channels = {"a": torch.tensor([0.0, 1.0, NAN]), "b": torch.tensor([NAN, NAN, 7.0])}
    (found,) = ADVANTAGES["gdpo"]([of([0.0, 0.0, 0.0], channels=channels)])
    assert found[2] == 0.0  # alone in b, absent from a
    assert found[1] == -found[0] > 0


def test_gdpo_does_not_see_the_order_in_which_its_channels_are_named():
    generator = torch.Generator().manual_seed(1)
    terms = {name: torch.rand(8, generator=generator, dtype=torch.float64) for name in "abcdef"}
    (found,) = ADVANTAGES["gdpo"]([of([0.0] * 8, channels=terms)])
    (other,) = ADVANTAGES["gdpo"]([of([0.0] * 8, channels=dict(reversed(terms.items())))])
    assert found.tolist() == other.tolist()


def test_gpg_makes_up_for_completions_without_gradient():
    batch = [of([1.0, 0.0]), of([1.0, 1.0, 1.0, 1.0])]
    torch.testing.assert_close(ADVANTAGES["gpg"](batch)[0], 3 * ADVANTAGES["dr_grpo"](batch)[0])
    torch.testing.assert_close(ADVANTAGES["gpg"](batch, count="nonzero")[0], 6 / 5 * ADVANTAGES["dr_grpo"](batch)[0])


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


# ------------------------------------------------------------------------------------------- errors


def test_scores_that_do_not_fit_are_refused_by_name():
    three, valid = torch.zeros(3), torch.ones(3, dtype=torch.bool)
    wrong = [
        ("one entry a sample", {"rewards": three, "valid": valid[:2]}),
        ("bool", {"rewards": three, "valid": three}),
        ("floating point", {"rewards": three.int(), "valid": valid}),
        ("not finite", {"rewards": torch.tensor([1.0, NAN, 0.0]), "valid": valid}),
        ("channel tone", {"rewards": three, "valid": valid, "channels": {"tone": torch.zeros(2)}}),
        ("cost unsafe .* infinite", {"rewards": three, "valid": valid, "costs": {"unsafe": three + math.inf}}),
        ("thought_lengths", {"rewards": three, "valid": valid, "thought_lengths": torch.tensor([1, -1, 2])}),
        ("qualified", {"rewards": three, "valid": valid, "qualified": three}),
        ("dense columns", {"rewards": three, "valid": valid, "dense": Dense(values=[three, three])}),
        (
            "differ in shape",
            {"rewards": three, "valid": valid, "dense": Dense(values=[three] * 3, kl=[three, three, three[:1]])},
        ),
        ("tokens", {"rewards": three, "valid": valid, "lengths": three + 2, "dense": Dense(values=[three] * 3)}),
    ]
    for message, fields in wrong:
        with pytest.raises(ValueError, match=message):
            Scores(**fields)


def test_an_unknown_channel_or_cost_is_allowed():
    terms = {"tone": torch.tensor([NAN, 1.0])}
    assert Scores(torch.zeros(2), torch.ones(2, dtype=torch.bool), channels=terms, costs=terms).costs == terms


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gdpo", {}, "channels"),
        ("reinforce_plus_plus", {"beta": 0.1}, "'kl'"),
        ("gae", {}, "'values'"),
        ("cpgd", {"weight": "STD"}, "clip_filter"),
        ("gpg", {"count": "all"}, "nonzero"),
    ],
)
def test_what_an_estimator_needs_and_lacks_is_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        ADVANTAGES[name]([of([1.0, 0.0])], **options)


@pytest.mark.parametrize("name", ["opo", "reinforce_plus_plus_baseline", "reinforce_plus_plus"])
def test_an_estimator_that_counts_tokens_asks_for_them(name):
    with pytest.raises(ValueError, match="lengths"):
        ADVANTAGES[name]([Scores(torch.zeros(2), torch.ones(2, dtype=torch.bool))])


# ------------------------------------------------------------------------------------------- reference numbers

# vectors/advantages.json: made with verl 0.9.1, float64. Its gpg counts rewards that are not 0.
COLUMNS = {
    "grpo": ("grpo", {}),
    "grpo_nostd": ("dr_grpo", {}),
    "rloo": ("rloo", {}),
    "opo": ("opo", {}),
    "gpg": ("gpg", {"count": "nonzero"}),
    "reinforce_plus_plus_baseline": ("reinforce_plus_plus_baseline", {}),
    "reinforce_plus_plus": ("reinforce_plus_plus", {}),
}
CASES = json.loads((Path(__file__).parent / "vectors" / "advantages.json").read_text())["cases"]


@pytest.mark.parametrize("column", sorted(COLUMNS))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_values_equal_the_independent_implementation(case, column):
    name, options = COLUMNS[column]
    groups = sorted(set(case["groups"]))
    rows = [[row for row, member in enumerate(case["groups"]) if member == group] for group in groups]
    batch = [of([case["scores"][r] for r in members], [case["lengths"][r] for r in members]) for members in rows]
    for members, found in zip(rows, ADVANTAGES[name](batch, **options), strict=True):
        lengths = [case["lengths"][r] for r in members]
        expected = [
            torch.tensor(case["out"][column][r][:n], dtype=torch.float64) for r, n in zip(members, lengths, strict=True)
        ]
        tokens = found if name in PER_TOKEN else found.repeat_interleave(torch.tensor(lengths))
        torch.testing.assert_close(tokens, torch.cat(expected), atol=1e-6, rtol=1e-6)


def test_cpgd_equals_the_independent_implementation():
    # From siiRL 0.2.0, compute_cpgd_outcome_advantage, which works in float32.
    batch = [of([1.0, 0.0, 1.0]), of([0.5, 0.25, 0.0])]
    expected = {
        "std": [[0.577349246, -1.15469861, 0.577349246], [0.999995947, 0.0, -0.999995947]],
        "equal": [[0.333333313, -0.666666687, 0.333333313], [0.25, 0.0, -0.25]],
    }
    for weight, rows in expected.items():
        for found, row in zip(ADVANTAGES["cpgd"](batch, weight=weight), rows, strict=True):
            torch.testing.assert_close(found, torch.tensor(row, dtype=torch.float64), atol=1e-6, rtol=0)
