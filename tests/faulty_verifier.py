"""A verifier that does what a file says: its mode changes while a run is going on, as a user's own might go wrong."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from safeladder.protocol.messages import Verdict
from safeladder.verifiers.contract import Item, Verifier


class Faulty(Verifier):
    """Gives 0.5 in mode `work`; hangs in mode `hang`; in mode `nonsense` answers what no verifier may, a little different each time."""

    name, version, principle = "faulty", "1", "value"

    @dataclass(frozen=True)
    class Options:
        mode_file: str

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._turn = itertools.count()

    def judge(self, items: Sequence[Item]) -> Any:
        mode = Path(self.options.mode_file).read_text()
        right = [self.ok(item, 0.5) for item in items]
        if mode == "hang":
            threading.Event().wait()
        if mode == "nonsense":
            return nonsense(right)[next(self._turn) % 6]
        return right


def nonsense(right: list[Verdict]) -> list[Any]:
    replace = msgspec.structs.replace
    return [
        [replace(verdict, score=1e9) for verdict in right],
        [replace(verdict, score=float("nan")) for verdict in right],
        [replace(verdict, score="high") for verdict in right],
        [replace(verdict, status="error") for verdict in right],
        [replace(verdict, verifier="repetition", score=1.0) for verdict in right],
        [0.9] * (len(right) + 1),
    ]
