"""From what each dimension says of each step to one number by which branches are compared. **Ours**: the paper names value models for
safety, value and knowledge, and a context that weighs them, and gives no formula.

    V_d(path) = aggregate of V_d over the path's steps (min, last or product); safety always by min: a chain of
                thought is as safe as its least safe step
    S(path)   = sum_d w_d logit(V_d(path)) + prior * (mean ln p of the last step's tokens)

S rises with every V_d and, with `prior` 0, depends on nothing else. It is the exponent of the optimum of KL-regularised guidance,
pi* ~ pi exp(beta V) (arXiv 2503.02368), with the logit in the place of V, so that one dimension near 0 cannot be bought off by others.
A path whose safety falls below `veto` is out, whatever the rest says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from safeladder.policies.search.tree import Step

Aggregation = Literal["min", "last", "product"]
SAFETY: Final = "safety"
EDGE: Final = 1e-4  # estimates are kept this far from 0 and 1, so that logits stay finite


@dataclass(frozen=True)
class Combination:
    """How a search scores. `weights`: dimension -> weight >= 0 (all of a context's sum to 1, see `context.py`)."""

    weights: Mapping[str, float] = field(default_factory=lambda: {SAFETY: 1.0})
    aggregation: Aggregation = "last"
    prior: float = 0.0
    veto: float = 0.0  # lowest safety that a path may have

    def __post_init__(self) -> None:
        if not self.weights or min(self.weights.values()) < 0:
            raise ValueError(f"weights are one or more numbers >= 0, not {dict(self.weights)}")
        if not 0 <= self.veto < 1:
            raise ValueError(f"veto is in [0, 1), not {self.veto}")

    def along(self, scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Each dimension's value of a path, from its steps' `scores`, first step first."""
        dimensions = {name for step in scores for name in step}
        return {
            name: self._aggregate(name, [step[name] for step in scores if name in step]) for name in sorted(dimensions)
        }

    def score(self, values: Mapping[str, float], last: Step) -> float:
        """S of a path with these `values`; finite. Raises KeyError when a weighed dimension is missing."""
        total = sum(weight * logit(values[name]) for name, weight in self.weights.items() if weight)
        if self.prior and last.token_ids and last.own:
            total += self.prior * last.logprob / len(last.token_ids)
        return total

    def vetoes(self, values: Mapping[str, float]) -> bool:
        return values.get(SAFETY, 1.0) < self.veto

    def _aggregate(self, name: str, values: list[float]) -> float:
        kind = "min" if name == SAFETY else self.aggregation
        if kind == "min":
            return min(values)
        if kind == "product":
            return math.prod(values)
        return values[-1]


def logit(value: float) -> float:
    """ln(v / (1 - v)) of a value in [0, 1], kept `EDGE` away from its ends."""
    inside = min(1 - EDGE, max(EDGE, value))
    return math.log(inside / (1 - inside))


def squash(score: float) -> float:
    """The inverse of a logit, for averages: a number in (0, 1)."""
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, score))))
