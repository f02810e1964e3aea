"""The gradient of a packed, accumulated step is held against a plain loop over sequences, written here from the formulas."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from safeladder.policies.batch import TrainingGroup
from safeladder.policies.model import load, resolve
from safeladder.policies.options import StepOptions
from safeladder.policies.step import LearnerStep, StepError

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


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "group_token_mean", "constant"])
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


def test_a_filtered_sequence_stays_in_the_denominator(tiny):
    """Its own gradient goes, that of the others stays as it was: the two add up to the whole."""
    options = replace(DULL, reference_kl=0.0, filters={"veto": {"threshold": 1e-4}}, correction={"off": {}})
    parts = []
    for left_out in ({0}, {1, 2, 3}, set()):
        model = load(tiny)[0]
        group = make_batch(model, groups=1)[0]
        group = replace(
            group,
            rewards=np.array([1.0, 0.0, 0.5, 0.0]),
            behaviour=[b + 40 if k in left_out else b for k, b in enumerate(group.behaviour)],
        )
        found, report = step_gradient(model, [group], options)
        parts.append(found)
        assert (report.off_policy.masked > 0) == bool(left_out)
        assert report.filtered["veto"] == pytest.approx(report.off_policy.masked)
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


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": {"cpdg": {}}}, "unknown objective 'cpdg'; did you mean 'cpgd'"),
        ({"objective": {"cpgd": {"drfit": 1}}}, "no option 'drfit'; did you mean 'drift'"),
        ({"objective": {"cpgd": {"drift": "much"}}}, "option 'drift'"),
        ({"objective": {"cpgd": {}, "gspo": {}}}, "one objective only"),
        ({"advantage": {"nonesuch": {}}}, "unknown advantage"),
        ({"correction": {"nonesuch": {}}}, "unknown correction"),
        ({"filters": {"nonesuch": {}}}, "unknown filter"),
        ({"length_rewards": {"nonesuch": {}}}, "unknown length reward"),
        ({"length_advantage": {"nonesuch": {}}}, "unknown length advantage"),
        ({"aggregation": "nonesuch"}, "unknown aggregation"),
        ({"aggregation": "constant"}, "needs max_tokens"),
        ({"kl_kind": "nonesuch"}, "unknown KL"),
        ({"proximal": "behaviour", "correction": {"token_mask": {}}}, "count the ratio twice"),
        ({"proximal": "interpolate", "filters": {"m2po": {}}}, "whole batch"),
        ({"objective": {"no.such.module:rule": {}}}, "cannot be imported"),
    ],
)
def test_options_that_cannot_be_are_refused_before_the_first_step(model, changes, said):
    with pytest.raises(ValueError, match=said):
        LearnerStep(model, replace(DULL, **changes))


def test_a_half_precision_policy_is_refused(tiny):
    with pytest.raises(ValueError, match="not float32"):
        LearnerStep(load(tiny, dtype="bfloat16")[0], DULL)


def test_the_diagnostics_say_how_far_off_policy_the_batch_is(tiny):
    reports = []
    for drift in (0.0, 1.0):
        model = load(tiny)[0]
        reports.append(LearnerStep(model, DULL).train(make_batch(model, drift=drift)))
    near, far = reports
    assert near.off_policy.ess == pytest.approx(1.0, abs=1e-6)
    assert near.off_policy.mismatch == pytest.approx(0.0, abs=1e-6)
    assert near.kl == pytest.approx(0.0, abs=1e-5)
    assert (near.off_policy.truncated, near.clip_fraction) == (0.0, 0.0)
    assert far.off_policy.ess < 0.95
    assert far.off_policy.mismatch > 0.1
    assert far.off_policy.truncated > 0
    assert near.loss == pytest.approx(near.policy_loss + 0.001 * near.kl)
    assert set(near.seconds) == {"advantages", "forward", "loss", "backward", "optimizer", "total"}
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


# ------------------------------------------------------------------------------------------ reuse and proximal policy


def final_weights(tiny, options, batch_options=None, **more):
    model = load(tiny)[0]
    batch = make_batch(model, **(batch_options or {}))
    report = LearnerStep(model, options, **more).train(batch)
    return {name: p.detach().clone() for name, p in model.named_parameters()}, report


def test_the_recomputed_proximal_policy_of_one_update_is_the_current_one(tiny):
    spared, _ = final_weights(tiny, DULL)
    recomputed, report = final_weights(tiny, replace(DULL, proximal="recompute"))
    assert largest_difference(spared, recomputed) < 1e-6
    assert "proximal" in report.seconds


def test_a_batch_makes_epochs_times_minibatches_updates(tiny):
    options = replace(DULL, epochs=2, minibatches=3, learning_rate=1e-3)
    weights, report = final_weights(tiny, options, {"groups": 4})
    once, _ = final_weights(tiny, replace(DULL, learning_rate=1e-3), {"groups": 4})
    assert (report.updates, report.step) == (6, 1)
    assert largest_difference(weights, once) > 1e-4
    again, _ = final_weights(tiny, replace(options, token_budget=20), {"groups": 4})
    assert largest_difference(weights, again) < 1e-4


def test_the_clip_holds_back_tokens_once_the_policy_has_moved(tiny):
    options = replace(DULL, epochs=6, learning_rate=3e-2, objective={"clipped": {"low": 0.02, "high": 0.02}})
    assert final_weights(tiny, options, {"drift": 0.0})[1].clip_fraction > 0.2


def test_interpolation_needs_no_second_forward_and_knows_fresh_tokens(tiny):
    """Tokens as old as the learner have behaviour for their proximal policy, so that their weight is 1."""
    model = load(tiny)[0]
    batch = make_batch(model)
    report = LearnerStep(model, replace(DULL, proximal="interpolate")).train(batch, version=0)
    assert report.off_policy.mismatch == 0.0
    model = load(tiny)[0]
    report = LearnerStep(model, replace(DULL, proximal="interpolate")).train(batch, version=9)
    assert report.off_policy.mismatch > 0.01
    assert (report.age_max, report.age_mean) == (9, 9.0)
    assert "proximal" not in report.seconds


def test_a_rule_that_sees_the_whole_batch_does_not_depend_on_packs(tiny):
    options = replace(DULL, filters={"m2po": {"threshold": 0.02}}, correction={"token_truncate_normalised": {}})
    (whole, one), (parts, other) = (final_weights(tiny, replace(options, token_budget=b)) for b in (4096, 16))
    assert largest_difference(whole, parts) < 1e-5
    assert one.filtered == other.filtered
    assert one.filtered["m2po"] > 0


def everything_negative(tokens, *, strength: float = 1.0):
    return strength * tokens.logprobs


def test_a_rule_of_the_users_own_is_named_by_its_module(tiny):
    options = replace(DULL, objective={f"{__name__}:everything_negative": {"strength": 2.0}}, reference_kl=0.0)
    assert final_weights(tiny, options)[1].policy_loss < -1


# ------------------------------------------------------------------------------------ masked, supervised, checkpointed


def test_tokens_of_an_environment_are_read_and_not_trained(tiny):
    """Their own log-probabilities count nowhere: what behaviour and reference say of them leaves no trace."""
    found = []
    for junk in (0.0, 7.0):
        model = load(tiny)[0]
        group = make_batch(model, groups=1, longest=9)[0]
        kept = [np.arange(len(c)) % 2 == 0 for c in group.completion_ids]
        spoilt = {
            name: [c + np.where(k, 0, junk).astype(np.float32) for c, k in zip(getattr(group, name), kept, strict=True)]
            for name in ("behaviour", "reference")
        }
        gradients, report = step_gradient(model, [replace(group, kept=kept, **spoilt)], DULL)
        found.append(gradients)
        assert report.tokens == report.trained_tokens == sum(int(k.sum()) for k in kept)
    assert largest_difference(*found) == 0.0


def test_demonstrations_are_learned_by_cross_entropy_on_their_own_tokens(model):
    random = np.random.default_rng(0)
    pairs = [(random.integers(0, 300, 5).tolist(), random.integers(0, 300, n).tolist()) for n in (3, 6)]
    kept = [[True] * 3, [True, False, True, True, False, True]]
    batch = [TrainingGroup.supervised(str(k), *pair, kept=kept[k]) for k, pair in enumerate(pairs)]
    model.zero_grad()
    losses = [
        -naive_logprobs(model, np.array(p), np.array(c))[torch.tensor(own)]
        for (p, c), own in zip(pairs, kept, strict=True)
    ]
    torch.cat(losses).mean().backward()
    expected = gradient(model)
    options = replace(DULL, objective={"sft": {}}, advantage={"ones": {}}, correction={"off": {}}, reference_kl=0.0)
    found, report = step_gradient(model, batch, options)
    assert largest_difference(expected, found) < 1e-5
    assert report.loss == pytest.approx(float(torch.cat(losses).detach().mean()), abs=1e-5)


def test_activations_that_are_computed_again_change_nothing(tiny):
    plain, _ = final_weights(tiny, DULL)
    again, _ = final_weights(tiny, replace(DULL, activation_checkpointing=True))
    assert largest_difference(plain, again) < 1e-6


def test_bfloat16_computes_nearly_the_same_and_keeps_its_weights_in_float32(tiny):
    plain, _ = step_gradient(load(tiny)[0], make_batch(load(tiny)[0]), DULL)
    model = load(tiny)[0]
    half, _ = step_gradient(model, make_batch(model), replace(DULL, compute_dtype="bfloat16"))
    first, second = (torch.cat([g.flatten() for g in found.values()]) for found in (plain, half))
    assert float(torch.nn.functional.cosine_similarity(first, second, dim=0)) > 0.99
    assert {p.dtype for p in model.parameters()} == {torch.float32}
