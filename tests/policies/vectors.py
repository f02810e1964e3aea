"""Reads the test vectors that were made with independent implementations; each file says with which (`made_with`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def vectors(name: str, key: str = "cases") -> list[dict[str, Any]]:
    """Cases of one file."""
    path = Path(__file__).parent / "vectors" / f"{name}.json"
    cases: list[dict[str, Any]] = json.loads(path.read_text())[key]
    return cases


def inputs(cases: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    return next(case for case in cases if case.get("inputs_for_seed") == seed)


def flat(rows: list[list[float]], mask: list[list[float]]) -> Tensor:
    """The unmasked entries of padded rows, one sequence after the other."""
    return torch.tensor(
        [v for row, keep in zip(rows, mask, strict=True) for v, k in zip(row, keep, strict=True) if k],
        dtype=torch.float64,
    )


def lengths(mask: list[list[float]]) -> list[int]:
    return [int(sum(row)) for row in mask]
