"""Keeps training rows apart from evaluation files, and from each other: shared n-grams and near-duplicates.

Two texts are near-duplicates where their sets of 5-character shingles have a Jaccard similarity of at least `jaccard`, estimated by
MinHash (Broder 1997) with 64 hashes in 16 bands; a candidate is confirmed by the exact similarity.
"""

from __future__ import annotations

import json
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
_HASHES: Final = 64
_BANDS: Final = 16
_MIX: Final = np.uint64(0x9E3779B97F4A7C15)
_Numbers = NDArray[np.uint64]
_FIELDS: Final = ("prompt", "response", "text", "chosen", "rejected")


@dataclass(frozen=True)
class Gate:
    """What counts as leaked: a run of `words` words shared with an evaluation text, or near-duplication."""

    words: int = 13
    jaccard: float = 0.8


def plain(text: str) -> str:
    """Lower case, compatibility forms resolved, signs and runs of space made one space."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(c if c.isalnum() else " " for c in folded).split())


class Index:
    """Texts that others are compared with."""

    def __init__(self, texts: Iterable[str], gate: Gate) -> None:
        self._gate = gate
        self._shingles: list[set[int]] = []
        self._bands: dict[tuple[int, bytes], list[int]] = defaultdict(list)
        self._runs: set[int] = set()
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        flat = plain(text)
        place = len(self._shingles)
        self._shingles.append(_shingles(flat))
        for band in _bands(self._shingles[-1]):
            self._bands[band].append(place)
        self._runs.update(_runs(flat, self._gate.words))

    def holds(self, text: str) -> bool:
        """Whether a text shares a long run of words, or is a near-duplicate of one that was added."""
        flat = plain(text)
        return any(run in self._runs for run in _runs(flat, self._gate.words)) or self.near(flat)

    def near(self, text: str) -> bool:
        """Whether a near-duplicate was added."""
        shingles = _shingles(plain(text))
        candidates = {place for band in _bands(shingles) for place in self._bands.get(band, ())}
        return any(_jaccard(shingles, self._shingles[place]) >= self._gate.jaccard for place in candidates)


def evaluation_texts(files: Sequence[Path]) -> list[str]:
    """All texts of files of JSON lines that a verifier could be measured on."""
    found = []
    for file in files:
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line) if line.strip() else {}
                found += [str(row[field]) for field in _FIELDS if row.get(field)]
    return found


def _shingles(flat: str) -> set[int]:
    return set(_windows(_points(flat), 3 if _chinese(flat) else 5).tolist())


def _runs(flat: str, words: int) -> list[int]:
    """Hashes of all runs of `words` words, or of twice as many characters in Chinese."""
    if _chinese(flat):
        units = _points(flat.replace(" ", ""))
        return [] if len(units) < 2 * words else _windows(units, 2 * words).tolist()
    listed = flat.split()
    if len(listed) < words:
        return []
    found: list[int] = _windows(
        np.array([zlib.crc32(word.encode()) for word in listed], dtype=np.uint64), words
    ).tolist()
    return found


def _chinese(flat: str) -> bool:
    return any("\u3400" <= character <= "\u9fff" for character in flat)


def _points(flat: str) -> _Numbers:
    return np.frombuffer(flat.encode("utf-32-le", "replace"), dtype=np.uint32).astype(np.uint64)


def _windows(units: _Numbers, size: int) -> _Numbers:
    """A hash of each run of `size` units; of all units where there are fewer."""
    count = max(1, len(units) - size + 1)
    total = np.full(count, size, dtype=np.uint64)
    for offset in range(min(size, len(units))):
        total = (total ^ units[offset : offset + count]) * _MIX  # wraps at 2^64, which is meant
        total ^= total >> np.uint64(29)
    return total >> np.uint64(1)


_draw = np.random.default_rng(20_250_728)
_FACTORS: Final = _draw.integers(1, 2**31, _HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_OFFSETS: Final = _draw.integers(0, 2**63, _HASHES, dtype=np.uint64)


def _bands(shingles: set[int]) -> list[tuple[int, bytes]]:
    values = np.fromiter(shingles, dtype=np.uint64, count=len(shingles))
    mixed = values[:, None] * _FACTORS[None, :] + _OFFSETS[None, :]  # multiply-shift hashing, wraps at 2^64
    lowest = (mixed >> np.uint64(16)).min(axis=0).reshape(_BANDS, -1)
    return [(band, row.tobytes()) for band, row in enumerate(lowest)]


def _jaccard(one: set[int], other: set[int]) -> float:
    return len(one & other) / len(one | other) if one or other else 1.0


def without_duplicates(rows: Sequence[T], texts: Sequence[str], gate: Gate) -> list[T]:
    """The rows whose text is not a near-duplicate of an earlier row's."""
    seen = Index((), gate)
    kept = []
    for row, text in zip(rows, texts, strict=True):
        if not seen.near(text):
            seen.add(text)
            kept.append(row)
    return kept
