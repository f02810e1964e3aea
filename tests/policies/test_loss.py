"""The clip fraction is right for every objective, and the ratio to the sampling policy is counted once."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from vectors import flat, inputs, lengths, vectors

from safeladder.policies.batch import TrainingGroup
from safeladder.policies.loss import PolicyLoss, Sample
from safeladder.policies.objectives import OBJECTIVES, Tokens, cpgd, held
from safeladder.policies.options import StepOptions


def row(values):
    return torch.tensor(values, dtype=torch.float64)


def tokens(drifts, advantages, **more):
    """One sequence of tokens with these ln r."""
    proximal = torch.full((len(drifts),), -1.0, dtype=torch.float64)
    every = torch.ones(len(drifts), dtype=torch.bool)
    return replace(Tokens(proximal + row(drifts), proximal, proximal, row(advantages), [len(drifts)], every), **more)


FAR = tokens([1.0, -1.0, 0.0, 1.0, -1.0, 1.0], [1.0, -1.0, 1.0, -1.0, 1.0, 0.0])
OUTSIDE = [True, True, False, False, False, False]


@pytest.mark.parametrize(
    ("name", "options"),
    [("clipped", {}), ("cpgd", {"drift": 0.0}), ("cpgd", {"drift": 0.5}), ("gmpo", {})],
)
def test_held_are_the_tokens_outside_the_clip_whether_or_not_they_drift(name, options):
    found = held(lambda given: OBJECTIVES[name](given, **options), FAR)
    assert found.tolist() == OUTSIDE


@pytest.mark.parametrize("name", ["cispo", "sapo", "topr", "policy_gradient", "tis_reinforce", "kimi", "sft"])
def test_objectives_without_a_clip_hold_nothing(name):
    assert not held(OBJECTIVES[name], FAR).any()


def test_a_sequence_is_held_whole():
    far = replace(tokens([0.1, 0.1, 0.0], [1.0] * 3), lengths=[2, 1])
    assert held(OBJECTIVES["gspo"], far).tolist() == [True, True, False]


def test_dual_clipping_holds_bad_tokens_that_went_far_up():
    found = held(lambda given: OBJECTIVES["clipped"](given, dual=3.0), tokens([2.0, 1.0], [-1.0, -1.0]))
    assert found.tolist() == [True, False]


def test_samples_that_were_not_better_are_held_by_learning_from_the_better():
    found = held(lambda given: OBJECTIVES["sft"](given, positive_only=True), tokens([0.0, 0.0], [1.0, -1.0]))
    assert found.tolist() == [False, True]


def test_tokens_of_an_environment_are_not_held():
    kept = torch.tensor([False, True, True, True, True, True])
    assert held(OBJECTIVES["clipped"], replace(FAR, kept=kept)).tolist() == [False, *OUTSIDE[1:]]


def test_the_clip_fraction_of_cpgd_equals_the_independent_implementation():
    """siiRL also counts tokens of advantage 0 whose ratio is low, which lose nothing by it; they are added here."""
    cases = vectors("cpgd")
    for case in (case for case in cases if "agg" in case):
        given = inputs(cases, case["seed"])
        mask = given["mask"]
        new, old, advantages = (flat(given[name], mask) for name in ("new", "old", "adv"))
        some = Tokens(new, old, old, advantages, lengths(mask), torch.ones_like(new, dtype=torch.bool))
        found = held(lambda each, c=case: cpgd(each, low=c["clip_low"], high=c["clip_high"], drift=0.001), some)
        idle = (advantages == 0) & ((new - old).exp() < 1 - case["clip_low"])
        assert float((found | idle).double().mean()) == pytest.approx(case["clip_fraction"], abs=1e-6)


# ------------------------------------------------------------------------------------------------ the loss of a pack


def sample(drifts, advantages):
    """A completion whose proximal policy is `drifts` below -1, and behaviour with it."""
    count = len(drifts)
    behaviour = np.full(count, -1.0, np.float32)
    group = TrainingGroup(
        id="g",
        prompt_ids=np.arange(2, dtype=np.int32),
        completion_ids=[np.arange(count, dtype=np.int32)],
        behaviour=[behaviour],
        versions=[np.zeros(count, np.int32)],
        rewards=np.zeros(1),
        valid=np.ones(1, np.bool_),
    )
    return Sample(
        group, 0, 0, torch.tensor(advantages), torch.ones(count, dtype=torch.bool), proximal=torch.from_numpy(behaviour)
    )


def loss_of(**options):
    return PolicyLoss(StepOptions(reference_kl=0.0, **options))


def test_a_pack_counts_clipped_tokens_under_a_drift():
    drifts = [1.0, -1.0, 0.0, 1.0]
    found = loss_of(objective={"cpgd": {"drift": 0.01}})(
        [sample(drifts, [1.0, -1.0, 1.0, 0.0])], torch.tensor(drifts) - 1.0, [0.25]
    )
    assert (found.held, found.active) == (2, 3)
    assert bool((found.gradient[[0, 1]] != 0).all())  # the drift goes on


@pytest.mark.parametrize("name", ["topr", "tis_reinforce", "kimi"])
def test_an_objective_that_reads_the_sampling_policy_is_not_weighed_again(name):
    far = sample([0.0, 0.0], [1.0, -1.0])
    far.proximal = torch.tensor([0.0, -2.0])
    found = loss_of(objective={name: {}})([far], torch.tensor([0.0, -2.0]), [0.5])
    assert found.weights.tolist() == [1.0, 1.0]
    weighed = loss_of(objective={"policy_gradient": {}})([far], torch.tensor([0.0, -2.0]), [0.5])
    assert weighed.weights.tolist() == pytest.approx([2.0, np.exp(-1.0)])
    with pytest.raises(ValueError, match="count the ratio twice"):
        loss_of(objective={name: {}}, correction={"token_truncate": {}})
    loss_of(objective={name: {}}, correction={"off": {}})


def test_the_cap_of_the_configured_correction_goes_into_the_report():
    found = loss_of(correction={"token_truncate": {"cap": 1.5}})([sample([0.0], [1.0])], torch.tensor([-1.0]), [1.0])
    assert found.cap == 1.5
