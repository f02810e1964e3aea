import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from safeladder.policies.advantages import ADVANTAGES, Scores
from safeladder.policies.lengths import (
    LENGTH_ADVANTAGES,
    LENGTH_REWARDS,
    arora_zanette,
    cale,
    dca,
    ddca,
    informative,
    kimi,
    lazy,
    overlong,
    qualified_gap,
)

NAN = float("nan")
OPTIONS = {"overlong": {"max_tokens": 60, "buffer_tokens": 40}}
# Eighths add and subtract without rounding.
EIGHTHS = st.integers(-32, 32).map(lambda eighths: eighths / 8)
# reward, valid, qualified, length, task advantage
GROUPS = st.lists(
    st.tuples(EIGHTHS, st.booleans(), st.booleans(), st.integers(0, 100), EIGHTHS), min_size=1, max_size=9
)


def row(numbers):
    return torch.tensor(list(numbers), dtype=torch.float64)


def group(rewards, qualified, lengths, valid=None, **more):
    valid = [True] * len(rewards) if valid is None else valid
    return Scores(
        row(rewards),
        torch.tensor(valid, dtype=torch.bool),
        lengths=row(lengths),
        thought_lengths=row(lengths),
        qualified=torch.tensor(qualified, dtype=torch.bool),
        **more,
    )


def built(members, scale=1, shift=0):
    rewards, valid, qualified, lengths, task = zip(*members, strict=True)
    return group(rewards, qualified, [scale * n + shift for n in lengths], valid), row(task)


def length_part(name, members, beta=1.0, **changes):
    scores, task = built(members, **changes)
    return LENGTH_ADVANTAGES[name](torch.zeros_like(task), scores, beta=beta)


# ---------------------------------------------------------------------------------------- promises of all of them


@pytest.mark.parametrize("name", sorted(LENGTH_ADVANTAGES))
@settings(max_examples=80, deadline=None)
@given(members=GROUPS)
def test_credit_for_length_sums_to_zero_over_the_qualified_and_stays_below_1(name, members):
    part = length_part(name, members)
    assert abs(float(part.sum())) < 1e-12
    assert float(part.abs().max()) < 1.0


@pytest.mark.parametrize("name", sorted(LENGTH_ADVANTAGES))
@settings(max_examples=80, deadline=None)
@given(members=GROUPS, beta=st.floats(0, 2))
def test_completions_that_are_not_qualified_or_not_valid_keep_their_advantage(name, members, beta):
    scores, task = built(members)
    advantages = LENGTH_ADVANTAGES[name](task, scores, beta=beta)
    others = ~(scores.valid & scores.qualified)
    torch.testing.assert_close(advantages[others], task[others], atol=0, rtol=0)


@pytest.mark.parametrize("name", sorted(LENGTH_ADVANTAGES))
@settings(max_examples=80, deadline=None)
@given(members=GROUPS, share=st.floats(0, 0.99))
def test_no_unqualified_completion_overtakes_a_qualified_one_while_beta_is_below_the_gap(name, members, share):
    scores, task = built(members)
    gap = qualified_gap(task, scores)
    assume(gap is not None)
    if gap <= 0:  # then qualification becomes part of the reward first, as the rule's docstring says
        task = task + (0.125 - gap) * scores.qualified
        gap = qualified_gap(task, scores)
    advantages = LENGTH_ADVANTAGES[name](task, scores, beta=share * gap)
    assert advantages[scores.valid & scores.qualified].min() > advantages[scores.valid & ~scores.qualified].max()


@pytest.mark.parametrize("name", sorted(LENGTH_ADVANTAGES))
@settings(max_examples=60, deadline=None)
@given(members=GROUPS, length=st.integers(0, 100), keep=st.integers(0, 8))
def test_the_term_vanishes_with_fewer_than_two_qualified_and_with_equal_lengths(name, members, length, keep):
    one = [(r, v, q and k == keep, n, a) for k, (r, v, q, n, a) in enumerate(members)]
    assert not length_part(name, one).any()
    assert not length_part(name, [(r, v, q, length, a) for r, v, q, _, a in members]).any()


@pytest.mark.parametrize("name", sorted(LENGTH_ADVANTAGES))
@settings(max_examples=60, deadline=None)
@given(members=GROUPS, shift=st.integers(0, 1000), scale=st.integers(1, 50))
def test_the_term_does_not_depend_on_the_unit_or_the_origin_of_length(name, members, shift, scale):
    expected = length_part(name, members)
    torch.testing.assert_close(length_part(name, members, scale=scale, shift=shift), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", sorted(LENGTH_ADVANTAGES))
@settings(max_examples=60, deadline=None)
@given(members=GROUPS)
def test_a_shorter_qualified_completion_gets_more(name, members):
    part = length_part(name, members)
    chosen = [(n, float(a)) for (_, v, q, n, _), a in zip(members, part, strict=True) if v and q]
    for length, credit in chosen:
        assert all(credit > other for longer, other in chosen if longer > length)


def spoilt(scores, junk):
    """The same group with other numbers where it is not valid."""
    return Scores(
        torch.where(scores.valid, scores.rewards, junk),
        scores.valid,
        lengths=torch.where(scores.valid, scores.lengths, 7.0),
        thought_lengths=torch.where(scores.valid, scores.thought_lengths, 7.0),
        qualified=torch.where(scores.valid, scores.qualified, True),
    )


@pytest.mark.parametrize("name", sorted([*LENGTH_REWARDS, *LENGTH_ADVANTAGES]))
@settings(max_examples=60, deadline=None)
@given(members=GROUPS, junk=st.sampled_from([NAN, math.inf, -1e9]), data=st.data())
def test_invalid_completions_are_not_read_and_order_does_not_matter(name, members, junk, data):
    def answer(members, spoil):
        scores, task = built(members)
        scores = spoilt(scores, junk) if spoil else scores
        if name in LENGTH_REWARDS:
            return LENGTH_REWARDS[name](scores, **OPTIONS.get(name, {})), scores
        return LENGTH_ADVANTAGES[name](task, scores), scores

    expected, scores = answer(members, spoil=False)
    found, changed = answer(members, spoil=True)
    torch.testing.assert_close(found[scores.valid], expected[scores.valid], atol=0, rtol=0)
    if name in LENGTH_REWARDS:
        torch.testing.assert_close(found[~scores.valid], changed.rewards[~scores.valid], atol=0, rtol=0, equal_nan=True)
    order = data.draw(st.permutations(range(len(members))))
    permuted, _ = answer([members[k] for k in order], spoil=False)
    torch.testing.assert_close(permuted, expected[torch.tensor(order)], atol=1e-12, rtol=0)


# ---------------------------------------------------------------------------------------- rules one by one


def test_cale_by_hand():
    # Two of four qualified, 100 and 300 tokens: z = -1 and 1, sigmoid 0.2689 and 0.7311, mean 0.5, rho = 1/2.
    scores = group([1.0, 1.0, 0.0, 0.0], [True, True, False, False], [100, 300, 50, 900])
    task = row([0.75, 0.75, -0.75, -0.75])
    credit = 1 / (1 + math.exp(-1)) - 0.5
    expected = row([0.75 + 0.1 * credit, 0.75 - 0.1 * credit, -0.75, -0.75])
    torch.testing.assert_close(cale(task, scores, beta=0.2), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(ddca(task, scores, beta=0.2), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(dca(task, scores, beta=0.1), expected, atol=1e-12, rtol=0)


def test_cale_measures_the_thought_and_its_relatives_the_completion():
    thoughts, both = row([1.0, 2.0]), torch.ones(2, dtype=torch.bool)
    scores = Scores(torch.zeros(2), both, lengths=row([2.0, 1.0]), thought_lengths=thoughts, qualified=both)
    nothing = torch.zeros(2)
    assert cale(nothing, scores)[0] > 0 > dca(nothing, scores)[0]
    torch.testing.assert_close(cale(nothing, scores, measure="completion"), ddca(nothing, scores))


def test_cale_counts_the_share_of_the_valid():
    half = group([1.0, 1.0, 0.0, 0.0], [True, True, False, False], [1, 3, 5, 5])
    whole = group([1.0, 1.0, 0.0, 0.0], [True, True, False, False], [1, 3, 5, 5], [True, True, False, False])
    zero = torch.zeros(4)
    torch.testing.assert_close(cale(zero, whole), 2 * cale(zero, half))


def test_cale_after_grpo_leaves_a_solved_prompt_a_gradient():
    scores = group([1.0, 1.0, 1.0], [True] * 3, [10, 20, 60])
    (task,) = ADVANTAGES["grpo"]([scores])
    assert not task.any()
    assert cale(task, scores).any()


def test_overlong_by_hand():
    # The buffer is 60..100: nothing up to 60, half in the middle, all of it at 100 and beyond.
    scores = group([1.0] * 5, [False] * 5, [10, 60, 80, 100, 500])
    found = overlong(scores, max_tokens=100, buffer_tokens=40, factor=2.0)
    torch.testing.assert_close(found, row([1.0, 1.0, 0.0, -1.0, -1.0]))


def test_kimi_by_hand():
    scores = group([1.0, 1.0, 0.0, 0.0], [True, True, False, False], [10, 30, 20, 50])
    torch.testing.assert_close(kimi(scores), row([1.5, 1.0, 0.0, -0.5]))
    torch.testing.assert_close(kimi(scores, weight=0.5), row([1.25, 1.0, 0.0, -0.25]))
    same = group([1.0, 0.0], [True, False], [10, 10])
    torch.testing.assert_close(kimi(same), same.rewards)


def test_arora_zanette_by_hand():
    scores = group([1.0, 1.0, 0.0, -2.0], [True, True, False, True], [10, 30, 5, 20])
    z = row([-10, 10, 0]) / math.sqrt(200 / 3)
    expected = row([1.0, 1.0, -2.0]) - 0.4 * row([1.0, 1.0, 2.0]) * torch.sigmoid(z)
    torch.testing.assert_close(arora_zanette(scores, alpha=0.4)[[0, 1, 3]], expected)
    assert arora_zanette(scores, alpha=0.4)[2] == 0.0
    alone = group([1.0, 0.0], [True, False], [10, 5])
    torch.testing.assert_close(arora_zanette(alone, alpha=0.4), row([0.8, 0.0]))


def test_lazy_by_hand():
    scores = group([1.0, 1.0, 1.0, 0.0], [True, True, True, False], [100, 300, 500, 10])
    torch.testing.assert_close(lazy(scores), row([1.5, 1.5, 0.5, 0.0]))
    torch.testing.assert_close(lazy(scores, tolerance_tokens=0, weight=0.5), row([1.25, 1.0, 0.75, 0.0]))


@settings(max_examples=60, deadline=None)
@given(members=GROUPS)
def test_lazy_never_ranks_by_length_within_the_tolerance(members):
    scores, _ = built(members)
    found = lazy(scores, tolerance_tokens=100)
    chosen = scores.valid & scores.qualified
    torch.testing.assert_close(found[chosen], scores.rewards[chosen] + 0.5, atol=0, rtol=0)
    torch.testing.assert_close(found[~chosen], scores.rewards[~chosen], atol=0, rtol=0)


# ---------------------------------------------------------------------------------------- dynamic sampling


@settings(max_examples=80, deadline=None)
@given(members=GROUPS, data=st.data())
def test_a_group_is_informative_exactly_when_an_advantage_of_it_is_not_zero(members, data):
    scores, _ = built(members)
    unsafe = data.draw(st.lists(st.sampled_from([0.0, 1.0, NAN]), min_size=len(members), max_size=len(members)))
    scores = Scores(
        scores.rewards,
        scores.valid,
        costs={"unsafe": row(unsafe)},
        thought_lengths=scores.thought_lengths,
        qualified=scores.qualified,
    )
    known = scores.valid & ~row(unsafe).isnan()
    (task,), (cost,) = ADVANTAGES["grpo"]([scores]), ADVANTAGES["grpo"]([Scores(row(unsafe), known)])
    assert informative(scores, False) == bool(task.any() or cost.any())
    assert informative(scores, True) == bool(task.any() or cost.any() or length_part("cale", members).any())


def test_informative_does_not_depend_on_the_range_of_the_rewards():
    for reward in (0.0, 1.0, 2.5, -7.0):
        assert not informative(group([reward] * 3, [True] * 3, [5, 5, 5]), True)
        assert informative(group([reward, reward, reward + 0.5], [True] * 3, [5, 5, 5]), False)


def test_terms_that_cancel_in_the_sum_count_where_the_estimator_hears_them_apart():
    terms = {"a": row([0.0, 1.0]), "b": row([1.0, 0.0]), "c": row([NAN, 1.0])}
    scores = group([1.0, 1.0], [False, False], [5, 5], channels=terms)
    assert not informative(scores, False)
    assert informative(scores, False, channels=True)
    alone = group([1.0, 1.0], [False, False], [5, 5], channels={"c": terms["c"]})
    assert not informative(alone, False, channels=True)


# ---------------------------------------------------------------------------------------- errors


def test_what_a_rule_needs_and_lacks_is_named():
    bare = Scores(row([1.0, 0.0]), torch.ones(2, dtype=torch.bool))
    nothing = torch.zeros(2)
    calls = [
        ("max_tokens", lambda: overlong(bare)),
        ("buffer_tokens", lambda: overlong(bare, max_tokens=100, buffer_tokens=200)),
        ("Scores.lengths", lambda: overlong(bare, max_tokens=100, buffer_tokens=20)),
        ("qualified", lambda: cale(nothing, bare)),
        ("Scores.thought_lengths", lambda: cale(nothing, Scores(bare.rewards, bare.valid, qualified=bare.valid))),
        ("beta", lambda: dca(nothing, group([0.0, 0.0], [True, True], [1, 2]), beta=-0.1)),
        ("one a completion", lambda: ddca(torch.zeros(3), group([0.0, 0.0], [True, True], [1, 2]))),
        ("measure", lambda: kimi(group([0.0], [True], [1]), measure="words")),
        ("tolerance_tokens", lambda: lazy(group([0.0], [True], [1]), tolerance_tokens=-1)),
    ]
    for message, call in calls:
        with pytest.raises(ValueError, match=message):
            call()


def test_no_gap_is_told_without_one_of_the_two_kinds():
    assert qualified_gap(torch.zeros(2), group([0.0, 0.0], [True, True], [1, 2])) is None
    assert qualified_gap(row([0.5, 2.0, -1.0]), group([0.0] * 3, [True, True, False], [1, 2, 3])) == 1.5
