"""Searcher: answers a question with the best of several candidates that the verifiers have judged.

Inbox: questions. Outbox: answers. It asks the generator and the verifier pools through calls in the interactive lane, each under a
deadline, so what blocks it is their capacity, and nothing for longer than `deadline_s`. If one of them dies meanwhile, the hub gives
the call to another; if the hub dies, the call fails at its deadline and the question comes again from whoever holds it.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from safeladder.actors.actor import Actor, Delivery, Reject
from safeladder.policies.search.best_of_n import rank
from safeladder.protocol import codec
from safeladder.protocol import messages as m


class Searcher(Actor):
    """Best-of-N over the generator and verifier pools."""

    role = "searcher"

    @dataclass
    class Options:
        """`route`: the queues that a candidate passes. `terms`: verifier -> weight in the score. `fallback`: said when none will do."""

        route: list[str] = field(default_factory=lambda: ["generator", "rules", "safety"])
        terms: dict[str, float] = field(default_factory=lambda: {"safety": 1.0, "repetition": 1.0})
        deadline_s: float = 120.0
        fallback: str = "I cannot give an answer to this that my verifiers accept."

    async def handle(self, delivery: Delivery) -> m.Answer:
        question = delivery.payload
        if not isinstance(question, m.Question):
            raise Reject(f"the searcher takes questions, {delivery.id!r} is a {type(question).__name__}")
        begun = time.monotonic()
        group = m.Group(
            m.Record(id=delivery.id, label="question", prompt=question.text, language=language_of(question.text)),
            m.Sampling(
                samples=question.candidates,
                max_new_tokens=question.max_new_tokens,
                temperature=question.temperature,
                seed=question.seed,
            ),
            system=question.system or self.config.policy.system,
            prefix=self.config.policy.prefix,
        )
        call = codec.pack(
            group, id=f"{delivery.id}/{self.link.boot}/{delivery.lease}", route=self.options.route, lane="interactive"
        )
        parcel = await asyncio.wrap_future(self.link.call(call, self.options.deadline_s))
        judged, arrays = codec.unpack(parcel)
        if not isinstance(judged, m.Group):
            raise Reject(f"the route {self.options.route} gave back a {type(judged).__name__}")
        self.worked()
        candidates = rank(judged, self.options.terms, oldest_versions(arrays))
        chosen = next((candidate for candidate in candidates if candidate.score is not None), None)
        seconds = round(time.monotonic() - begun, 3)
        self.log.info(
            "question.answered", id=delivery.id, candidates=len(candidates), chosen=chosen is not None, seconds=seconds
        )
        return m.Answer(
            text=chosen.text if chosen else self.options.fallback,
            strategy="best_of_n",
            candidates=candidates,
            seconds=seconds,
            note=None if chosen else "no candidate was accepted by every verifier",
        )


def oldest_versions(arrays: codec.Arrays) -> list[int]:
    """The oldest weight version in each completion."""
    versions, position = [], 0
    for length in arrays["lengths"].tolist():
        part = arrays["versions"][position : position + length]
        versions.append(int(part.min()) if length else 0)
        position += length
    return versions


def language_of(text: str) -> str:
    """zh where more than a third of the letters are Chinese, else en."""
    letters = [character for character in text if character.isalpha()]
    chinese = sum("一" <= character <= "鿿" for character in letters)
    return "zh" if letters and chinese * 3 > len(letters) else "en"
