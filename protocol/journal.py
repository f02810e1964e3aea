"""What the hub has accepted, on disk before it is acknowledged.

One append-only file of records (`framing.py`), each of msgpack. The hub appends all records of one round of its loop and syncs
once (group commit). At the start the file is read back: a torn tail, what a crash in the middle of a write leaves, is cut; damage
before the tail is an error, because cutting there would forget what was acknowledged.

An open journal is locked: a second hub on the same file is refused before it can touch it.

Levels (`hub.durability`):

* ids     a work's first state and its end. After a hub crash, work in between starts again at its first stop, unless
          the process that holds it says so; nothing is lost and nothing is trained twice.
* full    every hop too, and every partial that was given back: nothing that the hub has taken is made again.
* memory  nothing is kept; for benchmarks and throw-away runs.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from safeladder.protocol import framing
from safeladder.protocol import messages as m
from safeladder.protocol.codec import Parcel

Durability = Literal["ids", "full", "memory"]

_SLICE_BYTES: Final = 64 * 2**20  # a rewrite goes to the disk in slices of about this size


class Booted(Struct, tag="booted"):
    """A hub process started on this journal."""

    number: int


class Submitted(Struct, tag="submitted"):
    """A work was accepted in its first state."""

    work: m.Work
    frames: list[bytes] = []

    @property
    def id(self) -> str:
        return self.work.id


class Moved(Struct, tag="moved"):
    """A work was handed on, or given back as what it had become, under the lease `fence` (level `full`)."""

    work: m.Work
    frames: list[bytes] = []
    fence: int = 0

    @property
    def id(self) -> str:
        return self.work.id


class Finished(Struct, tag="finished"):
    """A work has left the hub. `outcome`: "done", "skipped" (its end was told to the last stop) or a reason."""

    id: str
    outcome: str


class Dead(Struct, tag="dead"):
    """A work ended before its last stop. `kept`: as a dead letter, which can be requeued."""

    id: str
    stop: int
    attempts: int
    error: str
    kept: bool = True


class Requeued(Struct, tag="requeued"):
    """A dead letter was put back, as a work of a new id."""

    id: str
    successor: str


class Topic(Struct, tag="topic"):
    """The latest value of a topic."""

    topic: str
    value: dict[str, Any]


Record = Booted | Submitted | Moved | Finished | Dead | Requeued | Topic

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Record)


class JournalError(RuntimeError):
    """The journal cannot be read or written; says which file, where in it, and what to do."""


def submitted(parcel: Parcel) -> Submitted:
    return Submitted(parcel.work, [bytes(frame) for frame in parcel.frames])


def moved(parcel: Parcel, fence: int = 0) -> Moved:
    return Moved(parcel.work, [bytes(frame) for frame in parcel.frames], fence)


def read(path: Path) -> Iterator[Record]:
    """Every whole record of a journal, oldest first. Raises JournalError for damage before the tail."""
    for record, _ in _scan(path):
        yield record


def _scan(path: Path) -> Iterator[tuple[Record, int]]:
    """Records with the offset at which each ends; stops at a torn tail."""
    offset = 0
    try:
        for payload, end in framing.scan(path):
            yield _decoder.decode(payload), end
            offset = end
    except framing.Damage as error:
        remedy = "Restore the file, or move it away to start the run's queue anew."
        raise JournalError(f"{error}. {remedy}") from None
    except (ValueError, RecursionError) as error:
        raise JournalError(f"{path} holds a record of another schema at byte {offset}: {error}") from None


class Journal:
    """An open journal. Appends are durable when `append` returns (with `sync`).

    Raises JournalError when a write fails (a full disk, say). The file is then back at its last whole record, and the
    same append may be tried again. Raises it at once when another process has the file open, or when it is damaged.
    """

    def __init__(self, path: Path, sync: bool = True) -> None:
        self.path = path
        self.sync = sync
        self.appended_bytes = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self.recovered: list[Record] = []
        self._end = 0
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _lock(self._file, path)
            for record, end in _scan(path):
                self.recovered.append(record)
                self._end = end
            self.cut_bytes = os.fstat(self._file).st_size - self._end
            self._back()
        except (JournalError, OSError):
            os.close(self._file)
            raise
        _sync_directory(path.parent)  # else the name of a new file may not outlive a power cut

    def append(self, records: Iterable[Record]) -> None:
        """Writes the records with one write and one sync."""
        data = b"".join(framing.frame(_encoder.encode(record)) for record in records)
        if not data:
            return
        try:
            written = 0
            while written < len(data):
                written += os.write(self._file, memoryview(data)[written:])
            if self.sync:
                os.fdatasync(self._file)
        except OSError as error:
            self._back()
            raise JournalError(f"cannot write {len(data)} bytes to {self.path}: {error.strerror}") from error
        self._end += len(data)
        self.appended_bytes += len(data)

    def rewrite(self, records: Iterable[Record]) -> None:
        """Replaces the content, atomically: a crash leaves the old file or the new one."""
        fresh = self.path.with_suffix(".compacting")
        fresh.unlink(missing_ok=True)
        other = Journal(fresh, self.sync)
        try:
            for part in _slices(records):
                other.append(part)
            fresh.replace(self.path)
        except (JournalError, OSError) as error:
            other.close()
            fresh.unlink(missing_ok=True)
            raise JournalError(f"cannot compact {self.path}: {error}") from error
        os.close(self._file)
        self._file, self._end, self.appended_bytes = other._file, other._end, 0
        _sync_directory(self.path.parent)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self._end

    def close(self) -> None:
        os.close(self._file)

    def _back(self) -> None:
        """To the end of the last whole record."""
        os.ftruncate(self._file, self._end)
        os.lseek(self._file, self._end, os.SEEK_SET)


def _lock(file: int, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise JournalError(f"{path} belongs to another running hub; stop that one first") from None


def _slices(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Records in portions of about `_SLICE_BYTES` of raw frames, or of a thousand."""
    part: list[Record] = []
    size = 0
    for record in records:
        part.append(record)
        size += sum(len(frame) for frame in record.frames) if isinstance(record, Submitted | Moved) else 0
        if size >= _SLICE_BYTES or len(part) >= 1000:
            yield part
            part, size = [], 0
    yield part


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
