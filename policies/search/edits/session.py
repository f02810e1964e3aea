"""A chain of thought under a person's hands: steps with ids that stay, edits, and what is kept of it when the policy goes on. **Ours**: the
paper says that users correct steps and that the model follows, and gives no algorithm.

    replace  the step's text by another; the step keeps its id
    insert   a new step after one, or at the beginning
    delete   a step; what stood after it goes with it
    note     a wish in plain words, as a step at the end of what is kept

Whatever comes after the edited step is dropped with the answer, and the policy continues from the tokens that stand: those that it
sampled as they were sampled, those of the person as text, in which no tag and no special token can be spelled. A session is data; who
judges an edit before it is applied, and who continues, is `actors/interventions.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from safeladder.policies.search.edits import measures
from safeladder.policies.search.retrieval.untrusted import neutral
from safeladder.protocol import messages as m

Kind = Literal["replace", "insert", "delete", "note"]
Author = Literal["policy", "user", "strategy"]
State = Literal["answered", "edited", "refused"]
NOTES: Final = {"en": "I was asked to keep in mind: {text}", "zh": "我被要求注意：{text}"}
_TAG: Final = re.compile(r"<(?=[/|!]?\w|\|)")


class EditError(ValueError):
    """An edit that cannot be made; says why. `param`: the field that is wrong."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


@dataclass(slots=True)
class SessionStep:
    """`id` names the step for as long as the session lives, whatever is edited before it. `logprobs`, `versions`: of sampled tokens.
    `node`: the node of the search that it is, or is a part of."""

    id: str
    text: str
    token_ids: tuple[int, ...] = ()
    author: Author = "policy"
    scores: dict[str, float] = field(default_factory=dict)
    logprobs: tuple[float, ...] = ()
    versions: tuple[int, ...] = ()
    node: int | None = None

    def record(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "text": self.text,
            "tokens": len(self.token_ids),
            "author": self.author,
            "scores": {name: round(value, 4) for name, value in self.scores.items()},
            "version": min(self.versions, default=None),
            "node": self.node,
        }


@dataclass(slots=True)
class Edit:
    """One line of the edit log. `distance` is normalised, `characters` is not. What follows `scores` is known once the policy has gone on.

    `before` and `after` are empty for what was inserted and deleted. `at`: seconds since the epoch. `gate`: the lowest safety from then on.
    `recalled`: no person made it now, it repeats one that was accepted earlier.
    """

    number: int
    kind: Kind
    step: str
    before: str
    after: str
    at: float
    distance: float
    characters: int
    gate: float
    scores: dict[str, float] = field(default_factory=dict)
    locality: float | None = None
    shifts: list[float] = field(default_factory=list)
    carried: float | None = None
    style: float | None = None
    accepted: bool = False
    recalled: bool = False


@dataclass(frozen=True, slots=True)
class Draft:
    """An edit that is not made yet: the session would consist of `kept` and then `step`, which is None for a deletion."""

    kind: Kind
    kept: list[SessionStep]
    step: SessionStep | None
    before: str
    gate: float

    @property
    def text(self) -> str:
        """All that would stand."""
        return "".join(each.text for each in (*self.kept, *([self.step] if self.step else [])))


@dataclass
class Session:
    """`prompt_ids`: tokens of the question as the policy was shown it. `gate`: the lowest safety that a step may have. `replaced`: the
    steps that the last edit dropped, for comparison."""

    id: str
    owner: str
    question: m.Question
    prompt_ids: list[int]
    gate: float
    steps: list[SessionStep] = field(default_factory=list)
    answer: str | None = None
    note: str | None = None
    edits: list[Edit] = field(default_factory=list)
    replaced: list[SessionStep] = field(default_factory=list)
    revision: int = 0
    accepted: bool = False
    drawn: int = 0
    _names: int = 0

    @property
    def state(self) -> State:
        if self.note is not None:
            return "refused"
        return "edited" if self.answer is None else "answered"

    @property
    def text(self) -> str:
        return "".join(step.text for step in self.steps)

    @property
    def token_ids(self) -> list[int]:
        return [token for step in self.steps for token in step.token_ids]

    def named(self) -> str:
        """An id that no step has had."""
        self._names += 1
        return f"s{self._names}"

    def draft(
        self,
        kind: Kind,
        step: str | None,
        text: str,
        gate: float | None,
        encode: Callable[[str], Sequence[int]],
        delimiter: str,
        language: str = "en",
    ) -> Draft:
        """What an edit would make of the session, which stays as it is. `step`: replaced, deleted, or the one after which is inserted;
        None inserts at the beginning, and notes at the end. `gate`: a higher one than there is. Raises EditError."""
        if gate is not None and gate < self.gate:
            raise EditError(f"an edit may raise the lowest safety, now {self.gate:g}, and not lower it", "safety")
        place = self._place(kind, step)
        before = self.steps[place].text if kind in ("replace", "delete") else ""
        kept = self.steps[: place if kind in ("replace", "delete") else place + 1]
        kept_gate = self.gate if gate is None else gate
        if kind == "delete":
            return Draft(kind, kept, None, before, kept_gate)
        said = untrusted(text).strip()
        if not said:
            raise EditError("the text of an edit is not empty; to take a step away, delete it", "text")
        if kind == "note":
            said = NOTES.get(language, NOTES["en"]).format(text=said)
        if delimiter and not said.endswith(delimiter):
            said += delimiter
        if said == before:
            raise EditError("the step says this already", "text")
        name = step if kind == "replace" and step else self.named()
        return Draft(kind, kept, SessionStep(name, said, tuple(encode(said)), "user"), before, kept_gate)

    def apply(self, draft: Draft, scores: dict[str, float], at: float) -> Edit:
        """Makes the edit: drops what comes after it and the answer. `scores`: of the edited prefix."""
        after = draft.step.text if draft.step else ""
        place = len(draft.kept) + (1 if draft.kind in ("replace", "delete") else 0)
        edit = Edit(
            number=len(self.edits) + 1,
            kind=draft.kind,
            step=draft.step.id if draft.step else self.steps[place - 1].id,
            before=draft.before,
            after=after,
            at=at,
            distance=round(measures.distance(draft.before, after), 4),
            characters=measures.levenshtein(draft.before, after),
            gate=draft.gate,
            scores=scores,
        )
        if (
            self.answer is not None or self.note is not None
        ):  # several edits in a row are compared with the answer before them
            self.replaced = self.steps[place:]
        self.steps = [*draft.kept]
        if draft.step is not None:
            draft.step.scores = dict(scores)
            self.steps.append(draft.step)
        self.answer = self.note = None
        self.accepted, self.gate = False, draft.gate
        self.revision += 1
        self.edits.append(edit)
        return edit

    def go_on(self, steps: Sequence[SessionStep], answer: str, note: str | None) -> None:
        """Takes in what the policy wrote after the last edit, and measures what the edit did to it."""
        old, new = [step.text for step in self.replaced], [step.text for step in steps]
        self.steps = [*self.steps, *steps]
        self.answer, self.note = (answer, None) if note is None else (None, note)
        self.revision += 1
        self.drawn += sum(len(step.token_ids) for step in steps)
        if self.edits:
            last, said = self.edits[-1], "".join(new)
            last.locality = round(measures.locality(old, new), 4)
            last.shifts = [round(value, 4) for value in measures.shifts(old, new)]
            known = measures.carried(last.before, last.after, said)
            last.carried = None if known is None else round(known, 4)
            last.style = round(measures.style(last.after, said), 4) if last.after else None

    def accept(self) -> list[Edit]:
        """Marks the answer as what the person wanted, and gives the edits that led to it. Raises EditError without an answer."""
        if self.state != "answered":
            raise EditError("there is no answer to accept: let the policy continue first")
        fresh = [edit for edit in self.edits if not edit.accepted]
        for edit in fresh:
            edit.accepted = True
        self.accepted = True
        return fresh

    def _place(self, kind: Kind, step: str | None) -> int:
        """Index of the step that an edit is about; -1 for an insertion at the beginning."""
        if step is None:
            if kind == "insert":
                return -1
            if kind == "note":
                return len(self.steps) - 1
            raise EditError(f"to {kind} names the step", "step")
        places = {each.id: place for place, each in enumerate(self.steps)}
        if step not in places:
            known = ", ".join(places) or "none"
            raise EditError(f"there is no step {step!r} now; there are {known}", "step")
        return places[step]


def untrusted(text: str) -> str:
    """A person's text without hidden characters, and with ‹ for every < that could begin a tag or spell a special token: an edit can
    neither close the thought nor end the turn. Comparisons (a < b) stay."""
    # `neutral` would take every angle bracket
    parts = re.split(r"([<>])", text.replace("\r\n", "\n"))
    return _TAG.sub("‹", "".join(part if part in ("<", ">") else neutral(part) for part in parts))


def parted(
    token_ids: Sequence[int], decode: Callable[[Sequence[int]], str], delimiters: Sequence[str]
) -> list[tuple[int, ...]]:
    """Tokens of an answer in steps, each up to the token that completes a delimiter, as an engine would have stopped there.

    One part where the parts' texts joined are not the text of the whole.
    """
    parts: list[tuple[int, ...]] = []
    current: list[int] = []
    for token in token_ids:
        current.append(token)
        if any(mark in decode(current) for mark in delimiters):
            parts.append(tuple(current))
            current = []
    if current:
        parts.append(tuple(current))
    whole = "".join(decode(part) for part in parts) == decode(list(token_ids))
    return parts if whole else [tuple(token_ids)]
