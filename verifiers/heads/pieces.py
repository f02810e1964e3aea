"""A text as the heads see it: its segments with their tokens, and the windows over them.

Harm in a long request is often one sentence within a frame that a jailbreak wrote around it. So a head of the windowed kind reads each
window by itself and says of the text what it says of the worst one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Final

import torch
from torch import Tensor

from safeladder.verifiers.heads.encoder import Segments
from safeladder.verifiers.heads.ngrams import buckets

WHOLE: Final = 4  # segments up to which a text is also one window; of a longer one the windows are each segment and each two neighbours


@dataclass(frozen=True, eq=False)
class Piece:
    """One text. vectors: float32 [S, 512]; tokens: for each segment its ids; given: windows in place of those of `windows`."""

    vectors: Tensor
    tokens: Sequence[list[int]]
    given: Sequence[Piece] | None = None

    @cached_property
    def grams(self) -> Tensor:
        """The buckets of the text's n-grams, int64 [G], ascending."""
        return buckets(list(chain.from_iterable(self.tokens)))

    @cached_property
    def windows(self) -> Sequence[Piece]:
        """At least one: the text itself where it is short, each segment, each two neighbours."""
        if self.given is not None:
            return self.given
        count = len(self.vectors)
        spans = [(0, count)] if count <= WHOLE else []
        spans += [(first, first + size) for size in (1, 2) for first in range(count - size + 1) if size < count]
        return [self if span == (0, count) else self.part(*span) for span in dict.fromkeys(spans)]

    def part(self, first: int, last: int | None) -> Piece:
        """Segments `first` to `last`, that one not included, as a slice has them."""
        return Piece(self.vectors[first:last], self.tokens[first:last])

    def without(self, dropped: Sequence[bool]) -> Piece:
        """The text without some segments; itself where none or all are to go."""
        kept = [place for place, gone in enumerate(dropped) if not gone]
        if len(kept) in (0, len(dropped)):
            return self
        return Piece(self.vectors[kept], [self.tokens[place] for place in kept])


def pieces(read: Segments) -> list[Piece]:
    """The texts of an encoder's result, in their order."""
    found, start = [], 0
    for vectors in read.vectors.split(read.counts.tolist()):
        found.append(Piece(vectors, read.tokens[start : start + len(vectors)]))
        start += len(vectors)
    return found


def joined(parts: Sequence[Piece]) -> Piece:
    """One text out of several, one after another."""
    return Piece(torch.cat([part.vectors for part in parts]), [tokens for part in parts for tokens in part.tokens])


def divided(first: Sequence[Piece], second: Sequence[Piece]) -> tuple[list[Piece], list[Piece]]:
    """Pairs with an empty first text divided after the second's first segment, where there are more."""
    pairs = [
        (told.part(0, 1), told.part(1, None)) if not any(before.tokens) and len(told.vectors) > 1 else (before, told)
        for before, told in zip(first, second, strict=True)
    ]
    return [one for one, _ in pairs], [other for _, other in pairs]
