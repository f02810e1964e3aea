"""What a judge is asked, kept apart from the text that is judged until the model's own tokens are known.

The judged text is untrusted: it may hold the marks between which it is shown, or tokens of the chat's own markup, so as to end
its part and speak for the judge. `Message.text` fills a template in one pass and breaks both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Final, Literal

import yaml

from safeladder.protocol.images import Image

_SLOT = re.compile(r"\{\{(\w+)\}\}")
# The marks of our templates, and the chat markup of the common model families for servers whose tokenizer is not at hand.
_FENCE = re.compile(r"<(?=/?(?:question|answer|thought|reference)\b)", re.IGNORECASE)
_MARKUP: Final = re.compile(
    r"<(?=\|[^|<>\n]{1,40}\|>|/?s>|/?(?:start|end)_of_turn>|bos>|eos>|(?:begin|end)▁of▁sentence)|\[(?=/?INST\])",
    re.IGNORECASE,
)
Defuse = Callable[[str], str]


@dataclass(frozen=True)
class Message:
    """One turn. `template` holds slots `{{name}}`, which `fields` fill."""

    role: Literal["system", "user", "assistant"]
    template: str
    fields: Mapping[str, str] = field(default_factory=dict)

    def text(self, defuse: Defuse | None = None) -> str:
        """The turn with its fields, in which every mark is broken; `defuse` breaks a tokenizer's own special tokens too."""
        harmless = {name: _FENCE.sub("‹", _MARKUP.sub(_broken, value)) for name, value in self.fields.items()}
        if defuse is not None:
            harmless = {name: defuse(value) for name, value in harmless.items()}
        return _SLOT.sub(lambda slot: harmless[slot[1]], self.template)


@dataclass(frozen=True)
class Prompt:
    """A conversation that ends where the judge is about to speak.

    `images` belong to the last user turn. `raw`: the one message is the whole text, markup and all, for models that were trained without
    a chat template. `options` go to the chat template. `begun` is what the judge has said so far; it is not written twice
    where the template itself ends with it.
    """

    messages: tuple[Message, ...]
    images: tuple[Image, ...] = ()
    raw: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    begun: str = ""


@cache
def templates(name: str) -> dict[str, dict[str, str]]:
    """The templates of `templates/NAME.yaml`: template -> language -> text."""
    text = files("safeladder.verifiers.judges").joinpath("templates", f"{name}.yaml").read_text("utf-8")
    found: dict[str, dict[str, str]] = yaml.safe_load(text)
    return found


def special_token_breaker(tokens: list[str]) -> Defuse:
    """Breaks every occurrence of the given tokens, so that none is encoded as what it looks like."""
    wanted = sorted((re.escape(token) for token in tokens if token.strip()), key=len, reverse=True)
    pattern = re.compile("|".join(wanted)) if wanted else None
    return lambda text: text if pattern is None else pattern.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)


def _broken(found: re.Match[str]) -> str:
    return "‹" if found[0] == "<" else "⟦"
