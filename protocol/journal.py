"""What the hub has accepted, on disk before it is acknowledged.

One append-only file of records, each `length (u32) | crc32 (u32) | msgpack`. The hub appends all records of one round of
its loop and syncs once (group commit). At the start the file is read back: a torn tail, what a crash in the middle of a
write leaves, is cut; damage before the tail is an error, because cutting there would forget what was acknowledged.

Levels (`hub.durability`):

* ids     a work's first state and its end. After a hub crash, work in between starts again at its first stop, unless
          the process that holds it says so; nothing is lost and nothing is trained twice.
* full    every hop too: nothing that was generated is made again.
* memory  nothing is kept; for benchmarks and throw-away runs.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from safeladder.protocol import messages as m
from safeladder.protocol.codec import Parcel

Durability = Literal["ids", "full", "memory"]

_PREFIX: Final = struct.Struct("<II")
MAX_RECORD_BYTES: Final = 2 * m.MAX_MESSAGE_BYTES


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
    """A work was handed on (level `full`)."""

    work: m.Work
    frames: list[bytes] = []

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


def moved(parcel: Parcel) -> Moved:
    return Moved(parcel.work, [bytes(frame) for frame in parcel.frames])


def read(path: Path) -> Iterator[Record]:
    """Every whole record of a journal, oldest first. Raises JournalError for damage before the tail."""
    for record, _ in _scan(path):
        yield record


def _scan(path: Path) -> Iterator[tuple[Record, int]]:
    """Records with the offset at which each ends; stops at a torn tail."""
    size = path.stat().st_size
    with path.open("rb") as file:
        offset = 0
        while True:
            prefix = file.read(_PREFIX.size)
            if len(prefix) < _PREFIX.size:
                return
            length, checksum = _PREFIX.unpack(prefix)
            end = offset + _PREFIX.size + length
            if length > MAX_RECORD_BYTES or end > size:
                return
            payload = file.read(length)
            if zlib.crc32(payload) != checksum:
                if end == size:
                    return
                raise JournalError(
                    f"{path} is damaged at byte {offset}: checksum of a record of {length} bytes does not match and "
                    f"{size - end} bytes follow. Restore the file, or move it away to start the run's queue anew."
                )
            try:
                record = _decoder.decode(payload)
            except ValueError as error:
                raise JournalError(f"{path} holds a record of another schema at byte {offset}: {error}") from None
            offset = end
            yield record, end


class Journal:
    """An open journal. Appends are durable when `append` returns (with `sync`).

    Raises JournalError when a write fails (a full disk, say). The file is then back at its last whole record, and the
    same append may be tried again.
    """

    def __init__(self, path: Path, sync: bool = True) -> None:
        self.path = path
        self.sync = sync
        self.appended_bytes = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self.recovered: list[Record] = []
        self._end = 0
        if path.exists():
            for record, end in _scan(path):
                self.recovered.append(record)
                self._end = end
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.cut_bytes = os.fstat(self._file).st_size - self._end
        os.ftruncate(self._file, self._end)
        os.lseek(self._file, self._end, os.SEEK_SET)

    def append(self, records: Iterable[Record]) -> None:
        """Writes the records with one write and one sync."""
        data = b"".join(_frame(record) for record in records)
        if not data:
            return
        try:
            written = 0
            while written < len(data):
                written += os.write(self._file, memoryview(data)[written:])
            if self.sync:
                os.fdatasync(self._file)
        except OSError as error:
            os.ftruncate(self._file, self._end)
            os.lseek(self._file, self._end, os.SEEK_SET)
            raise JournalError(f"cannot write {len(data)} bytes to {self.path}: {error.strerror}") from error
        self._end += len(data)
        self.appended_bytes += len(data)

    def rewrite(self, records: Iterable[Record]) -> None:
        """Replaces the content, atomically: a crash leaves the old file or the new one."""
        fresh = self.path.with_suffix(".compacting")
        fresh.unlink(missing_ok=True)
        other = Journal(fresh, self.sync)
        try:
            other.append(records)
            os.replace(fresh, self.path)
        except OSError as error:
            other.close()
            raise JournalError(f"cannot compact {self.path}: {error.strerror}") from error
        os.close(self._file)
        self._file, self._end, self.appended_bytes = other._file, other._end, 0
        _sync_directory(self.path.parent)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self._end

    def close(self) -> None:
        os.close(self._file)


def _frame(record: Record) -> bytes:
    payload = _encoder.encode(record)
    return _PREFIX.pack(len(payload), zlib.crc32(payload)) + payload


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
