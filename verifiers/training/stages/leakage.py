"""The leakage gate: no training text that an evaluation set holds, whole, nearly, or in large part."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from safeladder.verifiers.rules.words import words
from safeladder.verifiers.training.stages.duplicates import NearIndex, plain

NGRAM: Final = 8  # words, of which a Chinese character is one

Leak = Literal["exact", "near", "overlap"]


_FIELDS: Final = ("prompt", "response", "text", "chosen", "rejected")


@dataclass(frozen=True)
class Gate:
    """What counts as leaked: near-duplication from the similarity `near` on, or the share `share` of word n-grams held by evaluation."""

    near: float = 0.8
    ngram: int = NGRAM
    share: float = 0.5


class LeakageGate:
    """What the evaluation sets hold. A text leaks if it equals one of theirs, is near one, or shares `share` of its word n-grams."""

    def __init__(self, texts: Iterable[str], near: float = 0.8, ngram: int = NGRAM, share: float = 0.5) -> None:
        self._exact: set[str] = set()
        self._near = NearIndex(near)
        self._grams: set[tuple[str, ...]] = set()
        self._ngram, self._share = ngram, share
        for text in texts:
            if (bare := plain(text)) and bare not in self._exact:
                self._exact.add(bare)
                self._near.add(text)
                self._grams.update(self._ngrams(text))

    def leak(self, text: str) -> Leak | None:
        """How a text leaks; None where it does not, and for an empty one. Texts shorter than an n-gram leak whole or nearly alone."""
        bare = plain(text)
        if not bare:
            return None
        if bare in self._exact:
            return "exact"
        if next(self._near.near(text), None) is not None:
            return "near"
        grams = self._ngrams(text)
        if grams and sum(gram in self._grams for gram in grams) >= self._share * len(grams):
            return "overlap"
        return None

    def _ngrams(self, text: str) -> Sequence[tuple[str, ...]]:
        found = words(text)
        return [tuple(found[start : start + self._ngram]) for start in range(len(found) - self._ngram + 1)]


def evaluation_texts(files: Sequence[Path]) -> list[str]:
    """All texts of files of JSON lines that a verifier could be measured on."""
    found = []
    for file in files:
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line) if line.strip() else {}
                found += [str(row[field]) for field in _FIELDS if row.get(field)]
    return found
