"""What to say about a word that nobody knows: a misspelt key, verifier or strategy."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

_LISTED: Final = 60


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a message that named an unknown `word`: the nearest known one, or all of them where none is near.

    More than a screen can show, as the names of a module are, are not listed.
    """
    names = list(known)
    if near := get_close_matches(word, names, 1, cutoff=0.5):
        return f"; did you mean {near[0]!r}?"
    return f"; known are {', '.join(sorted(names)) or 'none'}" if len(names) <= _LISTED else ""
