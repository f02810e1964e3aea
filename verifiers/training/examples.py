"""What a head learns from: one or two texts, what is true of them, where they come from, and with whom they are split."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from safeladder.verifiers.rules.language import written_in

Part = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Example:
    """One row. `first` and `second`: the texts (prompt and answer, evidence and answer; empty where the head reads one alone).

    `target`: the class, 0 or 1 for a yes-or-no head. `group`: rows with one group are never split. `weight` multiplies the row's share of
    the loss. `wraps`: whether templates and planted instructions may be put around it in training.
    """

    first: str
    second: str
    target: int
    source: str
    group: str
    weight: float = 1.0
    wraps: bool = True

    @property
    def language(self) -> str:
        return "zh" if written_in(self.second or self.first) == "zh" else "en"


def part(group: str) -> Part:
    """Where a group belongs: 72 % train, 10 % validation, 18 % test, decided by the text alone."""
    share = int.from_bytes(hashlib.blake2b(group.encode(), digest_size=4).digest(), "big") / 2**32
    return "train" if share < 0.72 else "validation" if share < 0.82 else "test"
