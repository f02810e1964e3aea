"""A probe tells the published weights from any others; the alarm tells an engine that drifts from one that rounds."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from test_step import make_batch

from safeladder.policies import model as models
from safeladder.policies.drift import DriftBounds, measure
from safeladder.policies.options import StepOptions
from safeladder.policies.step import LearnerStep
from safeladder.policies.weights import Probe, attestation


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return models.resolve("tiny", tmp_path_factory.mktemp("models"))


@pytest.fixture
def policy(folder):
    return models.load(folder)


def rescored(model, probes) -> list[list[float]]:
    return [probe.logprobs for probe in attestation.score(model, probes)]


def test_the_probe_knows_its_own_weights_from_others(policy):
    model, tokenizer = policy
    probes = attestation.score(model, attestation.texts(tokenizer))
    assert all(len(probe.logprobs) == len(probe.completion_ids) <= attestation.MOST_TOKENS for probe in probes)
    assert all(probe.prompt_ids for probe in probes)
    own = attestation.compare(probes, rescored(model, probes), attestation.tolerance("float32"))
    assert own.passed and own.tokens == sum(len(probe.completion_ids) for probe in probes)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1.05)
    other = attestation.compare(probes, rescored(model, probes), attestation.tolerance("float32"))
    assert not other.passed and "differ from the learner's" in str(other)


def test_a_bfloat16_engine_is_within_its_tolerance(policy):
    model, tokenizer = policy
    probes = attestation.score(model, attestation.texts(tokenizer))
    found = rescored(model.bfloat16(), probes)
    assert attestation.compare(probes, found, attestation.tolerance("float32", "bfloat16")).passed


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_what_is_no_number_does_not_pass(value):
    probes = [Probe([1], [2, 3], [-0.5, -0.5])]
    assert not attestation.compare(probes, [[-0.5, value]], 0.1).passed
    assert not attestation.compare([], [], 0.1).passed
    with pytest.raises(ValueError, match="zip"):
        attestation.compare(probes, [[-0.5]], 0.1)


def test_one_wrong_token_among_many_does_not_pass():
    probes = [Probe([1], [2] * 100, [-1.0] * 100)]
    assert not attestation.compare(probes, [[-1.0] * 99 + [-1.05]], 2e-3).passed


# ---------------------------------------------------------------------------------------------------------- drift


def engine_drift(model, batch, version=0, **options):
    step = LearnerStep(model, StepOptions(learning_rate=1e-9, reference_kl=0.0, **options))
    return step.train(batch, version).engine_drift


@pytest.mark.parametrize("options", [{}, {"minibatches": 2}, {"epochs": 2}])
def test_an_engine_that_computes_what_the_learner_does_shows_no_drift_and_another_raises_the_alarm(policy, options):
    model, _ = policy
    bounds = DriftBounds.of("float32", mean=None, outside=None)
    faithful = engine_drift(model, make_batch(model, drift=0.0), **options)
    assert faithful.tokens >= bounds.min_tokens
    assert faithful.mean < 1e-4 and faithful.outside == 0.0
    assert bounds.broken(faithful) is None
    batch = make_batch(model, drift=0.0)  # sampled by the weights before they were perturbed
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * parameter.std() * torch.randn_like(parameter))
    drifted = engine_drift(model, batch, **options)
    assert "outside" in bounds.broken(drifted) and "mean" in bounds.broken(drifted)


def test_only_completions_of_the_learners_own_version_are_compared(policy):
    model, _ = policy
    batch = make_batch(model, groups=2, drift=0.3)
    assert engine_drift(model, batch, version=1) is None
    lived_through_a_swap = [column.copy() for column in batch[0].versions]
    for column in lived_through_a_swap:
        column[-1:] = 1
    batch[0] = dataclasses.replace(batch[0], versions=lived_through_a_swap)
    fresh = [np.ones(len(column), np.int32) for column in batch[1].versions]
    batch[1] = dataclasses.replace(batch[1], versions=fresh)
    short = sum(len(column) for column in batch[0].versions if len(column) == 1)
    found = engine_drift(model, batch, version=1)
    assert 0 < found.tokens <= short + sum(len(column) for column in fresh)


def test_a_few_tokens_raise_no_alarm_and_one_that_is_no_number_does():
    bounds = DriftBounds.of("float32", 0.01, 0.01)
    far = measure([(torch.full((40,), -1.0), torch.full((40,), -2.0))])
    assert bounds.broken(far) is not None
    assert bounds.broken(dataclasses.replace(far, tokens=5)) is None
    unknown = measure([(torch.full((40,), -1.0), torch.full((40,), math.nan))])
    assert unknown.outside == 1.0 and bounds.broken(unknown) is not None
    assert measure([]) is None
