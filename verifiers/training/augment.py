"""What attackers put around a text, put around training texts so that heads learn to look through it.

A text is a list of segments, so a template or a planted sentence is encoded once and joined to any text at no cost.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from safeladder.verifiers.heads.ngrams import buckets
from safeladder.verifiers.heads.segments import MAX_SEGMENTS
from safeladder.verifiers.training.texts import Texts


@dataclass(frozen=True)
class Piece:
    """A text as encoded: vectors [S, 512], tokens, and the buckets of its n-grams."""

    vectors: Tensor
    tokens: list[int]
    grams: Tensor


class Wraps:
    """Templates with `{prompt}` in them, and sentences to plant."""

    def __init__(self, texts: Texts, templates: Sequence[str], planted: Sequence[str]) -> None:
        halves = [template.partition("{prompt}") for template in templates]
        self._before = _pieces(texts, [before for before, _, _ in halves])
        self._after = _pieces(texts, [after for _, _, after in halves])
        self._planted = _pieces(texts, list(planted))

    def template(self, inside: Piece, draw: random.Random) -> Piece:
        """The text within one of the templates."""
        if not self._before:
            return inside
        place = draw.randrange(len(self._before))
        return _joined([part for part in (self._before[place], inside, self._after[place]) if part is not None])

    def padding(self, inside: Piece, draw: random.Random) -> Piece:
        """The text with one or two planted sentences before, behind, or within."""
        result = inside
        for _ in range(draw.choice((1, 1, 2))):
            planted = draw.choice(self._planted) if self._planted else None
            if planted is None:
                continue
            where = draw.random()
            if where < 0.4:
                result = _joined([result, planted])
            elif where < 0.7:
                result = _joined([planted, result])
            else:
                cut = draw.randrange(len(result.vectors) + 1)
                vectors = torch.cat([result.vectors[:cut], planted.vectors, result.vectors[cut:]])
                result = Piece(
                    vectors, result.tokens + planted.tokens, torch.unique(torch.cat([result.grams, planted.grams]))
                )
        return result


def _pieces(texts: Texts, listed: list[str]) -> list[Piece | None]:
    read = texts.segments(listed)
    parts = zip(listed, read.vectors.split(read.counts.tolist()), read.tokens, strict=True)
    return [Piece(vectors, tokens, buckets(tokens)) if text.strip() else None for text, vectors, tokens in parts]


def _joined(parts: Sequence[Piece]) -> Piece:
    vectors = torch.cat([part.vectors for part in parts])
    if len(vectors) > MAX_SEGMENTS:
        head = MAX_SEGMENTS * 3 // 5
        vectors = torch.cat([vectors[:head], vectors[-(MAX_SEGMENTS - head) :]])
    # the few n-grams across the joints are left out
    return Piece(
        vectors, [t for part in parts for t in part.tokens], torch.unique(torch.cat([part.grams for part in parts]))
    )
