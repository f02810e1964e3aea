"""Checks of an engine in a process of its own that the common suite does not make: they kill it, or look at its parts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from safeladder.policies import model as models
from safeladder.policies import weights
from safeladder.policies.engines.base import Engine, EngineError
from safeladder.policies.scoring import completion_logprobs
from safeladder.protocol.messages import Sampling

DEADLINE_S = 240
TOLERANCE = 1e-4  # nats, float32
STRANGERS = ("resource_tracker",)  # one for each Python process that shares memory; it goes with its parent


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.02)


def own_processes() -> list[psutil.Process]:
    """The processes that this one has started and that count as an engine's."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if child.status() != psutil.STATUS_ZOMBIE and not any(s in " ".join(child.cmdline()) for s in STRANGERS):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def learner_difference(model: Any, prompt: list[int], sample: Any, temperature: float) -> float:
    """The greatest distance between the engine's log-probabilities and the learner's, in nats."""
    with torch.no_grad():
        want = completion_logprobs(model, [(prompt, sample.token_ids)], temperature)[0]
    return float((torch.tensor(sample.logprobs) - want).abs().max())


async def parity_and_swaps(engine: Engine, folder: Path, place: Path, text: str) -> None:
    """Log-probabilities and scores are the learner's, before and after a swap of each kind under load, and the tokens of a
    request that lives through one say which weights made them. Uses up versions 5 and 6."""
    model, tokenizer = models.load(folder)
    prompt = models.encode_prompt(tokenizer, text)
    for temperature in (0.7, 1.0):
        samples = await engine.generate(prompt, Sampling(samples=2, max_new_tokens=12, seed=3, temperature=temperature))
        for sample in samples:
            assert learner_difference(model, prompt, sample, temperature) < TOLERANCE
            scores = await engine.score(prompt, sample.token_ids, temperature)
            assert max(abs(a - b) for a, b in zip(scores, sample.logprobs, strict=True)) < TOLERANCE
    torch.manual_seed(0)
    for version, policy in ((5, "keep"), (6, "recompute")):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1 + 0.02 * torch.randn_like(parameter))
        weights.publish(model, place, version)
        before = engine.version
        long = Sampling(samples=2, max_new_tokens=200, temperature=4.0, seed=version)
        running = asyncio.create_task(engine.generate(prompt, long))
        made = engine.statistics()["generated_tokens"]
        await until(lambda made=made: engine.statistics()["generated_tokens"] > made + 10)
        await engine.load_weights(weights.folder(place, version), version, policy)
        # The same prompt: a cached prefix of the old weights would show in these.
        fresh = await engine.generate(prompt, Sampling(samples=2, max_new_tokens=8, seed=9))
        for sample in fresh:
            assert set(sample.versions) == {version}
            assert learner_difference(model, prompt, sample, 1.0) < TOLERANCE
        samples = await running
        for sample in samples:
            assert sample.versions == sorted(sample.versions) and set(sample.versions) <= {before, version}
        assert any(len(set(sample.versions)) == 2 for sample in samples), "some sample lived through the swap"


async def death(engine: Engine) -> None:
    """Killed from outside: whoever waits gets EngineError, whoever comes gets it too, and nothing is left running."""
    running = asyncio.create_task(engine.generate([5, 6, 7], Sampling(max_new_tokens=1000, temperature=8.0)))
    made = engine.statistics()["generated_tokens"]
    await until(lambda: engine.statistics()["generated_tokens"] > made)
    assert own_processes(), "the engine is in processes of its own"
    for child in own_processes():
        child.kill()
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(EngineError):
            await running
        await until(lambda: engine.error is not None)
        with pytest.raises(EngineError, match="failed"):
            await engine.generate([5], Sampling())
        with pytest.raises(EngineError):
            await engine.health()
        await engine.stop()
    await until(lambda: not own_processes())
