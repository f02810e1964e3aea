"""Labels: what a judge may say, what that is worth, and how it is read out of free text.

Reading is strict. A label counts where it is all that was said, where it makes up a line, where the text announces it ("Label: ...",
"结论：...", `\\boxed{...}`), or where it opens a line as a sentence of its own and no other label is mentioned. One that is merely
mentioned does not count ("this is not Unsafe"), and two different ones at such places are no answer. The released
judges take the first label that occurs anywhere; that would be a guess.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

_THOUGHT = re.compile(r".*</think>", re.DOTALL | re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\s*\{\s*(?:\\text\s*\{)?([^{}]*)\}")
_MARKUP = re.compile(r"[*_`#~>|<\"“”„«»‘’「」『』《》〈〉【】\[\](){}]|(?<![^\W_])'|'(?![^\W_])")
_JOINED = re.compile(r"(?<=[a-z])[\-‐-―](?=[a-z])")
_BULLET = re.compile(r"^\s*[-•·+]\s+(?=[^\d\s])", re.MULTILINE)  # before a number it may be a sign
_ENDS = ".,:;!?。、… \t"
_ANNOUNCED = re.compile(
    r"(?:^|[.!?;。]\s*)(?:(?:the|my|so|thus|therefore|hence|因此|所以|我的)[,\s]*)*(?:(?:final|overall|correct|safety|最终|综合|安全)\s*)*"
    r"(?:label|answer|verdict|judge?ment|conclusion|rating|score|grade|result|classification|category|safety"
    r"|标签|答案|结论|判断|判定|评价|评分|得分|分数|结果|类别)"
    r"\s*(?:is\b|was\b|[:=]|为|是)\s*[:=]?\s*(?P<value>.+)$"
)


@dataclass(frozen=True)
class LabelSet:
    """`scores`: label -> score, in the order in which the templates name them. `aliases`: label -> other ways to say it.

    ended: whether a label counts only together with the end of the turn when its probability is taken, which sets apart labels
    that begin alike. majority: over lines that disagree, the label of most lines is taken, if there is one.
    """

    scores: Mapping[str, float]
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ended: bool = True
    majority: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.scores)

    @cached_property
    def _known(self) -> dict[str, str]:
        """Plain form -> label, the longest forms first."""
        forms = {plain(form): label for label in self.scores for form in (label, *self.aliases.get(label, ()))}
        return dict(sorted(forms.items(), key=lambda entry: -len(entry[0])))

    def parse(self, text: str) -> str | None:
        """The label that a judge's reply states, after its thought if it has one; None where it states none or several."""
        said = _BULLET.sub("", unicodedata.normalize("NFKC", _THOUGHT.sub("", text)))
        if whole := self.match(plain(said)):
            return whole
        announced = {label for value in _announced(said) if (label := self.match(value) or self.opening(value))}
        if announced:
            return announced.pop() if len(announced) == 1 else None
        lines = [plain(line) for line in said.splitlines()]
        found = Counter(label for line in lines if (label := self.match(line)))
        if found:
            (best, votes), *others = found.most_common()
            return best if not others or (self.majority and votes > others[0][1]) else None
        opened = {label for line in lines if (label := self.opening(line))}
        return opened.pop() if len(opened) == 1 and opened == self._mentioned(plain(said)) else None

    def match(self, piece: str) -> str | None:
        """The label that a piece of text in plain form is."""
        return self._known.get(piece)

    def opening(self, piece: str) -> str | None:
        """The label with which a piece of text in plain form opens as a sentence of its own; None for labels that are numbers."""
        for form, label in self._known.items():
            rest = piece[len(form) :]
            stops = ".!;:。" if " " not in form else ".!;:。,"
            if piece.startswith(form) and rest and rest.lstrip()[:1] in stops and not form[-1].isdigit():
                return label
        return None

    def _mentioned(self, text: str) -> set[str]:
        """Every label that stands anywhere in a text in plain form, as whole words; one within a longer one does not count."""
        found = set()
        for form, label in self._known.items():
            bounded = rf"(?<![a-z0-9]){re.escape(form)}(?![a-z0-9])"
            if re.search(bounded, text):
                found.add(label)
                text = re.sub(bounded, " ", text)
        return found


@dataclass(frozen=True)
class NumberScale(LabelSet):
    """Labels that are numbers. A number between two of them is snapped to the nearer, or to the lower where both are as near."""

    def match(self, piece: str) -> str | None:
        found = re.fullmatch(r"([+-]?\d+(?:\.\d+)?)(?:\s*/\s*1(?:\.0+)?)?(?:\s*(?:分|points?))?", piece)
        if not found:
            return super().match(piece)
        value, worth = float(found[1]), self.scores
        if not min(worth.values()) <= value <= max(worth.values()):
            return None
        return min(worth, key=lambda label: (abs(worth[label] - value), worth[label]))


def plain(text: str) -> str:
    """Lower case, full-width forms made plain, without markup, quotes, brackets, joining signs and outer punctuation."""
    bare = _MARKUP.sub(" ", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(_JOINED.sub(" ", bare).split()).strip(_ENDS)


def _announced(said: str) -> Iterator[str]:
    """What stands behind an announcement, in plain form: in a box, or after "label:" and the like."""
    for boxed in _BOXED.finditer(said):
        yield plain(boxed[1])
    for line in said.splitlines():
        rest = plain(line)
        while found := _ANNOUNCED.search(rest):  # one line may announce several
            rest = found["value"]
            another = _ANNOUNCED.search(rest)
            yield plain(rest[: another.start()] if another else rest)
