"""Hashed character n-grams: what the English sentence encoder cannot see, Chinese and disguised spelling above all."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

BUCKETS = 8192
SIZES = (1, 2, 3, 4)  # a Chinese word has one to four characters; English takes its signal from the 3s and 4s
MAX_CHARACTERS = 4000

_PRIMES = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x27D4EB2F165667C5], dtype=np.uint64)
_MIX = np.uint64(0xFF51AFD7ED558CCD)
_FORMAT_CHARACTERS = {"Cf", "Mn"}  # zero-width marks and accents, with which words are disguised


def plain(text: str) -> str:
    """Lower case, compatibility forms resolved, accents and invisible marks gone, runs of space made one."""
    decomposed = unicodedata.normalize("NFKD", text[:MAX_CHARACTERS]).casefold()
    return " ".join("".join(c for c in decomposed if unicodedata.category(c) not in _FORMAT_CHARACTERS).split())


def features(texts: Sequence[str]) -> Tensor:
    """One row a text: 1 + ln(count) in the bucket of each n-gram, scaled to unit length. float32 [len(texts), 8192].

    The hash depends on code points alone, so that the same text has the same row on every machine.
    """
    rows = np.zeros((len(texts), BUCKETS), dtype=np.float32)
    for row, text in zip(rows, texts, strict=True):
        buckets = _buckets(f" {plain(text)} ")
        found, counts = np.unique(buckets, return_counts=True)
        row[found] = 1.0 + np.log(counts)
        row /= np.linalg.norm(row) or 1.0
    return torch.from_numpy(rows)


def _buckets(text: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    points = np.array([ord(character) for character in text], dtype=np.uint64) + np.uint64(1)
    hashes = []
    for size in SIZES:
        count = len(points) - size + 1
        if count <= 0:
            break
        total = np.full(count, size, dtype=np.uint64)
        for offset in range(size):
            total += points[offset : offset + count] * _PRIMES[offset]  # wraps at 2^64, which is meant
        total ^= total >> np.uint64(33)
        total *= _MIX
        hashes.append((total >> np.uint64(40)) % np.uint64(BUCKETS))
    return np.concatenate(hashes).astype(np.int64)
