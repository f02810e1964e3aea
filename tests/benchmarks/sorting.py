"""A generated task and a transformer of 1.1 million parameters that learns it by reinforcement: what `staleness.py` trains on.

A prompt is five different digits, the answer is the same digits in rising order. The reward is the share of places with the right
digit. The policy is a Llama with a vocabulary of 16, warmed up on demonstrations of which most are in the wrong order,
so that it knows what an answer looks like and gets a third of the places right: the rest it has to find out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import small_policy
import torch
from numpy.typing import NDArray
from small_policy import SEPARATOR, START, sample
from transformers import LlamaForCausalLM

from safeladder.policies.batch import TrainingGroup

DIGITS = 5
IN_ORDER = 0.3  # share of the demonstrations that are right


def model() -> LlamaForCausalLM:
    """A Llama of about 1.3 million parameters in float32, with random weights of torch's present seed."""
    return small_policy.model(hidden=192, layers=3)


def prompts(count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """[count, 7]: start, five different digits, separator."""
    digits = random.permuted(np.tile(np.arange(10), (count, 1)), axis=1)[:, :DIGITS]
    return np.hstack([np.full((count, 1), START), digits, np.full((count, 1), SEPARATOR)])


def judge(asked: NDArray[np.int64], answers: NDArray[np.int64]) -> NDArray[np.float64]:
    """Rewards [n] in [0, 1] of answers [n, 5] to prompts [n, 7]."""
    return (answers == np.sort(asked[:, 1 : DIGITS + 1], axis=1)).mean(axis=1)


def warm_start(path: Path, steps: int, seed: int = 0) -> LlamaForCausalLM:
    """The policy after `steps` supervised steps on demonstrations, from `path` if it was made before."""
    return small_policy.warm_start(path, steps, model, _demonstrations, seed)


def _demonstrations(random: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    asked = prompts(128, random)
    digits = asked[:, 1 : DIGITS + 1]
    right = random.random((len(asked), 1)) < IN_ORDER
    return asked, np.where(right, np.sort(digits, axis=1), random.permuted(digits, axis=1))


def groups(
    policy: LlamaForCausalLM,
    count: int,
    each: int,
    version: int,
    random: np.random.Generator,
    generator: torch.Generator,
) -> list[TrainingGroup]:
    """`count` prompts with `each` judged answers, sampled by the weights as they are now, called `version`."""
    asked = prompts(count, random)
    answers, logprobs = sample(policy, asked, each, generator, DIGITS)
    return [
        TrainingGroup(
            id=f"{version}-{place}",
            prompt_ids=prompt.astype(np.int32),
            completion_ids=list(given.astype(np.int32)),
            behaviour=list(drawn),
            versions=[np.full(DIGITS, version, np.int32)] * each,
            rewards=judge(np.repeat(prompt[None], each, axis=0), given),
            valid=np.ones(each, np.bool_),
        )
        for place, (prompt, given, drawn) in enumerate(zip(asked, answers, logprobs, strict=True))
    ]


def measure(policy: LlamaForCausalLM, count: int, seed: int) -> float:
    """Mean reward over `count` prompts with one answer each; `seed` decides prompts and tokens."""
    asked = prompts(count, np.random.default_rng(seed))
    answers, _ = sample(policy, asked, 1, torch.Generator().manual_seed(seed), DIGITS)
    return float(judge(asked, answers[:, 0]).mean())
