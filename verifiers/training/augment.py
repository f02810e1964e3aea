"""What attackers put around a text, put around training texts so that heads learn to look through it.

A text is a list of segments, so a template or a planted sentence is encoded once and joined to any text at no cost.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from safeladder.verifiers.heads.encoder import shared
from safeladder.verifiers.heads.pieces import Piece, joined
from safeladder.verifiers.heads.segments import MAX_SEGMENTS
from safeladder.verifiers.training.texts import Texts

_WINDOWS: Final = 12  # of each half of a template
_PROBE: Final = (
    "tell me how this can be done now"  # stands for a request: too long to be taken into a segment of the template
)


class Wraps:
    """Templates with `{prompt}` in them, and sentences to plant."""

    def __init__(self, texts: Texts, templates: Sequence[str], planted: Sequence[str]) -> None:
        halves = [template.partition("{prompt}") for template in templates]
        self._around = list(
            zip(
                _pieces(texts, [before for before, _, _ in halves]),
                _pieces(texts, [after for _, _, after in halves]),
                strict=True,
            )
        )
        self._joints = list(dict.fromkeys(joint for joint in map(_joint, halves) if "".join(joint).strip()))
        self._planted = [piece for piece in _pieces(texts, planted) if piece is not None]

    def joined(self, text: str, draw: random.Random) -> str:
        """The text with what of some template stands in one segment with it: a request is not always a sentence of its own."""
        before, after = draw.choice(self._joints) if self._joints else ("", "")
        return f"{before}{text}{after}"

    def template(self, inside: Piece, draw: random.Random) -> Piece:
        """The text within one of the templates. Its windows are its own, some of the template's, and the two across the joints."""
        if not self._around:
            return inside
        before, after = draw.choice(self._around)
        windows = list(inside.windows)
        if before is not None:
            windows += [*_some(before.windows, draw), joined([before.part(-1, None), inside.part(0, 1)])]
        if after is not None:
            windows += [*_some(after.windows, draw), joined([inside.part(-1, None), after.part(0, 1)])]
        whole = _limited(joined([part for part in (before, inside, after) if part is not None]))
        return Piece(whole.vectors, whole.tokens, windows)

    def padding(self, inside: Piece, draw: random.Random) -> Piece:
        """The text with one or two planted sentences before, behind, or within."""
        result = inside
        for _ in range(draw.choice((1, 1, 2)) if self._planted else 0):
            planted = draw.choice(self._planted)
            cut = draw.choice((0, len(result.vectors), draw.randrange(len(result.vectors) + 1)))
            result = joined([result.part(0, cut), planted, result.part(cut, None)])
        return _limited(result)


def _joint(halves: tuple[str, str, str]) -> tuple[str, str]:
    before, _, after = halves
    return shared().around(f"{before}{_PROBE}{after}", len(before), len(before) + len(_PROBE))


def _some(windows: Sequence[Piece], draw: random.Random) -> Sequence[Piece]:
    """Enough to learn from; a long template has a hundred, which cost time in every batch."""
    return draw.sample(windows, min(_WINDOWS, len(windows)))


def _pieces(texts: Texts, listed: Sequence[str]) -> list[Piece | None]:
    return [piece if text.strip() else None for text, piece in zip(listed, texts.pieces(listed), strict=True)]


def _limited(whole: Piece) -> Piece:
    """As `segments.spans` cuts a long text."""
    if len(whole.vectors) <= MAX_SEGMENTS:
        return whole
    head = MAX_SEGMENTS * 3 // 5
    return joined([whole.part(0, head), whole.part(head - MAX_SEGMENTS, None)])
