"""How good a probability is: area under the ROC curve, accuracy, expected calibration error."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


def auroc(truth: Numbers, probability: Numbers) -> float:
    """P(a random positive stands above a random negative), ties count half; nan where one class is missing."""
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return float("nan")
    _, place, counts = np.unique(probability, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # average rank of equal values
    return float((ranks[truth == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def accuracy(truth: Numbers, probability: Numbers) -> float:
    """Share of rows on the right side of 0.5."""
    return float(np.mean((probability >= 0.5) == (truth == 1)))


def calibration_error(truth: Numbers, probability: Numbers, bins: int = 15) -> float:
    """Expected calibration error (Guo et al., arXiv 1706.04599, equation 3) of P(positive), equal-width bins."""
    place = np.minimum((probability * bins).astype(int), bins - 1)
    gaps = [abs(truth[place == b].sum() - probability[place == b].sum()) for b in range(bins)]
    return float(sum(gaps) / len(truth))
