"""ETHICS statements, read so that variants of one scenario are never split between training and measuring.

Variants differ in one half (`I deserve X because Y`; an excuse behind a request) and stand in several places of a file. A split by place
leaves half of a held-out scenario's variants in training, which favours whatever remembers wording.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from safeladder.verifiers.training.examples import Example

_WORDS: Final = re.compile(r"\w+")
_BECAUSE: Final = re.compile(r"\bbecause\b", re.IGNORECASE)
_SENTENCE: Final = re.compile(r"[^.?!]{15,}[.?!]")
_SHORTEST = 4  # words of a half that stands for a scenario
_COMMONEST = 14  # statements with a half in common, above which it is a phrase and no scenario
_OPENING = 7  # words that stand for a statement of one half


def statements(file: Path, options: Mapping[str, Any], draw: random.Random) -> Iterator[Example]:
    """`text` with `acceptable`. Option `limit`: how many of the file's first lines."""
    with file.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines][: int(options.get("limit", 10**9))]
    texts = [str(row["text"]) for row in rows]
    for row, text, first in zip(rows, texts, scenarios(texts), strict=True):
        yield Example("", text, int(bool(row["acceptable"])), str(options["name"]), f"{options['name']} {texts[first]}")


def scenarios(texts: Sequence[str]) -> list[int]:
    """For each statement the place of one that stands for all of its scenario: those that share a half, directly or by others."""
    halves = [_halves(text) for text in texts]
    common = Counter(half for found in halves for half in set(found))
    parent = list(range(len(texts)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    known: dict[str, int] = {}
    for place, found in enumerate(halves):
        for half in found:
            if common[half] <= _COMMONEST:
                parent[root(place)] = root(known.setdefault(half, place))
    return [root(place) for place in range(len(texts))]


def _halves(text: str) -> list[str]:
    found = []
    sentence = _SENTENCE.match(text)
    if sentence is not None and sentence.end() < len(text) - 3:
        found.append(sentence.group())
    parts = _BECAUSE.split(text, maxsplit=1)
    found += parts if len(parts) == 2 else [" ".join(text.split()[:_OPENING])]
    plain = [" ".join(_WORDS.findall(half.lower())) for half in found]
    return [half for half in plain if half.count(" ") + 1 >= _SHORTEST]
