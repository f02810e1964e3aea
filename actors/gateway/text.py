"""From tokens that come a few at a time to text that can be shown: characters whole, stop strings cut off.

A token may hold a part of a character only, and a stop string may be spread over several tokens. So text is given out once no later
token can change it. All that was given out, joined, is what decoding all tokens at once gives, up to the first stop string.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

UNKNOWN: Final = "\N{REPLACEMENT CHARACTER}"  # what decoding gives for a character that is not complete


class GrowingText:
    """The text of one answer. `tokenizer`: a `tokenizers.Tokenizer`. `stopped`: a stop string has ended it."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, list(stop)
        self._ids: list[int] = []
        self._sure = self._read = 0  # tokens before the window of decoding, and tokens whose text stands in `_text`
        self._text = ""
        self._given = 0
        self.stopped = False

    def feed(self, token_ids: Sequence[int]) -> str:
        """Takes in the next tokens and returns what is new and sure; empty where nothing is."""
        self._ids += token_ids
        if not self.stopped:
            # The window begins with tokens that are read already: some decoders treat the first token of a text differently.
            before = self._decode(self._ids[self._sure : self._read])
            window = self._decode(self._ids[self._sure :])
            if not window.endswith(UNKNOWN):
                self._text += window[len(before) :]
                self._sure, self._read = self._read, len(self._ids)
                self._cut()
        return self._give(len(self._text) if self.stopped else len(self._text) - self._begun())

    def end(self) -> str:
        """What is left when no token comes any more, broken characters included."""
        if not self.stopped:
            before = self._decode(self._ids[self._sure : self._read])
            self._text += self._decode(self._ids[self._sure :])[len(before) :]
            self._sure, self._read = self._read, len(self._ids)
            self._cut()
        return self._give(len(self._text))

    def _decode(self, token_ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text

    def _cut(self) -> None:
        self._text, self.stopped = cut(self._text, self._stop)

    def _begun(self) -> int:
        """How many characters at the end may be the beginning of a stop string."""
        return max((_overlap(self._text, mark) for mark in self._stop), default=0)

    def _give(self, end: int) -> str:
        new = self._text[self._given : max(end, self._given)]
        self._given += len(new)
        return new


def cut(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """`text` up to the first stop string in it, and whether there was one."""
    places = [place for mark in stop if (place := text.find(mark)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def _overlap(text: str, mark: str) -> int:
    """The longest end of `text` with which `mark` begins, `mark` itself excepted."""
    return next((size for size in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:size])), 0)
