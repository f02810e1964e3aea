"""Repetition: a penalty on texts that say the same again and again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from safeladder.protocol.messages import Verdict
from safeladder.verifiers.contract import Item, Verifier
from safeladder.verifiers.rules.words import words

# A text whose last 320 words hold at most 64 distinct n-grams has fallen into a loop, however long it was sound before.
_LOOP_WINDOW, _LOOP_DISTINCT = 320, 64


class RepetitionRule(Verifier):
    """Penalty in [-1, 0]: -min(1, max(0, r - threshold) / (1 - threshold)), r = 1 - |distinct n-grams| / |n-grams|.

    The n-grams are of English words and Chinese characters (see `words`). A text that ends in a loop gets -1. The shape is ours, for
    want of a published one; the threshold 0.3 is that of our reading of the SafeWork-R1 recipe.
    """

    name = "repetition"
    version = "1"
    principle = "rules"
    low = -1.0
    high = 0.0

    @dataclass(frozen=True)
    class Options:
        n: int = 4
        threshold: float = 0.3

        def __post_init__(self) -> None:
            if self.n < 1 or not 0.0 <= self.threshold < 1.0:
                raise ValueError(
                    f"n must be at least 1 and threshold in [0, 1), got n={self.n}, threshold={self.threshold}"
                )

    def judge_one(self, item: Item) -> Verdict:
        found = words(item.text)
        if in_loop(found, self.options.n):
            return self.ok(item, -1.0, "loop")
        threshold = self.options.threshold
        score = max(-1.0, min(0.0, threshold - repetition_rate(found, self.options.n)) / (1.0 - threshold))
        return self.ok(item, score, "repetitive" if score < 0.0 else "varied")


def repetition_rate(found: Sequence[str], n: int) -> float:
    """1 - |distinct n-grams| / |n-grams|, in [0, 1); 0 for a text shorter than n words."""
    grams = [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def in_loop(found: Sequence[str], n: int) -> bool:
    """Whether the end of the text goes round in a circle of at most 64 words."""
    tail = found[-_LOOP_WINDOW:]
    if len(tail) < _LOOP_WINDOW:
        return False
    return len({tuple(tail[i : i + n]) for i in range(len(tail) - n + 1)}) <= _LOOP_DISTINCT
