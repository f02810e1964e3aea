"""The figures of a set of rows, and of its parts by language, category or source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from safeladder.verifiers.measure.agreement import cohen_kappa
from safeladder.verifiers.measure.calibration import brier_score, calibration_error, calibration_error_by_mass
from safeladder.verifiers.measure.classification import confusion, f1
from safeladder.verifiers.measure.intervals import wilson
from safeladder.verifiers.measure.ranking import Numbers, auroc, average_precision

Decisions = NDArray[np.bool_]


@dataclass(frozen=True)
class Figures:
    """A binary verifier on some rows. A share is (value, low, high) with its 95 % Wilson interval; nan where undefined.

    caught: positives called so (recall). flagged: negatives called positive (false alarms). ece, ece_mass and brier read
    the score as a probability of the positive class.
    """

    rows: int
    positives: int
    accuracy: tuple[float, float, float]
    caught: tuple[float, float, float]
    flagged: tuple[float, float, float]
    f1: float
    auroc: float
    average_precision: float
    ece: float
    ece_mass: float
    brier: float
    kappa: float

    def plain(self) -> dict[str, object]:
        """For JSON: nan, which it does not have, becomes None."""
        return {key: _plain(value) for key, value in asdict(self).items()}


def figures(truth: Numbers, probability: Numbers, said: Decisions | None = None) -> Figures:
    """All figures of rows with `truth` [N] of 0 and 1 and P(positive) [N].

    said: the decisions [N], for a verifier that decides otherwise than by a probability of at least 1/2.
    """
    decided = (probability >= 0.5 if said is None else said).astype(np.float64)
    counts = confusion(truth, decided)
    positives = counts.caught + counts.missed
    return Figures(
        rows=counts.rows,
        positives=positives,
        accuracy=share(counts.caught + counts.passed, counts.rows),
        caught=share(counts.caught, positives),
        flagged=share(counts.false_alarms, counts.rows - positives),
        f1=f1(truth, decided),
        auroc=auroc(truth, probability),
        average_precision=average_precision(truth, probability),
        ece=calibration_error(truth, probability),
        ece_mass=calibration_error_by_mass(truth, probability),
        brier=brier_score(truth, probability),
        kappa=cohen_kappa((truth == 1).tolist(), (decided == 1).tolist()),
    )


def slices(
    truth: Numbers,
    probability: Numbers,
    columns: Mapping[str, Sequence[str | None]],
    said: Decisions | None = None,
) -> dict[str, dict[str, Figures]]:
    """column -> value -> figures of the rows with that value, values in order. Rows whose value is None stand in none."""
    result: dict[str, dict[str, Figures]] = {}
    for column, values in columns.items():
        if len(values) != len(truth):
            raise ValueError(f"column {column!r} has {len(values)} values for {len(truth)} rows")
        result[column] = {}
        for value in sorted({value for value in values if value is not None}):
            rows = np.array([each == value for each in values])
            result[column][value] = figures(truth[rows], probability[rows], None if said is None else said[rows])
    return result


def share(hits: int, rows: int) -> tuple[float, float, float]:
    """(hits / rows, low, high) with the 95 % Wilson interval; the value is nan without rows."""
    return (hits / rows if rows else float("nan"), *wilson(hits, rows))


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and value != value else value
