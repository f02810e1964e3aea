"""Where a text is cut before it is encoded: at the ends of sentences, at colons and before a reason, into segments of at most 48 tokens.

Harm, a refusal or a planted instruction is often one sentence of a long text; averaged over the whole it is lost.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Final

MAX_TOKENS: Final = 48  # of a segment
MAX_SEGMENTS: Final = 40  # of a text
_SHORT = 5  # a segment shorter than this takes in the sentence that follows
_END = re.compile(
    r"[.!?…。！？；;:：]+[\"'”’)\]]*(?=\s|[\"“(]|[^\x00-\x7f])|\n+|(?<=[。！？；：])|(?<=\w)(?=,?\sbecause\b)"
)


def visible(text: str) -> str:
    """The text without invisible marks and Latin accents, with which words are disguised, and without space around it."""
    if text.isascii():
        return text.strip()
    parts = unicodedata.normalize("NFD", text)
    kept = (c for c in parts if not "\u0300" <= c <= "\u036f" and unicodedata.category(c) != "Cf")
    return unicodedata.normalize("NFC", "".join(kept)).strip()


def spans(text: str, offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """First and last-plus-one token of each segment, in order; at least one segment.

    `offsets`: for each token, where it begins and ends in `text`. Of a text with more segments than are read, the first three fifths
    of the allowance are its beginning and the rest its end.
    """
    count = len(offsets)
    ends = iter([match.end() for match in _END.finditer(text)] + [len(text) + 1])
    found: list[tuple[int, int]] = []
    first, end = 0, next(ends)
    for place, (_, stop) in enumerate(offsets):
        length = place + 1 - first
        if stop >= end:
            while stop >= end:
                end = next(ends)
            if length >= _SHORT:
                found.append((first, place + 1))
                first = place + 1
        elif length >= MAX_TOKENS:
            found.append((first, place + 1))
            first = place + 1
    if first < count or not found:
        found.append((first, count))
    return _kept(found)


def _kept(found: list[tuple[int, int]]) -> list[tuple[int, int]]:
    if len(found) <= MAX_SEGMENTS:
        return found
    head = MAX_SEGMENTS * 3 // 5
    return found[:head] + found[-(MAX_SEGMENTS - head) :]
