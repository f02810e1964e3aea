"""Public benchmarks: readers of their files, and the scoring that each prescribes (`reference/safeladder.md` 4.2)."""

from __future__ import annotations

from pathlib import Path

from safeladder.launch.evaluation.settings import Settings
from safeladder.launch.evaluation.suite import Suite
from safeladder.protocol.messages import Record


def read(name: str, place: Path) -> list[Record]:
    return []


def suites(settings: Settings) -> list[Suite]:
    return []
