"""Two judges of the same rows: how far they agree beyond chance, and whether one is better."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class McNemar:
    """`only_first`, `only_second`: rows that one judge alone got right. `p`: two-sided, in [0, 1]."""

    only_first: int
    only_second: int
    p: float


def cohen_kappa(one: Sequence[Hashable], other: Sequence[Hashable]) -> float:
    """Agreement beyond chance (Cohen 1960), at most 1; nan without rows or where both say one and the same word throughout."""
    if len(one) != len(other):
        raise ValueError(f"{len(one)} ratings beside {len(other)}")
    rows = len(one)
    if not rows:
        return float("nan")
    observed = sum(a == b for a, b in zip(one, other, strict=True)) / rows
    first, second = Counter(one), Counter(other)
    chance = sum(count * second[word] for word, count in first.items()) / rows**2
    return (observed - chance) / (1 - chance) if chance < 1 else float("nan")


def mcnemar(first_right: Sequence[bool], second_right: Sequence[bool]) -> McNemar:
    """The exact test of McNemar (1947): were the rows that one judge alone got right split as a fair coin would?

    Both columns [N] say row by row whether a judge was right. p is 1 where the judges never differ.
    """
    if len(first_right) != len(second_right):
        raise ValueError(f"{len(first_right)} rows beside {len(second_right)}")
    pairs = Counter(zip(map(bool, first_right), map(bool, second_right), strict=True))
    only_first, only_second = pairs[True, False], pairs[False, True]
    differing = only_first + only_second
    tail = sum(math.comb(differing, k) for k in range(min(only_first, only_second) + 1))
    # integers until the end: 2 ** -differing alone would vanish beyond a thousand rows
    return McNemar(only_first, only_second, min(1.0, float(2 * tail / 2**differing)) if differing else 1.0)
