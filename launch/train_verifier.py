"""`safeladder train-verifier CONFIG`: trains what the configuration's `kind` names and says what it is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TextIO

import yaml  # type: ignore[import-untyped]

from safeladder.launch.config import ConfigError
from safeladder.launch.terminal import console

KINDS = ("heads",)


def train(path: Path, data: Path | None, out: Path | None, cache: Path | None, folds: bool) -> dict[str, Any]:
    """The held-out report of what was trained. Raises ConfigError for a configuration that cannot be followed."""
    from safeladder.verifiers.training import config, heads

    kind = _kind(path)
    if kind not in KINDS:
        raise ConfigError(f"{path}: kind is {kind!r}; known: {', '.join(KINDS)}")
    try:
        return heads.train(path, data, out, cache, folds)
    except config.ConfigError as error:
        raise ConfigError(str(error)) from error
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no file {error.filename}; --data DIR names the folder of the sets") from error


def _kind(path: Path) -> Any:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no configuration at {path}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {error}") from None
    return content.get("kind") if isinstance(content, dict) else None


def show(found: dict[str, Any], out: TextIO) -> None:
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
