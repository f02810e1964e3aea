"""What people have corrected before, for questions that are like those. **Ours.**

A question is remembered by its terms, and a later one is similar when the cosine of their counts is at least `similar`. What is remembered
guides as a step that stands in the open at the beginning of the answer: judged like an edit, shown, and free to be deleted. Edits are
one owner's: what one wrote never guides another's answers.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import Final

from safeladder.policies.search.edits.measures import cosine
from safeladder.policies.search.retrieval.terms import terms

OPENINGS: Final = {
    "en": "Earlier, with a question like this one, I was corrected. In place of “{before}” I was to write “{after}”. I keep to that.",
    "zh": "以前有类似的问题时，我被纠正过：不要写“{before}”，应写“{after}”。我会照此回答。",
}
ADDITIONS: Final = {
    "en": "Earlier, with a question like this one, I was told: “{after}” I keep to that.",
    "zh": "以前有类似的问题时，我被告知：“{after}”我会照此回答。",
}
SHOWN: Final = 240  # characters of each text that a guidance repeats


@dataclass(frozen=True, slots=True)
class Remembered:
    """An accepted edit: `after` in the place of `before`, which is empty for what was added."""

    session: str
    terms: Counter[str]
    before: str
    after: str


class EditMemory:
    """The last accepted edits of each owner, at most `most` of one, of at most `owners`."""

    def __init__(self, most: int = 256, similar: float = 0.5, owners: int = 256) -> None:
        self._most, self._similar, self._owners = most, similar, owners
        self._edits: dict[str, deque[Remembered]] = {}

    def remember(self, owner: str, session: str, question: str, before: str, after: str) -> None:
        edits = self._edits.pop(owner, None) or deque(maxlen=self._most)
        edits.append(Remembered(session, Counter(terms(question)), before.strip(), after.strip()))
        self._edits[owner] = edits  # the owner who was here last stands last
        while len(self._edits) > self._owners:
            del self._edits[next(iter(self._edits))]

    def recall(self, owner: str, question: str, count: int = 1) -> list[Remembered]:
        """The edits of the most similar questions, the most similar and then the latest first."""
        asked = Counter(terms(question))
        scored = [(cosine(asked, edit.terms), place, edit) for place, edit in enumerate(self._edits.get(owner, ()))]
        found = sorted((each for each in scored if each[0] >= self._similar), key=lambda each: each[:2], reverse=True)
        return [edit for _, _, edit in found[:count]]


def guidance(edit: Remembered, language: str) -> str:
    """The step that repeats an edit."""
    form = (OPENINGS if edit.before else ADDITIONS).get(language) or (OPENINGS if edit.before else ADDITIONS)["en"]
    return form.format(before=_short(edit.before), after=_short(edit.after))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"
