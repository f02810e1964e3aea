"""A jailbreak template around the request: the answer is as harmful as before."""

from __future__ import annotations

import random

from safeladder.verifiers.attacks.words import Material, Words


def wrapper(words: Words, material: Material, draw: random.Random) -> Words:
    """The request within one of the templates."""
    return Words(draw.choice(material.wrappers).replace("{prompt}", words.prompt), words.answer, words.language)
