"""The gradient of a packed, accumulated step is held against a plain loop over sequences, written here from the formulas."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from safeladder.policies.model import load, resolve
from safeladder.policies.step import LearnerStep, StepError, StepOptions, TrainingGroup

DULL = StepOptions(weight_decay=0.0, learning_rate=1e-3, max_gradient_norm=1e9)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return resolve("tiny", tmp_path_factory.mktemp("models"))


@pytest.fixture
def model(tiny):
    return load(tiny)[0]


def make_batch(model, groups=3, samples=4, seed=0, drift=0.3, longest=7):
    """Groups of random tokens whose behaviour and reference lie around the model's own log-probabilities."""
    random = np.random.default_rng(seed)
    vocabulary = model.config.vocab_size

    def around(column):
        return [(values + drift * random.standard_normal(values.shape)).astype(np.float32) for values in column]

    batch = []
    for number in range(groups):
        prompt = random.integers(0, vocabulary, random.integers(2, 9)).astype(np.int32)
        completions = [
            random.integers(0, vocabulary, random.integers(1, longest)).astype(np.int32) for _ in range(samples)
        ]
        own = [naive_logprobs(model, prompt, c).detach().numpy() for c in completions]
        batch.append(
            TrainingGroup(
                id=f"group-{number}",
                prompt_ids=prompt,
                completion_ids=completions,
                behaviour=around(own),
                versions=[np.zeros(len(c), np.int32) for c in completions],
                reference=around(own),
                rewards=random.integers(0, 4, samples) / 2,
                valid=np.ones(samples, bool),
            )
        )
    return batch


def naive_logprobs(model, prompt, completion):
    ids = torch.tensor(np.concatenate([prompt, completion]), dtype=torch.long)
    logits = model(input_ids=ids[None], use_cache=False).logits[0].float()
    return torch.log_softmax(logits, -1)[torch.arange(len(prompt) - 1, len(ids) - 1), ids[len(prompt) :]]


def naive_gradient(model, batch, coefficient=0.001, cap=2.0):
    """token_mean of w * A * grad ln pi + coefficient * k3, sequence by sequence."""
    model.zero_grad()
    tokens = sum(len(c) for group in batch for c in group.completion_ids)
    for group in batch:
        kept = group.rewards[group.valid]
        spread = kept.std(ddof=1) if len(kept) > 1 else 0.0
        for k, completion in enumerate(group.completion_ids):
            logprobs = naive_logprobs(model, group.prompt_ids, completion)
            advantage = (group.rewards[k] - kept.mean()) / (spread + 1e-6) if group.valid[k] and spread > 0 else 0.0
            weights = (logprobs.detach() - torch.tensor(group.behaviour[k])).exp().clamp(max=cap)
            distance = torch.tensor(group.reference[k]) - logprobs
            penalty = distance.exp() - 1 - distance
            ((-advantage * weights * logprobs).sum() / tokens + coefficient * penalty.sum() / tokens).backward()
    return gradient(model)


def gradient(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def step_gradient(model, batch, options):
    """The gradient that a step hands to its optimizer."""
    learner = LearnerStep(model, options)
    seen = {}
    learner.optimizer.register_step_pre_hook(lambda *_: seen.update(gradient(model)))
    report = learner.train(batch)
    return seen, report


def largest_difference(first, second):
    scale = max(float(g.abs().max()) for g in first.values())
    return max(float((first[name] - second[name]).abs().max()) for name in first) / scale


@pytest.mark.parametrize("token_budget", [1, 24, 4096])
def test_the_packed_gradient_is_that_of_a_loop_over_sequences(model, token_budget):
    batch = make_batch(model)
    expected = naive_gradient(model, batch)
    found, report = step_gradient(model, batch, replace(DULL, token_budget=token_budget))
    assert largest_difference(expected, found) < 1e-5
    assert report.packs == {1: 12, 4096: 1}.get(token_budget, report.packs)
    assert report.grad_norm == pytest.approx(float(sum(g.square().sum() for g in expected.values()) ** 0.5), rel=1e-4)


def test_sequences_that_skip_the_forward_stay_in_the_denominator(model):
    """Without penalty an invalid sample and a group without spread are never computed, yet count as tokens."""
    batch = make_batch(model)
    batch[0] = replace(batch[0], rewards=np.ones(4))
    batch[1] = replace(batch[1], valid=np.array([True, False, True, True]), rewards=np.array([1.0, 9.0, 0.0, 0.5]))
    expected = naive_gradient(model, batch, coefficient=0.0)
    found, report = step_gradient(model, batch, replace(DULL, reference_kl=0.0))
    assert report.trained_tokens < report.tokens
    assert largest_difference(expected, found) < 1e-5


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant"])
def test_the_token_budget_changes_nothing(tiny, aggregation):
    options = replace(DULL, aggregation=aggregation, max_completion_tokens=16)
    results = []
    for budget in (16, 40, 4096):
        model = load(tiny)[0]
        batch = make_batch(model)
        results.append(step_gradient(model, batch, replace(options, token_budget=budget)))
    for found, report in results[1:]:
        assert largest_difference(results[0][0], found) < 1e-5
        assert report.loss == pytest.approx(results[0][1].loss, abs=1e-5)


def test_permuting_groups_and_samples_changes_only_rounding(tiny):
    model = load(tiny)[0]
    batch = make_batch(model)
    first, _ = step_gradient(model, batch, DULL)
    model = load(tiny)[0]
    turned = [
        replace(
            group,
            **{name: getattr(group, name)[::-1] for name in ("completion_ids", "behaviour", "versions", "reference")},
            rewards=group.rewards[::-1].copy(),
            valid=group.valid[::-1].copy(),
        )
        for group in batch[::-1]
    ]
    second, _ = step_gradient(model, turned, DULL)
    assert largest_difference(first, second) < 1e-5


def test_the_same_step_twice_is_the_same_bit_for_bit(tiny):
    outcomes = []
    for _ in range(2):
        model = load(tiny)[0]
        LearnerStep(model, DULL).train(make_batch(model))
        outcomes.append({name: p.detach().clone() for name, p in model.named_parameters()})
    assert all(torch.equal(outcomes[0][name], outcomes[1][name]) for name in outcomes[0])


def test_an_invalid_sample_never_changes_the_gradient_of_another(tiny):
    """With the sample invalid, what stands in its reward, tokens and log-probabilities of sampling leaves no trace."""
    options = replace(DULL, reference_kl=0.0)
    found = []
    for junk in (False, True):
        model = load(tiny)[0]
        batch = make_batch(model, groups=2)
        valid = np.array([True, True, False, True])
        rewards = np.where(valid, batch[0].rewards, np.nan if junk else 0.0)
        behaviour, completions = list(batch[0].behaviour), list(batch[0].completion_ids)
        if junk:
            behaviour[2] = behaviour[2] - 50
            completions[2] = completions[2][::-1].copy()
        batch[0] = replace(batch[0], rewards=rewards, valid=valid, behaviour=behaviour, completion_ids=completions)
        found.append(step_gradient(model, batch, options)[0])
    assert largest_difference(*found) == 0.0


def test_a_vetoed_sequence_stays_in_the_denominator(tiny):
    """Its own gradient goes, that of the others stays as it was: the two add up to the whole."""
    options = replace(DULL, reference_kl=0.0, veto=1e-4, correction="off")
    parts = []
    for vetoed in ({0}, {1, 2, 3}, set()):
        model = load(tiny)[0]
        group = make_batch(model, groups=1)[0]
        group = replace(
            group,
            rewards=np.array([1.0, 0.0, 0.5, 0.0]),
            behaviour=[b + 40 if k in vetoed else b for k, b in enumerate(group.behaviour)],
        )
        found, report = step_gradient(model, [group], options)
        parts.append(found)
        assert (report.masked_fraction > 0) == bool(vetoed)
    total = {name: parts[0][name] + parts[1][name] for name in parts[0]}
    assert largest_difference(parts[2], total) < 1e-5


def test_without_penalty_a_zero_advantage_pays_for_no_forward(model):
    batch = make_batch(model, groups=2)
    batch[0] = replace(batch[0], rewards=np.ones(4), reference=None)
    batch[1] = replace(batch[1], rewards=np.array([1.0, 0.0, 0.5, 0.5]), reference=None)
    report = LearnerStep(model, replace(DULL, reference_kl=0.0)).train(batch)
    assert report.trained_tokens == sum(len(c) for c in batch[1].completion_ids[:2])
    assert report.tokens == sum(len(c) for group in batch for c in group.completion_ids)
    assert report.zero_spread_groups == 1


def test_a_batch_without_any_gradient_counts_as_a_step_and_moves_nothing(model):
    batch = [replace(group, rewards=np.ones(4)) for group in make_batch(model, groups=1)]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    learner = LearnerStep(model, replace(DULL, reference_kl=0.0))
    report = learner.train(batch)
    assert (report.step, report.packs, report.grad_norm, learner.steps_done) == (1, 0, 0.0, 1)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def assert_refused_without_a_trace(model, learner, batch, guilty):
    """A step that raises names the guilty group alone, and leaves weights, optimizer and counter as they were."""

    def snapshot():
        moments = [tensor.clone() for state in learner.optimizer.state.values() for tensor in state.values()]
        return [*(p.detach().clone() for p in model.parameters()), *moments]

    before, steps = snapshot(), learner.steps_done
    with pytest.raises(StepError) as error:
        learner.train(batch)
    assert [group.id for group in batch if group.id in str(error.value)] == [guilty]
    assert learner.steps_done == steps
    assert all(torch.equal(old, new) for old, new in zip(before, snapshot(), strict=True))


@pytest.mark.parametrize("fault", ["behaviour", "reward", "reference"])
def test_a_loss_that_is_not_finite_is_refused_by_group_and_changes_nothing(model, fault):
    batch = make_batch(model, groups=3)
    learner = LearnerStep(model, replace(DULL, token_budget=8))
    learner.train(batch)
    nan = np.full_like(batch[1].behaviour[0], np.nan)
    batch[1] = {
        "behaviour": replace(batch[1], behaviour=[nan, *batch[1].behaviour[1:]], rewards=np.array([1.0, 0, 0, 0])),
        "reference": replace(batch[1], reference=[nan, *batch[1].reference[1:]]),
        "reward": replace(batch[1], rewards=np.array([1.0, np.inf, 0, 0])),
    }[fault]
    assert_refused_without_a_trace(model, learner, batch, "group-1")


def test_a_gradient_that_is_not_finite_is_refused_by_group_and_changes_nothing(model):
    """The loss is finite; only the backward pass through one token, which group-1 alone reads, overflows."""
    batch = make_batch(model, groups=3)
    read = {t for group in batch for ids in (group.prompt_ids, *group.completion_ids) for t in ids.tolist()}
    token = next(t for t in range(model.config.vocab_size) if t not in read)
    batch[1] = replace(batch[1], prompt_ids=np.append(batch[1].prompt_ids, np.int32(token)))
    learner = LearnerStep(model, replace(DULL, token_budget=8))
    learner.train(batch)

    def overflow(module, inputs, output):
        if output.requires_grad and bool((inputs[0] == token).any()):
            output.register_hook(lambda gradient: gradient * float("inf"))

    model.get_input_embeddings().register_forward_hook(overflow)
    assert_refused_without_a_trace(model, learner, batch, "group-1")


def test_a_missing_reference_is_an_error_while_a_penalty_is_asked_for(model):
    batch = [replace(group, reference=None) for group in make_batch(model, groups=1)]
    with pytest.raises(StepError, match="group-0 has no reference"):
        LearnerStep(model, DULL).train(batch)


def test_the_learning_rate_warms_up_and_stays(model):
    learner = LearnerStep(model, replace(DULL, warmup_steps=4, learning_rate=1.0))
    rates = []
    for learner.steps_done in range(6):
        rates.append(learner.learning_rate())
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("name", ["objective", "advantage", "correction", "aggregation", "kl_kind"])
def test_unknown_options_are_refused_before_the_first_step(model, name):
    with pytest.raises(ValueError, match="known:"):
        LearnerStep(model, replace(DULL, **{name: "nonesuch"}))


def test_a_half_precision_policy_is_refused(tiny):
    with pytest.raises(ValueError, match="not float32"):
        LearnerStep(load(tiny, dtype="bfloat16")[0], DULL)


def test_the_diagnostics_say_how_far_off_policy_the_batch_is(tiny):
    reports = []
    for drift in (0.0, 1.0):
        model = load(tiny)[0]
        reports.append(LearnerStep(model, DULL).train(make_batch(model, drift=drift)))
    near, far = reports
    assert near.ess == pytest.approx(1.0, abs=1e-6)
    assert near.mismatch == pytest.approx(0.0, abs=1e-6)
    assert near.kl == pytest.approx(0.0, abs=1e-5)
    assert (near.truncated_fraction, near.clip_fraction) == (0.0, 0.0)
    assert far.ess < 0.95
    assert far.mismatch > 0.1
    assert far.truncated_fraction > 0
    assert near.loss == pytest.approx(near.policy_loss + 0.001 * near.kl)
    assert set(near.seconds) == {"forward", "backward", "optimizer", "total"}
    assert near.entropy > 0


def test_reward_rises_on_a_bandit(model):
    """One prompt, one token to choose; half of the vocabulary is worth a reward."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    prompt = np.array([5, 6, 7], np.int32)
    good = np.arange(model.config.vocab_size) % 2 == 0
    learner = LearnerStep(model, StepOptions(learning_rate=3e-3, reference_kl=0.0, weight_decay=0.0))
    worth = []
    for _ in range(12):
        with torch.no_grad():
            policy = torch.softmax(
                model(torch.tensor(prompt[None], dtype=torch.long)).logits[0, -1].double(), -1
            ).numpy()
        worth.append(float(policy[good].sum()))
        arms = random.choice(len(policy), size=32, p=policy / policy.sum())
        learner.train(
            [
                TrainingGroup(
                    id="bandit",
                    prompt_ids=prompt,
                    completion_ids=[np.array([arm], np.int32) for arm in arms],
                    behaviour=[np.log(policy[[arm]]).astype(np.float32) for arm in arms],
                    versions=[np.zeros(1, np.int32) for _ in arms],
                    rewards=good[arms].astype(np.float64),
                    valid=np.ones(len(arms), bool),
                )
            ]
        )
    assert worth[-1] > 0.9 > 0.7 > worth[0]


def test_a_group_whose_columns_do_not_fit_is_refused(model):
    group = make_batch(model, groups=1)[0]
    with pytest.raises(ValueError, match="behaviour does not have the lengths"):
        replace(group, behaviour=group.behaviour[:-1])
    with pytest.raises(ValueError, match="must be"):
        replace(group, rewards=np.zeros(2))
