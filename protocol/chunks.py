"""Files pulled in bounded pieces: how weights and images reach hosts that do not share a file system with who has them.

A channel of its own beside the hub, whose messages stay small. A client asks for ranges of a named file and never has more than
`credit` asks open; the server keeps nothing of a client between two asks, so that either may be restarted at any moment. Pieces are
handed on in order, so what a client has written is always the beginning of the file, and its length is where it resumes.

    client   [Ask]            msgpack map: ticket, name, offset, length
    server   [Piece][bytes]   ticket, offset, size of the whole file; or [Denied]: ticket, reason

Whether the bytes are the right ones is for the reader of the file to say: a publication has digests and a signature, an image a hash.
Everything here is bytes in and bytes out, with time as an argument; the sockets are in `chunk_shell`.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

MAX_PIECE_BYTES: Final = 4 * 2**20  # measured best among 256 KiB to 16 MiB
CREDIT: Final = 8
RESEND_S: Final = 2.0
# A file of a publication and nothing else: no path can be made of this that leaves the folder. As for any other pattern that a
# server is given, the name is that of a folder and that of a file in it.
PUBLICATION: Final = re.compile(r"v\d{8,12}/(manifest\.json|model\.safetensors|delta\.safetensors)")

Bytes = bytes | memoryview


class ChunkError(RuntimeError):
    """A transfer cannot go on; says which file, how far it came, and why."""


class Ask(Struct, tag="ask", frozen=True):
    ticket: Annotated[int, Meta(ge=0, lt=2**62)]
    name: Annotated[str, Meta(max_length=64)]
    offset: Annotated[int, Meta(ge=0, lt=2**50)]
    length: Annotated[int, Meta(ge=1, le=MAX_PIECE_BYTES)]


class Piece(Struct, tag="piece", frozen=True):
    ticket: int
    offset: int
    size: Annotated[int, Meta(ge=0, lt=2**50)]


class Denied(Struct, tag="denied", frozen=True):
    ticket: int
    reason: Annotated[str, Meta(max_length=500)]


_asks = msgspec.msgpack.Decoder(Ask)
_answers = msgspec.msgpack.Decoder(Piece | Denied)


def answer(root: Path, message: Bytes, served: re.Pattern[str] = PUBLICATION) -> list[bytes]:
    """The frames that answer one ask, from the files below `root` with a name as `served` says; [] for what is no ask."""
    try:
        ask = _asks.decode(message)
    except (ValueError, RecursionError):  # msgspec raises UnicodeDecodeError too, a ValueError as its own errors are
        return []
    if not served.fullmatch(ask.name):
        return [msgspec.msgpack.encode(Denied(ask.ticket, f"{ask.name!r} is no file that is served here"))]
    try:
        # Neither the file nor its folder may be a link that leads elsewhere.
        folder = os.open(root / ask.name.partition("/")[0], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            name = ask.name.partition("/")[2]
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        finally:
            os.close(folder)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                return [msgspec.msgpack.encode(Denied(ask.ticket, f"{ask.name} is no regular file"))]
            content = os.pread(file, ask.length, ask.offset)
        finally:
            os.close(file)
    except OSError as error:
        return [msgspec.msgpack.encode(Denied(ask.ticket, f"{ask.name}: {error.strerror}"))]
    return [msgspec.msgpack.encode(Piece(ask.ticket, ask.offset, status.st_size)), content]


@dataclass(slots=True)
class _Open:
    offset: int
    asked_at: float


class Pull:
    """One file's way here. `wanted` says what to ask, `receive` gives what can be appended to the file."""

    def __init__(self, name: str, offset: int, limit: int, credit: int = CREDIT, piece: int = MAX_PIECE_BYTES) -> None:
        """offset: bytes that are here already. limit: the largest size that the file may have."""
        self.name, self.offset = name, offset
        self.size: int | None = None  # known with the first piece
        self._limit, self._credit, self._piece = limit, credit, piece
        self._next = offset  # of the next new ask
        self._tickets = 0
        self._open: dict[int, _Open] = {}
        self._early: dict[int, bytes] = {}  # pieces beyond the end of what is here, at most `credit` of them

    @property
    def done(self) -> bool:
        return self.size is not None and self.offset >= self.size

    def wanted(self, now: float) -> list[bytes]:
        """Asks to send now. What was not answered for `RESEND_S` is asked again: the server may be another one by now."""
        asks = []
        for ticket, open_ask in list(self._open.items()):
            if now - open_ask.asked_at >= RESEND_S:
                del self._open[ticket]
                asks.append(self._ask(open_ask.offset, now))
        # Until the size is known one ask is enough, and nothing is asked beyond it.
        credit = self._credit if self.size is not None else 1
        while len(self._open) + len(self._early) < credit and (self.size is None or self._next < self.size):
            asks.append(self._ask(self._next, now))
            self._next += self._piece
        return asks

    def receive(self, frames: Sequence[Bytes]) -> list[bytes]:
        """The pieces that continue the file, in order. What was not asked for, or came twice, is passed over.

        Raises ChunkError when the server denies the file, or sends what cannot be.
        """
        try:
            said = _answers.decode(frames[0])
        except (ValueError, RecursionError, IndexError) as error:
            raise ChunkError(f"{self.name}: the server's answer cannot be read: {error}") from None
        open_ask = self._open.pop(said.ticket, None)
        if open_ask is None:
            return []
        if isinstance(said, Denied):
            raise ChunkError(f"{self.name} is denied: {said.reason}")
        content = bytes(frames[1]) if len(frames) == 2 else b""
        self._check(said, open_ask, len(content))
        self._early[said.offset] = content
        ready = []
        while (piece := self._early.pop(self.offset, None)) is not None:
            self.offset += len(piece)
            ready.append(piece)
            if not piece:
                break
        return ready

    def _ask(self, offset: int, now: float) -> bytes:
        self._tickets += 1
        self._open[self._tickets] = _Open(offset, now)
        return msgspec.msgpack.encode(Ask(self._tickets, self.name, offset, self._piece))

    def _check(self, said: Piece, open_ask: _Open, length: int) -> None:
        if said.size > self._limit:
            raise ChunkError(f"{self.name} has {said.size:,} bytes, {self._limit:,} may be")
        if self.size is not None and said.size != self.size:
            raise ChunkError(f"{self.name} had {self.size:,} bytes and has {said.size:,} now")
        if said.offset != open_ask.offset or length != max(0, min(self._piece, said.size - said.offset)):
            raise ChunkError(f"{self.name}: {length} bytes came for offset {said.offset}, of {said.size:,} in all")
        if self.offset > said.size:
            raise ChunkError(f"{self.name} has {said.size:,} bytes, {self.offset:,} are here already")
        self.size = said.size
