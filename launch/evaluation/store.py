"""Answers on disk, one a line, appended: what an evaluation has spent its time on, and never asks for again.

A line names the item (what the policy saw, and which of its samples) and the digest of all that decides the answer: policy, strategy,
sampling, prompt. A failed answer is kept with its error, counted, and asked for again by the next evaluation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from safeladder.protocol.line_file import LineFile, LineFileError


class Response(Struct, omit_defaults=True):
    """What a policy said. `error`: why it said nothing; the text is then empty and nothing of it is judged.

    tokens: sampled for it; thought_tokens: of these in the thought; None where nobody counts. certainty: exp of the mean ln p of the
    answer's tokens. confidence: as stated, in [0, 1]. abstained: it chose to give no answer. ballots: (answer, confidence 0 to 10) of
    each trajectory. notes: kinds of a search's interventions. spent: tokens, calls and seconds of a search, searches and reads.
    """

    text: str = ""
    finish: str = "stop"
    error: str | None = None
    tokens: int | None = None
    thought_tokens: int | None = None
    certainty: float | None = None
    confidence: float | None = None
    abstained: bool = False
    ballots: list[tuple[str | None, int]] = []
    notes: list[str] = []
    spent: dict[str, float] = {}
    seconds: float = 0.0


class ResponseFileError(ValueError):
    """The file holds something else."""


class _Line(Struct):
    item: str
    settings: str
    id: str
    response: Response


class ResponseFile(LineFile[_Line]):
    """Answers by item and settings, in memory and, where there is a path, on disk. One process writes. Raises ResponseFileError."""

    def __init__(self, path: Path | None, settings: str) -> None:
        self._settings = settings
        self._known: dict[str, Response] = {}
        try:
            super().__init__(path, _Line, self._keep)
        except LineFileError as error:
            raise ResponseFileError(f"{error}: not an answer; give another `out`") from None

    def _keep(self, line: _Line) -> None:
        if line.settings == self._settings:
            self._known[line.item] = line.response

    def get(self, item: str) -> Response | None:
        return self._known.get(item)

    def add(self, item: str, id: str, response: Response) -> None:
        line = _Line(item, self._settings, id, response)
        self._keep(line)
        self.append([line])


def digest_of(parts: Any) -> str:
    """Sixteen hex digits that name any JSON-like value."""
    from hashlib import blake2b

    return blake2b(msgspec.msgpack.encode(parts, order="deterministic"), digest_size=8).hexdigest()
