"""Every objective against numbers of independent implementations, and against what its formula promises."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import flat, inputs, lengths, vectors

from safeladder.policies.aggregation import aggregate, coefficients, mean_by_sequence, over_tokens
from safeladder.policies.corrections import (
    Ratios,
    geometric_mask,
    geometric_truncate,
    log_ratios,
    token_mask,
    token_truncate,
)
from safeladder.policies.objectives import OBJECTIVES, Tokens, clipped, cpgd, gmpo, gspo, interpolated_proximal, topr

# verl's names of the aggregations; its sum of tokens per sequence, averaged over sequences, is "constant" with 1 token
MODES = {"token-mean": "token_mean", "seq-mean-token-mean": "sequence_mean", "seq-mean-token-sum": "constant"}
OURS = {"vanilla": "clipped", "geo_mean": "gmpo", "gpg": "policy_gradient"}
SUPERVISED = {"sft"}


def read(cases, seed, proximal="old"):
    """The inputs of a seed as `Tokens`, float64, the current log-probabilities with a gradient."""
    given_inputs = inputs(cases, seed)
    mask = given_inputs["mask"]
    old = flat(given_inputs[proximal], mask)
    return Tokens(
        logprobs=flat(given_inputs["new"], mask).requires_grad_(),
        proximal=old,
        behaviour=flat(given_inputs["behaviour"], mask) if "behaviour" in given_inputs else old,
        advantages=flat(given_inputs["adv"], mask),
        lengths=lengths(mask),
        kept=torch.ones_like(old, dtype=torch.bool),
    ), mask


def total(losses, tokens, mode, groups=None):
    shares = coefficients(tokens.lengths, groups or range(len(tokens.lengths)), mode, 1)
    return aggregate(losses, tokens.kept, tokens.lengths, shares)


def check(loss, tokens, case, mask, constant=0.0):
    loss.backward()
    assert float(loss.detach()) + constant == pytest.approx(case["loss"], abs=1e-6)
    torch.testing.assert_close(tokens.logprobs.grad, flat(case["grad"], mask), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["vanilla", "gspo", "cispo", "sapo", "geo_mean", "gpg"])
def test_losses_and_gradients_equal_the_independent_implementation(name):
    cases = vectors("policy_losses")
    chosen = [case for case in cases if case.get("loss_name") == name]
    assert len(chosen) >= 3
    for case in chosen:
        tokens, mask = read(cases, case["seed"])
        options = {}
        if name in ("vanilla", "gspo", "cispo", "geo_mean"):
            options = {"low": case["clip_low"], "high": case["clip_high"]}
        if name == "vanilla":
            options["dual"] = case["clip_c"]
        # verl averages gmpo over sequences, whatever it is asked for
        mode = "sequence_mean" if name == "geo_mean" else MODES[case["agg"]]
        check(total(OBJECTIVES[OURS.get(name, name)](tokens, **options), tokens, mode), tokens, case, mask)


def test_cpgd_equals_the_independent_implementation():
    """siiRL's loss leaves out A ln proximal, which is a constant of the gradient; it is added here."""
    cases = vectors("cpgd")
    chosen = [case for case in cases if "agg" in case]
    assert len(chosen) == 9
    for case in chosen:
        tokens, mask = read(cases, case["seed"])
        losses = cpgd(tokens, low=case["clip_low"], high=case["clip_high"], drift=0.0)
        constant = float(total(-tokens.advantages * tokens.proximal, tokens, MODES[case["agg"]]))
        check(total(losses, tokens, MODES[case["agg"]]), tokens, case, mask, constant)


def test_the_policy_drift_of_cpgd_equals_the_independent_implementation():
    cases = vectors("cpgd")
    for case in (case for case in cases if "agg" in case):
        tokens, mask = read(cases, case["seed"])
        tokens = replace(tokens, advantages=torch.zeros_like(tokens.proximal))
        drift = total(cpgd(tokens, drift=1.0), tokens, MODES[case["agg"]])
        found = {"loss": case["drift_loss_coeff1"], "grad": case["drift_grad_coeff1"]}
        check(drift, tokens, found, mask)


AREAL = {"mask": (token_mask, geometric_mask), "clamp": (token_truncate, geometric_truncate)}


def test_the_decoupled_loss_equals_the_independent_implementation():
    """AReaL's sequence level is the geometric mean; it divides by the tokens of the batch, masked ones included."""
    cases = vectors("decoupled_loss")
    chosen = [case for case in cases if "options" in case and "importance_sampling_level" not in case["options"]]
    assert len(chosen) == 6
    for case in chosen:
        tokens, mask = read(cases, case["seed"], "proximal")
        log_ratio = log_ratios(tokens.proximal, tokens.behaviour)
        ratios = Ratios(log_ratio, tokens.advantages, tokens.lengths, tokens.kept)
        weights = torch.ones_like(tokens.proximal)
        if rule := case["options"]["behaviour_correction"]:
            level, kind, cap = rule
            correct = AREAL[kind][level == "sequence"]
            weights = correct(ratios, low=0.0, high=cap) if correct is token_mask else correct(ratios, cap=cap)
        losses = clipped(tokens, low=0.2, high=0.28, dual=case["options"].get("c_clip")) * weights
        check(total(losses, tokens, "token_mean"), tokens, case, mask)


def test_the_ratio_of_whole_sequences_equals_the_independent_implementation():
    """AReaL gives every token its sequence's mean advantage before; GSPO's paper has one advantage a sequence anyway."""
    cases = vectors("decoupled_loss")
    (case,) = (case for case in cases if case.get("options", {}).get("importance_sampling_level") == "sequence")
    tokens, mask = read(cases, case["seed"], "proximal")
    mean = mean_by_sequence(tokens.advantages, tokens.kept, tokens.lengths)
    tokens = replace(tokens, advantages=over_tokens(mean, tokens.lengths))
    check(total(gspo(tokens, low=0.2, high=0.28), tokens, "token_mean"), tokens, case, mask)


# ----------------------------------------------------------------------------------------------------- properties

finite = st.floats(-2, 2, allow_subnormal=False)
advantage = st.just(0.0) | st.floats(1e-3, 3) | st.floats(-3, -1e-3)


def one(drift, advantage, **more):
    return Tokens(
        logprobs=torch.tensor([drift - 1.0], dtype=torch.float64, requires_grad=True),
        proximal=torch.tensor([-1.0], dtype=torch.float64),
        behaviour=torch.tensor([-1.0], dtype=torch.float64),
        advantages=torch.tensor([advantage], dtype=torch.float64),
        lengths=[1],
        kept=torch.ones(1, dtype=torch.bool),
        **more,
    )


def gradient(losses, tokens):
    (found,) = torch.autograd.grad(losses.sum(), tokens.logprobs, allow_unused=True)
    return torch.zeros_like(tokens.logprobs) if found is None else found


def random_tokens(seed, sizes=(3, 1, 4), equal=False):
    generator = torch.Generator().manual_seed(seed)
    count = sum(sizes)

    def draw():
        return torch.randn(count, generator=generator, dtype=torch.float64)

    logprobs = -draw().abs() - 0.1
    return Tokens(
        logprobs=logprobs.clone().requires_grad_(),
        proximal=logprobs if equal else logprobs + 0.3 * draw(),
        behaviour=logprobs if equal else logprobs + 0.3 * draw(),
        advantages=over_tokens(draw()[: len(sizes)], list(sizes)),
        lengths=list(sizes),
        kept=torch.ones(count, dtype=torch.bool),
    )


@pytest.mark.parametrize("name", sorted(OBJECTIVES.keys() - SUPERVISED))
def test_where_the_three_policies_are_one_the_gradient_is_that_of_reinforce(name):
    tokens = random_tokens(0, equal=True)
    losses = OBJECTIVES[name](tokens)
    if name in ("gmpo", "gspo"):  # of a whole sequence: its tokens share the gradient, under sequence_mean
        shared = gradient(total(losses, tokens, "sequence_mean")[None], tokens)
        expected = gradient(total(-tokens.advantages * tokens.logprobs, tokens, "sequence_mean")[None], tokens)
        torch.testing.assert_close(shared, expected)
    else:
        torch.testing.assert_close(gradient(losses, tokens), -tokens.advantages)


@settings(max_examples=60, deadline=None)
@given(advantage=advantage, drift=finite)
def test_clipped_and_cpgd_are_silent_exactly_outside_the_clip(advantage, drift):
    ratio = math.exp(drift)
    if min(abs(ratio - 0.8), abs(ratio - 1.2)) < 1e-9:
        return
    outside = (advantage > 0 and ratio > 1.2) or (advantage < 0 and ratio < 0.8)
    for rule, expected in ((clipped, -advantage * ratio), (cpgd, -advantage)):
        tokens = one(drift, advantage)
        found = float(gradient(rule(tokens, **({"drift": 0.0} if rule is cpgd else {})), tokens))
        assert found == (0.0 if outside else pytest.approx(expected))


@settings(max_examples=60, deadline=None)
@given(advantage=advantage, drift=finite)
@pytest.mark.parametrize(("rule", "bottom", "top"), [(gspo, 1 - 3e-4, 1 + 4e-4), (gmpo, math.exp(-0.4), math.exp(0.4))])
def test_the_rules_of_whole_sequences_are_silent_exactly_outside_the_clip(rule, bottom, top, advantage, drift):
    ratio = math.exp(drift)
    if min(abs(ratio - bottom), abs(ratio - top)) < 1e-9:
        return
    outside = (advantage > 0 and ratio > top) or (advantage < 0 and ratio < bottom)
    tokens = one(drift, advantage)
    assert float(gradient(rule(tokens), tokens)) == (0.0 if outside else pytest.approx(-advantage * ratio))


@settings(max_examples=40, deadline=None)
@given(drift=finite)
def test_the_gate_of_sapo_fades_on_both_sides_and_sooner_for_what_was_bad(drift):
    good, bad = one(drift, 1.0), one(drift, -1.0)
    kept, pushed = -float(gradient(OBJECTIVES["sapo"](good), good)), float(gradient(OBJECTIVES["sapo"](bad), bad))
    ratio = math.exp(drift)
    assert 0 < kept <= ratio * (1 + 1e-12)  # never more than the gradient without a gate, r A
    assert 0 < pushed <= kept * (1 + 1e-12)


@settings(max_examples=40, deadline=None)
@given(drift=finite, high=st.floats(0.0, 3.0))
def test_cispo_bounds_the_weight_and_keeps_every_gradient(drift, high):
    tokens = one(drift, -1.5)
    found = float(gradient(OBJECTIVES["cispo"](tokens, high=high), tokens))
    assert found == pytest.approx(1.5 * min(math.exp(drift), 1 + high))


@pytest.mark.parametrize(("drift", "advantage"), [(-30.0, 2.0), (30.0, -2.0)])
def test_a_policy_that_is_far_away_is_still_brought_back(drift, advantage):
    """The side that is not clipped: neither bound of the ratio's exponent may silence it."""
    tokens = one(drift, advantage)
    assert float(gradient(cpgd(tokens, drift=0.0), tokens)) == -advantage
    assert float(gradient(OBJECTIVES["kimi"](tokens, tau=0.1), tokens)) == pytest.approx(-advantage + 0.1 * drift)


@settings(max_examples=40, deadline=None)
@given(drift=finite)
def test_without_advantage_kimis_loss_pulls_towards_the_sampling_policy(drift):
    tokens = one(drift, 0.0)
    assert float(gradient(OBJECTIVES["kimi"](tokens, tau=0.1), tokens)) == pytest.approx(0.1 * drift)


@settings(max_examples=40, deadline=None)
@given(drift=st.floats(-2, 2).filter(lambda x: abs(x) > 1e-3))
def test_the_drift_term_pulls_the_ratio_towards_one_and_is_capped(drift):
    tokens = one(drift, 0.0)
    pull = float(gradient(cpgd(tokens, drift=1.0, drift_cap=2.0), tokens))
    assert math.copysign(1, pull) == math.copysign(1, drift)  # the loss falls where ln r moves towards 0
    assert pull == pytest.approx(min(math.expm1(drift), 2.0))


def test_tight_to_loose_clips_early_tokens_harder():
    tokens = replace(random_tokens(1, (4,)), advantages=torch.ones(4, dtype=torch.float64))
    tokens = replace(tokens, proximal=tokens.logprobs.detach() - math.log(1.12))
    silent = [float(g) == 0 for g in gradient(cpgd(tokens, low=0.2, high=0.2, tightness=0.0, drift=0.0), tokens)]
    assert silent == [True, True, False, False]  # ranges up to 1.05, 1.10, 1.15, 1.20
    assert not any(gradient(cpgd(tokens, tightness=1.0, drift=0.0), tokens) == 0)


def test_a_batch_gone_through_again_scales_its_advantages_within_the_clip():
    first, again = (one(1.0, -1.0, epoch=epoch) for epoch in (0, 1))
    assert float(gradient(cpgd(first, drift=0.0), first)) == pytest.approx(1.0)
    assert float(gradient(cpgd(again, drift=0.0), again)) == pytest.approx(1.2)
    assert float(gradient(cpgd(again, drift=0.0, scale_epochs=False), again)) == pytest.approx(1.0)


@pytest.mark.parametrize("name", sorted(OBJECTIVES.keys() - SUPERVISED))
def test_without_advantage_there_is_no_gradient_apart_from_drift(name):
    tokens = random_tokens(2)
    tokens = replace(tokens, advantages=torch.zeros_like(tokens.proximal))
    driftless = {"cpgd": {"drift": 0.0}, "kimi": {"tau": 0.0}}.get(name, {})
    assert not gradient(OBJECTIVES[name](tokens, **driftless), tokens).any()


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@pytest.mark.parametrize("mode", ["token_mean", "sequence_mean", "group_token_mean", "constant"])
def test_leaving_a_sequence_out_changes_no_other_gradient(name, mode):
    tokens = random_tokens(3)
    shares = coefficients(tokens.lengths, [0, 0, 1], mode, 4)

    def of(mask):
        return gradient(aggregate(OBJECTIVES[name](tokens), mask, tokens.lengths, shares)[None], tokens)

    masked = tokens.kept.clone()
    masked[3] = False  # the second sequence
    whole, part = of(tokens.kept), of(masked)
    torch.testing.assert_close(whole[[0, 1, 2, 4, 5, 6, 7]], part[[0, 1, 2, 4, 5, 6, 7]], atol=0, rtol=0)
    assert float(part[3]) == 0.0


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@pytest.mark.parametrize("mode", ["token_mean", "sequence_mean", "group_token_mean", "constant"])
def test_a_split_into_packs_adds_up_to_the_whole(name, mode):
    tokens = random_tokens(4)
    shares = coefficients(tokens.lengths, [0, 1, 1], mode, 4)
    whole = aggregate(OBJECTIVES[name](tokens), tokens.kept, tokens.lengths, shares)
    parts = []
    for part, sizes, chosen in ((slice(0, 4), [3, 1], shares[:2]), (slice(4, 8), [4], shares[2:])):
        columns = {n: getattr(tokens, n)[part] for n in ("logprobs", "proximal", "behaviour", "advantages", "kept")}
        piece = Tokens(**columns, lengths=sizes)
        parts.append(aggregate(OBJECTIVES[name](piece), piece.kept, sizes, chosen))
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_tokens_of_an_environment_do_not_move_their_sequence(name):
    tokens = random_tokens(5, (4,))
    kept = torch.tensor([True, True, False, True])
    moved = tokens.proximal.clone()
    moved[2] += 5.0
    found = []
    for proximal in (tokens.proximal, moved):
        losses = OBJECTIVES[name](replace(tokens, kept=kept, proximal=proximal, behaviour=proximal))
        found += [losses[kept], gradient(aggregate(losses, kept, [4], [1.0])[None], tokens)]
    torch.testing.assert_close(found[:2], found[2:], atol=0, rtol=0)
    assert float(found[1][2]) == 0.0


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_tokens_of_an_environment_might_as_well_not_be_there(name):
    tokens = random_tokens(8, (5, 3))
    own = torch.tensor([True, False, True, True, False, True, True, False])
    tokens = replace(tokens, advantages=torch.where(own, tokens.advantages, 0.0))
    columns = {n: getattr(tokens, n)[own] for n in ("logprobs", "proximal", "behaviour", "advantages")}
    options = {"tightness": 0.0, "low": 0.3, "high": 0.3} if name == "cpgd" else {}
    found = OBJECTIVES[name](replace(tokens, kept=own), **options)[own]
    torch.testing.assert_close(found, OBJECTIVES[name](Tokens(**columns, lengths=[3, 2], kept=own[own]), **options))


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_the_sampling_policy_is_read_by_those_that_say_so(name):
    tokens = random_tokens(7)
    first, second = (OBJECTIVES[name](replace(tokens, behaviour=b)) for b in (tokens.behaviour, tokens.behaviour - 1.0))
    assert torch.equal(first, second) != getattr(OBJECTIVES[name], "reads_behaviour", False)


def test_what_is_good_is_learned_as_it_is_and_what_is_bad_only_as_far_as_it_is_done():
    good, bad = one(-3.0, 2.0), one(-3.0, -2.0)
    assert float(gradient(topr(good), good)) == pytest.approx(-2.0)
    assert float(gradient(topr(bad), bad)) == pytest.approx(2.0 * math.exp(-3.0))
    done = one(3.0, -2.0)
    assert float(gradient(topr(done), done)) == pytest.approx(2.0)


def test_dual_clip_bounds_the_loss_of_negative_advantages_only():
    losses = [float(clipped(one(2.0, a), dual=3.0).detach()) for a in (-1.0, 1.0)]
    assert losses == pytest.approx([3.0, -1.2])
    with pytest.raises(ValueError, match="above 1"):
        clipped(one(0.0, 1.0), dual=1.0)


def test_supervised_learning_leaves_out_what_was_not_better():
    tokens = random_tokens(6, (2, 2))
    tokens = replace(tokens, advantages=torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64))
    assert gradient(OBJECTIVES["sft"](tokens), tokens).tolist() == [-1.0] * 4
    assert gradient(OBJECTIVES["sft"](tokens, positive_only=True), tokens).tolist() == [-1.0, -1.0, 0.0, 0.0]


def test_the_interpolated_proximal_policy_lies_where_its_version_says():
    current, behaviour = torch.tensor([-1.0] * 3), torch.tensor([-3.0] * 3)
    found = interpolated_proximal(current, behaviour, torch.tensor([5, 4, 2]), 5)
    torch.testing.assert_close(found, torch.tensor([-3.0, -2.0, -1.5]))
