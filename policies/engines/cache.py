"""The key-value cache of a batch whose rows come and go.

Rows are aligned at the right: the newest token of every row stands in the last column, and a row shorter than the batch
has padding at its left. A token's column therefore moves when the batch grows or shrinks, its position id does not.

Every layer keeps all columns, also in models with sliding windows: the window is then a matter of the mask alone, as
it is in a left-padded `generate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

HEADROOM: Final = 32  # columns allocated ahead, so that a decode step writes one column and does not copy the rest


class BatchLayer(DynamicLayer):  # type: ignore[misc]  # transformers is untyped here
    """Keys and values [rows, heads, columns, features] of one layer: a view into a buffer with room to the right."""

    buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends columns and returns all of them; called by the model's attention."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        length = self.keys.shape[-2]
        columns = length + key_states.shape[-2]
        if self.buffers is None or columns > self.buffers[0].shape[-2]:
            self._allocate(self.keys, self.values, columns)
        assert self.buffers is not None
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, length:columns] = states
        self.keys, self.values = (buffer[:, :, :columns] for buffer in self.buffers)
        return self.keys, self.values

    def join(self, key_states: list[Tensor], value_states: list[Tensor]) -> None:
        """Adds a row for each pair of [heads, tokens, features]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states[0][None], value_states[0][None])
            self.keys, self.values = (
                states[0].new_zeros((0, len(states[0]), 0, states[0].shape[-1]))
                for states in (key_states, value_states)
            )
        length = max(self.keys.shape[-2], *(states.shape[-2] for states in key_states))
        buffers = []
        for old, new in ((self.keys, key_states), (self.values, value_states)):
            shape = (len(old) + len(new), len(new[0]), length + HEADROOM, new[0].shape[-1])
            buffer = new[0].new_zeros(shape)  # zeros: padding is masked, but 0 * NaN would still be NaN
            buffer[: len(old), :, length - old.shape[-2] : length] = old
            for row, states in enumerate(new, len(old)):
                buffer[row, :, length - states.shape[-2] : length] = states
            buffers.append(buffer)
        self.buffers = (buffers[0], buffers[1])
        self.keys, self.values = (buffer[:, :, :length] for buffer in self.buffers)

    def keep(self, rows: Tensor, drop: int) -> None:
        """Keeps `rows` [kept] and drops the first `drop` columns, which are padding in all of them."""
        keys, values = (states[:, :, drop:].index_select(0, rows) for states in (self.keys, self.values))
        self._allocate(keys, values, keys.shape[-2])

    def _allocate(self, keys: Tensor, values: Tensor, columns: int) -> None:
        """Moves `keys` and `values` into new buffers of `columns` columns and headroom."""
        length = keys.shape[-2]
        buffers = []
        for states in (keys, values):
            buffer = states.new_zeros((*states.shape[:2], columns + HEADROOM, states.shape[3]))
            buffer[:, :, :length] = states
            buffers.append(buffer)
        self.buffers = (buffers[0], buffers[1])
        self.keys, self.values = (buffer[:, :, :length] for buffer in self.buffers)


class BatchCache(Cache):  # type: ignore[misc]  # transformers is untyped here
    """All layers of a batch. Empty until the first `join`."""

    layers: list[BatchLayer]

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=BatchLayer)

    @property
    def columns(self) -> int:
        return int(self.layers[0].keys.shape[-2]) if self.layers else 0

    def join(self, rows: Sequence[list[Tensor]]) -> None:
        """Adds rows, each as the keys and values [heads, tokens, features] of every layer in turn."""
        while len(self.layers) < len(rows[0]) // 2:
            self.layers.append(BatchLayer())
        for number, layer in enumerate(self.layers):
            layer.join([states[2 * number] for states in rows], [states[2 * number + 1] for states in rows])

    def states(self, row: int, length: int, start: int = 0) -> list[Tensor]:
        """A copy of a row of `length` tokens, from token `start` on, as `join` takes it."""
        columns = slice(self.columns - length + start, None)
        return [states[row, :, columns].clone() for layer in self.layers for states in (layer.keys, layer.values)]

    def keep(self, rows: list[int], drop: int) -> None:
        """Keeps `rows` (at least one), in the order given, and drops the first `drop` columns."""
        index = torch.tensor(rows, device=self.layers[0].keys.device)
        for layer in self.layers:
            layer.keep(index, drop)
