"""Searcher: answers a question by a search over the generator and verifier pools.

Inbox: questions. Outbox: answers, each with its tree. Any number of questions are in work at once, as many as the pool has credit; what
blocks one is the pools' capacity, for no longer than its budget of seconds and the deadline of a call. If a generator or verifier dies
meanwhile, the hub gives the call to another; if the pools do not answer, the question fails and comes again; if this process dies, the
hub gives the question to another searcher, which begins anew and, with the same seed, comes to the same answer.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from safeladder.actors.actor import Actor, Delivery, Reject
from safeladder.actors.deliberation import Deliberation, DeliberationOptions, tokenizer_of
from safeladder.policies.search.registry import UnknownStrategy
from safeladder.protocol import messages as m


class Searcher(Actor):
    """Any strategy of `policies/search` over the pools."""

    role = "searcher"

    @dataclass
    class Options(DeliberationOptions):
        pass

    async def start(self) -> None:
        from safeladder.policies import model

        policy = self.config.policy
        path = await asyncio.to_thread(model.resolve, policy.model, policy.cache and Path(policy.cache))
        self._deliberation = Deliberation(self.options, self.config, self.link, tokenizer_of(path))

    async def handle(self, delivery: Delivery) -> m.Answer:
        question = delivery.payload
        if not isinstance(question, m.Question):
            raise Reject(f"the searcher takes questions, {delivery.id!r} is a {type(question).__name__}")
        try:
            answer = await self._deliberation.answer(f"{delivery.id}/{delivery.lease}", question, delivery.work.lane)
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
