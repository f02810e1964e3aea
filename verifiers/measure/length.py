"""Whether a verifier reads the text or its length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from safeladder.verifiers.measure.ranking import Numbers, auroc, spearman


@dataclass(frozen=True)
class LengthBias:
    """Rank correlations of score and length within each class; the areas of the score, of length alone, and of the score among
    rows of like length. A fair verifier keeps its area at matched length; nan where undefined."""

    within_positives: float
    within_negatives: float
    auroc: float
    auroc_of_length: float
    auroc_matched: float


def length_bias(truth: Numbers, probability: Numbers, length: Numbers, bins: int = 10) -> LengthBias:
    """truth: [N], 0 or 1; probability: [N] of the positive class; length: [N], in characters or tokens; bins: of equal mass."""
    positive = truth == 1
    return LengthBias(
        within_positives=spearman(probability[positive], length[positive]),
        within_negatives=spearman(probability[~positive], length[~positive]),
        auroc=auroc(truth, probability),
        auroc_of_length=auroc(truth, length),
        auroc_matched=auroc_matched(truth, probability, length, bins),
    )


def auroc_matched(truth: Numbers, probability: Numbers, length: Numbers, bins: int = 10) -> float:
    """P(a random positive stands above a random negative of the same bin of length): the bins' areas, each weighed by its pairs."""
    return _matched(auroc, truth, probability, length, bins)


def accuracy_matched(truth: Numbers, probability: Numbers, length: Numbers, bins: int = 10) -> float:
    """Accuracy where every bin of length holds as much of one class as of the other, so that length alone is right in half of the
    cases: the bins' balanced accuracies at 0.5, each weighed by its pairs."""
    return _matched(_balanced_accuracy, truth, probability, length, bins)


def _balanced_accuracy(truth: Numbers, probability: Numbers) -> float:
    yes, positive = probability >= 0.5, truth == 1
    return float(yes[positive].mean() + 1.0 - yes[~positive].mean()) / 2


def _matched(
    measure: Callable[[Numbers, Numbers], float], truth: Numbers, probability: Numbers, length: Numbers, bins: int
) -> float:
    edges = np.quantile(length, np.linspace(0, 1, bins + 1)[1:-1]) if len(length) else np.empty(0)
    place = np.searchsorted(edges, length, side="right")
    values, pairs = [], []
    for b in np.unique(place):
        rows = place == b
        count = int((truth[rows] == 1).sum()) * int((truth[rows] == 0).sum())
        if count:
            values.append(measure(truth[rows], probability[rows]))
            pairs.append(count)
    return float(np.average(values, weights=pairs)) if values else float("nan")
