"""Models that see, through their own forward: pixels in the prefill, and positions that are not the number of the token.

After an image of Qwen2.5-VL the next token's position is less than the number of tokens before it. Positions therefore belong to
the states of a sequence, beside its keys and values, and a row remembers by how much its position and its length differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from safeladder.policies.engines.cache import BatchCache
from safeladder.policies.engines.decoder import States, TransformersDecoder, tokens
from safeladder.policies.vision import Layout, Picture


class VisionDecoder(TransformersDecoder):
    """States are the keys and values of every layer, and the positions [axes, tokens, 1] last."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._layout = Layout(model)
        self._positions: list[Tensor] = []  # of each row, as it joined; what it has got since follows on
        self._ahead: list[int] = []

    def extend(
        self, parts: Sequence[tuple[Sequence[int], States]], pictures: Mapping[int, Picture] | None = None
    ) -> tuple[list[States], Tensor]:
        layout = Layout(self.model, pictures)
        found = [self._see(layout, ids, before) for ids, before in parts]
        return [states for states, _ in found], torch.cat([logits[:, -1] for _, logits in found])

    def logits(self, ids: Sequence[int], before: States) -> Tensor:
        return self._see(Layout(self.model, None), ids, before, len(ids))[1][0]

    def _see(self, layout: Layout, ids: Sequence[int], before: States, last: int = 1) -> tuple[States, Tensor]:
        cache = BatchCache()
        *kept, known = before or [torch.zeros((layout.axes, 0, 1), dtype=torch.long, device=self.model.device)]
        if kept:
            cache.join([kept])
        positions, _ = layout.positions(ids, _next(known))
        inputs = layout.inputs(ids, positions)
        logits = self.model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=last).logits
        own = torch.tensor(positions, device=self.model.device)[..., None]
        return [*cache.states(0, tokens(before) + len(ids)), torch.cat([known, own], 1)], logits

    def join(self, rows: Sequence[States]) -> None:
        super().join([states[:-1] for states in rows])
        self._positions += [states[-1] for states in rows]

    def step(self, token_ids: Sequence[int], lengths: Sequence[int]) -> Tensor:
        # the mask is made of the lengths, and the positions of lengths and `_ahead`
        self._ahead = [_next(known) - known.shape[1] for known in self._positions]
        return super().step([self._layout.token(token) for token in token_ids], lengths)

    def _forward(
        self,
        ids: list[list[int]],
        positions: list[list[int]],
        cache: Any,
        mask: Tensor | None = None,
        kept: int = 1,
    ) -> Tensor:
        placed = [[at + ahead for at in row] for row, ahead in zip(positions, self._ahead, strict=True)]
        return super()._forward(ids, placed, cache, mask, kept)

    def states(self, row: int, length: int, start: int = 0) -> States:
        known = self._positions[row]
        further = torch.arange(length - known.shape[1], device=known.device) + _next(known)
        whole = torch.cat([known, further.expand(len(known), -1)[..., None]], 1) if len(further) else known
        return [*super().states(row, length, start), whole[:, start:length].clone()]

    def keep(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        self._positions = [self._positions[row] for row in rows]
        super().keep(rows, lengths)


def _next(positions: Tensor) -> int:
    """Where the token after [axes, tokens, 1] stands."""
    return int(positions.max()) + 1 if positions.numel() else 0
