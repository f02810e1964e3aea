"""The learner's step under constraints: whose advantage is trained on, what moves a multiplier, and that a limit is held."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_step import DULL, gradient, largest_difference, make_batch, naive_logprobs

from safeladder.policies.constraints import ConstraintOptions, Constraints
from safeladder.policies.credit import Credit
from safeladder.policies.model import load, resolve
from safeladder.policies.options import StepOptions
from safeladder.policies.step import LearnerStep, StepError, TrainingGroup

LOOSE = ConstraintOptions(limit=0.2, min_episodes=1, init=0.7)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return resolve("tiny", tmp_path_factory.mktemp("models"))


@pytest.fixture
def model(tiny):
    return load(tiny)[0]


def with_costs(batch, *rows, version=0):
    """The batch with the cost `unsafe`, one row a group, sampled by the weights called `version`."""
    return [
        replace(
            group,
            costs={"unsafe": np.array(row, np.float64)},
            versions=[np.full(len(tokens), version, np.int32) for tokens in group.completion_ids],
        )
        for group, row in zip(batch, rows, strict=True)
    ]


def normalised(values, known):
    """(value - mean) / (std + 1e-6) over the known ones, 0 elsewhere and where they do not differ."""
    chosen = values[known]
    out = np.zeros(len(values))
    if len(chosen) > 1 and chosen.std() > 0:
        out[known] = (chosen - chosen.mean()) / (chosen.std(ddof=1) + 1e-6)
    return out


def test_the_gradient_is_that_of_the_combined_advantage(model):
    batch = with_costs(make_batch(model, drift=0.0), [1, 0, 0, 1], [0, np.nan, 1, 1], [0, 0, 0, 0])
    options = replace(DULL, reference_kl=0.0)
    model.zero_grad()
    tokens = sum(len(c) for group in batch for c in group.completion_ids)
    for group in batch:
        cost = normalised(np.nan_to_num(group.costs["unsafe"]), ~np.isnan(group.costs["unsafe"]))
        advantages = (normalised(group.rewards, group.valid) - 0.7 * cost) / 1.7
        for advantage, completion in zip(advantages, group.completion_ids, strict=True):
            (-advantage * naive_logprobs(model, group.prompt_ids, completion).sum() / tokens).backward()
    expected = gradient(model)

    learner = LearnerStep(model, options, constraints=Constraints({"unsafe": LOOSE}))
    seen = {}
    learner.optimizer.step = lambda: seen.update(gradient(model))
    learner.train(batch)
    assert largest_difference(seen, expected) < 1e-5 * max(float(g.abs().max()) for g in expected.values())


def test_the_multiplier_of_the_step_is_trained_with_and_then_moved(model):
    constraints = Constraints({"unsafe": LOOSE})
    learner = LearnerStep(model, replace(DULL, reference_kl=0.0), constraints=constraints)
    report = learner.train(with_costs(make_batch(model, groups=2), [1, 1, 1, 0], [np.nan] * 4))
    assert report.constraints["unsafe"]["episodes"] == 4
    assert report.constraints["unsafe"]["cost"] == 0.75
    assert constraints.multipliers()["unsafe"] == pytest.approx(0.7 * np.exp(0.1 * 0.7 * 0.55))


def test_invalid_samples_are_in_no_estimate_and_stale_ones_weigh_by_their_ratio(model):
    batch = make_batch(model, groups=1, samples=3)
    own = [naive_logprobs(model, batch[0].prompt_ids, c).detach().numpy() for c in batch[0].completion_ids]
    far = [column.copy() for column in own]
    far[0][0] += np.log(4.0)  # drawn four times as often by the old policy as the present one would
    group = replace(batch[0], behaviour=far, valid=np.array([True, True, False]), rewards=np.array([1.0, 0.0, np.nan]))
    for version, expected in ((0, 0.25 / 1.25), (5, 0.5)):  # stale, and as fresh as the learner
        constraints = Constraints({"unsafe": LOOSE})
        learner = LearnerStep(model, replace(DULL, learning_rate=0.0), constraints=constraints)
        report = learner.train(with_costs([group], [1, 0, 1], version=version), version=5)
        assert report.constraints["unsafe"]["cost"] == pytest.approx(expected, abs=1e-4)
        assert report.constraints["unsafe"]["episodes"] == 2


def test_a_batch_without_the_limited_cost_is_refused_by_name(model):
    learner = LearnerStep(model, DULL, constraints=Constraints({"rude": LOOSE}))
    with pytest.raises(StepError, match="group-0 has no cost 'rude'"):
        learner.train(with_costs(make_batch(model, groups=1), [0, 0, 1, 1]))


def train_bandit(model, learner, steps, random):
    """One prompt, one token to choose: every second pays, and is unsafe. Returns the unsafe rate before every step."""
    prompt = np.array([5, 6, 7], np.int32)
    paying = np.arange(model.config.vocab_size) % 2 == 0
    rates = []
    for _ in range(steps):
        with torch.no_grad():
            logits = model(torch.tensor(prompt[None], dtype=torch.long)).logits[0, -1]
        policy = torch.softmax(logits.double(), -1).numpy()
        rates.append(float(policy[paying].sum()))
        arms = random.choice(len(policy), size=64, p=policy / policy.sum())
        group = TrainingGroup(
            id="bandit",
            prompt_ids=prompt,
            completion_ids=[np.array([arm], np.int32) for arm in arms],
            behaviour=[np.log(policy[[arm]]).astype(np.float32) for arm in arms],
            versions=[np.full(1, learner.steps_done, np.int32) for _ in arms],
            rewards=paying[arms].astype(np.float64),
            valid=np.ones(len(arms), bool),
            costs={"unsafe": paying[arms].astype(np.float64)},
        )
        learner.train([group], version=learner.steps_done)
    return rates


def test_a_limit_is_held_where_reward_and_cost_are_the_same(tiny):
    options = StepOptions(learning_rate=3e-4, reference_kl=0.0, weight_decay=0.0)
    limited = ConstraintOptions(
        limit=0.3, method="pid", window=128, proportional=1.0, integral=0.05, derivative=1.0, smoothing=0.5
    )
    late = {}
    for name, constraints in (("free", None), ("limited", Constraints({"unsafe": limited}))):
        model = load(tiny)[0]
        learner = LearnerStep(model, options, constraints=constraints)
        late[name] = np.mean(train_bandit(model, learner, 60, np.random.default_rng(0))[-30:])
    assert late["free"] > 0.9
    assert late["limited"] == pytest.approx(0.3, abs=0.15)


def test_a_learner_that_is_restored_goes_on_with_the_same_multipliers(tiny):
    def fresh():
        return LearnerStep(load(tiny)[0], DULL, constraints=Constraints({"unsafe": LOOSE}))

    first = fresh()
    batch = with_costs(make_batch(first.model, groups=1), [1, 1, 0, 0])
    first.train(batch)
    second = fresh()
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.steps_done = first.steps_done
    second.restore(json.loads(json.dumps(first.state())))
    reports = [learner.train(batch, version=1) for learner in (first, second)]
    assert reports[0].constraints == reports[1].constraints
    assert reports[0].loss == reports[1].loss


def test_a_multiplier_weighs_the_cost_it_acts_on_and_follows_the_one_it_limits(model):
    """Acting on a cost is the same as limiting it, but for the multiplier's next value."""
    batch = with_costs(make_batch(model, drift=0.0), [1, 0, 0, 1], [0, 1, 1, 1], [0, 0, 1, 0])
    both = [replace(group, costs={"unsafe": group.costs["unsafe"], "rude": np.ones(4)}) for group in batch]
    options = replace(DULL, reference_kl=0.0)
    method = {"limit": 0.2, "min_episodes": 1, "init": 0.7, "method": "multiplicative", "rate": 0.5}
    acting = Constraints({"rude": ConstraintOptions(**method, acts_on="unsafe")})
    own = Constraints({"unsafe": ConstraintOptions(**method)})
    first = Credit(options).assign(both, acting)
    second = Credit(options).assign(batch, own)
    for one, other in zip(first, second, strict=True):
        assert [column.tolist() for column in one] == [column.tolist() for column in other]
    report = LearnerStep(model, options, constraints=acting).train(both)
    assert report.constraints["rude"]["cost"] == 1.0
    assert acting.multipliers()["rude"] == pytest.approx(0.7 * math.exp(0.5 * 0.8))
