"""The four heads: prompt harm, answer harm, refusal, warning. Each is a wide and a deep part added up.

Wide: a weight for each hashed n-gram. Deep: one hidden layer over the sentence embeddings. The logit, divided by the temperature that
calibration found, gives the probability.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from safeladder.verifiers.heads.encoder import WIDTH
from safeladder.verifiers.heads.ngrams import BUCKETS

# What each head reads. `both`: prompt and answer, and how they relate.
READS: Final[Mapping[str, str]] = {
    "prompt_harm": "prompt",
    "answer_harm": "both",
    "refusal": "answer",
    "warning": "answer",
}
FILE: Final = Path(__file__).with_name("safety.safetensors")
_HIDDEN = 32


class HeadsError(ValueError):
    """The file of heads does not hold what this code reads."""


@dataclass(frozen=True)
class Views:
    """Texts as the heads see them. embedding: float32 [N, 384]; ngrams: float32 [N, 8192]."""

    embedding: Tensor
    ngrams: Tensor


class Head(nn.Module):
    """Logit [N] of one question about prompts, answers, or both."""

    def __init__(self, reads: str) -> None:
        super().__init__()
        self.reads = reads
        both = reads == "both"
        self.wide = nn.Linear(BUCKETS * (2 if both else 1), 1)
        self.deep = nn.Sequential(nn.Linear(WIDTH * (4 if both else 1), _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, 1))
        nn.init.zeros_(self.wide.weight)
        self.temperature: Tensor
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, prompt: Views, answer: Views) -> Tensor:
        if self.reads == "both":
            p, a = prompt.embedding, answer.embedding
            dense = torch.cat([p, a, p * a * WIDTH**0.5, (p - a).abs()], dim=1)
            sparse = torch.cat([prompt.ngrams, answer.ngrams], dim=1)
        else:
            view = prompt if self.reads == "prompt" else answer
            dense, sparse = view.embedding, view.ngrams
        logit: Tensor = (self.wide(sparse * 10.0) + self.deep(dense * WIDTH**0.5)).squeeze(1)
        return logit / self.temperature


class Heads(nn.Module):
    """All heads together."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: Head(reads) for name, reads in READS.items()})

    def forward(self, prompt: Views, answer: Views) -> dict[str, Tensor]:
        """Calibrated probabilities [N] by head."""
        return {name: torch.sigmoid(head(prompt, answer)) for name, head in self.heads.items()}

    def save(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Written as float16, which halves the file and moves no probability by more than 0.01."""
        tensors = {name: tensor.to(torch.float16).contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, path, dict(metadata))


def load(path: Path = FILE) -> tuple[Heads, dict[str, str]]:
    """The trained heads and the file's metadata (`version` among it). Raises HeadsError."""
    if not path.is_file():
        raise HeadsError(
            f"no heads at {path}: train them with `python -m safeladder.verifiers.heads.train`, or reinstall"
        )
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - not a mapping
    heads = Heads()
    try:
        heads.load_state_dict(tensors)
    except RuntimeError as error:
        raise HeadsError(f"{path} holds other tensors than this version reads: {error}") from None
    heads.eval().requires_grad_(False)
    return heads, metadata
