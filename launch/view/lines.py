"""The lines of a run's logs as bytes, each with the name of its event, so that what nobody asks for is never decoded.

Reads what is new since the last call, also across a rotation: a file is remembered by its device and inode. Memory is one read
buffer, however long the logs are.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from safeladder.launch.events import files

_MARK: Final = b'"event":"'
_QUIET: Final = (b'"level":"info"', b'"level":"debug"')
_HEAD: Final = 200  # bytes in which our own lines carry level and event
_BUFFER: Final = 1 << 20


class Lines:
    """Follows the `*.jsonl` files of a folder and their closed segments `*.jsonl.N`.

    wanted: names of the events to give. Lines of the levels warning and error are given whatever they are called. A last line
    without its end is left for the next call. total: lines met so far, those passed over included.
    """

    def __init__(self, folder: Path, wanted: Collection[bytes]) -> None:
        self._folder, self._wanted = folder, frozenset(wanted)
        self._offsets: dict[tuple[int, int], int] = {}
        self.total = 0
        self.bytes_read = 0

    def size(self) -> int:
        """Bytes of all files as they are now, those already read included."""
        return sum(path.stat().st_size for path in files(self._folder))

    def read(self) -> Iterator[tuple[bytes, bytes, bool]]:
        """(name of the event, the line, whether it is a warning or an error) of each new line that is wanted; file by file."""
        for path in files(self._folder):
            try:
                file = path.open("rb", buffering=_BUFFER)
            except FileNotFoundError:  # rotated away since it was listed; the next call finds it under its new name
                continue
            with file:
                status = os.fstat(file.fileno())
                key = (status.st_dev, status.st_ino)
                if self._offsets.get(key, 0) > status.st_size:  # a new file with the number of one that is gone
                    self._offsets[key] = 0
                if self._offsets.get(key, 0) < status.st_size:
                    yield from self._new(file, key)

    def _new(self, file: BinaryIO, key: tuple[int, int]) -> Iterator[tuple[bytes, bytes, bool]]:
        offset = self._offsets.get(key, 0)
        file.seek(offset)
        wanted, mark, after = self._wanted, _MARK, len(_MARK)
        info, debug = _QUIET
        try:
            for line in file:
                if line[-1] != 10:
                    break
                offset += len(line)
                self.total += 1
                self.bytes_read += len(line)
                begin = line.find(mark) + after
                name = line[begin : line.find(b'"', begin)] if begin >= after else b""
                loud = line.find(info, 0, _HEAD) < 0 and line.find(debug, 0, _HEAD) < 0
                if loud or name in wanted:
                    yield name, line, loud
        finally:  # also where the reader stops in between
            self._offsets[key] = offset
