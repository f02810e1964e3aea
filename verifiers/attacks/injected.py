"""An instruction to the judge within the text that it judges."""

from __future__ import annotations

import random

from safeladder.verifiers.attacks.words import Material, Words


def injected(words: Words, material: Material, draw: random.Random) -> Words:
    """The instruction before, amid or behind the answer, on a line of its own."""
    instruction = draw.choice(material.instructions)
    lines = words.answer.split("\n")
    lines.insert(draw.randint(0, len(lines)), instruction)
    return Words(words.prompt, "\n".join(lines), words.language)
