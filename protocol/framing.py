"""Checksummed records one after the other in a file, as the hub's journal and the learner's record of a run have them.

A record is `length (u32) | crc32 of the payload (u32) | crc32 of those two (u32) | payload`, little-endian. A torn tail, what a
crash in the middle of a write leaves, is no record; damage before the tail is an error. The length has a checksum of its own because
a damaged one looks like a torn tail.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

_PREFIX: Final = struct.Struct("<III")
_LENGTHS: Final = struct.Struct("<II")


class Damage(Exception):
    """A record before the tail is not what was written. `offset`: where it begins."""

    def __init__(self, path: Path, offset: int, what: str, follow: int) -> None:
        self.offset = offset
        super().__init__(
            f"{path} is damaged at byte {offset}: the checksum of a record's {what} does not match and {follow} bytes follow"
        )


def frame(payload: bytes) -> bytes:
    """A payload as a record."""
    lengths = _LENGTHS.pack(len(payload), zlib.crc32(payload))
    return b"".join((lengths, zlib.crc32(lengths).to_bytes(4, "little"), payload))


def scan(path: Path) -> Iterator[tuple[bytes, int]]:
    """Each payload with the offset at which its record ends; stops at a torn tail. Raises Damage, OSError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        offset = 0
        while True:
            prefix = file.read(_PREFIX.size)
            if len(prefix) < _PREFIX.size:
                return
            length, checksum, own = _PREFIX.unpack(prefix)
            if zlib.crc32(prefix[: _LENGTHS.size]) != own:
                if not any(prefix) and _only_zeros(file):
                    return
                raise Damage(path, offset, "length", size - offset)
            end = offset + _PREFIX.size + length
            if end > size:
                return
            payload = file.read(length)
            if zlib.crc32(payload) != checksum:
                if end == size or _only_zeros(file):
                    return
                raise Damage(path, offset, "content", size - end)
            offset = end
            yield payload, end


def payload_at(file: BinaryIO, end: int, length: int) -> bytes:
    """The payload of `length` bytes whose record ends at `end`, as `scan` has found it, read again and checked. Raises Damage."""
    file.seek(end - length - _PREFIX.size)
    prefix, payload = file.read(_PREFIX.size), file.read(length)
    if prefix != frame(payload)[: _PREFIX.size]:
        raise Damage(Path(file.name), end - length - _PREFIX.size, "content", 0)
    return payload


def _only_zeros(file: BinaryIO) -> bool:
    """Whether the rest is blocks that a file system had given to the file but not filled when the power went."""
    while piece := file.read(2**20):
        if any(piece):
            return False
    return True
