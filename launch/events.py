"""Reading the JSON lines that the processes of a run write, afterwards or while they are written."""

from __future__ import annotations

import contextlib
import heapq
import math
import os
import time
from collections.abc import Iterator
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

Event = dict[str, Any]
_File = tuple[int, int]  # device and inode
LATELY_NS = 2_000_000_000
_decoder = msgspec.json.Decoder(dict[str, Any])


class Tail:
    """Follows the files that match `pattern` in a folder; `read` gives the events that are new since the last call.

    A line is read once it is whole. One that is no JSON object (a crash tore it) is passed over and counted in `torn`. A file that
    is rotated (`log_file.py`) is followed under its new name: what is remembered is the file, not its name.
    """

    def __init__(self, folder: Path, pattern: str = "*.jsonl", from_end: bool = False) -> None:
        """from_end: what stands in the files already is not read (a resumed run's past)."""
        self._folder, self._pattern = folder, pattern
        self._offsets: dict[_File, int] = {}
        self._seen: dict[_File, int] = {}  # file -> the reading that met it last
        self._readings = 0
        self._listed: tuple[int, list[Path]] = (-1, [])
        self.torn = 0
        if from_end:
            for path in files(folder, pattern):
                status = path.stat()
                self._offsets[status.st_dev, status.st_ino] = status.st_size

    def read(self) -> Iterator[Event]:
        self._readings += 1
        for path in self._files():
            try:
                status = path.stat()
                key = (status.st_dev, status.st_ino)
                self._seen[key] = self._readings
                if self._offsets.get(key, 0) == status.st_size:
                    continue
                file = path.open("rb")
            except FileNotFoundError:  # rotated away since it was listed: the next reading finds it
                continue
            with file:
                status = os.fstat(file.fileno())
                key = (status.st_dev, status.st_ino)
                self._seen[key] = self._readings
                if self._offsets.get(key, 0) > status.st_size:  # another file with the number of one that is gone
                    self._offsets[key] = 0
                if self._offsets.get(key, 0) < status.st_size:
                    yield from self._lines(file, key)
        for key in [key for key, met in self._seen.items() if met < self._readings - 2]:
            del self._seen[key]
            self._offsets.pop(key, None)

    def _files(self) -> list[Path]:
        """Listed again when the folder has changed, or so lately that its time cannot tell."""
        try:
            changed = self._folder.stat().st_mtime_ns
        except FileNotFoundError:
            return []
        if changed != self._listed[0] or time.time_ns() - changed < LATELY_NS:
            self._listed = (changed, files(self._folder, self._pattern))
        return self._listed[1]

    def _lines(self, file: BinaryIO, key: _File) -> Iterator[Event]:
        file.seek(self._offsets.get(key, 0))
        for line in file:
            if not line.endswith(b"\n"):
                break
            self._offsets[key] = self._offsets.get(key, 0) + len(line)
            try:
                yield _decoder.decode(line)
            except msgspec.DecodeError:
                self.torn += 1


def files(folder: Path, pattern: str = "*.jsonl") -> list[Path]:
    """The files that match, each after its own closed segments, oldest first."""
    found = [*folder.glob(pattern), *(path for path in folder.glob(f"{pattern}.*") if path.suffix[1:].isdigit())]
    return sorted(found, key=_age)


def _age(path: Path) -> tuple[str, float]:
    closed = path.suffix[1:].isdigit()
    return (path.stem if closed else path.name, int(path.suffix[1:]) if closed else math.inf)


def merged(folder: Path, pattern: str = "*.jsonl", holding: bytes = b"") -> Iterator[Event]:
    """Every event of all files in order of time, read as a stream; of lines that hold these bytes alone, where some are given."""
    logs: dict[str, list[Path]] = {}
    for path in files(folder, pattern):
        logs.setdefault(_age(path)[0], []).append(path)
    yield from heapq.merge(*(_events(parts, holding) for parts in logs.values()), key=_when)


def _events(paths: list[Path], holding: bytes) -> Iterator[Event]:
    for path in paths:
        with path.open("rb") as file:
            for line in file:
                if holding in line and line.endswith(b"\n"):
                    with contextlib.suppress(msgspec.DecodeError):  # torn by a crash
                        yield _decoder.decode(line)


def _when(event: Event) -> str:
    return str(event.get("ts", ""))


def seconds(event: Event) -> float:
    """Its time, in seconds since 1970; 0 for a line that has none."""
    return _seconds(str(event.get("ts", "")))


@lru_cache(4096)  # whoever looks at an event asks for it
def _seconds(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0
