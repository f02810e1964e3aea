"""A question answered by deliberation: several trajectories, judged, and one vote among them.

It has the form of any search's result (`base.Result`), so whoever shows or serves results need not know the difference. The tree is
one branch a trajectory, one node a turn or reply; a turn's score is its stated confidence. An answer that a judge forbids, or that none
could judge, has no vote. Below the needed confidence nothing is chosen: the policy abstains.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import msgspec

from safeladder.policies.search.base import Judge, Judgement, Note, Result, Watch
from safeladder.policies.search.budget import Budget, Spent
from safeladder.policies.search.deliberate import grammar
from safeladder.policies.search.deliberate.trajectory import (
    Encode,
    Language,
    Segment,
    Trajectory,
    TrajectoryLimits,
    TurnSampler,
    deliberate,
    turn_seed,
)
from safeladder.policies.search.deliberate.vote import Ballot, vote
from safeladder.policies.search.registry import DELIBERATE, UnknownStrategy
from safeladder.policies.search.retrieval.documents import Retriever
from safeladder.policies.search.scoring import Combination
from safeladder.policies.search.tree import Node, Step, Tree

CALLS_A_TURN: Final = 2  # one to the policy, one to the retriever


@dataclass
class DeliberateOptions(TrajectoryLimits):
    """`samples`: trajectories that vote. `zeta`: the confidence, 0 to 10, that an answer must be above."""

    samples: int = 4
    zeta: int = grammar.CERTAIN


def options_of(defaults: DeliberateOptions, given: Mapping[str, Any]) -> DeliberateOptions:
    """`defaults` with what a question says. Raises UnknownStrategy for what is no option or has the wrong type."""
    known = {field.name: getattr(defaults, field.name) for field in fields(defaults)}
    if unknown := sorted(given.keys() - known.keys()):
        raise UnknownStrategy(
            f"strategy {DELIBERATE!r}: unknown option {unknown[0]!r}; options: {', '.join(sorted(known))}"
        )
    try:
        found = msgspec.convert({**known, **given}, DeliberateOptions)
    except msgspec.ValidationError as error:
        raise UnknownStrategy(f"strategy {DELIBERATE!r}: {error}") from None
    for name in ("turns", "turn_tokens", "tokens", "samples", "results"):
        if getattr(found, name) < 1:
            raise UnknownStrategy(f"strategy {DELIBERATE!r}: {name} must be at least 1, not {getattr(found, name)}")
    return found


def within(options: DeliberateOptions, budget: Budget) -> DeliberateOptions:
    """The options cut to a budget: its tokens and calls are divided among the trajectories."""
    share = options.samples
    tokens = options.tokens if budget.tokens is None else max(1, min(options.tokens, budget.tokens // share))
    turns = options.turns
    if budget.calls is not None:
        turns = max(1, min(turns, budget.calls // (CALLS_A_TURN * share)))
    return replace(options, tokens=tokens, turns=turns)


class Answering:
    """One question. `key`: which answers count as the same. `judge` and `combination`: who may forbid an answer."""

    def __init__(
        self,
        sampler: TurnSampler,
        retriever: Retriever,
        encode: Encode,
        key: Callable[[str], str],
        judge: Judge | None = None,
        combination: Combination | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._sampler, self._retriever, self._encode, self._key = sampler, retriever, encode, key
        self._judge, self._combination, self._watch = judge, combination or Combination(), watch
        self._tree = Tree()
        self._notes: list[Note] = []

    async def answer(
        self,
        prompt: Any,
        options: DeliberateOptions,
        budget: Budget,
        seed: int = 0,
        *,
        opening: str = "",
        begun: str = "",
        language: Language = "en",
        judged: Any = None,
    ) -> Result:
        """`judged`: the prompt as the judge knows it, where that differs. Raises what a port raises. What is not done when the budget's
        seconds are over has no vote."""
        spent = Spent(budget)
        options = within(options, budget)
        tips = [self._tree.root] * options.samples
        branches: list[Trajectory | None] = [None] * options.samples

        async def one(place: int) -> None:
            def seen(segment: Segment) -> None:
                first = tips[place] is self._tree.root
                tips[place] = self._grow(tips[place], segment, opening + begun if first else opening)

            branches[place] = await deliberate(
                prompt,
                self._sampler,
                self._retriever,
                self._encode,
                options,
                turn_seed(seed, -1 - place),
                opening=opening,
                begun=begun,
                language=language,
                watch=seen,
            )

        await _together([one(place) for place in range(options.samples)], budget.seconds)
        spent.tokens = sum(len(node.step.token_ids) for node in self._tree if node.step.own)
        spent.calls = sum(1 for _ in self._tree)
        answers = {
            tip.number: answer
            for tip, branch in zip(tips, branches, strict=True)
            if branch and branch.ended == "answer" and (answer := branch.transcript.answer)
        }
        await self._forbid(judged or prompt, [tip for tip in tips if tip.number in answers], answers)
        return self._chosen(tips, branches, answers, options, spent)

    def _grow(self, parent: Node, segment: Segment, opening: str) -> Node:
        turn = grammar.parse_turn(opening + segment.text)[0] if segment.own else None
        final = turn is not None and turn.action == "answer"
        logprobs, versions = (tuple(segment.logprobs), tuple(segment.versions)) if segment.own else ((), ())
        step = Step(segment.text, tuple(segment.token_ids), logprobs, final, versions, segment.own)
        node = self._tree.add(parent, step)
        node.score = turn.confidence / grammar.MOST if turn is not None else parent.score
        node.scores = {"confidence": node.score} if turn is not None and node.score is not None else {}
        node.fate = "final" if final else "open"
        if self._watch is not None:
            self._watch(node)
        return node

    async def _forbid(self, prompt: Any, tips: Sequence[Node], answers: Mapping[int, str]) -> None:
        if self._judge is None or not tips:
            return
        asked = [Judgement(prompt, answers[tip.number], answers[tip.number], len(tip.place) - 1, True) for tip in tips]
        for tip, scores in zip(tips, await self._judge.judge(asked), strict=True):
            if scores is None:
                tip.fate, tip.reason = "unscored", "a verifier gave no score"
                continue
            tip.scores |= scores
            if self._combination.vetoes(scores):
                tip.fate = "vetoed"
                tip.reason = f"safety {scores['safety']:.2f} below {self._combination.veto:.2f}"

    def _chosen(
        self,
        tips: Sequence[Node],
        branches: Sequence[Trajectory | None],
        answers: Mapping[int, str],
        options: DeliberateOptions,
        spent: Spent,
    ) -> Result:
        ballots = [
            Ballot(answers[tip.number], round((tip.score or 0.0) * grammar.MOST))
            if tip.number in answers and tip.fate == "final"
            else Ballot(None)
            for tip in tips
        ]
        found = vote(ballots, self._key, options.zeta)
        winner = None if found.chosen is None else tips[found.chosen]
        branch = None if found.chosen is None else branches[found.chosen]
        if winner is None:
            ended = "nothing may be chosen" if answers else "no trajectory came to an answer"
        elif found.abstained:
            ended = f"abstained: confidence {found.confidence:.1f} of {grammar.MOST} is not above {options.zeta}"
            self._notes.append(Note("abstain", len(winner.place) - 1, ended))
        else:
            ended = "complete"
        stripped = sum(branch.stripped for branch in branches if branch)
        if stripped:
            reason = f"{stripped} sentences taken out of retrieved text that address the model"
            self._notes.append(Note("stripped", 0, reason))
        return Result(
            self._tree,
            None if found.abstained else winner,
            spent,
            ended,
            self._notes,
            answers=dict(answers),
            confidence=found.confidence / grammar.MOST,
            sources=_sources(branch) if branch else [],
        )


def _sources(branch: Trajectory) -> list[dict[str, Any]]:
    """Documents that the trajectory saw, those it read first."""
    order = [*branch.read, *(identity for identity in branch.found if identity not in branch.read)]
    return [
        {"id": identity, "title": branch.found[identity].title, "read": identity in branch.read} for identity in order
    ]


async def _together(parts: Sequence[Any], seconds: float | None) -> None:
    """Runs all; the first error is raised and ends the others, and so does the time, without an error."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
