"""Weights & Biases, offline: the figures of each step into a folder that `wandb sync` can send later (extra `[wandb]`).

Nothing is sent from here, whatever the environment says.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from safeladder.launch.events import Event
from safeladder.launch.export.scalars import scalars
from safeladder.launch.export.sink import needed


class WandbSink:
    """target: a folder, which gets `wandb/offline-run-...`. A step that is made again after a roll-back keeps its first figures."""

    LIVE_TARGET: ClassVar[str | None] = "."

    def __init__(self, run: str, target: str) -> None:
        self._wandb = wandb = needed("wandb", "wandb")
        Path(target).mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(
            console="off", silent=True, x_disable_stats=True, x_disable_meta=True, disable_git=True
        )
        self._run = wandb.init(project="safeladder", name=run, dir=target, mode="offline", settings=settings)

    def take(self, event: Event) -> None:
        if found := scalars(event):
            step, figures = found
            self._run.log(figures, step=step)

    def close(self) -> None:
        self._run.finish()
        self._wandb.teardown()  # its own process writes the rest of the file as it ends
