"""Engines that verifiers share: those that name the same model with the same options use one.

An engine is started by the first verifier that asks for it and stopped when the last one lets go. All of this happens on the verifiers'
loop (`loop.py`), which is the one loop that the engines are called from; loading itself runs in a thread.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from safeladder.policies.engines.base import Engine

log = structlog.get_logger()


class ModelUnavailable(Exception):
    """There is no such model, or no engine that runs it; the message says why."""


@dataclass(frozen=True)
class EngineOptions:
    """`engine`: a name of `policies/engines`. `max_sequences`, `max_tokens`: rows and key-value tokens in the batch at once.
    `cache`: where the built-in models are kept; null: the user's cache folder."""

    engine: str = "transformers"
    dtype: str = "float32"
    device: str = "cpu"
    max_sequences: int = 16
    max_tokens: int = 16_384
    cache: str | None = None


@dataclass(frozen=True)
class Served:
    """A started engine and its tokenizer. `path`: the model's folder."""

    path: str
    options: EngineOptions
    engine: Engine
    tokenizer: Any


@dataclass
class _Shared:
    task: asyncio.Task[Served]
    holders: int = 0


_shared: dict[tuple[str, EngineOptions], _Shared] = {}


async def acquire(model: str, options: EngineOptions) -> Served:
    """The engine over `model` (a name that `policies.model.resolve` knows), started. To be given back with `release`.

    Raises ModelUnavailable when it cannot be had; the next call tries again.
    """
    path = await asyncio.to_thread(_found, model, options.cache)
    key = (path, replace(options, cache=None))
    entry = _shared.get(key)
    if entry is None:
        entry = _shared[key] = _Shared(asyncio.create_task(_start(*key)))
    entry.holders += 1
    try:
        return await asyncio.shield(entry.task)  # one caller's time limit must not end what others wait for
    except BaseException:  # a cancelled caller holds nothing either
        entry.holders -= 1
        if entry.task.done() and _shared.get(key) is entry and not entry.holders:
            del _shared[key]
            if not entry.task.cancelled() and entry.task.exception() is None:
                await entry.task.result().engine.stop()
        raise


async def release(served: Served) -> None:
    """Lets go of what `acquire` gave. The engine stops with its last holder."""
    key = (served.path, served.options)
    entry = _shared[key]
    entry.holders -= 1
    if entry.holders == 0:
        del _shared[key]
        await served.engine.stop()
        log.info("engine.released", model=served.path)


def holders() -> dict[str, int]:
    """Model folder -> how many verifiers hold an engine over it."""
    found: dict[str, int] = {}
    for (path, _), entry in _shared.items():
        found[path] = found.get(path, 0) + entry.holders
    return found


def _found(model: str, cache: str | None) -> str:
    from safeladder.policies import model as models

    try:
        return str(models.resolve(model, Path(cache) if cache else None))
    except models.ModelError as error:
        raise ModelUnavailable(str(error)) from error


async def _start(path: str, options: EngineOptions) -> Served:
    from safeladder.policies import model as models
    from safeladder.policies.engines import registry
    from safeladder.policies.engines.base import EngineError

    try:
        tokenizer = await asyncio.to_thread(models.load_tokenizer, Path(path))
        engine = await asyncio.to_thread(
            registry.create,
            options.engine,
            Path(path),
            dtype=options.dtype,
            device=options.device,
            max_sequences=options.max_sequences,
            max_tokens=options.max_tokens,
        )
        await engine.start()
    except (models.ModelError, EngineError) as error:
        raise ModelUnavailable(str(error)) from error
    return Served(path, options, engine, tokenizer)
