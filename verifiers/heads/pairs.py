"""Pairs of texts through the shared encoder and the heads of one file."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from safeladder.verifiers.heads import encoder
from safeladder.verifiers.heads.bundle import Bundle, languages
from safeladder.verifiers.heads.encoder import Segments
from safeladder.verifiers.heads.model import view


def read(
    heads: Bundle, firsts: Sequence[str], seconds: Sequence[str], device: str = "cpu", context: Tensor | None = None
) -> dict[str, list[list[float]]]:
    """Head -> for each pair the probabilities of its classes, in their order.

    A text that stands in several pairs, as a group's prompt does, is encoded once. `context`: see `Bundle`. Raises EncoderMissing.
    """
    distinct = list(dict.fromkeys([*firsts, *seconds]))
    rows = {text: row for row, text in enumerate(distinct)}
    segments = encoder.shared(device).encode(distinct)
    sides = [segments.rows([rows[text] for text in side]) for side in (firsts, seconds)]
    found = heads(sides[0], sides[1], languages([b or a for a, b in zip(firsts, seconds, strict=True)]), context)
    return {
        name: (torch.stack([1.0 - values, values], dim=1) if values.ndim == 1 else values).tolist()
        for name, values in found.items()
    }


def strongest_segment(heads: Bundle, name: str, texts: Sequence[str], device: str = "cpu") -> list[float]:
    """For each text the highest probability of yes that a head of one text gives to one of its segments by itself."""
    read_texts = encoder.shared(device).encode(texts)
    count = len(read_texts.vectors)
    alone = view(Segments(read_texts.vectors, torch.ones(count, dtype=torch.long), [[] for _ in range(count)]))
    of_text = torch.repeat_interleave(languages(texts), read_texts.counts)
    with torch.inference_mode():
        said = heads.heads[name].calibrated(heads.heads[name](alone, alone), of_text)
    return [float(part.max()) for part in said.split(read_texts.counts.tolist())]
