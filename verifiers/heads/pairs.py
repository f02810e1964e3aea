"""Pairs of texts through the shared encoder and the heads of one file."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from safeladder.verifiers.heads import encoder
from safeladder.verifiers.heads.bundle import Bundle, languages
from safeladder.verifiers.heads.pieces import pieces


def read(
    heads: Bundle, firsts: Sequence[str], seconds: Sequence[str], device: str = "cpu", context: Tensor | None = None
) -> dict[str, list[list[float]]]:
    """Head -> for each pair the probabilities of its classes, in their order.

    A text that stands in several pairs, as a group's prompt does, is encoded once. `context`: see `Bundle`. Raises EncoderMissing.
    """
    distinct = list(dict.fromkeys([*firsts, *seconds]))
    known = dict(zip(distinct, pieces(encoder.shared(device).encode(distinct)), strict=True))
    tongues = languages([b or a for a, b in zip(firsts, seconds, strict=True)])
    found = heads([known[text] for text in firsts], [known[text] for text in seconds], tongues, context)
    return {
        name: (torch.stack([1.0 - values, values], dim=1) if values.ndim == 1 else values).tolist()
        for name, values in found.items()
    }
