"""`safeladder top RUN --once`: the monitor's panels one under the other, or the snapshot as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

import msgspec

from safeladder.launch.config import ConfigError
from safeladder.launch.terminal import console
from safeladder.launch.top import panels
from safeladder.launch.view.live import Live
from safeladder.launch.view.snapshot import Snapshot, configuration, snapshot, suppliers
from safeladder.launch.view.state import RunView


def opened(path: Path, texts: bool = False) -> RunView:
    """The run in `path`, nothing read yet; texts: see `RunView`. Raises ConfigError where there are no logs."""
    if not (path / "logs").is_dir():
        raise ConfigError(f"{path} is no run directory: it has no logs/")
    return RunView(path.resolve(), texts)


def now(path: Path) -> tuple[RunView, Snapshot]:
    """Reads all there is, and asks the hub if the run lives. Raises ConfigError."""
    view = opened(path)
    view.read()
    live = Live(view.path)
    alive = live.is_live()
    try:
        status = live.status() if alive else None
    finally:
        live.close()
    return view, snapshot(view, suppliers(configuration(view.path)), live=alive, status=status)


def show(view: RunView, shown: Snapshot, stream: TextIO) -> None:
    out = console(stream)
    for part in (
        panels.headline(shown),
        panels.roles(shown),
        panels.training(shown, view, len(view.steps)),
        panels.staleness(shown),
        panels.warnings(shown, most=10),
    ):
        out.print(part)
        out.print()


def as_json(shown: Snapshot) -> str:
    return msgspec.json.format(msgspec.json.encode(shown), indent=1).decode()
