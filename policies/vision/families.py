"""What differs between the architectures that see: how many tokens an image is, how it is written, where its tokens stand.

A family is chosen by the `model_type` of the model's configuration. Another architecture is one more class here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Picture:
    """One image as a model takes it.

    name: a negative number made of the hash of its file, which stands for each of its tokens where images must be told apart.
    tokens: how many places it fills in a prompt. inputs: the model's own arguments, each with the image's parts in dimension 0.
    """

    name: int
    tokens: int
    inputs: Mapping[str, Tensor]

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.inputs.values())


class Family(ABC):
    """tower: modules of the inner model that turn pixels into embeddings. axes: of a token's position. options: of the call of the
    image processor."""

    tower: ClassVar[tuple[str, ...]]
    axes: ClassVar[int] = 1
    options: ClassVar[dict[str, Any]] = {}

    @staticmethod
    @abstractmethod
    def tokens(image_processor: Any, config: Any, width: int, height: int) -> int:
        """How many tokens an image of that size in pixels is."""

    @staticmethod
    def text(tokenizer: Any, placeholder: str, tokens: int) -> str:
        """What is written in the place of an image's one placeholder."""
        return placeholder * tokens

    @staticmethod
    def positions(picture: Picture, start: int) -> tuple[list[list[int]], int]:
        """The positions [axes][tokens] of a picture whose first token stands at `start`, and that of the token after it."""
        return [list(range(start, start + picture.tokens))], start + picture.tokens

    @staticmethod
    @abstractmethod
    def blank(config: Any) -> Picture:
        """The smallest picture, all of one colour."""


class QwenVL(Family):
    """Qwen2.5-VL. Rotary positions on three axes, time, height and width (Wang et al., "Qwen2-VL", 2024, section 2.1): text has
    the same on all three; an image at `start` of h by w tokens has start, start + row, start + column, and what
    follows begins after the larger of h and w."""

    tower = ("visual",)
    axes = 3

    @staticmethod
    def tokens(image_processor: Any, config: Any, width: int, height: int) -> int:
        return int(image_processor.get_number_of_image_patches(height, width, {})) // image_processor.merge_size**2

    @staticmethod
    def positions(picture: Picture, start: int) -> tuple[list[list[int]], int]:
        _, height, width = (int(size) for size in picture.inputs["image_grid_thw"][0])
        merge = round((height * width / picture.tokens) ** 0.5)
        rows, columns = height // merge, width // merge
        places = [(row, column) for row in range(rows) for column in range(columns)]
        axes = [[start] * len(places), [start + row for row, _ in places], [start + column for _, column in places]]
        return axes, start + max(rows, columns)

    @staticmethod
    def blank(config: Any) -> Picture:
        vision = config.vision_config
        merge = vision.spatial_merge_size
        features = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        grid = torch.tensor([[1, merge, merge]])
        return Picture(-1, 1, {"pixel_values": torch.zeros(merge**2, features), "image_grid_thw": grid})


class InternVL(Family):
    """InternVL3: tiles of one size and, of more than one tile, a thumbnail of the whole; as many tokens each."""

    tower = ("vision_tower", "multi_modal_projector")
    options: ClassVar[dict[str, Any]] = {"crop_to_patches": True}

    @staticmethod
    def tokens(image_processor: Any, config: Any, width: int, height: int) -> int:
        tiles = image_processor.get_number_of_image_patches(height, width, {"crop_to_patches": True})
        return int(tiles) * int(config.image_seq_length)

    @staticmethod
    def text(tokenizer: Any, placeholder: str, tokens: int) -> str:
        begin = getattr(tokenizer, "start_image_token", "<img>")
        end = getattr(tokenizer, "end_image_token", "</img>")
        return f"{begin}{placeholder * tokens}{end}"

    @staticmethod
    def blank(config: Any) -> Picture:
        vision = config.vision_config
        pixels = torch.zeros(1, vision.num_channels, *vision.image_size)
        return Picture(-1, int(config.image_seq_length), {"pixel_values": pixels})


FAMILIES: Final[Mapping[str, type[Family]]] = {"qwen2_5_vl": QwenVL, "internvl": InternVL}


def tower(model: Any) -> list[nn.Module]:
    """The modules that turn pixels into embeddings, projector included; none for a model of text."""
    family = FAMILIES.get(model.config.model_type)
    return [getattr(model.model, name) for name in family.tower] if family else []
