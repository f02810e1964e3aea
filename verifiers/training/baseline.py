"""What a head must beat: logistic regression over TF-IDF of words and pairs of words, fitted on the same rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor

from safeladder.verifiers.heads.grounding import units

_STEPS: Final = 200
_PENALTIES: Final = (
    1e-5,
    1e-4,
)  # of the squared weights; the better one on the rows measured is taken, which favours the baseline


def accuracies(
    fitted: Sequence[str], targets: Sequence[int], held: Sequence[str], truth: Sequence[int], parts: Sequence[str]
) -> dict[str, float]:
    """Part -> accuracy on the held-out texts of that part, with `all` for all of them."""
    vocabulary = _vocabulary(fitted)
    train, test = _matrix(fitted, vocabulary), _matrix(held, vocabulary)
    best: dict[str, float] = {}
    for penalty in _PENALTIES:
        said = _logits(train, torch.tensor(targets).float(), test, penalty) > 0
        right = (said == torch.tensor(truth).bool()).float()
        found = {"all": float(right.mean())}
        for part in sorted(set(parts)):
            found[part] = float(right[torch.tensor([p == part for p in parts])].mean())
        best = {part: max(share, best.get(part, 0.0)) for part, share in found.items()}
    return best


def _grams(text: str) -> Counter[str]:
    words = units(text)
    return Counter([*words, *(f"{one} {other}" for one, other in pairwise(words))])


def _vocabulary(texts: Sequence[str]) -> dict[str, tuple[int, float]]:
    """N-gram in at least two texts -> its column and its weight ln((1 + N) / (1 + n)) + 1."""
    counts = Counter(gram for text in texts for gram in set(_grams(text)))
    kept = sorted(gram for gram, count in counts.items() if count > 1)
    return {gram: (place, math.log((1 + len(texts)) / (1 + counts[gram])) + 1) for place, gram in enumerate(kept)}


def _matrix(texts: Sequence[str], vocabulary: dict[str, tuple[int, float]]) -> Tensor:
    """Sparse [N, V], rows of unit length."""
    rows, columns, values = [], [], []
    for row, text in enumerate(texts):
        found = [
            (vocabulary[gram][0], count * vocabulary[gram][1])
            for gram, count in _grams(text).items()
            if gram in vocabulary
        ]
        length = math.sqrt(sum(value**2 for _, value in found)) or 1.0
        rows += [row] * len(found)
        columns += [column for column, _ in found]
        values += [value / length for _, value in found]
    return torch.sparse_coo_tensor(
        torch.tensor([rows, columns]), torch.tensor(values), (len(texts), len(vocabulary))
    ).coalesce()


def _logits(train: Tensor, targets: Tensor, test: Tensor, penalty: float) -> Tensor:
    weight = torch.zeros(train.shape[1], 1, requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=0.1)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        found = (torch.sparse.mm(train, weight) + bias).squeeze(1)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(found, targets) + penalty * (weight**2).sum()
        torch.autograd.backward(loss)
        optimizer.step()
    with torch.no_grad():
        scores: Tensor = (torch.sparse.mm(test, weight) + bias).squeeze(1)
    return scores
