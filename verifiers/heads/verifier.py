"""What the verifiers of one yes-or-no head share: how they are made, and what they make of a probability."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from safeladder.protocol.messages import Verdict
from safeladder.verifiers.contract import Item, Verifier
from safeladder.verifiers.heads import bundle


class HeadVerifier(Verifier):
    """A verifier that says P(yes) of one head. Subclasses set `file` and `labels` (no, yes).

    Option `score`: `prob` or `hard` (1 from 0.5 on). Raises EncoderMissing or HeadsError when the parts are not there.
    """

    version = "2"  # replaced by that of the heads, once they are read
    file: ClassVar[Path]
    labels: ClassVar[tuple[str, str]]

    @dataclass(frozen=True)
    class Options:
        score: Literal["prob", "hard"] = "prob"
        heads: str | None = None  # path of other heads than those that ship
        device: str = "cpu"

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        path = self.file if self.options.heads is None else Path(self.options.heads)
        self._heads, self.version = bundle.load(path)

    def said(self, item: Item, share: float) -> Verdict:
        """The verdict that a probability of yes makes."""
        yes = share >= 0.5
        score = share if self.options.score == "prob" else float(yes)
        return self.ok(item, score, self.labels[yes], confidence=max(share, 1.0 - share))
