"""Searcher: answers a question by a search over the generator and verifier pools, and makes groups of trajectories for training.

Inbox: questions, and groups without completions. Outbox: answers, each with its tree; groups with trajectories as completions, which
go on along their route as a generator's do. Any number of questions are in work at once, as many as the pool has credit; what
blocks one is the pools' capacity, for no longer than its budget of seconds and the deadline of a call. If a generator or verifier dies
meanwhile, the hub gives the call to another; if the pools do not answer, the question fails and comes again; if this process dies, the
hub gives its questions and groups to another searcher, which begins anew and, with the same seed, comes to the same answer.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safeladder.actors.actor import Actor, Delivery, Output, Reject
from safeladder.actors.deliberation import Deliberation, DeliberationOptions, instructed, language_of, tokenizer_of
from safeladder.actors.pools import Asked, Caller
from safeladder.actors.trajectories import PoolRetriever, PoolTurnSampler, all_or_none, group_of, seed_of
from safeladder.policies.finding import resolve
from safeladder.policies.search.deliberate.grammar import Action
from safeladder.policies.search.deliberate.trajectory import Segment, Trajectory, deliberate
from safeladder.policies.search.registry import UnknownStrategy
from safeladder.protocol import messages as m


class Searcher(Actor):
    """Any strategy of `policies/search` over the pools."""

    role = "searcher"

    @dataclass
    class Options(DeliberationOptions):
        pass

    async def start(self) -> None:
        policy = self.config.policy
        path = await asyncio.to_thread(resolve, policy.model, policy.cache and Path(policy.cache))
        self._deliberation = Deliberation(self.options, self.config, self.link, tokenizer_of(path))

    async def handle(self, delivery: Delivery) -> m.Answer | Output:
        question = delivery.payload
        if isinstance(question, m.Group):
            return await self._trajectories(delivery, question)
        if not isinstance(question, m.Question):
            raise Reject(f"the searcher takes questions and groups, {delivery.id!r} is a {type(question).__name__}")
        try:
            answer = await self._deliberation.answer(name_of(delivery), question, delivery.work.lane)
        except UnknownStrategy as error:
            raise Reject(str(error)) from error
        self.worked()
        self.log.info(
            "question.answered",
            id=delivery.id,
            strategy=answer.strategy,
            context=answer.context,
            candidates=len(answer.candidates),
            chosen=answer.note is None,
            ended=answer.ended,
            interventions=len(answer.notes),
            **answer.spent,
        )
        return answer

    async def _trajectories(self, delivery: Delivery, group: m.Group) -> Output:
        """K trajectories of one task. `max_new_tokens` bounds the policy's own tokens of each; the options bound the rest."""
        options, language = self.options, language_of(group.record.prompt)
        caller = Caller(self.link, delivery.work.lane, options.deadline_s)
        name = name_of(delivery)
        asked = Asked(name, group.record, instructed(group.system, language), group.prefix)
        limits = dataclasses.replace(options.deliberate, tokens=group.sampling.max_new_tokens)
        sampler = PoolTurnSampler(caller, options.generator, group.sampling, group.min_version)
        retriever = PoolRetriever(caller, options.retriever, name)
        encode = self._deliberation.environment_encoder()

        def one(sample: int) -> Coroutine[Any, Any, Trajectory]:
            seed = seed_of(group.sampling.seed, sample)
            return deliberate(
                asked,
                sampler,
                retriever,
                encode,
                limits,
                seed,
                opening=group.prefix,
                language=language,
                watch=self._came_on,
            )

        made = await all_or_none([one(sample) for sample in range(group.sampling.samples)])
        assert asked.token_ids is not None
        self.log.info("group.deliberated", id=delivery.id, **statistics(made))
        return group_of(group, asked.token_ids, made)

    def _came_on(self, _: Segment) -> None:
        self.worked()


def name_of(delivery: Delivery) -> str:
    """What the calls for a work are named after: of its lease too, because it may come again."""
    return f"{delivery.id[:120]}/{delivery.lease}"


def statistics(trajectories: Sequence[Trajectory]) -> dict[str, Any]:
    """What the collapse of a policy would show in: searches, reads, extreme confidences, tokens of both sides."""
    transcripts = [trajectory.transcript for trajectory in trajectories]
    actions: tuple[Action, ...] = ("search", "read")
    return {
        "samples": len(trajectories),
        "answered": sum(trajectory.ended == "answer" for trajectory in trajectories),
        "well_formed": sum(transcript.well_formed for transcript in transcripts),
        **{action: sum(transcript.count(action) for transcript in transcripts) for action in actions},
        "confidences": [transcript.confidence for transcript in transcripts],
        "own_tokens": sum(trajectory.own_tokens for trajectory in trajectories),
        "environment_tokens": sum(trajectory.environment_tokens for trajectory in trajectories),
        "stripped": sum(trajectory.stripped for trajectory in trajectories),
    }
