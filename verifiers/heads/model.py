"""The network of a head: a wide and a deep part added up, calibrated by a temperature for each language.

Wide: a weight for each hashed n-gram of tokens. Deep: each segment's vector through one hidden layer, the segments pooled by attention, by
maximum and by mean, and for a head that reads two texts how the two relate. The design is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from safeladder.verifiers.heads.encoder import WIDTH
from safeladder.verifiers.heads.ngrams import BUCKETS
from safeladder.verifiers.heads.pieces import Piece, divided

Reads = Literal["first", "second", "both"]
LANGUAGES: Final = ("en", "zh")  # each with a temperature of its own; other languages take the first
_POOLED = 4  # ways in which segments become one vector
_RELATIONS = 6


@dataclass(frozen=True)
class Shape:
    """What a head reads and says. `classes`: one logit for yes or no, or one a class. `context`: numbers from other heads or from words.

    `hidden` 0, for a head that reads both: the segments count only by how those of the two texts relate. `windowed`, for a yes-or-no head
    that reads the first: each window of the text is read by itself, and the highest logit is the text's.
    `divides`: where the first text is empty, the second's first segment stands for it: a claim before its reason, a request before its
    excuse. `complied`: the share of the probability that comes of `bundle.complied`.
    """

    reads: Reads
    classes: int = 1
    hidden: int = 48
    context: int = 0
    wide: bool = True
    windowed: bool = False
    divides: bool = False
    complied: float = 0.0


@dataclass(frozen=True)
class View:
    """N texts as a head takes them.

    vectors: float32 [N, S, 512], padded with zeros; mask: bool [N, S]; grams, offsets: the n-gram buckets of all texts and where each
    text's begin; shares: float32, one for each gram, so that a text's weigh 1 in the square; pieces: the texts themselves.
    """

    vectors: Tensor
    mask: Tensor
    grams: Tensor
    offsets: Tensor
    shares: Tensor
    pieces: Sequence[Piece]

    @cached_property
    def windows(self) -> View:
        """The windows of all texts, one after another."""
        return view([window for piece in self.pieces for window in piece.windows])


def view(pieces: Sequence[Piece]) -> View:
    """The texts' segments padded to one length, and their n-grams."""
    padded = pad_sequence([piece.vectors for piece in pieces], batch_first=True)
    lengths = torch.tensor([len(piece.vectors) for piece in pieces])
    mask = torch.arange(padded.shape[1])[None, :] < lengths[:, None]
    sizes = torch.tensor([len(piece.grams) for piece in pieces])
    offsets = torch.cumsum(sizes, 0) - sizes
    shares = torch.repeat_interleave(sizes.clamp(min=1).float().rsqrt(), sizes)
    return View(padded, mask, torch.cat([piece.grams for piece in pieces]), offsets, shares, pieces)


class _Pool(nn.Module):
    """Segments [N, S, 512] to one vector [N, 4 * hidden]: two attentions, the maximum, the mean."""

    def __init__(self, hidden: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, hidden)
        self.attention = nn.Linear(hidden, 2)
        self.dropout = nn.Dropout(dropout)

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        states = nn.functional.gelu(self.inner(self.dropout(vectors) * WIDTH**0.5 * 0.3))
        weights = torch.softmax(self.attention(states).masked_fill(~mask[..., None], -1e4), dim=1)  # [N, S, 2]
        attended = torch.einsum("nsk,nsh->nkh", weights, states).flatten(1)
        highest = states.masked_fill(~mask[..., None], -1e4).amax(1)
        mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return torch.cat([attended, highest, mean], dim=1)


class Head(nn.Module):
    """Logits [N, classes] of one question about a text or two; [N, 1] for yes or no."""

    def __init__(self, shape: Shape, dropout: float = 0.1) -> None:
        super().__init__()
        self.shape = shape
        texts = {"first": (True, False), "second": (False, True), "both": (True, True)}[shape.reads]
        texts = texts if shape.hidden else (False, False)
        self.pools = nn.ModuleList(_Pool(shape.hidden, dropout) if read else nn.Identity() for read in texts)
        width = _POOLED * shape.hidden * sum(texts)
        if shape.reads == "both":
            width += _POOLED * shape.hidden + _RELATIONS
        self.dropout = nn.Dropout(dropout)
        inner = shape.hidden or _RELATIONS
        self.outer = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, shape.classes))
        self.context: nn.Module | None = None
        if shape.context and shape.hidden:
            self.context = nn.Linear(shape.context, shape.classes, bias=False)
        elif shape.context:  # the numbers are then nearly all that there is, and may act together
            first = nn.Linear(shape.context, 16)
            self.context = nn.Sequential(first, nn.GELU(), nn.Linear(16, shape.classes, bias=False))
        self.wide = nn.ModuleList(
            nn.EmbeddingBag(BUCKETS, shape.classes, mode="sum") if read and shape.wide else nn.Identity()
            for read in texts
        )
        for table in self.wide:
            if isinstance(table, nn.EmbeddingBag):
                nn.init.zeros_(table.weight)
        self.temperature: Tensor
        self.register_buffer("temperature", torch.ones(len(LANGUAGES)))
        self.bias: Tensor
        self.register_buffer("bias", torch.zeros(len(LANGUAGES), shape.classes))

    def forward(self, first: View, second: View, context: Tensor | None = None) -> Tensor:
        """Logits before calibration. `context`: float32 [N, shape.context]."""
        if self.shape.windowed:
            return torch.stack([said.amax(0) for said in self.by_window(first)])
        if self.shape.divides:
            first, second = map(view, divided(first.pieces, second.pieces))
        return self._whole(first, second, context)

    def by_window(self, text: View) -> Sequence[Tensor]:
        """For each text the logits [W, 1] of its windows."""
        found: Sequence[Tensor] = self._whole(text.windows, text.windows, None).split(
            [len(p.windows) for p in text.pieces]
        )
        return found

    def _whole(self, first: View, second: View, context: Tensor | None) -> Tensor:
        pooled = []
        total: Tensor | float = 0.0
        for text, pool, table in zip((first, second), self.pools, self.wide, strict=True):
            if isinstance(pool, _Pool):
                pooled.append(pool(text.vectors, text.mask))
            if isinstance(table, nn.EmbeddingBag):
                total = total + 3.0 * table(text.grams, text.offsets, per_sample_weights=text.shares)
        if self.shape.reads == "both":
            pooled += [*([pooled[0] * pooled[1]] if pooled else []), relations(first, second)]
        result: Tensor = self.outer(self.dropout(torch.cat(pooled, dim=1))) + total
        if self.context is not None:
            assert context is not None, "this head takes numbers from other heads"
            result = result + self.context(context)
        return result

    def calibrated(self, logits: Tensor, languages: Tensor) -> Tensor:
        """Probabilities: [N] of yes, or [N, classes]. languages: int64 [N], places in `LANGUAGES`."""
        scaled = logits / self.temperature[languages][:, None] + self.bias[languages]
        return torch.sigmoid(scaled).squeeze(1) if self.shape.classes == 1 else torch.softmax(scaled, dim=1)


def relations(first: View, second: View) -> Tensor:
    """How two texts relate, float32 [N, 6]: cosines of their segments (highest, mean, of the means, each end) and shared n-grams."""
    between = torch.einsum("nsd,ntd->nst", first.vectors, second.vectors)
    allowed = first.mask[:, :, None] & second.mask[:, None, :]
    of_second = between.masked_fill(~allowed, -1.0).amax(1)  # for each segment of the second its nearest of the first
    count = second.mask.sum(1).clamp(min=1)
    mean = (of_second * second.mask).sum(1) / count
    lowest = of_second.masked_fill(~second.mask, 1.0).amin(1)
    last = of_second.gather(1, (count - 1)[:, None]).squeeze(1)
    centre = [nn.functional.normalize((text.vectors * text.mask[..., None]).sum(1), dim=1) for text in (first, second)]
    return torch.stack([of_second.amax(1), mean, lowest, of_second[:, 0], last, (centre[0] * centre[1]).sum(1)], dim=1)


def size_in_bytes(tensors: Mapping[str, Tensor]) -> int:
    """What the tensors take on disk."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
