"""A file of JSON lines that one process appends to and, after a crash, goes on with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

import msgspec

Line = TypeVar("Line")


class LineFileError(ValueError):
    """A line is of another kind than was to be there."""


class LineFile(Generic[Line]):
    """Lines of one type. Without a path nothing is kept.

    Lines are written whole and handed to the kernel: they outlive this process, though not the machine. A last line that a crash cut
    short is cut off when the file is opened. Raises LineFileError, which names the line, for one that does not read as `kind`, and OSError.
    """

    def __init__(self, path: Path | None, kind: type[Line], take: Callable[[Line], None]) -> None:
        """`take` is given each line that stands there already, in order."""
        self._file = None
        if path is None:
            return
        if path.exists():
            for line in _read(path, kind):
                take(line)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")

    def append(self, lines: Sequence[Line]) -> None:
        if self._file is not None:
            self._file.write(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
            self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()


def _read(path: Path, kind: type[Line]) -> Iterator[Line]:
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
    for number, line in enumerate(content[:whole].splitlines(), 1):
        try:
            yield msgspec.json.decode(line, type=kind)
        except msgspec.DecodeError as error:
            raise LineFileError(f"{path}:{number}: {error}") from None
