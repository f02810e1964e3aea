"""Text written backwards: a model reads it, a filter does not."""

from __future__ import annotations

import random

from safeladder.verifiers.attacks.words import Material, Words


def mirrored(words: Words, material: Material, draw: random.Random) -> Words:
    """The answer's characters in reverse order, line by line."""
    return Words(words.prompt, "\n".join(line[::-1] for line in words.answer.split("\n")), words.language)
