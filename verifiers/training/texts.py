"""Texts encoded once: the encoder is frozen, so a text's segments are kept on disk by the text's digest."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import structlog
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from safeladder.verifiers.heads.encoder import WIDTH, Segments, shared

log = structlog.get_logger()
_SHARD = 2_000  # texts that one file of the cache holds


class Texts:
    """Segments of any text, from memory, from the cache folder, or from the encoder. Vectors are kept as float16."""

    def __init__(self, cache: Path | None) -> None:
        self._cache = cache
        self._known: dict[bytes, tuple[Tensor, list[int]]] = {}
        if cache is not None:
            cache.mkdir(parents=True, exist_ok=True)
            for path in sorted(cache.glob("*.safetensors")):
                self._take(load_file(path))

    def segments(self, texts: Sequence[str]) -> Segments:
        """The texts' segments in their order; those not yet known are encoded and kept."""
        self.add(texts)
        found = [self._known[digest(text)] for text in texts]
        vectors = torch.cat([vector for vector, _ in found]) if found else torch.empty(0, WIDTH)
        counts = torch.tensor([len(vector) for vector, _ in found], dtype=torch.long)
        return Segments(vectors.float(), counts, [tokens for _, tokens in found])

    def add(self, texts: Sequence[str]) -> None:
        """Encodes what is not known yet."""
        fresh = [text for text in dict.fromkeys(texts) if digest(text) not in self._known]
        if fresh:
            log.info("texts.encoding", texts=len(fresh))
        for start in range(0, len(fresh), _SHARD):
            self._encode(fresh[start : start + _SHARD])

    def _encode(self, texts: list[str]) -> None:
        read = shared().encode(texts)
        stored = {
            "keys": torch.tensor([list(digest(text)) for text in texts], dtype=torch.uint8),
            "vectors": read.vectors.half(),
            "counts": read.counts,
            "tokens": torch.tensor([token for row in read.tokens for token in row], dtype=torch.int32),
            "lengths": torch.tensor([len(row) for row in read.tokens], dtype=torch.int32),
        }
        if self._cache is not None:
            save_file(stored, self._cache / f"{bytes(stored['keys'][0].tolist()).hex()}.safetensors")
        self._take(stored)

    def _take(self, stored: dict[str, Tensor]) -> None:
        vectors = stored["vectors"].split(stored["counts"].tolist())
        tokens = stored["tokens"].split(stored["lengths"].tolist())
        for key, vector, ids in zip(stored["keys"].tolist(), vectors, tokens, strict=True):
            self._known[bytes(key)] = (vector, ids.tolist())


def digest(text: str) -> bytes:
    """Eight bytes that stand for a text."""
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
