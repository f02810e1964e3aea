"""Whether higher scores go with positives, whatever the scale of the scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


def auroc(truth: Numbers, score: Numbers) -> float:
    """P(a random positive stands above a random negative), ties count half; nan where one class is missing.

    truth: [N], 0 or 1. score: [N], any finite numbers. The Mann-Whitney statistic over the product of the classes' sizes.
    """
    positives = int((truth == 1).sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return float("nan")
    return float((_ranks(score)[truth == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def average_precision(truth: Numbers, score: Numbers) -> float:
    """The sum over thresholds of precision times gained recall: area under precision against recall, not interpolated.

    truth: [N], 0 or 1; score: [N]. Rows of equal score pass the threshold together. nan without a positive.
    """
    positives = int((truth == 1).sum())
    if not positives:
        return float("nan")
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(truth[order] == 1)
    last = np.append(np.diff(score[order]) != 0, True)  # the last row of each run of equal scores
    found, taken = hits[last], np.flatnonzero(last) + 1
    return float(np.sum(np.diff(found, prepend=0) / positives * (found / taken)))


def spearman(one: Numbers, other: Numbers) -> float:
    """The rank correlation of two columns [N], in [-1, 1], ties given their mean rank; nan where a column is constant."""
    a, b = _ranks(one), _ranks(other)
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum() / norm) if norm > 0 else float("nan")


def _ranks(values: Numbers) -> Numbers:
    """Ranks from 1; equal values share the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    means: Numbers = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return means
