"""Importance weights stay in their bounds, filters see what they say, and neither sees an environment's tokens."""

import functools
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import flat, inputs, lengths, vectors

from safeladder.policies.corrections import (
    FILTERS,
    WEIGHTS,
    Ratios,
    cap_of,
    diagnose,
    geometric,
    geometric_truncate,
    k2,
    k3,
    log_ratios,
    m2po,
    off,
    opsm,
    sequence_mask,
    sequence_truncate,
    token_mask,
    token_truncate,
    veto,
)

CAPPED = [name for name in WEIGHTS if "normalised" not in name and name not in ("off", "token_mask")]


def ratios(values, sizes=None, advantages=None, kept=None):
    log_ratio = torch.as_tensor(values, dtype=torch.float64).clamp(-20, 20)
    count = log_ratio.numel()
    return Ratios(
        log_ratio,
        torch.ones(count) if advantages is None else torch.tensor(advantages),
        [count] if sizes is None else sizes,
        torch.ones(count, dtype=torch.bool) if kept is None else torch.tensor(kept),
    )


SOME = st.lists(st.lists(st.floats(-25, 25), min_size=1, max_size=6), min_size=1, max_size=4).map(
    lambda rows: ratios([v for row in rows for v in row], [len(row) for row in rows])
)


@pytest.mark.parametrize(("level", "rule"), [("token", token_truncate), ("sequence", sequence_truncate)])
def test_truncated_weights_equal_the_independent_implementation(level, rule):
    cases = vectors("rollout_correction")
    chosen = [case for case in cases if case.get("level") == level]
    assert len(chosen) == 2
    for case in chosen:
        given_inputs = inputs(cases, case["seed"])
        mask = given_inputs["mask"]
        log_ratio = log_ratios(flat(given_inputs["old"], mask), flat(given_inputs["rollout"], mask))
        weights = rule(ratios(log_ratio, lengths(mask)), cap=case["cap"])
        torch.testing.assert_close(weights, flat(case["weights"], mask), atol=1e-6, rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(some=SOME, cap=st.floats(1.0, 10.0))
def test_weights_stay_in_their_bounds(some, cap):
    for name in CAPPED:
        weights = WEIGHTS[name](some, cap=cap)
        assert bool((weights >= 0).all()) and bool((weights <= cap * (1 + 1e-12)).all())
        assert "mask" in name or bool((weights > 0).all())
    window = token_mask(some, low=0.5, high=cap)
    assert bool(((window == 0) | ((window >= 0.5) & (window <= cap))).all())


RULES = {**WEIGHTS, **FILTERS}


def mixed(seed=0):
    """Three sequences, near and far, with environment tokens in the first and nothing but such tokens in the last."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(9, generator=generator, dtype=torch.float64) * torch.tensor([0.1] * 4 + [2.0] * 3 + [1.0] * 2)
    kept = [True, True, False, True, True, True, True, False, False]
    return ratios(values, [4, 3, 2], [1.0] * 4 + [-1.0] * 5, kept)


@pytest.mark.parametrize("name", sorted(RULES))
def test_only_rules_of_the_whole_batch_see_other_sequences(name):
    """What the step relies on when it gives the sequences of a pack to a rule: packs change nothing, unless it is marked."""
    some, alone, place = mixed(), [], 0
    for size in some.lengths:
        part = slice(place, place + size)
        alone.append(RULES[name](Ratios(some.log_ratio[part], some.advantages[part], [size], some.kept[part])))
        place += size
    together = RULES[name](some)[some.kept]
    assert torch.equal(together, torch.cat(alone)[some.kept]) != getattr(RULES[name], "whole_batch", False)


@pytest.mark.parametrize("name", sorted(RULES))
def test_rules_change_no_input_and_answer_for_every_token(name):
    some = mixed(1)
    before = some.log_ratio.clone()
    found = RULES[name](some)
    assert torch.equal(some.log_ratio, before)
    assert (found.shape, found.requires_grad) == (some.log_ratio.shape, False)
    assert found.dtype == (torch.bool if name in FILTERS else torch.float64)
    assert bool(found[some.kept].double().isfinite().all())
    nothing = RULES[name](ratios([], []))
    assert nothing.shape == (0,)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["veto", "geometric", "k3"])
def test_filters_of_sequences_take_them_whole(name, seed):
    for part in FILTERS[name](mixed(seed)).split([4, 3, 2]):
        assert bool(part.all()) or not bool(part.any())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", sorted(RULES))
def test_tokens_of_an_environment_might_as_well_not_be_there(name, seed):
    some = mixed(seed)
    own = some.kept
    without = Ratios(some.log_ratio[own], some.advantages[own], [3, 3, 0], own[own])
    torch.testing.assert_close(RULES[name](some)[own], RULES[name](without))


def test_tokens_of_an_environment_do_not_make_up_for_far_ones():
    """Each has distance 0, and counted in the mean would let the far token through."""
    some = ratios([0.3, 0.1, 0.0, 0.0], kept=[True, True, False, False])
    assert m2po(some, threshold=0.04)[:2].tolist() == [False, True]


LOOSER = [
    ("veto", "threshold", [1e-1, 1e-2, 1e-4, 0.0]),
    ("geometric", "high", [1.0, 1.1, 2.0, 1e10]),
    ("k2", "high", [0.0, 0.1, 1.0, 1e6]),
    ("k3", "high", [0.0, 0.01, 1.0, 1e10]),
    ("opsm", "delta", [0.0, 0.1, 1.0, 21.0]),
    ("m2po", "threshold", [1e-4, 0.04, 1.0, 1e6]),
]


@pytest.mark.parametrize(("name", "option", "values"), LOOSER)
@settings(max_examples=20, deadline=None)
@given(some=SOME)
def test_a_looser_filter_keeps_whatever_a_tighter_one_keeps(name, option, values, some):
    more = {"low": 0.0} if name == "geometric" else {}
    some = Ratios(some.log_ratio, -some.advantages, some.lengths, some.kept)  # opsm looks at bad samples alone
    found = [FILTERS[name](some, **more, **{option: value}) for value in values]
    assert all(bool((tight <= loose).all()) for tight, loose in itertools.pairwise(found))
    assert found[-1].all()


@pytest.mark.parametrize("name", sorted(WEIGHTS))
def test_equal_policies_have_weight_one(name):
    assert WEIGHTS[name](ratios([0.0, 0.0, 0.0], [2, 1])).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("name", sorted(FILTERS))
def test_equal_policies_are_not_filtered(name):
    assert FILTERS[name](ratios([0.0] * 3, [2, 1], advantages=[-1.0, -1.0, 1.0])).all()


@settings(max_examples=40, deadline=None)
@given(some=SOME, shift=st.floats(1, 20))
def test_tokens_of_an_environment_change_no_weight_and_no_filter_of_others(some, shift):
    """The last token of every sequence is the environment's: whatever ratio it has, the others see nothing of it."""
    last = torch.tensor(some.lengths).cumsum(0) - 1
    kept = torch.ones_like(some.kept)
    kept[last] = False
    moved = some.log_ratio.clone()
    moved[last] = shift
    before, after = (Ratios(log, some.advantages, some.lengths, kept) for log in (some.log_ratio, moved))
    for name, rule in {**WEIGHTS, **FILTERS}.items():
        torch.testing.assert_close(rule(before)[kept], rule(after)[kept], atol=0, rtol=0, msg=name)
    assert diagnose(before, off(before)) == diagnose(after, off(after))


def test_the_window_drops_and_never_clips():
    found = token_mask(ratios([math.log(v) for v in (0.4, 1.0, 1.9, 2.1)]), low=0.5, high=2.0)
    torch.testing.assert_close(found, torch.tensor([0.0, 1.0, 1.9, 0.0], dtype=torch.float64))


def test_a_whole_sequence_is_weighed_or_rejected():
    some = ratios([math.log(1.5), math.log(1.5), math.log(0.5)], [2, 1])
    torch.testing.assert_close(sequence_truncate(some, cap=2.0), torch.tensor([2.0, 2.0, 0.5], dtype=torch.float64))
    torch.testing.assert_close(sequence_mask(some, cap=2.0), torch.tensor([0.0, 0.0, 0.5], dtype=torch.float64))


@settings(max_examples=40, deadline=None)
@given(some=SOME)
def test_normalised_weights_have_mean_one(some):
    assert float(WEIGHTS["token_truncate_normalised"](some).mean()) == pytest.approx(1.0)
    by_sequence = torch.stack([p[0] for p in WEIGHTS["sequence_truncate_normalised"](some).split(some.lengths)])
    assert float(by_sequence.mean()) == pytest.approx(1.0)


def test_a_sequence_without_tokens_of_its_own_does_not_count_in_the_mean():
    some = ratios([0.2, 0.2, 5.0], [2, 1], kept=[True, True, False])
    assert WEIGHTS["sequence_truncate_normalised"](some)[:2].tolist() == [1.0, 1.0]


def test_an_impossible_token_vetoes_its_sequence_and_no_other():
    some = ratios([0.0, math.log(1e-5), 0.0, 0.1, -0.1], [3, 0, 2])
    assert veto(some, threshold=1e-4).tolist() == [False, False, False, True, True]
    assert veto(some, threshold=0.0).all()


def test_a_window_may_be_open_below_and_must_be_one():
    assert geometric(ratios([-15.0, 0.1], [1, 1]), low=0.0, high=1.05).tolist() == [True, False]
    with pytest.raises(ValueError, match="low <= high"):
        geometric(ratios([0.0]), low=1.1, high=1.0)


def test_filters_by_hand():
    some = ratios([0.3, -0.3, 2.5, 0.0], [2, 2], advantages=[1.0, -1.0, -1.0, -1.0])
    assert geometric(some, low=0.9, high=1.1).tolist() == [True, True, False, False]
    assert k2(some, high=2.0).tolist() == [True, True, False, True]
    assert k2(some, high=2.0, aggregate="max").tolist() == [True, True, False, False]
    assert k2(some, high=2.0, aggregate="mean").tolist() == [True] * 4
    assert k2(some, high=3.0, aggregate="sum").tolist() == [True, True, False, False]
    assert k3(some, high=0.1).tolist() == [True, True, False, False]
    away = ratios([-1.0, -1.0, 1.0, 1.0], [2, 2], advantages=[1.0, -1.0, -1.0, -1.0])
    assert opsm(away, delta=0.1).tolist() == [True, False, True, True]


def test_a_filter_by_geometric_mean_does_not_see_length():
    for length in (1, 10, 1000):
        assert geometric(ratios([math.log(1.0005)] * length)).all()
        assert not geometric(ratios([math.log(1.002)] * length)).any()


@settings(max_examples=60, deadline=None)
@given(some=SOME, threshold=st.floats(1e-3, 10))
def test_m2po_leaves_out_the_fewest_tokens_that_do(some, threshold):
    stays = m2po(some, threshold=threshold)
    moments = some.log_ratio.square()
    kept = moments[stays]
    assert kept.numel() >= 1
    if kept.numel() > 1:
        assert float(kept.mean()) < threshold * (1 + 1e-9)
    dropped = moments[~stays]
    if dropped.numel():
        assert float(dropped.min()) >= float(kept.max())
        with_one_more = torch.cat([kept, dropped.min()[None]])
        assert float(with_one_more.mean()) >= threshold * (1 - 1e-9)


def test_log_ratios_are_clamped_and_carry_no_gradient():
    proximal = torch.tensor([0.0, -500.0], requires_grad=True)
    found = log_ratios(proximal, torch.tensor([-500.0, 0.0]))
    assert found.tolist() == [20.0, -20.0]
    assert not found.requires_grad


@settings(max_examples=60, deadline=None)
@given(some=SOME)
def test_diagnostics_are_in_their_ranges(some):
    for rule in (off, token_truncate, token_mask):
        found = diagnose(some, rule(some))
        assert 0 <= found.ess <= 1 + 1e-9
        assert found.mismatch >= 0
        assert 0 <= found.truncated + found.masked <= 1
        assert 0 <= found.above + found.below <= 1
        assert found.perplexity_ratio == pytest.approx(math.exp(-found.behaviour_kl))


def test_diagnostics_by_hand():
    some = ratios([0.0, math.log(4.0)], [1, 1])
    found = diagnose(some, token_truncate(some, cap=2.0))
    assert found.ess == pytest.approx(9 / (2 * 5))
    assert found.behaviour_kl == pytest.approx(-math.log(4) / 2)
    assert found.log_ratio_max == pytest.approx(math.log(4))
    assert found.mismatch == pytest.approx((3 - math.log(4)) / 2)
    assert found.chi2_token == found.chi2_sequence == pytest.approx(7.5)
    assert (found.truncated, found.masked, found.above, found.below) == (0.5, 0.0, 0.5, 0.0)
    assert diagnose(ratios([], []), torch.zeros(0)).ess == 1.0


@pytest.mark.parametrize(
    ("rule", "share"),
    [(off, 0.0), (token_truncate, 0.5), (sequence_truncate, 0.75), (geometric_truncate, 0.75), (token_mask, 0.0)],
)
def test_truncated_are_the_tokens_whose_weight_is_at_the_cap_of_their_rule(rule, share):
    some = ratios([math.log(v) for v in (1.9, 0.5, 1.8, 0.7)], [3, 1])  # product 1.71, mean 1.2
    bound = (
        functools.partial(rule, cap=1.15) if rule in (token_truncate, sequence_truncate, geometric_truncate) else rule
    )
    single = Ratios(some.log_ratio.float(), some.advantages, some.lengths, some.kept)
    for each in (some, single):
        assert diagnose(each, bound(each), cap_of(bound)).truncated == share


def test_a_weight_that_is_the_cap_by_itself_is_not_truncated():
    some = ratios([0.0, 0.0])
    assert diagnose(some, token_truncate(some, cap=1.0), 1.0).truncated == 0.0


def test_the_cap_of_a_rule_is_the_one_it_is_bound_to():
    assert cap_of(functools.partial(token_truncate, cap=1.5)) == 1.5
    assert [cap_of(rule) for rule in (token_truncate, off, token_mask)] == [2.0, 2.0, 2.0]
