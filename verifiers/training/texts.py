"""Texts encoded once: the encoder is frozen, so a text's segments are kept on disk by the text's digest."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import structlog
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from safeladder.verifiers.heads.encoder import Segments, shared
from safeladder.verifiers.heads.pieces import Piece, pieces

log = structlog.get_logger()
_SHARD = 2_000  # texts that one file of the cache holds


class Texts:
    """Any text as a `Piece`, from memory, from the cache folder, or from the encoder. Vectors are kept as float16."""

    def __init__(self, cache: Path | None) -> None:
        self._cache = cache
        self._known: dict[bytes, Piece] = {}
        if cache is not None:
            cache.mkdir(parents=True, exist_ok=True)
            for path in sorted(cache.glob("*.safetensors")):
                self._take(load_file(path))

    def pieces(self, texts: Sequence[str]) -> list[Piece]:
        """The texts in their order; those not yet known are encoded and kept."""
        fresh = [text for text in dict.fromkeys(texts) if digest(text) not in self._known]
        if fresh:
            log.info("texts.encoding", texts=len(fresh))
        for start in range(0, len(fresh), _SHARD):
            self._encode(fresh[start : start + _SHARD])
        return [self._known[digest(text)] for text in texts]

    def _encode(self, texts: list[str]) -> None:
        read = shared().encode(texts)
        stored = {
            "keys": torch.tensor([list(digest(text)) for text in texts], dtype=torch.uint8),
            "vectors": read.vectors.half(),
            "counts": read.counts,
            "tokens": torch.tensor([token for segment in read.tokens for token in segment], dtype=torch.int32),
            "lengths": torch.tensor([len(segment) for segment in read.tokens], dtype=torch.int32),
        }
        if self._cache is not None:
            save_file(stored, self._cache / f"{bytes(stored['keys'][0].tolist()).hex()}.safetensors")
        self._take(stored)

    def _take(self, stored: dict[str, Tensor]) -> None:
        tokens = [ids.tolist() for ids in stored["tokens"].split(stored["lengths"].tolist())]
        read = Segments(stored["vectors"].float(), stored["counts"], tokens)
        for key, piece in zip(stored["keys"].tolist(), pieces(read), strict=True):
            self._known[bytes(key)] = piece


def digest(text: str) -> bytes:
    """Eight bytes that stand for a text."""
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
