"""Whether a verifier reads the text or its length."""

from __future__ import annotations

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
    edges = np.quantile(length, np.linspace(0, 1, bins + 1)[1:-1]) if len(length) else np.empty(0)
    place = np.searchsorted(edges, length, side="right")
    areas, pairs = [], []
    for b in np.unique(place):
        rows = place == b
        count = int((truth[rows] == 1).sum()) * int((truth[rows] == 0).sum())
        if count:
            areas.append(auroc(truth[rows], probability[rows]))
            pairs.append(count)
    return float(np.average(areas, weights=pairs)) if areas else float("nan")
