"""Figures over steps and over time, as columns.

`Table` keeps every step: 4 bytes a figure. `Timeline` keeps a fixed number of buckets, whatever the run's length: when time outgrows
them, neighbours are joined and the buckets become twice as wide. What is read from a log is collected and worked in by the thousand:
only so are two million lines read in seconds.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Named = Mapping[str, Mapping[str, float | None]]
NAN: Final = float("nan")
BATCH: Final = 4096
MAX_NAMED: Final = 200  # columns that come up as they appear; more are not kept


class Table:
    """One row a step, in order of steps; a column a figure, NaN where it was not measured."""

    def __init__(self, figures: Sequence[str]) -> None:
        self._index = {name: place for place, name in enumerate(figures)}
        self._steps, self._times = array("q"), array("d")
        self._blocks: list[NDArray[np.float32]] = []
        self._fresh: list[Sequence[float | None]] = []
        self._named: dict[str, list[tuple[int, NDArray[np.float32]]]] = {}  # name -> (first row, values of these rows)
        self._fresh_named: list[Named] = []

    def __len__(self) -> int:
        return len(self._steps)

    def append(self, step: int, at: float, row: Sequence[float | None], named: Named) -> None:
        """row: the figures in the order in which they were declared; named: others by kind and name, which come up as `kind:name`."""
        if self._steps and step <= self._steps[-1]:
            self._truncate(step)
        self._steps.append(step)
        self._times.append(at)
        self._fresh.append(row)
        self._fresh_named.append(named)
        if len(self._fresh) >= BATCH:
            self._settle()

    def names(self, prefix: str) -> list[str]:
        """Of the columns that came up, those that begin so, in alphabetical order."""
        self._settle()
        return sorted(name for name in self._named if name.startswith(prefix))

    @property
    def steps(self) -> NDArray[np.int64]:
        return np.array(self._steps, np.int64)

    @property
    def times(self) -> Floats:
        """Seconds since the epoch at which each step was completed."""
        return np.array(self._times, np.float64)

    def column(self, name: str) -> Floats:
        """[steps]; NaN throughout where there is no such figure."""
        self._settle()
        if name in self._index:
            parts = [block[:, self._index[name]] for block in self._blocks]
            return np.concatenate(parts).astype(np.float64) if parts else np.zeros(0)
        found = np.full(len(self._steps), NAN)
        for first, values in self._named.get(name, ()):
            found[first : first + len(values)] = values
        return found

    def _settle(self) -> None:
        """None becomes NaN."""
        if not self._fresh:
            return
        first = len(self._steps) - len(self._fresh)
        self._blocks.append(np.array(self._fresh, np.float32))
        for kind in {kind for named in self._fresh_named for kind in named}:
            rows = [named.get(kind, {}) for named in self._fresh_named]
            for name in {name for row in rows for name in row}:
                column = f"{kind}:{name}"
                if column in self._named or len(self._named) < MAX_NAMED:
                    values = np.array([row.get(name) for row in rows], np.float32)
                    self._named.setdefault(column, []).append((first, values))
        self._fresh, self._fresh_named = [], []

    def _truncate(self, step: int) -> None:
        """After a roll-back a step is made again: what was made since is no part of the history that survives."""
        self._settle()
        keep = len(self._steps)
        while keep and self._steps[keep - 1] >= step:
            keep -= 1
        del self._steps[keep:], self._times[keep:]
        for name, parts in self._named.items():
            self._named[name] = [(first, values[: max(0, keep - first)]) for first, values in parts if first < keep]
        whole = np.concatenate(self._blocks)
        self._blocks = [whole[:keep]] if keep else []


class Timeline:
    """A quantity spread over time: `add` puts an amount on a stretch, `rates` gives it per second."""

    BUCKETS: Final = 2048
    SHORTEST_S: Final = 1e-3  # a moment is taken for a stretch of this length

    def __init__(self) -> None:
        self._begin = NAN
        self._width = 1.0
        self._before = np.zeros(self.BUCKETS + 1)  # the amount before each edge of a bucket

    def add(self, begins: Floats, ends: Floats, amounts: Floats) -> None:
        """Each [n]: an amount, evenly from `begins` to `ends` (seconds since the epoch)."""
        if len(begins):
            self._spread(begins, ends, amounts)

    def total(self, begin: float, end: float) -> float:
        """The amount between two moments, buckets cut by them in proportion."""
        if np.isnan(self._begin) or end <= begin:
            return 0.0
        first, last = np.interp([begin, end], self._edges(), self._before)
        return float(last - first)

    def rates(self, begin: float, end: float, count: int) -> Floats:
        """[count]: the amount per second in `count` equal stretches between two moments."""
        if np.isnan(self._begin) or end <= begin:
            return np.zeros(count)
        amounts = np.interp(np.linspace(begin, end, count + 1), self._edges(), self._before)
        return np.asarray(np.diff(amounts) / ((end - begin) / count), np.float64)

    def _edges(self) -> Floats:
        return np.asarray(self._begin + self._width * np.arange(self.BUCKETS + 1), np.float64)

    def _spread(self, begins: Floats, ends: Floats, amounts: Floats) -> None:
        """Each stretch is a ramp of the amount so far: density * (x - begin) from its begin, less the same from its end."""
        if np.isnan(self._begin):
            self._begin = float(begins.min() // 1.0)
        begins = np.maximum(begins, self._begin)
        ends = np.maximum(ends, begins + self.SHORTEST_S)
        while ends.max() >= self._begin + self._width * self.BUCKETS:
            self._fold()
        low, high = (begins - self._begin) / self._width, (ends - self._begin) / self._width
        density = amounts / (high - low)
        places = np.ceil(np.concatenate([low, high])).astype(np.int64)
        slopes = np.concatenate([density, -density])
        offsets = np.concatenate([density * low, -density * high])
        edges = self.BUCKETS + 1
        slope = np.cumsum(np.bincount(places, slopes, edges)[:edges])
        offset = np.cumsum(np.bincount(places, offsets, edges)[:edges])
        self._before += np.maximum(np.arange(edges) * slope - offset, 0.0)

    def _fold(self) -> None:
        kept = self._before[::2]
        self._before = np.concatenate([kept, np.full(self.BUCKETS // 2, kept[-1])])
        self._width *= 2


class Worked(Timeline):
    """Seconds in which at least one of several overlapping stretches of work went on, so a rate is a share between 0 and 1.

    Stretches come roughly in order of their ends. The newest are kept apart until it is certain that nothing overlaps them.
    """

    KEEP: Final = 64  # separate stretches kept apart; work that reaches further back is counted from there

    def __init__(self) -> None:
        super().__init__()
        self._recent = np.zeros((0, 2))
        self._settled_to = -np.inf

    def work(self, begins: Floats, ends: Floats) -> None:
        """Each [n]: stretches, in seconds since the epoch."""
        if not len(begins):
            return
        merged = _merge(np.concatenate([self._recent, np.column_stack([begins, ends])]))
        merged[:, 0] = np.maximum(merged[:, 0], self._settled_to)
        merged = merged[merged[:, 1] > merged[:, 0]]
        done, self._recent = merged[: -self.KEEP], merged[-self.KEEP :]
        if len(done):
            self._settled_to = float(done[-1, 1])
            self._spread(done[:, 0], done[:, 1], done[:, 1] - done[:, 0])

    def total(self, begin: float, end: float) -> float:
        recent = np.minimum(self._recent[:, 1], end) - np.maximum(self._recent[:, 0], begin)
        return super().total(begin, end) + float(np.clip(recent, 0.0, None).sum())

    def rates(self, begin: float, end: float, count: int) -> Floats:
        known = super().rates(begin, end, count)
        if end <= begin or not len(self._recent):
            return known
        edges = np.linspace(begin, end, count + 1)
        overlap = np.minimum(self._recent[:, 1:], edges[1:]) - np.maximum(self._recent[:, :1], edges[:-1])
        return np.asarray(known + np.clip(overlap, 0.0, None).sum(0) / ((end - begin) / count), np.float64)


def _merge(stretches: Floats) -> Floats:
    """[n, 2] -> [m, 2]: the same moments without overlap, in order."""
    stretches = stretches[np.argsort(stretches[:, 0], kind="stable")]
    reach = np.maximum.accumulate(stretches[:, 1])
    first = np.concatenate([[True], stretches[1:, 0] > reach[:-1]])
    last = np.concatenate([first[1:], [True]])
    return np.column_stack([stretches[first, 0], reach[last]])


class Changes:
    """A value that changes now and then: what it was at any moment. Beyond 4096 changes every other one is forgotten."""

    KEEP: Final = 4096

    def __init__(self) -> None:
        self._times, self._values = array("d"), array("d")

    def set(self, at: float, value: float) -> None:
        if self._values and self._values[-1] == value:
            return
        if len(self._times) >= self.KEEP:
            self._times, self._values = self._times[::2], self._values[::2]
        self._times.append(at)
        self._values.append(value)

    def set_all(self, pairs: bytes) -> None:
        """float64 [n, 2]: when and what, one after the other."""
        flat = array("d", pairs)
        for at, value in zip(flat[::2], flat[1::2], strict=True):
            self.set(at, value)

    def at(self, moment: float | None) -> float | None:
        """None before the first; the newest where no moment is given."""
        count = len(self._times)
        if moment is not None:
            count = int(np.searchsorted(np.array(self._times), moment, side="right"))
        return self._values[count - 1] if count else None


def finite(values: Floats) -> Floats:
    """Those that were measured."""
    return values[np.isfinite(values)]


def newest(values: Floats) -> float | None:
    """The last one that was measured."""
    known: Any = finite(values)
    return float(known[-1]) if len(known) else None
