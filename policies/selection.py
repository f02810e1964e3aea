"""Whether what is trained is as long as what was drawn.

A policy of staleness that drops, or an order that lets the quick ones pass, trains more short completions than were sampled; the
model then learns brevity that nobody asked for. The measure is KL(trained || drawn) between the two distributions of
lengths over the last completions of each kind, in nats: 0 where they agree, below 0.01 by sampling noise alone.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence
from typing import Final

WINDOW: Final = 1024  # completions of each kind that are looked back at
BINS_AN_OCTAVE: Final = 2


def length_bias(trained: Sequence[int], drawn: Sequence[int], bins_an_octave: int = BINS_AN_OCTAVE) -> float:
    """KL(trained || drawn) of two samples of lengths, in nats, >= 0; 0 when either is empty.

    Bins are spaced evenly in ln length, `bins_an_octave` for each doubling; half a count is added to every bin that either
    sample reaches (Krichevsky and Trofimov 1981), so that the measure is finite.
    """
    if not trained or not drawn:
        return 0.0
    first, second = (Counter(_bin(n, bins_an_octave) for n in lengths) for lengths in (trained, drawn))
    bins = first.keys() | second.keys()
    p, q = (
        {b: (counts[b] + 0.5) / (total + 0.5 * len(bins)) for b in bins}
        for counts, total in ((first, len(trained)), (second, len(drawn)))
    )
    return max(0.0, math.fsum(p[b] * math.log(p[b] / q[b]) for b in bins))


def _bin(length: int, bins_an_octave: int) -> int:
    return -1 if length < 1 else int(math.log2(length) * bins_an_octave)


class LengthBias:
    """Remembers the lengths of what came and of what was trained. A restart begins anew."""

    def __init__(self, window: int = WINDOW) -> None:
        self._drawn: deque[int] = deque(maxlen=window)
        self._trained: deque[int] = deque(maxlen=window)

    def drawn(self, lengths: Sequence[int]) -> None:
        self._drawn.extend(lengths)

    def trained(self, lengths: Sequence[int]) -> None:
        self._trained.extend(lengths)

    def value(self) -> float:
        """KL(trained || drawn) of what is remembered, in nats."""
        return length_bias(list(self._trained), list(self._drawn))
