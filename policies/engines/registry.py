"""Engines by name. A module is imported when its engine is asked for, so an engine that is not installed costs nothing."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Final

from safeladder.policies.engines.base import Engine, EngineError

ENGINES: Final = {
    "transformers": "safeladder.policies.engines.transformers_engine:TransformersEngine",
}


def create(
    name: str,
    path: Path,
    *,
    version: int = 0,
    dtype: str = "float32",
    device: str = "cpu",
    max_sequences: int = 16,
    max_tokens: int = 16_384,
) -> Engine:
    """The engine `name` over the model folder `path`, whose weights count as `version`. Not started yet.

    `max_sequences` samples decode together at most, over at most `max_tokens` tokens of key-value cache.
    Raises EngineError for an unknown name, naming the known ones.
    """
    if name not in ENGINES:
        raise EngineError(f"no engine {name!r}; there are {', '.join(sorted(ENGINES))}")
    module, _, kind = ENGINES[name].partition(":")
    engine: Engine = getattr(importlib.import_module(module), kind).open(
        path, version=version, dtype=dtype, device=device, max_sequences=max_sequences, max_tokens=max_tokens
    )
    return engine
