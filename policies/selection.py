"""Does training see the completions that were drawn? Length shows it first when it does not.

Long completions take long, so whatever prefers what is done early prefers short ones: dropping by age, taking the first that come, a
time-out. The policy is then taught by a distribution that nobody asked for (harder prompts have longer answers). The figure is

    KL(trained || drawn) = sum_i p_i ln(p_i / q_i),    p_i = (n_i + a) / (n + a K),   a = 1/2 (Jeffreys),

over the K bins of completion length that any of the completions fell into, in nats; q_i likewise. Bins are two an octave, since lengths
spread over orders of magnitude. 0: the same; below 0.01 nobody could tell the two apart from some hundred completions. The form is
ours: peers warn of the bias and publish no measure of it.

Imports no torch.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable
from typing import Final

BINS_AN_OCTAVE: Final = 2


def length_bin(tokens: int) -> int:
    """The bin of a length in tokens, >= 0: 0 for an empty completion, then two an octave."""
    return 0 if tokens < 1 else 1 + math.floor(BINS_AN_OCTAVE * math.log2(tokens))


def selection_bias(trained: Iterable[int], drawn: Iterable[int], smoothing: float = 0.5) -> float | None:
    """KL(trained || drawn) in nats, >= 0, of two sets of lengths in tokens; None when one of them is empty.

    smoothing: pseudo-count of every bin, > 0.
    """
    return _divergence(Counter(map(length_bin, trained)), Counter(map(length_bin, drawn)), smoothing)


def _divergence(trained: Counter[int], drawn: Counter[int], smoothing: float) -> float | None:
    if not trained.total() or not drawn.total():
        return None
    bins = {bin for counts in (trained, drawn) for bin, count in counts.items() if count}
    above, below = trained.total() + smoothing * len(bins), drawn.total() + smoothing * len(bins)
    found = math.fsum(
        p * math.log(p / q)
        for p, q in (((trained[bin] + smoothing) / above, (drawn[bin] + smoothing) / below) for bin in bins)
    )
    return max(0.0, found)  # rounding


class LengthSelection:
    """The same over the latest `window` completions drawn and the latest `window` trained."""

    def __init__(self, window: int = 4096) -> None:
        if window < 1:
            raise ValueError(f"window must be >= 1, not {window}")
        self._drawn, self._trained = _Recent(window), _Recent(window)

    def draw(self, lengths: Iterable[int]) -> None:
        """Completions that arrived, whatever becomes of them."""
        self._drawn.extend(lengths)

    def train(self, lengths: Iterable[int]) -> None:
        """Completions that a step was made with."""
        self._trained.extend(lengths)

    @property
    def bias(self) -> float | None:
        """`selection_bias` of what is in the window."""
        return _divergence(self._trained.counts, self._drawn.counts, smoothing=0.5)


class _Recent:
    """Counts by bin of the latest lengths."""

    def __init__(self, window: int) -> None:
        self.counts: Counter[int] = Counter()
        self._bins: deque[int] = deque()
        self._window = window

    def extend(self, lengths: Iterable[int]) -> None:
        for tokens in lengths:
            self._bins.append(length_bin(tokens))
            self.counts[self._bins[-1]] += 1
            if len(self._bins) > self._window:
                self.counts[self._bins.popleft()] -= 1
