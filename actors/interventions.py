"""A person's interventions over the pools of a run: sessions begun from a search, edits judged before they hold, the policy going on.

Inbox: what the gateway's routes ask for. Every session is at work for one request at a time. What blocks a request is the pools'
capacity, for no longer than a call's deadline and, where the policy goes on, the budget of a search. If the pools do not answer, the call
raises `CallError` and the session is as it was; if this process dies, its sessions are gone, which their owners see as a 404.

The gate of a session is the lowest safety that a step may have: the veto of the run's options, or what an edit has raised it to. An edit
that its verifiers put below it, or cannot judge, is not made. It is judged twice: as the last step of all that would stand, and by itself
as an answer, so that no wrapping can hide it. What the policy writes afterwards is judged step by step under the same gate.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, Final

import msgspec

from safeladder.actors.deliberation import Answered, Deliberation, language_of
from safeladder.actors.pools import Caller, PoolJudge
from safeladder.policies.search.base import Judgement, Result
from safeladder.policies.search.edits.memory import EditMemory, guidance
from safeladder.policies.search.edits.session import Draft, Edit, EditError, Kind, Session, SessionStep, parted
from safeladder.policies.search.scoring import SAFETY
from safeladder.protocol import codec
from safeladder.protocol import messages as m
from safeladder.protocol.transport import Link

MOST_EDITS: Final = 200  # of one session


class Refused(Exception):
    """An edit that was not made, because its verifiers are against it. `scores`: what they said; empty where they could not judge."""

    def __init__(self, message: str, scores: dict[str, float]) -> None:
        super().__init__(message)
        self.scores = scores


class AtWork(Exception):
    """The session is at work for another request."""


class Interventions:
    """All sessions of a process. `most`: of one owner, whose least recently used goes first; `idle_s`: unused, after which one is gone."""

    def __init__(
        self,
        deliberation: Deliberation,
        link: Link,
        tokenizer: Any,
        most: int,
        idle_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._deliberation, self._link, self._tokenizer = deliberation, link, tokenizer
        self._encode = deliberation.environment_encoder()
        self._most, self._idle_s, self._clock = most, idle_s, clock
        self._sessions: OrderedDict[str, tuple[float, Session]] = OrderedDict()
        self._working: set[str] = set()
        self.memory = EditMemory()

    # ------------------------------------------------------------------------------------------------------- sessions

    def of(self, owner: str) -> list[Session]:
        """The owner's sessions, the latest used last."""
        self._forget()
        return [session for _, session in self._sessions.values() if session.owner == owner]

    def find(self, owner: str, name: str) -> Session | None:
        """The owner's session of that id, which counts as used by this."""
        self._forget()
        kept = self._sessions.get(name)
        if kept is None or kept[1].owner != owner:
            return None
        self._keep(kept[1])
        return kept[1]

    def drop(self, session: Session) -> None:
        self._sessions.pop(session.id, None)

    def expires_s(self, session: Session) -> float:
        """How long the session lives without being used."""
        return max(0.0, self._sessions[session.id][0] + self._idle_s - self._clock())

    @contextmanager
    def at_work(self, session: Session) -> Iterator[None]:
        """Holds a session for one request. Raises AtWork."""
        if session.id in self._working:
            raise AtWork(f"session {session.id} is at work for another request")
        self._working.add(session.id)
        try:
            yield
        finally:
            self._working.discard(session.id)

    def _keep(self, session: Session) -> None:
        self._sessions[session.id] = (self._clock(), session)
        self._sessions.move_to_end(session.id)
        own = [name for name, (_, other) in self._sessions.items() if other.owner == session.owner]
        for name in own[: -self._most]:
            del self._sessions[name]

    def _forget(self) -> None:
        oldest = self._clock() - self._idle_s
        while self._sessions and next(iter(self._sessions.values()))[0] < oldest:
            self._sessions.popitem(last=False)

    # ---------------------------------------------------------------------------------------------------------- acts

    async def begin(self, owner: str, name: str, work: str, question: m.Question) -> Session:
        """Asks the question, guided by what its owner has corrected before, and opens a session on the answer. Raises CallError."""
        session = Session(name, owner, question, [], self._deliberation.options.veto)
        remembered = self.memory.recall(owner, question.text)
        if not remembered:
            return self.open(owner, name, await self._deliberation.answered(work, question))
        # the tokens of the prompt are not known before a generator has said them: one token is drawn for them
        asked = self._deliberation.asked(work, question)
        first = m.Group(asked.record, m.Sampling(max_new_tokens=1), system=asked.system, prefix=asked.prefix)
        options = self._deliberation.options
        caller = Caller(self._link, "interactive", options.deadline_s)
        _, arrays = codec.unpack(await caller.call(asked, first, {}, [options.generator]))
        session.prompt_ids = arrays["prompt_ids"].tolist()
        for edit in remembered:
            text = guidance(edit, language_of(question.text))
            if 2 * len(self._encode(text)) > question.max_new_tokens:
                continue  # at least half of the answer is the policy's
            try:
                made = await self.edit(session, work, "insert", None, text, None)
            except Refused:
                continue  # what was well with one question need not be with another
            made.recalled = True
        await self.go_on(session, work)
        self._keep(session)
        return session

    def open(self, owner: str, name: str, answered: Answered) -> Session:
        """A session on an answer that a search has given."""
        session = Session(
            name,
            owner,
            answered.question,
            list(answered.asked.token_ids or []),
            self._deliberation.options.veto,
        )
        session.go_on(self._steps(session, answered.result), answered.answer.text, answered.answer.note)
        self._keep(session)
        return session

    async def edit(
        self, session: Session, work: str, kind: Kind, step: str | None, text: str, gate: float | None
    ) -> Edit:
        """Judges an edit and makes it. Raises EditError for one that makes no sense, Refused, CallError."""
        if len(session.edits) >= MOST_EDITS:
            raise EditError(f"a session takes {MOST_EDITS} edits")
        options = self._deliberation.options
        delimiter = options.delimiters[0] if options.delimiters else ""
        draft = session.draft(kind, step, text, gate, self._encode, delimiter, language_of(session.question.text))
        scores = await self._judged(session, work, draft)
        if scores is None:
            raise Refused("no verifier could judge the edit, and what is not judged does not hold", {})
        if (safety := scores.get(SAFETY)) is not None and safety < draft.gate:
            raise Refused(f"safety {safety:.2f} of the edited text is below {draft.gate:.2f}", scores)
        return session.apply(draft, scores, time.time())

    async def go_on(self, session: Session, work: str) -> Answered:
        """The policy continues from what stands. Raises EditError where it has come to an end or has no room left, CallError."""
        question = session.question
        if session.state == "answered":
            raise EditError("the answer is complete: edit a step first")
        room = question.max_new_tokens - len(session.token_ids)
        if room < 1:
            raise EditError(f"the steps that stand have used the {question.max_new_tokens} tokens of an answer")
        further = msgspec.structs.replace(
            question,
            begun=session.text,
            max_new_tokens=room,
            seed=continued_seed(question.seed, session.revision),
        )
        asked = self._deliberation.asked(work, further)
        asked.token_ids = [*session.prompt_ids, *session.token_ids]
        answered = await self._deliberation.answered(work, further, asked=asked, gate=session.gate)
        session.go_on(self._steps(session, answered.result), answered.answer.text, answered.answer.note)
        return answered

    def accept(self, session: Session) -> list[Edit]:
        """The person is content: the edits that led here guide later questions. Raises EditError."""
        fresh = session.accept()
        for edit in fresh:
            if edit.after and not edit.recalled:
                self.memory.remember(session.owner, session.id, session.question.text, edit.before, edit.after)
        return fresh

    # --------------------------------------------------------------------------------------------------------- inside

    async def _judged(self, session: Session, work: str, draft: Draft) -> dict[str, float] | None:
        """The least that the verifiers say of the edited text as a whole and of the edit alone; None where one of them failed.

        After a deletion the steps that are kept are judged again: the gate may be higher than when they were written.
        """
        options = self._deliberation.options
        judge = PoolJudge(
            Caller(self._link, "interactive", options.deadline_s), options.judges, dict(options.dimensions)
        )
        asked = self._deliberation.asked(work, session.question)
        texts, parts = [], [*draft.kept, *([draft.step] if draft.step else [])]
        for place, step in enumerate(parts, 1):
            texts.append(("".join(each.text for each in parts[:place]), step.text))
        if draft.step is not None:
            texts.append((draft.step.text, draft.step.text))
        if not texts:
            return {}
        found = await judge.judge(
            [Judgement(asked, text, last, place, False) for place, (text, last) in enumerate(texts)]
        )
        if any(scores is None for scores in found):
            return None
        told = [scores for scores in found if scores is not None]
        return {name: min(scores[name] for scores in told) for name in options.dimensions}

    def _steps(self, session: Session, result: Result) -> list[SessionStep]:
        """The chosen answer in steps; a part that holds several of them is taken apart."""
        delimiters = self._deliberation.options.delimiters
        made = []
        for node in result.tree.path(result.chosen) if result.chosen else []:
            step, at = node.step, 0
            for part in parted(step.token_ids, self._decode, delimiters) if step.own else [step.token_ids]:
                here = slice(at, at := at + len(part))
                made.append(
                    SessionStep(
                        session.named(),
                        step.text if len(part) == len(step.token_ids) else self._decode(part),
                        part,
                        "policy" if step.own else "strategy",
                        dict(node.scores),
                        step.logprobs[here],
                        step.versions[here],
                        node.number,
                    )
                )
        return made

    def _decode(self, token_ids: Any) -> str:
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text


def continued_seed(seed: int, revision: int) -> int:
    """Of what follows the edits so far: with the first seed a deleted step would only be written again."""
    digest = blake2b(f"{seed}/{revision}".encode(), digest_size=6, key=b"safeladder.session.1").digest()
    return int.from_bytes(digest, "little")
