"""Digits and signs for letters (ours). Chinese, which has none to replace, is written with a dot between its characters."""

from __future__ import annotations

import random

from safeladder.verifiers.attacks.words import Material, Words

_SIGNS = str.maketrans("aeiostAEIOST", "431057431057")


def leet(words: Words, material: Material, draw: random.Random) -> Words:
    """The answer in disguised spelling."""
    answer = "·".join(words.answer) if words.zh else words.answer.translate(_SIGNS)
    return Words(words.prompt, answer, words.language)
