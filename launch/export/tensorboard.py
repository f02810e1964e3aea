"""TensorBoard: the figures of each step as scalars, through TensorBoard's own writer (extra `[tensorboard]`)."""

from __future__ import annotations

from typing import ClassVar

from safeladder.launch.events import Event, seconds
from safeladder.launch.export.scalars import scalars
from safeladder.launch.export.sink import needed


class TensorBoardSink:
    """target: a folder for `tensorboard --logdir`. A step that is made again after a roll-back stands there twice."""

    LIVE_TARGET: ClassVar[str | None] = "tensorboard"

    def __init__(self, run: str, target: str) -> None:
        summary = needed("tensorboard.summary", "tensorboard")
        self._writer = summary.Writer(target)

    def take(self, event: Event) -> None:
        if found := scalars(event):
            step, figures = found
            for name, value in figures.items():
                self._writer.add_scalar(name, value, step, wall_time=seconds(event))
            self._writer.flush()  # a step is rare, and somebody may be watching

    def close(self) -> None:
        self._writer.close()
