"""Length: a soft penalty on texts that come near the budget or pass it."""

from __future__ import annotations

from dataclasses import dataclass

from safeladder.protocol.messages import Verdict
from safeladder.verifiers.contract import Item, Verifier


class LengthRule(Verifier):
    """Soft overlong penalty in [-1, 0], of the shape of DAPO (arXiv 2503.14476, equation 13), counted in characters.

    With n characters, a budget M and a buffer B: 0 while n <= M - B, then (M - B - n) / B down to -1 at n = M, and -1 beyond.
    """

    name = "length"
    version = "1"
    principle = "rules"
    low = -1.0
    high = 0.0

    @dataclass(frozen=True)
    class Options:
        max_characters: int = 4000
        buffer: int = 1000

        def __post_init__(self) -> None:
            if not 0 < self.buffer <= self.max_characters:
                raise ValueError(f"buffer must lie in 1 .. max_characters ({self.max_characters}), got {self.buffer}")

    def judge_one(self, item: Item) -> Verdict:
        score = overlong_penalty(len(item.text), self.options.max_characters, self.options.buffer)
        return self.ok(item, score, "within" if score == 0.0 else "overlong")


def overlong_penalty(length: int, maximum: int, buffer: int) -> float:
    """DAPO's equation 13: a number in [-1, 0]. All arguments in the same unit, 0 < buffer <= maximum."""
    return max(-1.0, min(0.0, (maximum - buffer - length) / buffer))
