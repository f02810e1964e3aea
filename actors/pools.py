"""A search's two ports over the pools of a run: steps from the generators, judgements from the verifiers, both by calls.

What blocks a call is the pools' capacity, and nothing for longer than `deadline_s`. If a generator or verifier dies, the hub gives
the call to another; if none answers in time, or the hub is gone, the call raises `CallError`, which ends the search and fails its
question.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from safeladder.policies.search.base import Draw, Judgement
from safeladder.policies.search.tree import Step
from safeladder.protocol import codec
from safeladder.protocol import messages as m
from safeladder.protocol.transport import Link

TOGETHER: Final = 8  # samples of one request: no generator need have room for more
SEED_STRIDE: Final = 0x9E3779B1  # between the seeds of a draw's requests, whose samples are numbered from 0 again


@dataclass(eq=False)
class Asked:
    """A question as both ports know it. `token_ids` are its prompt's, once a generator has said them."""

    name: str
    record: m.Record
    system: str | None = None
    prefix: str = ""
    token_ids: list[int] | None = None
    language: str = field(init=False)

    def __post_init__(self) -> None:
        self.language = self.record.language


class Caller:
    """Sends groups along a route and waits for them, each under a name of its own."""

    def __init__(self, link: Link, lane: m.Lane, deadline_s: float) -> None:
        self._link, self._lane, self._deadline_s = link, lane, deadline_s
        self._numbers = itertools.count()

    async def call(self, asked: Asked, group: m.Group, arrays: codec.Arrays, route: Sequence[str]) -> codec.Parcel:
        """The group as its route left it. Raises CallError."""
        return await self.send(asked.name, group, arrays, route)

    async def send(self, name: str, payload: m.Payload, arrays: codec.Arrays, route: Sequence[str]) -> codec.Parcel:
        """Any payload on behalf of `name`. Raises CallError."""
        identity = f"{name}/{self._link.boot}/{next(self._numbers)}"
        parcel = codec.pack(payload, arrays, id=identity, route=list(route), lane=self._lane)
        return await asyncio.wrap_future(self._link.call(parcel, self._deadline_s))


class PoolSampler:
    """A `Sampler` over the generator pool.

    The first draw of a question sends its text; the generator answers with the prompt's tokens too, and from then on tokens are sent,
    so every step continues exactly what was sampled. `delimiters` end a step. `min_version`: the oldest weights.
    """

    def __init__(
        self, caller: Caller, queue: str, delimiters: Sequence[str], temperature: float, min_version: int = 0
    ) -> None:
        self._caller, self._queue, self._min_version = caller, queue, min_version
        self._delimiters, self._temperature = list(delimiters), temperature

    async def draw(self, requests: Sequence[Draw]) -> list[list[Step]]:
        return list(await asyncio.gather(*(self._one(request) for request in requests)))

    async def _one(self, request: Draw) -> list[Step]:
        """In requests of `TOGETHER` samples, so that a draw may be wider than one generator's batch."""
        counts = [min(TOGETHER, request.count - at) for at in range(0, request.count, TOGETHER)]
        parts = [
            dataclasses.replace(request, count=count, seed=(request.seed + number * SEED_STRIDE) % (1 << 63))
            for number, count in enumerate(counts)
        ]
        return list(itertools.chain.from_iterable(await asyncio.gather(*map(self._asked, parts))))

    async def _asked(self, request: Draw) -> list[Step]:
        asked: Asked = request.prompt
        group = m.Group(
            asked.record,
            m.Sampling(
                samples=request.count,
                max_new_tokens=request.max_new_tokens,
                temperature=self._temperature,
                stop=[] if request.whole else self._delimiters,
                seed=request.seed,
            ),
            min_version=self._min_version,
            system=asked.system,
            prefix=asked.prefix,
        )
        given: codec.Arrays = {}
        if asked.token_ids is not None:
            given = {"prompt_ids": np.array([*asked.token_ids, *request.token_ids], np.int32)}
        answered, arrays = codec.unpack(await self._caller.call(asked, group, given, [self._queue]))
        assert isinstance(answered, m.Group)
        if asked.token_ids is None:
            asked.token_ids = arrays["prompt_ids"].tolist()
        return self._steps(answered, arrays, request.whole)

    def _steps(self, group: m.Group, arrays: codec.Arrays, whole: bool) -> list[Step]:
        steps, at = [], 0
        for completion, length in zip(group.completions, arrays["lengths"].tolist(), strict=True):
            here = slice(at, at + length)
            ended = completion.finish == "stop" and not any(mark in completion.text for mark in self._delimiters)
            steps.append(
                Step(
                    completion.text,
                    tuple(arrays["completion_ids"][here].tolist()),
                    tuple(arrays["behaviour_logprobs"][here].tolist()),
                    final=whole or ended,
                    versions=tuple(arrays["versions"][here].tolist()),
                )
            )
            at += length
        return steps


class PoolJudge:
    """A `Judge` over verifier pools: each dimension is a verifier of the route, its score scaled to [0, 1].

    A prefix goes as a completion that ended by length. A verdict that is missing, or is not `ok`, leaves the prefix without a score.
    """

    def __init__(self, caller: Caller, route: Sequence[str], dimensions: Mapping[str, str]) -> None:
        self._caller, self._route, self._dimensions = caller, list(route), dict(dimensions)

    async def judge(self, requests: Sequence[Judgement]) -> list[Mapping[str, float] | None]:
        together: dict[int, list[int]] = {}
        for place, request in enumerate(requests):
            together.setdefault(id(request.prompt), []).append(place)
        found: list[Mapping[str, float] | None] = [None] * len(requests)
        places = list(together.values())
        judged = await asyncio.gather(*(self._of_one([requests[place] for place in each]) for each in places))
        for each, scores in zip(places, judged, strict=True):
            for place, score in zip(each, scores, strict=True):
                found[place] = score
        return found

    async def _of_one(self, requests: Sequence[Judgement]) -> list[Mapping[str, float] | None]:
        """Of one question: prefixes travel together, equal ones once."""
        asked: Asked = requests[0].prompt
        texts = {request.text: request.final for request in requests}
        completions = [m.Completion(text, "stop" if final else "length") for text, final in texts.items()]
        group = m.Group(
            asked.record, m.Sampling(samples=len(completions)), prefix=asked.prefix, completions=completions
        )
        answered, _ = codec.unpack(await self._caller.call(asked, group, {}, self._route))
        assert isinstance(answered, m.Group)
        scores = {text: self._scores(answered.verdicts, sample) for sample, text in enumerate(texts)}
        return [scores[request.text] for request in requests]

    def _scores(self, verdicts: Sequence[m.Verdict], sample: int) -> dict[str, float] | None:
        found = {}
        for dimension, verifier in self._dimensions.items():
            own = [verdict for verdict in verdicts if verdict.sample == sample and verdict.verifier == verifier]
            if not own or any(verdict.status != "ok" or verdict.score is None for verdict in own):
                return None
            found[dimension] = min((v.score - v.low) / (v.high - v.low) for v in own if v.score is not None)
        return found
