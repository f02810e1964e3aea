"""Figures over steps and over time, as columns.

`Table` keeps every step: about 4 bytes a figure. `Timeline` keeps a fixed number of buckets, whatever the run's length: when time
outgrows them, neighbours are joined and the buckets become twice as wide.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
NAN: Final = float("nan")


class Table:
    """One row a step, in order of steps; a column a figure, NaN where it was not measured."""

    def __init__(self, figures: Iterable[str]) -> None:
        self._steps = array("q")
        self._times = array("d")
        self._columns = {name: array("f") for name in figures}

    def __len__(self) -> int:
        return len(self._steps)

    def append(self, step: int, at: float, row: Iterable[float | None], named: Mapping[str, float]) -> None:
        """row: the figures in the order in which they were declared; named: others, whose columns come up as they appear."""
        self._truncate(step)
        before = len(self._steps)
        self._steps.append(step)
        self._times.append(at)
        for column, value in zip(self._columns.values(), row, strict=False):
            column.append(NAN if value is None else value)
        for name, value in named.items():
            column = self._columns.get(name)
            if column is None:
                column = self._columns[name] = array("f", [NAN]) * before
            if len(column) < before:
                column.extend([NAN] * (before - len(column)))
            column.append(value)

    def names(self, prefix: str = "") -> list[str]:
        return [name for name in self._columns if name.startswith(prefix)]

    @property
    def steps(self) -> NDArray[np.int64]:
        return np.array(self._steps, np.int64)

    @property
    def times(self) -> Floats:
        """Seconds since the epoch at which each step was completed."""
        return np.array(self._times, np.float64)

    def column(self, name: str) -> Floats:
        """[steps]; NaN throughout where there is no such figure."""
        found = np.full(len(self._steps), NAN)
        values = self._columns.get(name)
        if values:
            found[: len(values)] = np.array(values, np.float32)
        return found

    def last(self, name: str, rows: int | None = None) -> float | None:
        """The newest measured value among the first `rows` rows, None where there is none."""
        values = self._columns.get(name)
        for index in range(min(len(values or ()), len(self._steps) if rows is None else rows) - 1, -1, -1):
            if values is not None and values[index] == values[index]:
                return float(values[index])
        return None

    def _truncate(self, step: int) -> None:
        """After a roll-back a step is made again: what was made since is no part of the history that survives."""
        keep = len(self._steps)
        while keep and self._steps[keep - 1] >= step:
            keep -= 1
        if keep < len(self._steps):
            for column in (self._steps, self._times, *self._columns.values()):
                del column[keep:]


class Timeline:
    """A quantity spread over time: `add` puts an amount on a stretch, `rates` gives it per second in each bucket."""

    BUCKETS: Final = 2048

    def __init__(self) -> None:
        self._begin: float | None = None
        self._width = 1.0
        self._amounts = array("d", bytes(8 * self.BUCKETS))

    def add(self, begin: float, end: float, amount: float) -> None:
        """`amount`, evenly from `begin` to `end` (seconds since the epoch). Plain Python: most stretches touch one bucket."""
        if self._begin is None:
            self._begin = float(begin // 1.0)
        begin, end = max(begin, self._begin), max(end, self._begin)
        while end >= self._begin + self._width * self.BUCKETS:
            self._fold()
        low, high = (begin - self._begin) / self._width, (end - self._begin) / self._width
        first, last = int(low), int(high)
        if first == last:
            self._amounts[first] += amount
            return
        density = amount / (high - low)
        for bucket in range(first, last + 1):
            self._amounts[bucket] += density * (min(high, bucket + 1) - max(low, bucket))

    def total(self, begin: float, end: float) -> float:
        """The amount between two moments, buckets cut by them in proportion."""
        if self._begin is None or end <= begin:
            return 0.0
        edges = self._begin + self._width * np.arange(self.BUCKETS + 1)
        share = np.clip(np.minimum(edges[1:], end) - np.maximum(edges[:-1], begin), 0, None) / self._width
        return float(np.array(self._amounts) @ share)

    def rates(self, begin: float, end: float, count: int) -> Floats:
        """[count]: the amount per second in `count` equal stretches between two moments."""
        if self._begin is None or end <= begin:
            return np.zeros(count)
        edges = self._begin + self._width * np.arange(self.BUCKETS + 1)
        sums = np.concatenate([[0.0], np.cumsum(np.array(self._amounts))])
        asked = np.linspace(begin, end, count + 1)
        return np.diff(np.interp(asked, edges, sums)) / ((end - begin) / count)

    def _fold(self) -> None:
        joined = np.array(self._amounts).reshape(self.BUCKETS // 2, 2).sum(1)
        self._amounts = array("d", joined.tobytes()) + array("d", bytes(8 * (self.BUCKETS // 2)))
        self._width *= 2


class Covered:
    """How long at least one of several overlapping stretches of work went on; stretches come in order of their ends."""

    KEEP: Final = 64  # stretches remembered; one that reaches further back is counted from there

    def __init__(self) -> None:
        self._stretches: list[tuple[float, float]] = []

    def add(self, begin: float, end: float) -> list[tuple[float, float]]:
        """The parts of this stretch that no earlier one covered."""
        fresh, edge, low = [], end, begin
        while self._stretches and self._stretches[-1][1] > begin:
            known_begin, known_end = self._stretches.pop()
            if known_end < edge:
                fresh.append((known_end, edge))
            edge = min(edge, known_begin)
            low, end = min(low, known_begin), max(end, known_end)
        if edge > begin:
            fresh.append((begin, edge))
        self._stretches.append((low, end))
        del self._stretches[: -self.KEEP]
        return fresh


class Changes:
    """A value that changes now and then: what it was at any moment. The oldest of more than 4096 changes are thinned out."""

    KEEP: Final = 4096

    def __init__(self) -> None:
        self._times = array("d")
        self._values = array("d")

    def set(self, at: float, value: float) -> None:
        if self._values and self._values[-1] == value:
            return
        if len(self._times) >= self.KEEP:
            self._times, self._values = self._times[::2], self._values[::2]
        self._times.append(at)
        self._values.append(value)

    def at(self, moment: float | None) -> float | None:
        """None before the first."""
        count = (
            len(self._times) if moment is None else int(np.searchsorted(np.array(self._times), moment, side="right"))
        )
        return self._values[count - 1] if count else None
