"""Decisions against labels: counts, accuracy, F1, Matthews' coefficient."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from safeladder.verifiers.measure.ranking import Numbers


@dataclass(frozen=True)
class Confusion:
    """Rows by decision and truth: caught and missed positives, false alarms, negatives let pass."""

    caught: int
    missed: int
    false_alarms: int
    passed: int

    @property
    def rows(self) -> int:
        return self.caught + self.missed + self.false_alarms + self.passed


def confusion(truth: Numbers, score: Numbers, threshold: float = 0.5) -> Confusion:
    """Counts where a score of at least `threshold` says positive. truth: [N], 0 or 1; score: [N]."""
    said, true = score >= threshold, truth == 1
    return Confusion(
        caught=int((said & true).sum()),
        missed=int((~said & true).sum()),
        false_alarms=int((said & ~true).sum()),
        passed=int((~said & ~true).sum()),
    )


def accuracy(truth: Numbers, score: Numbers, threshold: float = 0.5) -> float:
    """Share of rows on the right side of the threshold, in [0, 1]; nan without rows."""
    counts = confusion(truth, score, threshold)
    return (counts.caught + counts.passed) / counts.rows if counts.rows else float("nan")


def f1(truth: Numbers, score: Numbers, threshold: float = 0.5) -> float:
    """2 P R / (P + R) of the positive class, in [0, 1]; nan where no row is positive and none was called so."""
    counts = confusion(truth, score, threshold)
    total = 2 * counts.caught + counts.missed + counts.false_alarms
    return 2 * counts.caught / total if total else float("nan")


def matthews(truth: Numbers, score: Numbers, threshold: float = 0.5) -> float:
    """Matthews' correlation of decision and truth, in [-1, 1]; nan where either never changes."""
    c = confusion(truth, score, threshold)
    sides = (c.caught + c.missed) * (c.caught + c.false_alarms) * (c.passed + c.missed) * (c.passed + c.false_alarms)
    return (c.caught * c.passed - c.missed * c.false_alarms) / math.sqrt(sides) if sides else float("nan")


def macro_f1(truth: Sequence[Hashable], said: Sequence[Hashable]) -> float:
    """The plain mean of the F1 of every class that occurs in either column [N], in [0, 1]; nan without rows."""
    if len(truth) != len(said):
        raise ValueError(f"{len(truth)} truths beside {len(said)} answers")
    classes = set(truth) | set(said)
    scores = [
        f1(np.array([t == kind for t in truth], float), np.array([s == kind for s in said], float)) for kind in classes
    ]
    return float(np.mean(scores)) if scores else float("nan")
