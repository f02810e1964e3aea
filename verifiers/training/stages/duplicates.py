"""Exact and near duplicates. Near: Jaccard similarity of character 5-grams, found by MinHash (Broder 1997) and then computed.

The hashes depend on code points alone, so that the same rows are kept on every machine.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

SHINGLE: Final = 5  # characters
BANDS, ROWS = (
    16,
    4,
)  # two texts of similarity s meet in a band with probability 1 - (1 - s^4)^16: 0.64 at 0.5, 0.9998 at 0.8

_PRIME: Final = np.uint64(0x100000001B3)
_SEEDS: Final = np.random.Generator(np.random.PCG64(20_250_728)).integers(1, 2**63, (2, BANDS * ROWS), dtype=np.uint64)


def plain(text: str) -> str:
    """Compatibility forms resolved, lower case, runs of space made one: texts equal up to that are exact duplicates."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def shingles(text: str) -> NDArray[np.uint64]:
    """The distinct hashes of a text's character 5-grams, sorted; a shorter text has one, its own. uint64 [n]."""
    points = np.array([ord(character) for character in plain(text)], dtype=np.uint64)
    count = max(1, len(points) - SHINGLE + 1)
    total = np.full(count, 0xCBF29CE484222325, dtype=np.uint64)
    for offset in range(min(SHINGLE, len(points)) if count > 1 else len(points)):
        total = (total ^ points[offset : offset + count]) * _PRIME  # wraps at 2^64, which is meant
    return np.unique(total)


def jaccard(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> float:
    """Shared / all, of two sorted sets of hashes, in [0, 1]."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)


def sketch(found: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The least of each of 64 permutations of a set of hashes. uint64 [64]."""
    factors, offsets = _SEEDS
    mixed = found[:, None] * (factors | np.uint64(1)) + offsets
    mixed ^= mixed >> np.uint64(31)
    least: NDArray[np.uint64] = mixed.min(axis=0)
    return least


class NearIndex:
    """Texts that were added, and those among them that are near another text."""

    def __init__(self, threshold: float = 0.8) -> None:
        """threshold: Jaccard similarity from which on two texts count as near, in (0, 1]."""
        self.threshold = threshold
        self._buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
        self._sets: list[NDArray[np.uint64]] = []

    def add(self, text: str) -> None:
        found = shingles(text)
        for key in _keys(found):
            self._buckets[key].append(len(self._sets))
        self._sets.append(found)

    def near(self, text: str) -> Iterator[int]:
        """Numbers, in order of adding, of texts at least as similar as the threshold."""
        found = shingles(text)
        candidates = {number for key in _keys(found) for number in self._buckets.get(key, ())}
        return (number for number in sorted(candidates) if jaccard(found, self._sets[number]) >= self.threshold)


def exact_duplicates(texts: Sequence[str]) -> list[int]:
    """For each text the number of the first that equals it, up to spelling of space and case; its own for that one."""
    first: dict[str, int] = {}
    return [first.setdefault(plain(text), index) for index, text in enumerate(texts)]


def near_duplicates(texts: Sequence[str], classes: Iterable[object], threshold: float = 0.8) -> list[int | None]:
    """For each text the number of a kept one of its class that it is near to; None for those kept.

    Texts of other classes are no duplicates however near: pairs that differ in little and are judged otherwise teach most.
    """
    indices: dict[object, NearIndex] = {}
    kept: dict[object, list[int]] = defaultdict(list)
    result: list[int | None] = []
    for number, (text, kind) in enumerate(zip(texts, classes, strict=True)):
        index = indices.setdefault(kind, NearIndex(threshold))
        match = next(index.near(text), None)
        result.append(None if match is None else kept[kind][match])
        if match is None:
            index.add(text)
            kept[kind].append(number)
    return result


def _keys(found: NDArray[np.uint64]) -> list[tuple[int, bytes]]:
    least = sketch(found).reshape(BANDS, ROWS)
    return [(band, row.tobytes()) for band, row in enumerate(least)]
