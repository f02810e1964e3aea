"""How far stated confidence can be trusted: the figures that the reference lists for deliberative search (its section 1.4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safeladder.policies.search.deliberate.grammar import CERTAIN, MOST

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Calibration:
    """Of N answers, shares in [0, 1]. Of certain ones, where there are none, NaN.

    accuracy: right. false_certain: wrong with a confidence above zeta. certain_precision: right among the certain. reliability: right and
    certain, or wrong and unsure. ece: expected calibration error (Guo et al., arXiv 1706.04599, equation 3). brier: mean squared
    difference of confidence and outcome.
    """

    accuracy: float
    false_certain: float
    certain_precision: float
    reliability: float
    ece: float
    brier: float


def measure(confidences: Sequence[int], right: Sequence[bool], zeta: int = CERTAIN) -> Calibration:
    """`confidences`: 0 to 10 an answer, `right`: whether it was. Raises ValueError for none, or columns of different lengths."""
    if not confidences or len(confidences) != len(right):
        raise ValueError(f"{len(confidences)} confidences, {len(right)} outcomes")
    stated, outcome = np.array(confidences, np.float64), np.array(right, np.float64)
    certain = stated > zeta
    return Calibration(
        accuracy=float(outcome.mean()),
        false_certain=float((certain & (outcome == 0)).mean()),
        certain_precision=float(outcome[certain].mean()) if certain.any() else math.nan,
        reliability=float((certain == (outcome == 1)).mean()),
        ece=calibration_error(stated / MOST, outcome),
        brier=brier(stated / MOST, outcome),
    )


def calibration_error(probability: Numbers, outcome: Numbers, bins: int = 10) -> float:
    """Equal-width bins, each closed below; the last holds 1 too."""
    place = np.minimum((probability * bins).astype(int), bins - 1)
    gaps = [abs(outcome[place == number].sum() - probability[place == number].sum()) for number in range(bins)]
    return float(sum(gaps) / len(outcome))


def brier(probability: Numbers, outcome: Numbers) -> float:
    return float(np.mean((probability - outcome) ** 2))
