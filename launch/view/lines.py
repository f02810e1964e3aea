"""Which parts of a run's logs have not been read yet: whole lines only, also across a rotation.

A file is remembered by its device and inode, not by its name. A last line without its end is left for the next call.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from safeladder.launch.events import files

BLOCK: Final = 8 << 20  # bytes of a piece, or one line where that is longer


@dataclass(frozen=True)
class Piece:
    """Whole lines from `begin` to `end` (bytes) of a file that is open for as long as the piece is the newest one given."""

    file: BinaryIO
    begin: int
    end: int

    def read(self) -> bytes:
        return os.pread(self.file.fileno(), self.end - self.begin, self.begin)

    @property
    def path(self) -> str:
        """Leads to this very file, whatever it is called meanwhile, for other processes of this user too."""
        return f"/proc/{os.getpid()}/fd/{self.file.fileno()}"


class Lines:
    """Follows the `*.jsonl` files of a folder and their closed segments `*.jsonl.N`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets: dict[tuple[int, int], int] = {}

    def fresh_bytes(self) -> int:
        """How much has been written since it was read."""
        total = 0
        for path in files(self._folder):
            try:
                status = path.stat()
            except FileNotFoundError:  # rotated away since it was listed
                continue
            known = self._offsets.get((status.st_dev, status.st_ino), 0)
            total += status.st_size - known if known <= status.st_size else status.st_size
        return total

    def pieces(self) -> Iterator[Piece]:
        """What is new, file by file, each from its beginning to its end. A piece that was given counts as read."""
        for path in files(self._folder):
            try:
                file = path.open("rb", buffering=0)
            except FileNotFoundError:  # rotated away since it was listed; the next call finds it under its new name
                continue
            status = os.fstat(file.fileno())
            key = (status.st_dev, status.st_ino)
            begin = self._offsets.get(key, 0)
            if begin > status.st_size:  # a new file with the number of one that is gone
                begin = 0
            while (end := _whole(file.fileno(), begin, status.st_size)) > begin:
                self._offsets[key] = end
                yield Piece(file, begin, end)
                begin = end


def _whole(file: int, begin: int, size: int) -> int:
    """The end of the last whole line within a block from `begin`, or of the first line where that is longer; `begin` if there is none."""
    end = min(begin + BLOCK, size)
    at = end
    while at > begin:  # back to the last end of a line, usually at once
        low = max(begin, at - 4096)
        if (found := os.pread(file, at - low, low).rfind(b"\n")) >= 0:
            return low + found + 1
        at = low
    while part := os.pread(file, 1 << 20, end):  # a line longer than a block: on to its end
        if (found := part.find(b"\n")) >= 0:
            return end + found + 1
        end += len(part)
    return begin
