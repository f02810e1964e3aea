"""An engine that runs in a loop of its own for many checks, beside the plain model that it should agree with."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from safeladder.policies import model as models
from safeladder.policies import weights
from safeladder.policies.engines.base import CachePolicy, Engine, GeneratedSequence
from safeladder.policies.engines.registry import create

DEADLINE_S = 200


class Served:
    """`model` has the weights of every test's beginning; `swap` brings others, `restore` these again."""

    def __init__(self, kind: str, options: Mapping[str, Any], folder: Path, home: Path, **limits: int) -> None:
        self.model, self.tokenizer = models.load(folder)
        self.folder, self.home = folder, home
        self.version = 0
        self._foreign = False
        self._runner = asyncio.Runner()
        self.engine: Engine = create(kind, folder, options=options, **limits)
        self.run(self.engine.start(), 600)

    def run(self, work: Coroutine[Any, Any, Any], deadline_s: float = DEADLINE_S) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(deadline_s):
                return await work

        return self._runner.run(bounded())

    def close(self) -> None:
        self.run(self.engine.stop())
        self._runner.close()

    def ids(self, text: str) -> list[int]:
        return models.encode_prompt(self.tokenizer, text)

    def changed(self, seed: int) -> Any:
        """The model with other weights, each some two per cent away, as after many steps: far beyond rounding, and still a model."""
        model, _ = models.load(self.folder)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1 + 0.02 * torch.randn(parameter.shape, generator=generator))
        return model

    async def swap(self, model: Any, cache: CachePolicy | None = None) -> int:
        self.version += 1
        self._foreign = model is not self.model
        weights.publish(model, self.home, self.version)
        await self.engine.load_weights(weights.folder(self.home, self.version), self.version, cache)
        return self.version

    def restore(self) -> None:
        if self._foreign:
            self.run(self.swap(self.model))


def own_processes() -> set[psutil.Process]:
    """The processes that this one has started, without the tracker of shared memory, which goes with its parent."""
    found = set()
    for child in psutil.Process().children(recursive=True):
        try:
            if child.status() != psutil.STATUS_ZOMBIE and "resource_tracker" not in " ".join(child.cmdline()):
                found.add(child)
        except psutil.NoSuchProcess:
            continue
    return found


@torch.inference_mode()
def expected(model: Any, prompt: Sequence[int], completion: Sequence[int], temperature: float = 1.0) -> torch.Tensor:
    """ln p [tokens, V] of every token of the vocabulary at each place of `completion`."""
    logits = model(torch.tensor([[*prompt, *completion]]), use_cache=False).logits[0].float()
    return (logits[len(prompt) - 1 : -1] / temperature).log_softmax(-1)


def agree(
    model: Any, prompt: Sequence[int], sample: GeneratedSequence, temperature: float = 1.0, start: int = 0
) -> None:
    """Asserts that the log-probabilities from token `start` on are those of the plain model."""
    wanted = expected(model, prompt, sample.token_ids, temperature)
    wanted = wanted.gather(1, torch.tensor(sample.token_ids)[:, None])[:, 0]
    assert len(sample.logprobs) == len(sample.token_ids) == len(sample.versions) > start
    torch.testing.assert_close(torch.tensor(sample.logprobs[start:]), wanted[start:], atol=2e-4, rtol=0)


async def until(condition: Callable[[], bool]) -> None:
    """Lets the loop run until `condition` holds; the caller's deadline bounds it."""
    while not condition():
        await asyncio.sleep(0.001)


async def both(one: Awaitable[Any], other: Awaitable[Any]) -> tuple[Any, Any]:
    return await asyncio.gather(one, other)
