"""The steps of a text: its paragraphs, with thought and answer apart. Ours: the paper speaks of steps and does not say how they part."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from safeladder.verifiers.contract import Item

_BETWEEN = re.compile(r"\n[^\S\n]*\n\s*|</?think>")


def spans(text: str, begin: int = 0) -> Iterator[tuple[int, int]]:
    """Begin and end, in characters, of each paragraph of `text[begin:]` that is not blank. Blank lines and think tags part them."""
    position = begin
    for gap in _BETWEEN.finditer(text, begin):
        if text[position : gap.start()].strip():
            yield position, gap.start()
        position = gap.end()
    if text[position:].strip():
        yield position, len(text)


def of(item: Item, begin: int = 0) -> list[Item]:
    """The item's steps from character `begin` on, each with all that stands before it as its context. A completion that failed or is
    blank comes as it is, so that it is not lost."""
    found = [
        dataclasses.replace(item, text=item.text[:end], step=step, begin=start)
        for step, (start, end) in enumerate(spans(item.text, begin))
    ]
    return found if found and item.finish in ("stop", "length") else [item]
