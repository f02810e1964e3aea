"""The processes that `learner.py` measures: asked for one step at a time, on a machine that is watched for others."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
from learner_sides import Side, main

DEADLINE_S = 1800.0
# glibc hands large blocks back to the kernel and faults them in again every step, on both sides, unless told not to.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(2**31 - 1),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**28),
    "MALLOC_ARENA_MAX": "2",
}


_spawn = multiprocessing.get_context("spawn")


class Neighbours:
    """Tells whether other processes computed. patience_s: how long to wait for them in all; after that, nothing is quiet."""

    ALLOWED = 0.08  # of the cores' time

    def __init__(self, patience_s: float) -> None:
        self.left_s = patience_s

    def wait(self) -> None:
        """Until the machine is idle for a moment."""
        while self.left_s > 0 and psutil.cpu_percent(interval=0.25) > 100 * self.ALLOWED:
            time.sleep(1.0)
            self.left_s -= 1.25

    @contextmanager
    def watch(self, process: int) -> Iterator[list[bool]]:
        """Yields an empty list that afterwards holds whether `process` had the machine to itself."""
        quiet: list[bool] = []
        start, busy, own = time.monotonic(), _busy_s(), _own_s(process)
        yield quiet
        seconds = time.monotonic() - start
        others = _busy_s() - busy - (_own_s(process) - own)
        quiet.append(others < self.ALLOWED * seconds * (os.cpu_count() or 1) + 0.03)  # the kernel counts in 0.01 s
        if not quiet[0]:
            self.left_s = max(0.0, self.left_s - seconds)


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(sum(times[:3]) + sum(times[5:8]))  # all but idle, waiting for a disk, and guests, who count as user


def _own_s(process: int) -> float:
    return float(sum(psutil.Process(process).cpu_times()[:2]))


@dataclass
class Measured:
    """Of one side in one case. first: what its first step told; steps: batch number -> seconds of its steps."""

    label: str
    shape: dict[str, int] = field(default_factory=dict)
    first: dict[str, Any] = field(default_factory=dict)
    steps: dict[int, list[float]] = field(default_factory=dict)
    preparation: list[float] = field(default_factory=list)
    disturbed: int = 0  # steps that others disturbed and that are in no figure
    suffered: int = 0  # steps that others disturbed and that count all the same, because patience had run out
    memory: dict[str, float] = field(default_factory=dict)

    def seconds(self) -> float:
        """Of one step: the median of every batch's steps, averaged over the batches."""
        return statistics.fmean(statistics.median(times) for times in self.steps.values())

    def rate(self, amounts: Sequence[float]) -> float:
        """Amount per second, given the amount of each batch."""
        return statistics.fmean(amounts[number] for number in self.steps) / self.seconds()

    def extremes(self, amounts: Sequence[float]) -> tuple[float, float]:
        rates = [amounts[number] / seconds for number, times in self.steps.items() for seconds in times]
        return min(rates), max(rates)


class Process:
    """One side, waiting for its next step."""

    def __init__(self, side: Side, label: str, neighbours: Neighbours) -> None:
        self.side = side
        self.result = Measured(label)
        self._neighbours = neighbours
        self._pipe, theirs = _spawn.Pipe()
        self._process = _spawn.Process(target=main, args=(side, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.result.shape = self._hear()["shape"]
        self.result.first = self._hear()

    def step(self, number: int) -> float:
        """Seconds of a step on the batch `number`, made again while others disturb it and there is patience left."""
        while True:
            self._neighbours.wait()
            with self._neighbours.watch(self._process.pid or 0) as quiet:
                self._pipe.send(number)
                heard = self._hear()
            if quiet[0]:
                break
            if self._neighbours.left_s <= 0:
                self.result.suffered += 1
                break
            self.result.disturbed += 1
        seconds = float(heard["seconds"])
        self.result.steps.setdefault(number, []).append(seconds)
        self.result.preparation.append(float(heard.get("preparation", 0.0)))
        return seconds

    def close(self) -> Measured:
        self._pipe.send(None)
        self.result.memory = self._hear()
        self._process.join(DEADLINE_S)
        return self.result

    def _hear(self) -> dict[str, Any]:
        if not self._pipe.poll(DEADLINE_S):
            raise TimeoutError(f"{self.result.label} did not answer within {DEADLINE_S:.0f} s")
        heard: dict[str, Any] = self._pipe.recv()
        return heard


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """What the processes inherit; glibc reads it when they start."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    yield
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
