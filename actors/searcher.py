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
from typing import Any, Literal

from safeladder.actors.actor import Actor, Delivery, Output, Reject
from safeladder.actors.deliberation import Deliberation, DeliberationOptions, instructed, language_of, tokenizer_of
from safeladder.actors.pools import Asked, Caller
from safeladder.actors.trajectories import PoolRetriever, PoolTurnSampler, all_or_none, group_of, group_of_tree, seed_of
from safeladder.launch.config import ConfigError
from safeladder.policies.finding import resolve
from safeladder.policies.search.deliberate.grammar import Action
from safeladder.policies.search.deliberate.trajectory import Segment, Trajectory, deliberate
from safeladder.policies.search.registry import DELIBERATE, UnknownStrategy
from safeladder.protocol import messages as m


class Searcher(Actor):
    """Any strategy of `policies/search` over the pools."""

    role = "searcher"

    @dataclass
    class Options(DeliberationOptions):
        """training: what groups are made of, `trajectories` of deliberation or the answers of a `tree` that `strategy` searches."""

        training: Literal["trajectories", "tree"] = "trajectories"

    async def start(self) -> None:
        policy = self.config.policy
        path = await asyncio.to_thread(resolve, policy.model, policy.cache and Path(policy.cache))
        if self.options.training == "tree" and self.options.strategy == DELIBERATE:
            raise ConfigError(f"training: tree needs a strategy that searches step by step, not {DELIBERATE!r}")
        self._deliberation = Deliberation(self.options, self.config, self.link, tokenizer_of(path))

    async def handle(self, delivery: Delivery) -> m.Answer | Output:
        question = delivery.payload
        if isinstance(question, m.Group) and self.options.training == "tree":
            return await self._tree(delivery, question)
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

    async def _tree(self, delivery: Delivery, group: m.Group) -> Output:
        """The complete answers of one search for the task, at most K, in the order in which they were found: those that the
        search likes less are what the others are better than. Raises Reject where it came to none."""
        sampling = group.sampling
        if sampling.top_p < 1 or sampling.top_k or sampling.min_p:
            raise Reject("a tree is drawn from the whole distribution: top_p, top_k and min_p are not for it")
        name = name_of(delivery)
        question = m.Question(
            group.record.prompt,
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            seed=sampling.seed,
            candidates=sampling.samples,
        )
        asked = Asked(name, group.record, group.system, group.prefix)
        result, _ = await self._deliberation.search(
            name, question, delivery.work.lane, lambda _: self.worked(), asked, min_version=group.min_version
        )
        ends = [node for node in result.tree if node.step.own and (node.fate == "final" or node.step.final)][
            : sampling.samples
        ]
        if not ends or asked.token_ids is None:
            raise Reject(f"the search for {delivery.id!r} came to no complete answer: {result.ended}")
        made = group_of_tree(group, asked.token_ids, result.tree, ends)
        self.log.info(
            "group.searched",
            id=delivery.id,
            strategy=self.options.strategy,
            answers=len(ends),
            nodes=len(result.tree.nodes) - 1,
            shared=1
            - len(set(made.arrays["nodes"].tolist())) / max(1, sum(len(result.tree.path(end)) for end in ends)),
            tokens=result.spent.tokens,
            trained_tokens=int(made.arrays["own"].sum()),
            ended=result.ended,
        )
        return made

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
