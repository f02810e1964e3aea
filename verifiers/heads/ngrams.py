"""Hashed n-grams of the encoder's tokens: exact wording, which averaged vectors blur.

Full-width letters, invisible marks and accents are gone by then (`segments.visible` and the encoder's own normaliser); case is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

BUCKETS: Final = 1 << 15
_SIZES: Final = (1, 2, 3)
_PRIMES: Final = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64)
_MIX: Final = np.uint64(0xFF51AFD7ED558CCD)


def buckets(tokens: Sequence[int]) -> Tensor:
    """The distinct buckets of a text's 1-, 2- and 3-grams: int64 [G], ascending. The hash depends on the ids alone."""
    ids = np.array(tokens, dtype=np.uint64) + np.uint64(1)
    hashes = []
    for size in _SIZES:
        count = len(ids) - size + 1
        if count <= 0:
            break
        total = np.full(count, size, dtype=np.uint64)
        for offset in range(size):
            total = total * _PRIMES[2] + ids[offset : offset + count] * _PRIMES[offset]  # wraps at 2^64, which is meant
        total ^= total >> np.uint64(33)
        total *= _MIX
        hashes.append((total >> np.uint64(40)) % np.uint64(BUCKETS))
    found = np.unique(np.concatenate(hashes)) if hashes else np.empty(0, dtype=np.uint64)
    return torch.from_numpy(found.astype(np.int64))
