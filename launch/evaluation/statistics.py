"""From rows, one an item, to a measure with its interval, and to the difference of two runs on the same items.

A measure is a named statistic of rows [N, C]. `share` is the mean of C = 1 column of 0 and 1; its interval is Wilson's and two runs
are compared by McNemar's exact test. Every other interval and difference is a percentile bootstrap over items
(Efron 1979), 1,000 draws, seeded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from safeladder.verifiers.measure import auroc, brier_score, calibration_error, mcnemar, wilson

Rows = NDArray[np.float64]
DRAWS: Final = 1000
SHARE: Final = "share"


def _worst(rows: Rows) -> float:
    """Columns: group, value. The lowest mean of any group."""
    return min(float(rows[rows[:, 0] == group, 1].mean()) for group in np.unique(rows[:, 0]))


def _ratio(rows: Rows) -> float:
    """Columns: part, whole. sum / sum; nan where the whole is 0."""
    whole = float(rows[:, 1].sum())
    return float(rows[:, 0].sum()) / whole if whole else float("nan")


def _gap(rows: Rows) -> float:
    """Columns: group (0 or 1), value. Mean of group 1 less mean of group 0; nan where one is missing."""
    ones, zeros = rows[rows[:, 0] == 1, 1], rows[rows[:, 0] == 0, 1]
    return float(ones.mean() - zeros.mean()) if len(ones) and len(zeros) else float("nan")


def _balanced(rows: Rows) -> float:
    """Columns: group, value. The unweighted mean of the groups' means."""
    return float(np.mean([rows[rows[:, 0] == group, 1].mean() for group in np.unique(rows[:, 0])]))


def _at_coverage(share: float) -> Callable[[Rows], float]:
    """Columns: confidence, value. The mean value of the `share` of items with the highest confidence, the earlier of equals first."""

    def statistic(rows: Rows) -> float:
        kept = np.argsort(-rows[:, 0], kind="stable")[: max(1, round(share * len(rows)))]
        return float(rows[kept, 1].mean())

    return statistic


def _kappa(rows: Rows) -> float:
    """Columns: two ratings of 0 or 1. Cohen's; nan where both say one word throughout."""
    a, b = rows[:, 0], rows[:, 1]
    chance = a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean())
    return float(((a == b).mean() - chance) / (1 - chance)) if chance < 1 else float("nan")


STATISTICS: Final[Mapping[str, Callable[[Rows], float]]] = {
    SHARE: lambda rows: float(rows[:, 0].mean()),
    "mean": lambda rows: float(rows[:, 0].mean()),
    "median": lambda rows: float(np.median(rows[:, 0])),
    "p95": lambda rows: float(np.quantile(rows[:, 0], 0.95)),
    "spread": lambda rows: float(rows[:, 0].std()),
    "worst": _worst,
    "ratio": _ratio,
    "gap": _gap,
    "balanced": _balanced,
    "kappa": _kappa,
    # columns: probability, outcome
    "ece": lambda rows: calibration_error(rows[:, 1], rows[:, 0]),
    "brier": lambda rows: brier_score(rows[:, 1], rows[:, 0]),
    "auroc": lambda rows: auroc(rows[:, 1], rows[:, 0]),
    **{f"coverage{percent}": _at_coverage(percent / 100) for percent in (25, 50, 75, 100)},
}


@dataclass(frozen=True)
class Measure:
    """A figure with its 95 % interval over `n` items; nan where it is not defined."""

    value: float
    low: float
    high: float
    n: int

    def plain(self) -> dict[str, float | int | None]:
        """For JSON; nan, which it does not have, becomes None."""
        return {
            **{key: None if value != value else value for key, value in (("value", self.value), ("low", self.low))},
            "high": None if self.high != self.high else self.high,
            "n": self.n,
        }


@dataclass(frozen=True)
class Column:
    """What a measure is made of: `items` [N], their names; `rows` [N][C]; the name of a statistic."""

    items: Sequence[str]
    rows: Sequence[Sequence[float]]
    statistic: str = SHARE

    @classmethod
    def of(cls, values: Mapping[str, Sequence[float] | float], statistic: str = SHARE) -> Column:
        """From item -> row, or one number."""
        rows = [list(row) if isinstance(row, Sequence) else [float(row)] for row in values.values()]
        return cls(list(values), rows, statistic)

    def measure(self) -> Measure:
        count = len(self.rows)
        if not count:
            return Measure(float("nan"), float("nan"), float("nan"), 0)
        rows = np.array(self.rows, np.float64)
        value = STATISTICS[self.statistic](rows)
        if self.statistic == SHARE:
            return Measure(value, *wilson(int(rows[:, 0].sum()), count), count)
        return Measure(value, *_interval(self.statistic, [rows], lambda values: values[0]), count)

    def record(self) -> dict[str, Any]:
        return {"items": list(self.items), "rows": [list(row) for row in self.rows], "statistic": self.statistic}


@dataclass(frozen=True)
class Difference:
    """Second less first over the `n` items that both have, with its 95 % bootstrap interval. p: McNemar's exact two-sided one where values
    are 0 and 1, else None: the interval says whether 0 is in it."""

    first: float
    second: float
    value: float
    low: float
    high: float
    n: int
    p: float | None


def compare(first: Column, second: Column) -> Difference | None:
    """None where they share no item. Raises ValueError for two different statistics."""
    if first.statistic != second.statistic:
        raise ValueError(f"a {first.statistic} is not compared with a {second.statistic}")
    ours = dict(zip(first.items, first.rows, strict=True))
    theirs = dict(zip(second.items, second.rows, strict=True))
    shared = [item for item in ours if item in theirs]
    if not shared:
        return None
    a, b = (np.array([rows[item] for item in shared], np.float64) for rows in (ours, theirs))
    before, after = (STATISTICS[first.statistic](rows) for rows in (a, b))
    low, high = _interval(first.statistic, [a, b], lambda values: values[1] - values[0])
    p = mcnemar((a[:, 0] == 1).tolist(), (b[:, 0] == 1).tolist()).p if first.statistic == SHARE else None
    return Difference(before, after, after - before, low, high, len(shared), p)


def _interval(
    statistic: str, columns: Sequence[Rows], of: Callable[[Sequence[float]], float], seed: int = 0
) -> tuple[float, float]:
    """The middle 95 % of `of(statistics)` over draws of items with replacement, the same for all columns; nan where never defined."""
    draw = np.random.default_rng(seed)
    count = len(columns[0])
    values = []
    for _ in range(DRAWS):
        chosen = draw.integers(0, count, count)
        values.append(of([STATISTICS[statistic](rows[chosen]) for rows in columns]))
    defined = np.array([value for value in values if value == value])
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [0.025, 0.975])
    return float(low), float(high)
