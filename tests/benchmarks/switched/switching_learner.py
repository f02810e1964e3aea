"""A learner that switches the logging of its whole run, and its record, on and off by blocks of steps, and notes how long steps take."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from switched_logging import STATE

from safeladder.actors import learner
from safeladder.actors.actor import Delivery
from safeladder.actors.learner import Learner
from safeladder.actors.places import Place
from safeladder.actors.recording import Recorder
from safeladder.protocol.record import Record


class Counted(Recorder):
    """Adds up the processor time of recording."""

    seconds = 0.0

    def handed(self, delivery: Delivery, lease_s: float) -> None:
        begun = time.thread_time()
        super().handed(delivery, lease_s)
        Counted.seconds += time.thread_time() - begun

    def _append(self, make: Callable[[], Record]) -> None:
        begun = time.thread_time()
        super()._append(make)
        Counted.seconds += time.thread_time() - begun


learner.Recorder = Counted  # type: ignore[misc]


class SwitchingLearner(Learner):
    """Of two blocks one is on and the other off, which of them first is drawn."""

    @dataclass
    class Options(Learner.Options):
        """block: steps."""

        block: int = 4

    async def start(self) -> None:
        await super().start()
        self._recorder_on, self._random = self._recorder, random.Random(1)
        self._before = time.perf_counter()
        self._times = Path(os.environ["SWITCH"] + ".steps").open("w", buffering=1)  # noqa: SIM115 - for life
        self._first = True

    async def stop(self) -> None:
        await super().stop()
        Path(os.environ["SWITCH"] + ".recording").write_text(f"{Counted.seconds:.6f}")

    async def _train(self, places: list[Place]) -> None:
        await super()._train(places)
        now = time.perf_counter()
        print(self._step, STATE[0], f"{now - self._before:.6f}", file=self._times)
        self._before = now
        if self._step % self.options.block == 0:
            self._switch(self._step // self.options.block)

    def _switch(self, block: int) -> None:
        if block % 2 == 0:
            self._first = self._random.random() < 0.5
        STATE[0] = int(self._first == (block % 2 == 0))
        self._recorder = self._recorder_on if STATE[0] else None
