"""Which part a row belongs to: decided by its prompt, or by its source, and by nothing that a run draws."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Literal

Part = Literal["train", "validation", "test"]


def part_of(
    prompt: str,
    source: str | None = None,
    held_out_sources: Collection[str] = (),
    validation: float = 0.1,
    test: float = 0.18,
) -> Part:
    """All rows of one prompt stand in one part. A held-out source is all test: how well training carries over to it."""
    if source is not None and source in held_out_sources:
        return "test"
    share = int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=8).digest(), "big") / 2**64
    return "test" if share < test else "validation" if share < test + validation else "train"
