"""Reads the test vectors that were made with independent implementations; they live beside the repository."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor


def vectors(name: str) -> list[dict[str, Any]]:
    """Cases of one file. Skips the test when the folder is not there."""
    beside = Path(__file__).resolve().parents[3] / "shared"
    path = Path(os.environ.get("SAFELADDER_SHARED", beside)) / "vectors" / f"{name}.json"
    if not path.exists():
        pytest.skip(f"no shared test vectors at {path}; set SAFELADDER_SHARED to the folder that holds vectors/")
    cases: list[dict[str, Any]] = json.loads(path.read_text())["cases"]
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
