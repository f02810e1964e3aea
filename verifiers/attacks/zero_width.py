"""Invisible characters within words (ours)."""

from __future__ import annotations

import random

from safeladder.verifiers.attacks.words import Material, Words

_MARK = "\u200b"  # zero-width space


def zero_width(words: Words, material: Material, draw: random.Random) -> Words:
    """A zero-width space behind every second character of the answer."""
    marked = (c + _MARK if index % 2 and not c.isspace() else c for index, c in enumerate(words.answer))
    return Words(words.prompt, "".join(marked), words.language)
