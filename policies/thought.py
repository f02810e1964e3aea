"""Where the thought of a completion ends, in tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

OPENING: Final = "<think>"
CLOSING: Final = "</think>"


def thought_length(tokenizer: Any, token_ids: Sequence[int], kept: Sequence[bool] | None = None) -> int:
    """How many of a completion's tokens belong to its thought: all up to the one with which `</think>` is complete.

    A completion that never closes its thought is all thought. Tokens that an environment wrote (`kept` False) do not count.
    The tokens are read one by one, so a tag that is spread over several of them, as with most vocabularies, is found too.
    """
    text = ""
    count = 0
    for position, piece in enumerate(tokenizer.convert_ids_to_tokens(list(token_ids))):
        count += kept is None or bool(kept[position])
        text = (text + piece)[-(len(CLOSING) + len(piece)) :]
        if CLOSING in text:
            break
    return count
