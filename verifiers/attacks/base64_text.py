"""Text in base64 (ours)."""

from __future__ import annotations

import base64
import random

from safeladder.verifiers.attacks.words import Material, Words


def base64_text(words: Words, material: Material, draw: random.Random) -> Words:
    """The answer's UTF-8 bytes in base64."""
    return Words(words.prompt, base64.b64encode(words.answer.encode()).decode(), words.language)
