"""A learner's record of its run: each message that it was handed, as it came over the wire, and what each step made of them.

One append-only file of records (`framing.py`), each of msgpack. It outlives the learner's process: a successor goes on in the same
file, and the ledger says which of the steps in it stand. A torn tail is cut when the file is opened to go on, and is named by
who reads it. Damage before the tail is an error: a record with a hole replays to other weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from safeladder.protocol import framing


class Began(Struct, tag="began"):
    """A learner's process began, with `step` optimizer steps made and the ledger's head `head`."""

    boot: str
    step: int
    head: str


class Handed(Struct, tag="handed"):
    """A message to the learner as it is on the wire: header, body, raw frames. `codec.decode_from_hub` reads it."""

    parts: list[bytes]


class Stepped(Struct, tag="stepped"):
    """A step was made of what was handed before. entry: its line's hash in the ledger. weights: digest of the publication that it
    made, "" where that is only the difference to another."""

    entry: str
    step: int
    loss: float
    grad_norm: float
    weights: str = ""


class Closed(Struct, tag="closed"):
    """Nothing follows, because `reason`."""

    reason: str


Record = Began | Handed | Stepped | Closed

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Record)


class RecordError(RuntimeError):
    """A record cannot be read; says which file, where in it, and what to do."""


class RecordFull(Exception):
    """The bound in bytes is reached: this record would go beyond it."""


def read(path: Path) -> Iterator[tuple[Record, int, int]]:
    """Every whole record with its payload's length and the offset at which it ends. Raises RecordError for damage."""
    offset = 0
    try:
        for payload, end in framing.scan(path):
            yield _decoder.decode(payload), len(payload), end
            offset = end
    except framing.Damage as error:
        raise RecordError(f"{error}. Restore the file: what cannot be trusted is not replayed") from None
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path} holds a record of another schema at byte {offset}: {error}") from None
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}") from None


def decode(payload: bytes) -> Record:
    """Of one payload that `read` has gone over."""
    record: Record = _decoder.decode(payload)
    return record


class RecordFile:
    """A record that is written. One process writes it."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        """Opens it, after what stands in it; a torn tail is cut. Raises RecordError for a damaged one, OSError."""
        self.path, self._max_bytes = path, max_bytes
        self.closed = ""  # why nothing may follow
        self.size = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)  # it holds prompts and answers
        try:
            for record, _, self.size in read(path):
                self.closed = record.reason if isinstance(record, Closed) else ""
            self.cut_bytes = os.fstat(self._file).st_size - self.size
            self._back()
        except (RecordError, OSError):
            os.close(self._file)
            raise

    def append(self, record: Record) -> None:
        """Raises RecordFull where it would go beyond the bound, OSError where the disk refuses: the file is then as before."""
        data = framing.frame(_encoder.encode(record))
        if self.size + len(data) > self._max_bytes and not isinstance(record, Closed):
            raise RecordFull(f"{self.size + len(data)} bytes would be more than {self._max_bytes}")
        try:
            written = 0
            while written < len(data):
                written += os.write(self._file, memoryview(data)[written:])
        except OSError:
            self._back()
            raise
        self.size += len(data)

    def sync(self) -> None:
        """On the disk when it returns."""
        os.fdatasync(self._file)

    def close(self) -> None:
        os.close(self._file)

    def _back(self) -> None:
        """To the end of the last whole record."""
        os.ftruncate(self._file, self.size)
        os.lseek(self._file, self.size, os.SEEK_SET)
