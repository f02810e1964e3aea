"""The synchronous oracle: SafeLadder's training loop in one process and on one page, against which eta = 0 is held.

No queue, no lease, no ledger: draw a batch, sample it, judge it, score it under the reference, make a step, and only then draw the
next. What it shares with the system are the pure parts (data order, sampling, verifiers, formulas); everything that
makes the system asynchronous is left out, so that a difference in the last bit shows what that machinery changed.

    python tests/oracle.py CONFIG OUT.safetensors
"""

from __future__ import annotations

import asyncio
import dataclasses
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from safeladder.actors.feeder import seed_of
from safeladder.actors.generator import question
from safeladder.actors.training import step_options
from safeladder.launch import tasks
from safeladder.launch.config import Config, load
from safeladder.policies import model, weights
from safeladder.policies.batch import TrainingGroup
from safeladder.policies.engines.registry import create
from safeladder.policies.recipe import from_mapping, rewards
from safeladder.policies.scoring import completion_logprobs
from safeladder.policies.step import LearnerStep
from safeladder.protocol import messages as m
from safeladder.verifiers.contract import Item, run
from safeladder.verifiers.registry import create as verifier


async def train(config: Config) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Trains for `learner.steps` steps. Returns the final weights by name and the mean reward of each step."""
    torch.set_num_threads(1)
    path = model.resolve(config.policy.model, Path(config.policy.cache) if config.policy.cache else None)
    policy, tokenizer = model.load(path)
    reference, _ = model.load(path)
    learner = LearnerStep(policy, step_options(config))
    options = config.pools["generator"].options
    engine = create("transformers", path, max_sequences=options["max_sequences"], max_tokens=options["max_tokens"])
    await engine.start()
    recipe = from_mapping(dataclasses.asdict(config.recipe))
    pools = [pool.options["verifiers"] for pool in config.pools.values() if "verifiers" in pool.options]
    verifiers = [verifier(name, settings or {}) for pool in pools for name, settings in pool.items()]
    draw = tasks.Draw(
        tasks.read(config.data.tasks), config.run.seed, config.data.families, config.data.shuffle, config.data.epochs
    )
    means = []
    with tempfile.TemporaryDirectory() as home:
        for step in range(config.learner.steps):
            batch = []
            for sequence in range(step * config.learner.batch, (step + 1) * config.learner.batch):
                record, s = draw[sequence], config.sampling
                sampling = m.Sampling(
                    s.samples, s.max_new_tokens, s.temperature, s.top_p, s.top_k, s.min_p, list(s.stop),
                    seed_of(config.run.seed, sequence),
                )  # fmt: skip
                shots = [(shot.user, shot.assistant) for shot in config.policy.shots]
                prompt = model.encode_prompt(
                    tokenizer, question(record), config.policy.system, config.policy.prefix, shots
                )
                samples = await engine.generate(prompt, sampling)
                texts = [tokenizer.decode(sample.token_ids, skip_special_tokens=True) for sample in samples]
                items = [
                    Item(record, config.policy.prefix + text, index, sample.finish)
                    for index, (text, sample) in enumerate(zip(texts, samples, strict=True))
                ]
                group = m.Group(
                    record,
                    sampling,
                    completions=[m.Completion(text, x.finish) for text, x in zip(texts, samples, strict=True)],
                    verdicts=run(verifiers, items, 60.0),
                )
                earned = rewards(group, recipe)
                with torch.inference_mode():
                    scored = completion_logprobs(
                        reference, [(prompt, x.token_ids) for x in samples], sampling.temperature
                    )
                batch.append(
                    TrainingGroup(
                        id=f"{sequence:08d}-{record.id}",
                        prompt_ids=np.array(prompt, np.int32),
                        completion_ids=[np.array(x.token_ids, np.int32) for x in samples],
                        behaviour=[np.array(x.logprobs, np.float32) for x in samples],
                        versions=[np.array(x.versions, np.int32) for x in samples],
                        rewards=earned.total,
                        valid=earned.valid,
                        reference=[x.numpy() for x in scored],
                    )
                )
            learner.train(batch)
            means.append(float(np.mean(np.concatenate([g.rewards[g.valid] for g in batch]))))
            weights.publish(policy, Path(home), step + 1)
            await engine.load_weights(weights.folder(Path(home), step + 1), step + 1)
    await engine.stop()
    return {name: value.detach().clone() for name, value in policy.named_parameters()}, means


if __name__ == "__main__":
    final, rewards_by_step = asyncio.run(train(load(sys.argv[1])))
    save_file(final, sys.argv[2])
    sys.stdout.write(" ".join(f"{mean:.6f}" for mean in rewards_by_step) + "\n")
