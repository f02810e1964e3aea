"""`safeladder train-verifier`: a configuration with a `kind:` key to that kind's own training. Reads strictly; trains nothing itself."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safeladder.launch.config import ConfigError, nearest, parse, typed
from safeladder.verifiers.training import KINDS
from safeladder.verifiers.training.stages.held_out import HeldOut


@dataclass(frozen=True)
class Plan:
    """A kind, its checked configuration, and what trains it."""

    kind: str
    config: Any
    train: Callable[[Any], HeldOut]


def plan(path: Path, overrides: Sequence[str] = ()) -> Plan:
    """Reads a file with `key=value` overrides on top. Raises ConfigError with the nearest known kind or key."""
    raw = parse(path, overrides)
    kind = raw.pop("kind", None)
    if kind is None:
        raise ConfigError(f"{path}: kind: is missing; known are {', '.join(sorted(KINDS))}")
    if kind not in KINDS:
        raise ConfigError(f"{path}: kind: unknown kind {str(kind)!r}{nearest(str(kind), KINDS)}")
    module = importlib.import_module(KINDS[kind])
    config = typed(raw, module.Config, str(path))
    return Plan(kind, config, module.train)
