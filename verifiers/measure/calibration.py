"""Whether a probability of 0.8 comes true four times in five. Binary: `probability` [N] is that of the positive class."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from safeladder.verifiers.measure.ranking import Numbers


def calibration_error(truth: Numbers, probability: Numbers, bins: int = 15) -> float:
    """Expected calibration error (Guo et al., arXiv 1706.04599, equation 3) of P(positive), in `bins` of equal width.

    truth: [N], 0 or 1; probability: [N] in [0, 1]. Result in [0, 1]; nan without rows.
    """
    if not len(truth):
        return float("nan")
    return float(sum(count * gap for count, gap in _gaps(truth, probability, bins)) / len(truth))


def maximum_calibration_error(truth: Numbers, probability: Numbers, bins: int = 15) -> float:
    """The largest gap of any bin of equal width (Guo et al., equation 4), in [0, 1]; nan without rows."""
    return max((gap for _, gap in _gaps(truth, probability, bins)), default=float("nan"))


def calibration_error_by_mass(truth: Numbers, probability: Numbers, bins: int = 15) -> float:
    """The expected calibration error in bins of equally many rows (Nixon et al., arXiv 1904.01685, section 3).

    Equal width leaves most bins nearly empty where a classifier is sure; equal mass looks where the rows are. Rows of
    equal probability stay in one bin, so that the order of the rows changes nothing. nan without rows.
    """
    if not len(truth):
        return float("nan")
    _, place, counts = np.unique(probability, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts + 1) / 2  # of each run of equal values, among the sorted rows
    bin_of = np.minimum((middle * bins / len(truth)).astype(int), bins - 1)[place]
    gaps = [abs((truth[bin_of == b] == 1).sum() - probability[bin_of == b].sum()) for b in np.unique(bin_of)]
    return float(sum(gaps) / len(truth))


def brier_score(truth: Numbers, probability: Numbers) -> float:
    """The mean squared distance of probability and outcome (Brier 1950), in [0, 1]; nan without rows."""
    return float(np.mean((probability - truth) ** 2)) if len(truth) else float("nan")


def log_loss(truth: Numbers, probability: Numbers) -> float:
    """Mean of -ln of the probability given to what was true; probabilities are kept 1e-15 from 0 and 1. nan without rows."""
    if not len(truth):
        return float("nan")
    kept = np.clip(probability, 1e-15, 1 - 1e-15)
    return float(-np.mean(np.where(truth == 1, np.log(kept), np.log1p(-kept))))


def _gaps(truth: Numbers, probability: Numbers, bins: int) -> Iterator[tuple[int, float]]:
    """(rows, |share of positives - mean probability|) of each bin that holds rows. Bins are [k/bins, (k+1)/bins)."""
    place = np.minimum((probability * bins).astype(int), bins - 1)
    for b in np.unique(place):
        rows = place == b
        count = int(rows.sum())
        yield count, float(abs((truth[rows] == 1).sum() - probability[rows].sum()) / count)
