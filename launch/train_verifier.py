"""`safeladder train-verifier`: a configuration with a `kind:` key to that kind's own training. Reads strictly; trains nothing itself."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from safeladder.launch.config import ConfigError, parse, typed
from safeladder.launch.terminal import console
from safeladder.protocol.naming import nearest
from safeladder.verifiers.training import KINDS
from safeladder.verifiers.training.stages.held_out import HeldOut


@dataclass(frozen=True)
class Plan:
    """A kind, its checked configuration, and what trains it."""

    kind: str
    config: Any
    train: Callable[[Any], HeldOut]


def kind_of(raw: Mapping[str, Any], path: Path) -> str:
    """The kind that a configuration names. Raises ConfigError with the nearest known one."""
    kind = raw.get("kind")
    if kind is None:
        raise ConfigError(f"{path}: kind: is missing; known are {', '.join(sorted(KINDS))}")
    if kind not in KINDS:
        raise ConfigError(f"{path}: kind: unknown kind {str(kind)!r}{nearest(str(kind), KINDS)}")
    return str(kind)


def refuse_unread(heads: bool, overrides: Sequence[str], options: Sequence[object]) -> None:
    """Raises ConfigError for what the command line gives and the kind would not read: `key=value` of the heads, the heads' options of
    every other kind."""
    if heads and overrides:
        raise ConfigError(
            f"{overrides[0]!r}: the kind `heads` takes no key=value: change its file, or use --data, --out, --cache"
        )
    if not heads and any(options):
        raise ConfigError(
            "--data, --out, --cache and --no-folds are of the kind `heads`; this one takes key=value, such as output=FOLDER"
        )


def plan(path: Path, overrides: Sequence[str] = ()) -> Plan:
    """Reads a file with `key=value` overrides on top. Raises ConfigError with the nearest known kind or key.

    Of every kind but `heads`, which reads its own file (`train_heads`).
    """
    raw = parse(path, overrides)
    kind = kind_of(raw, path)
    del raw["kind"]
    module = importlib.import_module(KINDS[kind])
    config = typed(raw, module.Config, str(path))
    return Plan(kind, config, module.train)


# ------------------------------------------------------------------------------------------------ the embedded heads


def train_heads(path: Path, data: Path | None, out: Path | None, cache: Path | None, folds: bool) -> dict[str, Any]:
    """The held-out report of the heads. Raises ConfigError for a configuration that cannot be followed."""
    from safeladder.verifiers.training import config, heads

    try:
        return heads.train(path, data, out, cache, folds)
    except config.ConfigError as error:
        raise ConfigError(str(error)) from error
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no file {error.filename}; --data DIR names the folder of the sets") from error


def show_heads(found: dict[str, Any], out: TextIO) -> None:
    """One line a head and slice that counts: the whole, and each language."""
    terminal = console(out)
    terminal.print(f"version {found['version']}", markup=False)
    for name, result in found["heads"].items():
        for label in ("all", "en", "zh"):
            figures = result["slices"].get(label, {})
            said = "  ".join(
                f"{key} {figures[key]:g}" for key in ("rows", "auroc", "accuracy", "f1", "ece") if key in figures
            )
            if said:
                terminal.print(f"{name} [{label}]  {said}", markup=False)
