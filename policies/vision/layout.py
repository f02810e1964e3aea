"""How a row of tokens is written for a model: what stands at an image's places, and the position of every token.

Rows are lists of token ids in which an image's tokens are its picture's name, a negative number (`families.Picture`). What
compares rows, packs them or keeps their states by prefix therefore tells images apart without knowing of any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from safeladder.policies.vision.families import FAMILIES, Picture, tower
from safeladder.policies.vision.processor import joined

Positions = list[list[int]]  # [axes][tokens]


class Layout:
    """Of one model and the pictures that its rows may name."""

    def __init__(self, model: Any, pictures: Mapping[int, Picture] | None = None) -> None:
        self._model, self._pictures = model, dict(pictures or {})
        self._family = FAMILIES.get(model.config.model_type)
        self._image: int | None = model.config.image_token_id if self._family else None
        self.axes = self._family.axes if self._family else 1

    def positions(self, ids: Sequence[int], start: int = 0) -> tuple[Positions, int]:
        """Of `ids`, whose first token stands at `start`, and where the next token would stand. Pictures must be whole."""
        if self._family is None or not any(token < 0 for token in ids):
            end = start + len(ids)
            return [list(range(start, end)) for _ in range(self.axes)], end
        found: Positions = [[] for _ in range(self.axes)]
        for name, run in groupby(ids, key=lambda token: min(token, 0)):
            if name:
                picture, length = self._pictures[name], len(list(run))
                part: Positions = [[] for _ in range(self.axes)]
                for _ in range(length // picture.tokens):  # the same image may follow itself
                    once, start = self._family.positions(picture, start)
                    part = [[*axis, *more] for axis, more in zip(part, once, strict=True)]
            else:
                length = sum(1 for _ in run)
                part, start = [list(range(start, start + length)) for _ in range(self.axes)], start + length
            for axis, more in zip(found, part, strict=True):
                axis += more
        return found, start

    def inputs(self, ids: Sequence[int], positions: Positions) -> dict[str, Any]:
        """A model's arguments for one row: input_ids and position_ids, and the pixels of its images."""
        shown = [
            self._pictures[name]
            for name, run in groupby(ids, key=lambda token: min(token, 0))
            if name
            for _ in range(len(list(run)) // self._pictures[name].tokens)
        ]
        device = self._model.device
        return {
            "input_ids": torch.tensor([[self.token(each) for each in ids]], device=device),
            "position_ids": self.tensor(positions)[..., None, :],
            **joined(shown, device),
        }

    def token(self, token: int) -> int:
        """What the model is fed for a token of a row. An image token that stands for no image, because the policy has sampled
        one, is fed as token 0, in training as in generation: the model would look for pixels."""
        if self._image is None:
            return token
        return self._image if token < 0 else 0 if token == self._image else token

    def tensor(self, positions: Positions) -> Tensor:
        """[axes, tokens], or [tokens] for a model with one axis: what `position_ids` is made of."""
        found = torch.tensor(positions, device=self._model.device)
        return found if self.axes > 1 else found[0]

    def blank(self) -> list[int]:
        """A row of one image that teaches nothing, for a forward without images on one rank of several, while on another the tower is
        trained: the gradients of both are added up, so that each must have all of them. Empty where none is needed."""
        if self._family is None or not torch.is_grad_enabled() or not isinstance(self._model, FSDPModule):
            return []
        if not any(parameter.requires_grad for module in tower(self._model) for parameter in module.parameters()):
            return []
        picture = self._family.blank(self._model.config)
        self._pictures[picture.name] = picture
        return [picture.name] * picture.tokens
