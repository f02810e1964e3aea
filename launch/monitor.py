"""The launcher's watch over the run's own logs: health rules and standstills, told as events of the launcher's log.

A thread reads what all processes have written since the last look, a second at a time. It needs nobody's answer and holds nothing
up; what it sees is what `safeladder health` and `who-waits` see afterwards.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path

import structlog

from safeladder.launch.events import Tail, seconds
from safeladder.launch.health import Health
from safeladder.launch.standstill import Standstill
from safeladder.launch.waits import Layout

LOOK_S = 1.0


class Monitor:
    """Watches until `close`."""

    def __init__(self, logs: Path, layout: Layout, from_end: bool = False) -> None:
        """from_end: a resumed run's past is not looked at again."""
        self._tail = Tail(logs, from_end=from_end)
        self._health, self._standstill = Health(), Standstill(layout)
        self._log = structlog.get_logger()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="monitor", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """The last lines are looked at too."""
        self._closed.set()
        self._thread.join(5.0)

    def _watch(self) -> None:
        while not self._closed.wait(LOOK_S):
            self._look()
        self._look()

    def _look(self) -> None:
        for event in sorted(self._tail.read(), key=seconds):
            self._standstill.note(event)
            for finding in self._health.note(event):
                self._log.warning("health.warning", **dataclasses.asdict(finding), **self._health.step)
        for name, fields in self._standstill.look(time.time()):
            if name == "run.stalled":
                self._log.warning("run.stalled", **fields)
            else:
                self._log.info("run.moving", **fields)
