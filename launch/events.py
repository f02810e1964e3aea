"""Reading the JSON lines that the processes of a run write, afterwards or while they are written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

Event = dict[str, Any]
_decoder = msgspec.json.Decoder(dict[str, Any])


class Tail:
    """Follows the files that match `pattern` in a folder; `read` gives the events that are new since the last call.

    A line is read once it is whole. One that is no JSON object (a crash tore it) is passed over and counted in `torn`.
    """

    def __init__(self, folder: Path, pattern: str = "*.jsonl", from_end: bool = False) -> None:
        """from_end: what stands in the files already is not read (a resumed run's past)."""
        self._folder, self._pattern = folder, pattern
        self._offsets: dict[Path, int] = {}
        self.torn = 0
        if from_end:
            self._offsets = {path: path.stat().st_size for path in folder.glob(pattern)}

    def read(self) -> Iterator[Event]:
        for path in sorted(self._folder.glob(self._pattern)):
            with path.open("rb") as file:
                file.seek(self._offsets.get(path, 0))
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._offsets[path] = self._offsets.get(path, 0) + len(line)
                    try:
                        yield _decoder.decode(line)
                    except msgspec.DecodeError:
                        self.torn += 1
