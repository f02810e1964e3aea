"""What `learner.py` trains on, and how many operations a step on it cannot do without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GROUP = 8  # completions of one prompt
PROMPT_TOKENS = 128
MEAN_TOKENS, MAX_TOKENS, SIGMA = 64, 256, 0.7  # of the lognormal lengths
BATCHES = 3  # different ones, used in turn


@dataclass(frozen=True)
class Batch:
    """One step's input. P prompt tokens and K completions a group, G groups."""

    prompts: list[NDArray[np.int32]]  # G of [P]
    completions: list[list[NDArray[np.int32]]]  # G of K of [n]
    rewards: list[NDArray[np.float64]]  # G of [K]

    @property
    def tokens(self) -> int:
        return sum(len(tokens) for group in self.completions for tokens in group)


@dataclass(frozen=True)
class Case:
    """rounds: timed steps of each batch on each side. vocabulary: token ids are drawn below it; every model has that many."""

    model: str
    lengths: str  # "ragged" or "equal"
    groups: int
    rounds: int
    vocabulary: int = 300

    def batches(self) -> list[Batch]:
        random = np.random.default_rng(20261124)
        return [self._batch(random) for _ in range(BATCHES)]

    def _batch(self, random: np.random.Generator) -> Batch:
        def tokens(count: int) -> NDArray[np.int32]:
            return random.integers(32, self.vocabulary, count).astype(np.int32)

        return Batch(
            prompts=[tokens(PROMPT_TOKENS) for _ in range(self.groups)],
            completions=[[tokens(n) for n in self._lengths(random)] for _ in range(self.groups)],
            rewards=[random.normal(size=GROUP) for _ in range(self.groups)],
        )

    def _lengths(self, random: np.random.Generator) -> list[int]:
        if self.lengths == "equal":
            return [MEAN_TOKENS] * GROUP
        drawn = random.lognormal(np.log(MEAN_TOKENS) - SIGMA**2 / 2, SIGMA, GROUP)
        return [int(n) for n in np.clip(np.round(drawn), 1, MAX_TOKENS)]


def step_flops(shape: Mapping[str, int], batch: Batch) -> float:
    """Floating point operations that a step cannot do without: forward once, backward twice that, each prompt once.

    A linear layer of W weights takes 2 W a token forward and 4 W backward; a query that sees c tokens takes 4 c times the width
    of all heads forward (queries with keys, weights with values) and twice that backward. The last token of a
    completion is predicted and never fed. Norms, activations, softmax and optimizer are not counted.
    """
    fed = scored = seen = 0
    for prompt, completions in zip(batch.prompts, batch.completions, strict=True):
        p = len(prompt)
        fed += p
        seen += p * (p + 1) // 2
        for n in map(len, completions):
            fed += n - 1
            scored += n
            seen += (n - 1) * p + (n - 1) * n // 2
    return 6.0 * (shape["body"] * fed + shape["head"] * scored) + 12.0 * shape["attention"] * seen
