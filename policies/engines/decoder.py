"""What computes logits for the stepper: forwards over prompts, and decode steps over a batch of rows.

`states` are the keys and values of one sequence: a list of tensors whose next to last dimension is the token; how
many tensors and what else they have is the decoder's own. `tokens`, `joined` and `split` are all that others do to them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from safeladder.policies import weights
from safeladder.policies.engines.cache import BatchCache
from safeladder.policies.vision import Picture

States = list[Tensor]


def tokens(states: States) -> int:
    return int(states[0].shape[-2]) if states else 0


def joined(parts: Sequence[States]) -> States:
    """The parts one behind the other, as a copy; [] for none."""
    return [torch.cat(tensors, dim=-2) for tensors in zip(*parts, strict=True)]


def split(states: States, start: int, end: int | None = None) -> States:
    """A copy of the tokens from `start` to `end`, so that the whole may be freed."""
    return [tensor[..., start:end, :].clone() for tensor in states]


class Decoder(ABC):
    """Owns the model and the cache of the rows that decode together."""

    @property
    @abstractmethod
    def rows(self) -> int: ...

    @property
    @abstractmethod
    def columns(self) -> int:
        """Tokens of the longest row in the cache, which is what every row takes up."""

    @abstractmethod
    def extend(
        self, parts: Sequence[tuple[Sequence[int], States]], pictures: Mapping[int, Picture] | None = None
    ) -> tuple[list[States], Tensor]:
        """For each (token ids, states of what stands before them): the states of both together; and logits [parts, V]
        after the last token of each. No part is empty. `pictures`: what the ids of images name; no image is cut by states."""

    @abstractmethod
    def logits(self, ids: Sequence[int], before: States) -> Tensor:
        """[ids, V] after each of the ids, which stand behind `before`. There are no images among them."""

    @abstractmethod
    def join(self, rows: Sequence[States]) -> None:
        """Adds a row to the batch for each of `rows`, behind those there are."""

    @abstractmethod
    def step(self, token_ids: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """Puts one token behind each row, whose cached tokens are `lengths`; returns logits [rows, V]."""

    @abstractmethod
    def states(self, row: int, length: int, start: int = 0) -> States:
        """A copy of the tokens from `start` on of the row with that number, which has `length` tokens."""

    @abstractmethod
    def keep(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Keeps these rows (perhaps none), which become the rows 0, 1, ..., of these lengths. One that moves comes from
        behind all that are kept."""

    @abstractmethod
    def prepare(self, tensors: Mapping[str, Tensor]) -> Any:
        """What `load` needs beside the tensors, made ahead in another thread while decoding goes on."""

    @abstractmethod
    def load(self, tensors: Mapping[str, Tensor], prepared: Any) -> None:
        """Replaces the weights in place; the rows stay. Raises WeightsError, before any change, for a foreign set."""


class TransformersDecoder(Decoder):
    """Any causal model of `transformers` whose layers are attention, through its own forward."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._cache = BatchCache()
        self._lengths: list[int] = []

    @property
    def rows(self) -> int:
        return len(self._lengths)

    @property
    def columns(self) -> int:
        return self._cache.columns

    def extend(
        self, parts: Sequence[tuple[Sequence[int], States]], pictures: Mapping[int, Picture] | None = None
    ) -> tuple[list[States], Tensor]:
        found = [self._extend(ids, before) for ids, before in parts]
        return [states for states, _ in found], torch.cat([logits for _, logits in found])

    def _extend(self, ids: Sequence[int], before: States) -> tuple[States, Tensor]:
        cache, logits = self._through(ids, before, 1)
        return cache.states(0, tokens(before) + len(ids)), logits[:, -1]

    def logits(self, ids: Sequence[int], before: States) -> Tensor:
        return self._through(ids, before, len(ids))[1][0]

    def _through(self, ids: Sequence[int], before: States, kept: int) -> tuple[BatchCache, Tensor]:
        """The cache of both together, and logits [1, kept, V] after the last ids."""
        cache, start = BatchCache(), tokens(before)
        if before:
            cache.join([before])
        return cache, self._forward([list(ids)], [list(range(start, start + len(ids)))], cache, kept=kept)

    def join(self, rows: Sequence[States]) -> None:
        self._cache.join(rows)
        self._lengths += [tokens(states) for states in rows]

    def step(self, token_ids: Sequence[int], lengths: Sequence[int]) -> Tensor:
        columns = self.columns
        mask = None  # rows of one length need none, and attention is faster without
        if any(length < columns for length in lengths):
            padding = self._tensor([columns - length for length in lengths])
            mask = (torch.arange(columns + 1, device=self.model.device) >= padding[:, None]).long()
        positions = [[length] for length in lengths]
        return self._forward([[token] for token in token_ids], positions, self._cache, mask)[:, -1]

    def states(self, row: int, length: int, start: int = 0) -> States:
        return self._cache.states(row, length, start)

    def keep(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        self._lengths = list(lengths)
        if rows:
            self._cache.keep(list(rows), self.columns - max(lengths))
        else:
            self._cache = BatchCache()

    def prepare(self, tensors: Mapping[str, Tensor]) -> None:
        return None

    def load(self, tensors: Mapping[str, Tensor], prepared: None) -> None:
        weights.copy_into(self.model, tensors)

    def _forward(
        self,
        ids: list[list[int]],
        positions: list[list[int]],
        cache: Cache,
        mask: Tensor | None = None,
        kept: int = 1,
    ) -> Tensor:
        """Logits [rows, kept, V] after the last tokens of each row."""
        logits: Tensor = self.model(
            input_ids=self._tensor(ids),
            position_ids=self._tensor(positions),
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=kept,
        ).logits
        return logits

    def _tensor(self, values: Any) -> Tensor:
        return torch.tensor(values, device=self.model.device)
