"""What a small head reads of a prompt and a text: a frozen sentence encoder's vectors, or a causal model's last hidden state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Pair = tuple[str, str]
ENCODER: Final = "encoder"  # as a name: the sentence encoder under the embedded heads


class Features(Protocol):
    """name: what `features` makes it of again. width: of a row."""

    name: str
    width: int

    def __call__(self, pairs: Sequence[Pair]) -> Tensor:
        """float32 [len(pairs), width]."""
        ...

    def parameters(self) -> list[nn.Parameter]:
        """What of it may be trained; empty where it is frozen."""
        ...


def features(name: str, cache: Path | None = None, trained: bool = False) -> Features:
    """`encoder`, or a causal model by name or folder. trained: its gradients are wanted. Raises ModelError, EncoderMissing."""
    return EncoderFeatures() if name == ENCODER else ModelFeatures(name, cache, trained)


class EncoderFeatures:
    """Means of the segments' vectors of prompt and text, their product and distance: [p, t, p t, |p - t|], scaled to a variance near 1."""

    name = ENCODER

    def __init__(self) -> None:
        from safeladder.verifiers.heads.encoder import WIDTH, shared

        self._encoder = shared()
        self._scale = WIDTH**0.5
        self.width = 4 * WIDTH

    def __call__(self, pairs: Sequence[Pair]) -> Tensor:
        distinct = sorted({text for pair in pairs for text in pair})
        row = {text: number for number, text in enumerate(distinct)}
        vectors = self._means(distinct)
        p, t = (vectors[torch.tensor([row[pair[side]] for pair in pairs])] for side in (0, 1))
        return torch.cat([p, t, p * t * self._scale, (p - t).abs()], dim=1) * self._scale

    def parameters(self) -> list[nn.Parameter]:
        return []

    def _means(self, texts: Sequence[str]) -> Tensor:
        segments = self._encoder.encode(texts)
        parts = torch.split(segments.vectors, segments.counts.tolist())
        return torch.nn.functional.normalize(torch.stack([part.mean(0) for part in parts]), dim=1)


class ModelFeatures:
    """The hidden state at the text's last token, the prompt and the text laid into the model's chat template."""

    def __init__(self, name: str, cache: Path | None = None, trained: bool = False) -> None:
        from safeladder.policies import model as models

        self.name = name
        self._encode = models.encode_prompt
        self.model, self.tokenizer = models.load(models.resolve(name, cache))
        self.model.requires_grad_(trained)
        self.width = int(self.model.config.hidden_size)

    def __call__(self, pairs: Sequence[Pair]) -> Tensor:
        return torch.cat([self._last(prompt, text) for prompt, text in pairs]).float()

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _last(self, prompt: str, text: str) -> Tensor:
        ids = self._encode(self.tokenizer, prompt, prefix=text)
        longest = int(self.model.config.max_position_embeddings)
        states: Any = self.model(
            input_ids=torch.tensor([ids[-longest:]], device=self.model.device),
            output_hidden_states=True,
            use_cache=False,
            logits_to_keep=1,
        )
        last: Tensor = states.hidden_states[-1][:, -1]
        return last.cpu()


class Scalar(nn.Module):
    """Rows [N, width] to numbers [N, outputs]: standardised, one hidden layer."""

    def __init__(self, width: int, outputs: int = 1, hidden: int = 32) -> None:
        super().__init__()
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, outputs))

    def standardise(self, rows: Tensor) -> None:
        """Takes mean and deviation of the training rows, so that one learning rate fits any features."""
        self.mean.copy_(rows.mean(0))
        self.scale.copy_(1.0 / rows.std(0, unbiased=False).clamp(min=1e-3))

    def forward(self, rows: Tensor) -> Tensor:
        result: Tensor = self.layers((rows - self.mean) * self.scale)
        return result

    def save(self, path: Path) -> None:
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, path)

    @classmethod
    def load(cls, path: Path) -> Scalar:
        tensors = load_file(path)
        hidden, width = tensors["layers.0.weight"].shape
        head = cls(width, tensors["layers.2.weight"].shape[0], hidden)
        head.load_state_dict(tensors)
        head.eval().requires_grad_(False)
        return head


def computed(source: Features, pairs: Sequence[Pair], batch: int = 64) -> Tensor:
    """The features of many pairs, without gradients. float32 [len(pairs), width]."""
    with torch.no_grad():
        parts = [source(pairs[start : start + batch]) for start in range(0, len(pairs), batch)]
    return torch.cat(parts) if parts else torch.zeros(0, source.width)
