"""The engine's log-probabilities against the learner's, during training: do they still compute the same policy?

A fair comparison is one of the same weights: completions that were sampled wholly with the version that the learner has when it
trains on them, with nothing but the arithmetic between the two. Tokens of older versions differ by what was learnt since, and
those of a completion that lived through a swap were partly computed from the keys and values of older weights; neither is counted.
Where no completion of a step is that fresh, there is no figure. Truncated sampling (top-k, top-p, min-p) renormalises the engine's
probabilities, so that they differ by right, and nothing is compared either. The bounds are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

NEAR: Final = (0.9, 1.1)  # ratios of learner to engine probability that count as the same


@dataclass(frozen=True)
class Drift:
    """Over the tokens compared. mean: |ln learner - ln engine|, nats. worst: the largest. outside: share of tokens whose
    ratio of probabilities is not within [0.9, 1.1]."""

    tokens: int
    mean: float
    worst: float
    outside: float


@dataclass(frozen=True)
class DriftBounds:
    """What an engine may differ by in the mean over a step. min_tokens: fewer say nothing."""

    mean: float
    outside: float
    min_tokens: int = 32

    @classmethod
    def of(cls, dtype: str, mean: float | None = None, outside: float | None = None) -> DriftBounds:
        """The defaults for an engine that computes in `dtype`, where none is given."""
        usual = USUAL[dtype]
        return cls(usual.mean if mean is None else mean, usual.outside if outside is None else outside)

    def broken(self, drift: Drift) -> str | None:
        """Says what is out of bounds, None when nothing is or too few tokens were compared."""
        if drift.tokens < self.min_tokens:
            return None
        said = []
        if not drift.mean <= self.mean:  # a mean that is not a number is out of bounds too
            said.append(f"mean |difference| {drift.mean:.3g} above {self.mean:.3g}")
        if not drift.outside <= self.outside:
            said.append(f"{drift.outside:.1%} of ratios outside {list(NEAR)}, {self.outside:.1%} may be")
        return "; ".join(said) or None


# float32 leaves two orders above what was measured; those of the half types are not measured in training yet.
USUAL: Final = {
    "float32": DriftBounds(mean=5e-3, outside=0.01),
    "float16": DriftBounds(mean=2e-2, outside=0.05),
    "bfloat16": DriftBounds(mean=2.5e-1, outside=0.5),
}


def measure(pairs: Iterable[tuple[Tensor, Tensor]]) -> Drift | None:
    """pairs: (ln learner, ln engine) of the same tokens, [n] each. None where there is no token."""
    columns = [(learner.double() - engine.double()) for learner, engine in pairs]
    if not sum(map(len, columns)):
        return None
    difference = torch.cat(columns)
    ratio = difference.exp()
    # written so that what is not a number counts as outside
    outside = ~((ratio >= NEAR[0]) & (ratio <= NEAR[1]))
    size = difference.abs()
    worst = float(size.max())
    return Drift(
        len(difference),
        float(size.mean()),
        worst if not math.isnan(worst) else math.inf,
        float(outside.double().mean()),
    )
