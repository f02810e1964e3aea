"""What was trained when: the append-only record from which `safeladder audit` proves exactly-once.

One JSON line an optimizer step. Each entry names its parent by hash, as commits do: a learner that goes back to a
checkpoint goes on from that checkpoint's head, and what it had trained since stays in the file as a branch that nobody
continues. The history that survives is the walk from the newest committed checkpoint's head back to the root.

Both files here share one discipline: a line is on disk before the call returns, and a last line that a crash tore is as
if it had never been written. A line that is wrong anywhere else is damage, and is refused.

Imports no torch: the audit reads these files alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

ROOT: Final = ""  # parent of the first entry of a history


class LedgerError(RuntimeError):
    """The file is damaged, or an entry would break the history that it continues."""


class Entry(Struct, frozen=True, omit_defaults=True):
    """One optimizer step.

    step: its number in its history, from 0. version: the learner's weight version at the gradient step; published: the
    version that the step made. boot: the learner process. parent: hash of the entry before it, "" at the root.
    ids: works trained; dropped: works that will not be trained and are accounted for here. sequences, dropped_sequences:
    their admission numbers. reasons: why each of `dropped` was. staleness: age of the oldest token of each of `ids`, in
    versions. batch_digest: of the batch's bytes. hash: set by `Ledger.append`.
    """

    step: int
    version: int
    published: int
    boot: str
    parent: str
    ids: list[str]
    sequences: list[int]
    dropped: list[str] = []
    staleness: list[int] = []
    batch_digest: str = ""
    hash: str = ""
    dropped_sequences: list[int] = []
    reasons: list[str] = []

    def digest(self) -> str:
        """The entry's hash: blake2b, 16 bytes, of the JSON of everything but the hash; covers the past by `parent`."""
        plain = msgspec.json.encode(msgspec.structs.replace(self, hash=""), order="deterministic")
        return hashlib.blake2b(plain, digest_size=16).hexdigest()


Line = TypeVar("Line")


def _read_lines(path: Path, kind: type[Line]) -> tuple[list[Line], int]:
    """The file's lines, and the length in bytes of the part that stands (a torn last line is beyond it)."""
    *rows, tail = path.read_bytes().split(b"\n") if path.exists() else [b""]
    # A tail without its newline is torn: the writer died before its fsync returned, so nobody was told of the line. The
    # blocks of the last write may also have reached the disk out of order; the missing ones then read as zeros.
    if rows and not tail and b"\0" in rows[-1]:
        rows.pop()
    lines: list[Line] = []
    for number, row in enumerate(rows, start=1):
        try:
            lines.append(msgspec.json.decode(row, type=kind))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise LedgerError(f"{path}:{number} is damaged: {error}; restore the file from a copy") from error
    return lines, sum(len(row) + 1 for row in rows)


class _Appender:
    """Appends lines that are on disk when the call returns; cuts a torn tail first."""

    def __init__(self, path: Path, standing: int) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        created = not path.exists()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._end = standing
        os.ftruncate(self._file, standing)
        os.fsync(self._file)
        if created:
            sync_directory(path.parent)

    def append(self, line: object) -> None:
        """Raises OSError when the disk refuses; the file is then as it was before."""
        data = msgspec.json.encode(line) + b"\n"
        try:
            written = 0
            while written < len(data):
                written += os.write(self._file, data[written:])
            os.fsync(self._file)
        except OSError:
            with contextlib.suppress(OSError):  # the next start cuts the tail if this cannot
                os.ftruncate(self._file, self._end)
            raise
        self._end += len(data)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def sync_directory(path: Path) -> None:
    """Makes creations, renames and removals inside a directory durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# -------------------------------------------------------------------------------------------------------- ledger


class Ledger:
    """The ledger of a run. One process writes it; any number may read it, also while it is written."""

    def __init__(self, path: Path, read_only: bool = False) -> None:
        """Reads and verifies the whole file. Raises LedgerError when a line other than a torn last one is wrong."""
        self.path = Path(path)
        self._entries: dict[str, Entry] = {}
        lines, standing = _read_lines(self.path, Entry)
        for entry in lines:
            if entry.digest() != entry.hash:
                raise LedgerError(f"{self.path}: entry of step {entry.step} does not have the hash {entry.hash!r}")
            if entry.parent != ROOT and entry.parent not in self._entries:
                raise LedgerError(f"{self.path}: entry of step {entry.step} has no parent {entry.parent!r} before it")
            self._entries[entry.hash] = entry
        self._appender = None if read_only else _Appender(self.path, standing)
        self._head = ROOT  # the head that `_consumed` was computed for
        self._consumed: set[str] = set()

    def __len__(self) -> int:
        return len(self._entries)

    def entries(self) -> list[Entry]:
        """Every entry in order of writing, branches that were left included."""
        return list(self._entries.values())

    def append(self, entry: Entry) -> str:
        """Writes an entry after its parent and returns its hash, the new head, once it is on disk.

        Raises LedgerError, and writes nothing, when the parent is unknown, the step does not follow the parent's, or an
        id was consumed before in this history.
        """
        if self._appender is None:
            raise LedgerError(f"{self.path} was opened for reading")
        self._check(entry)
        sealed = msgspec.structs.replace(entry, hash=entry.digest())
        self._appender.append(sealed)
        self._entries[sealed.hash] = sealed
        self._head = sealed.hash
        self._consumed.update(sealed.ids, sealed.dropped)
        return sealed.hash

    def lineage(self, head: str) -> list[Entry]:
        """The history that ends in `head`, oldest entry first; empty for the root. LedgerError for an unknown head."""
        history: list[Entry] = []
        while head != ROOT:
            entry = self._entries.get(head)
            if entry is None:
                raise LedgerError(f"{self.path} has no entry {head!r}; does it belong to this run's checkpoints?")
            history.append(entry)
            head = entry.parent
        return history[::-1]

    def consumed(self, head: str) -> set[str]:
        """Ids that the history ending in `head` has accounted for: trained, or dropped with a record."""
        self._move_to(head)
        return set(self._consumed)

    def trained(self, head: str) -> set[str]:
        """Ids that the history ending in `head` has trained."""
        return {work for entry in self.lineage(head) for work in entry.ids}

    def close(self) -> None:
        if self._appender is not None:
            self._appender.close()

    def _check(self, entry: Entry) -> None:
        if entry.parent == ROOT:
            expected = 0
        elif entry.parent in self._entries:
            expected = self._entries[entry.parent].step + 1
        else:
            raise LedgerError(f"{self.path}: step {entry.step} names an unknown parent {entry.parent!r}")
        if entry.step != expected:
            raise LedgerError(f"{self.path}: step {entry.step} cannot follow its parent, step {expected} would")
        if len(entry.sequences) != len(entry.ids) or (entry.staleness and len(entry.staleness) != len(entry.ids)):
            raise LedgerError(f"{self.path}: step {entry.step} needs one sequence and one staleness for each id")
        if any(column and len(column) != len(entry.dropped) for column in (entry.dropped_sequences, entry.reasons)):
            raise LedgerError(f"{self.path}: step {entry.step} needs one sequence and one reason for each dropped id")
        self._move_to(entry.parent)
        again = repeated([*entry.ids, *entry.dropped], self._consumed)
        if again:
            raise LedgerError(f"{self.path}: step {entry.step} would consume again: {', '.join(again)}")

    def _move_to(self, head: str) -> None:
        if head != self._head:
            history = self.lineage(head)
            self._head, self._consumed = head, {work for e in history for work in (*e.ids, *e.dropped)}


def repeated(ids: Iterable[str], before: Iterable[str] = ()) -> list[str]:
    """The ids that occur more than once, or that are in `before`, each once, in order."""
    seen = set(before)
    again: dict[str, None] = {}
    for work in ids:
        if work in seen:
            again[work] = None
        seen.add(work)
    return list(again)


# ------------------------------------------------------------------------------------------------------ versions


class Version(Struct, frozen=True):
    """A weight version and the number of optimizer steps that its weights have seen."""

    version: int
    step: int


class VersionCounter:
    """Numbers of weight versions: each is on disk before it is used, so none is used twice, also not after a rollback.

    Version 0 is the initial policy and needs no line.
    """

    def __init__(self, path: Path, read_only: bool = False) -> None:
        self.path = Path(path)
        lines, standing = _read_lines(self.path, Version)
        self._steps = {0: 0}
        for line in lines:
            if line.version <= self.newest:
                raise LedgerError(f"{self.path}: version {line.version} follows {self.newest}; numbers only grow")
            self._steps[line.version] = line.step
        self._appender = None if read_only else _Appender(self.path, standing)

    @property
    def newest(self) -> int:
        """The largest number given out, 0 when none was."""
        return next(reversed(self._steps))

    def next(self, step: int) -> int:
        """A number never given out before, for the weights after `step` optimizer steps."""
        if self._appender is None:
            raise LedgerError(f"{self.path} was opened for reading")
        line = Version(self.newest + 1, step)
        self._appender.append(line)
        self._steps[line.version] = step
        return line.version

    def step_of(self, version: int) -> int:
        """Optimizer steps behind a version: ages in steps stay right across a rollback. LedgerError if unknown."""
        if version not in self._steps:
            raise LedgerError(f"{self.path}: version {version} was never given out; the newest is {self.newest}")
        return self._steps[version]

    def close(self) -> None:
        if self._appender is not None:
            self._appender.close()
