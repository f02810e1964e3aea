"""Images for one policy: how many tokens each is, the prompt's text with them in it, and the tensors that the model takes.

The image processors are those of `transformers` in their pillow form, also where torchvision is installed: both forms resize a
little differently, and every process of a run must see the same pixels. Placeholders are written here and not by the model's own
`Processor`, which cannot be loaded without torchvision for the sake of videos.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoConfig

from safeladder.policies.builtin import ModelError
from safeladder.policies.vision.families import FAMILIES, Family, Picture
from safeladder.protocol.images import Image, ImageError, opened

MARK: Final = "<image>"  # in a record's prompt: an image goes here


class VisionError(ModelError):
    """Images and a prompt do not belong together, or the policy cannot take them."""


class Processor:
    """Of one model folder. Thread-safe: it holds nothing that changes."""

    def __init__(self, image_processor: Any, config: Any, tokenizer: Any) -> None:
        self._images, self._config, self._tokenizer = image_processor, config, tokenizer
        self._family: type[Family] = FAMILIES[config.model_type]
        self.token_id = int(config.image_token_id)
        self._placeholder: str = tokenizer.convert_ids_to_tokens(self.token_id)

    @classmethod
    def open(cls, path: Path, tokenizer: Any) -> Processor | None:
        """Of the folder `path`; None where its model takes text only. Raises ModelError when its image processor cannot be loaded."""
        config = AutoConfig.from_pretrained(path)
        if config.model_type not in FAMILIES:
            return None
        from transformers import AutoImageProcessor  # needs pillow, which a policy of text does without

        try:
            return cls(AutoImageProcessor.from_pretrained(path, backend="pil"), config, tokenizer)
        except (OSError, ValueError, ImportError) as error:
            raise ModelError(f"cannot load an image processor from {path}: {error}") from error

    def save(self, folder: Path) -> None:
        """Writes what `open` reads beside the model's own files."""
        self._images.save_pretrained(folder)

    # ------------------------------------------------------------------------------------------------------ a prompt

    def tokens(self, size: tuple[int, int]) -> int:
        """How many tokens an image of (width, height) pixels is. Raises VisionError for one of a shape that the model cannot take."""
        try:
            return self._family.tokens(self._images, self._config, *size)
        except ValueError as error:
            raise VisionError(f"an image of {size[0]} x {size[1]} pixels: {error}") from None

    @staticmethod
    def content(prompt: str, images: int) -> list[dict[str, str]]:
        """The user's turn for a chat template: images where the prompt marks them, else before it."""
        pieces = prompt.split(MARK)
        if len(pieces) != images + 1:
            return [{"type": "image"}] * images + [{"type": "text", "text": prompt}]
        parts: list[dict[str, str]] = []
        for index, piece in enumerate(pieces):
            parts += [{"type": "image"}] * (index > 0) + [{"type": "text", "text": piece}] * bool(piece)
        return parts

    def expanded(self, text: str, sizes: Sequence[tuple[int, int]]) -> str:
        """A rendered conversation with as many placeholders for each image as it has tokens. Raises VisionError."""
        first, *rest = text.split(self._placeholder)
        if len(rest) != len(sizes):
            raise VisionError(f"the prompt has places for {len(rest)} images, and there are {len(sizes)}")
        for size, piece in zip(sizes, rest, strict=True):
            first += self._family.text(self._tokenizer, self._placeholder, self.tokens(size)) + piece
        return first

    def named(self, prompt_ids: Sequence[int], pictures: Sequence[Picture]) -> list[int]:
        """The prompt with each image's tokens replaced by its name: equal where text and images are. Raises VisionError."""
        ids = list(map(int, prompt_ids))
        places = [at for at, token in enumerate(ids) if token == self.token_id]
        names = [picture.name for picture in pictures for _ in range(picture.tokens)]
        if len(places) != len(names):
            raise VisionError(
                f"the prompt has {len(places)} image tokens, its {len(pictures)} images are {len(names)} of this policy's"
            )
        for at, name in zip(places, names, strict=True):
            ids[at] = name
        return ids

    # ------------------------------------------------------------------------------------------------------ an image

    def picture(self, image: Image) -> Picture:
        """Raises ImageError for an image that cannot be decoded."""
        file = opened(BytesIO(image.data))
        try:
            pixels = file.convert("RGB")
        except (OSError, ValueError, SyntaxError) as error:  # pillow: truncated data, a broken PNG
            raise ImageError(f"the image {image.hash} cannot be decoded: {error}") from None
        made = self._images(images=[pixels], return_tensors="pt", **self._family.options)
        inputs = {name: made[name] for name in ("pixel_values", "image_grid_thw") if name in made}
        return Picture(-1 - int(image.hash, 16), self.tokens(pixels.size), inputs)


def joined(pictures: Sequence[Picture], device: torch.device) -> dict[str, torch.Tensor]:
    """The arguments of a forward over these pictures, in the order of their places in the row."""
    if not pictures:
        return {}
    return {name: torch.cat([picture.inputs[name] for picture in pictures]).to(device) for name in pictures[0].inputs}
