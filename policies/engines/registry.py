"""Engines by name. A module is imported when its engine is asked for, so an engine that is not installed costs nothing."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from safeladder.policies.engines.base import Engine, EngineError

ENGINES: Final = {
    "transformers": "safeladder.policies.engines.transformers_engine:TransformersEngine",
    "vllm": "safeladder.policies.engines.vllm_engine:VllmEngine",
    "sglang": "safeladder.policies.engines.sglang_engine:SglangEngine",
    "simulated": "safeladder.policies.engines.simulated:SimulatedEngine",
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
    options: Mapping[str, Any] | None = None,
) -> Engine:
    """The engine `name` (of `ENGINES`, or `module:Class`) over the model folder `path`; see `Engine.open`. Not started yet.

    Raises EngineError for a name that leads to no engine, naming the known ones, and for an option that it does not have.
    """
    engine = kind(name)
    limits = {"max_sequences": max_sequences, "max_tokens": max_tokens}
    try:
        return engine.open(path, version=version, dtype=dtype, device=device, **limits, **(options or {}))
    except TypeError as error:
        raise EngineError(f"the engine {name!r} does not take these options: {error}") from error


def kind(name: str) -> type[Engine]:
    """The class of the engine `name`. Raises EngineError."""
    place = ENGINES.get(name, name)
    module, separator, attribute = place.partition(":")
    if not separator:
        raise EngineError(
            f"no engine {name!r}; there are {', '.join(sorted(ENGINES))}, and module:Class for one of your own"
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise EngineError(f"the engine {name!r} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Engine)):
        raise EngineError(f"{place} is not an Engine")
    return found
