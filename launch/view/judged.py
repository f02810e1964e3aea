"""A fair sample of the groups of a run with their verdicts, and their texts where they were logged.

Verdicts on a group stand in the logs of several pools. A group is in the sample by a hash of its id, so every file agrees; when there
are too many, the bar is lowered and those above it are forgotten: memory stays bounded however long the run is.
"""

from __future__ import annotations

import zlib
from typing import Final

from msgspec import Struct

GROUPS: Final = 4096
WITH_TEXTS: Final = 512
MAX_TEXT: Final = 2000  # characters kept of a prompt or an answer


class Columns(Struct):
    """One verifier's verdicts on a group, as `group.judged` tells them; what is left out was 0, 1, 2, ... or said nothing."""

    samples: list[int] | None = None
    scores: list[float | None] | None = None
    labels: list[str | None] | None = None


class Group(Struct):
    """What is known of one group. verdicts: verifier -> sample -> (score, label)."""

    verdicts: dict[str, dict[int, tuple[float | None, str | None]]] = {}
    prompt: str | None = None
    answers: list[str] = []


class Judged:
    """texts: whether prompts and answers are kept too. bar: groups whose hash is not below it are not in the sample."""

    def __init__(self, texts: bool = False) -> None:
        self.texts = texts
        self._most = WITH_TEXTS if texts else GROUPS
        self.bar = 1 << 32
        self.groups: dict[str, Group] = {}

    def judge(self, identity: str, verdicts: dict[str, Columns]) -> None:
        group = self._group(identity)
        if group is None:
            return
        for verifier, columns in verdicts.items():
            scores, labels = columns.scores or [], columns.labels or []
            count = max(len(scores), len(labels))
            places = columns.samples if columns.samples is not None else range(count)
            for row, sample in zip(range(count), places, strict=False):
                score = scores[row] if row < len(scores) else None
                label = labels[row] if row < len(labels) else None
                group.verdicts.setdefault(verifier, {})[sample] = (score, label)

    def tell(self, identity: str, prompt: str, answers: list[str]) -> None:
        if self.texts and (group := self._group(identity)):
            group.prompt, group.answers = prompt[:MAX_TEXT], [answer[:MAX_TEXT] for answer in answers]

    def scores(self) -> dict[str, dict[tuple[str, int], float]]:
        """verifier -> (group, sample) -> score."""
        found: dict[str, dict[tuple[str, int], float]] = {}
        for identity, group in self.groups.items():
            for verifier, verdicts in group.verdicts.items():
                for sample, (score, _) in verdicts.items():
                    if score is not None:
                        found.setdefault(verifier, {})[identity, sample] = score
        return found

    def _group(self, identity: str) -> Group | None:
        if zlib.crc32(identity.encode()) >= self.bar:
            return None
        found = self.groups.get(identity)
        if found is None:
            found = self.groups[identity] = Group()
            while len(self.groups) > self._most:
                self.bar //= 2
                self.groups = {
                    name: group for name, group in self.groups.items() if zlib.crc32(name.encode()) < self.bar
                }
        return self.groups.get(identity)
