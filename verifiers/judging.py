"""A verifier over many rows: batch by batch, written as it goes, and gone on with where it stopped.

A line of the verdict file names the row by the digest of its content, the verifier by name, options and version. What has a verdict of
status ok or abstain under the same names is not judged again; an error or a time-out is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from safeladder.protocol.line_file import LineFile, LineFileError
from safeladder.protocol.messages import Verdict
from safeladder.verifiers.contract import Verifier, run
from safeladder.verifiers.rows import Row

Done = Callable[[int], None]


@dataclass(frozen=True)
class Judge:
    """A verifier and what it was made with."""

    verifier: Verifier
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def spec(self) -> str:
        """Eight bytes in hex that name verifier, options and version."""
        parts = [self.verifier.name, type(self.verifier).__qualname__, self.verifier.version, dict(self.options)]
        return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


class VerdictFileError(ValueError):
    """The file holds something else."""


class _Line(msgspec.Struct):
    row: str
    spec: str
    id: str
    where: str
    verdict: Verdict


class VerdictFile(LineFile[_Line]):
    """Verdicts by row and verifier, in memory and, where there is a path, on disk. Raises VerdictFileError."""

    def __init__(self, path: Path | None = None) -> None:
        self._known: dict[tuple[str, str], Verdict] = {}
        try:
            super().__init__(path, _Line, self._keep)
        except LineFileError as error:
            raise VerdictFileError(f"{error}: not a line of verdicts; give another --output") from None

    def _keep(self, line: _Line) -> None:
        self._known[line.row, line.spec] = line.verdict

    def get(self, row: Row, spec: str) -> Verdict | None:
        return self._known.get((row.digest().hex(), spec))

    def add(self, rows: Sequence[Row], verdicts: Sequence[Verdict], spec: str) -> None:
        lines = [
            _Line(row.digest().hex(), spec, row.record.id, row.where, verdict)
            for row, verdict in zip(rows, verdicts, strict=True)
        ]
        for line in lines:
            self._keep(line)
        self.append(lines)


def judge(
    judge: Judge,
    rows: Sequence[Row],
    store: VerdictFile,
    batch: int = 64,
    timeout_s: float = 600.0,
    done: Done = lambda count: None,
) -> list[Verdict]:
    """One verdict a row, in order. `done` is told how many rows were finished, whenever some are.

    Rows of one content are judged once. `timeout_s`: for a batch.
    """
    spec = judge.spec
    waiting: dict[bytes, Row] = {}
    for row in rows:
        known = store.get(row, spec)
        if known is None or known.status in ("error", "timeout"):
            waiting.setdefault(row.digest(), row)
    done(len(rows) - len(waiting))
    for part in _batches(list(waiting.values()), batch):
        items = [row.item(sample) for sample, row in enumerate(part)]
        store.add(part, run([judge.verifier], items, timeout_s), spec)
        done(len(part))
    found = [store.get(row, spec) for row in rows]
    return [verdict for verdict in found if verdict is not None]


def _batches(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    """Rows of like length together: they need little padding."""
    ordered = sorted(rows, key=lambda row: len(row.text))
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]
