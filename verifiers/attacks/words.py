"""What an attack works on, and with what."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

LANGUAGES: Final = ("en", "zh")


class MaterialError(ValueError):
    """A file of texts for the attacks is not what it should be."""


@dataclass(frozen=True)
class Words:
    """A judged pair. language: en or zh; anything else is treated as en."""

    prompt: str
    answer: str
    language: str = "en"

    @property
    def zh(self) -> bool:
        return self.language == "zh"


@dataclass(frozen=True)
class Material:
    """Texts that attacks draw from. wrappers: each with one `{prompt}`; instructions: sentences to plant in the judged text."""

    wrappers: Sequence[str]
    instructions: Sequence[str]


Attack = Callable[[Words, Material, random.Random], Words]


def material(wrappers: Path | None = None, instructions: Path | None = None, language: str = "en") -> Material:
    """The texts of the package in one language, or those of the files given: JSON lines with `text`. Raises MaterialError."""
    own = resources.files("safeladder.verifiers.attacks")
    return Material(
        _texts(wrappers.read_text("utf-8"), str(wrappers), "{prompt}")
        if wrappers
        else _texts(own.joinpath("wrappers.jsonl").read_text("utf-8"), "wrappers.jsonl", "{prompt}", language),
        _texts(instructions.read_text("utf-8"), str(instructions))
        if instructions
        else _texts(own.joinpath("instructions.jsonl").read_text("utf-8"), "instructions.jsonl", "", language),
    )


def _texts(content: str, origin: str, needed: str = "", language: str | None = None) -> list[str]:
    texts = []
    for number, line in enumerate(content.splitlines(), 1):
        try:
            fields = json.loads(line)
            text = fields["text"]
        except (ValueError, KeyError, TypeError):
            raise MaterialError(f"{origin}:{number}: must be a JSON object with a field `text`") from None
        if not isinstance(text, str) or needed not in text:
            raise MaterialError(f"{origin}:{number}: field `text` must be text that holds {needed or 'something'}")
        if language is None or fields.get("language", language) == language:
            texts.append(text)
    if not texts:
        raise MaterialError(f"{origin}: holds no text for language {language!r}")
    return texts
