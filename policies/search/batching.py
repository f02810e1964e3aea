"""Requests of many searches, answered together.

Searches run as coroutines. When all of them are waiting for something, whoever asked for draws is served by one call of the sampler, and
likewise for the judge: a batch closes once the event loop has run every search as far as it can go by itself. What gates a request is
hence nothing but the call before it; an exception of a call reaches all who were in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, TypeVar

from safeladder.policies.search.base import Draw, Judge, Judgement, Sampler
from safeladder.policies.search.tree import Step

Request = TypeVar("Request")
Response = TypeVar("Response")
SETTLING_TURNS = 3  # of the event loop: a search that was just answered asks again within so many


class _Gatherer(Generic[Request, Response]):
    """Puts the request lists of concurrent callers together and their answers apart again."""

    def __init__(self, call: Callable[[Sequence[Request]], Awaitable[list[Response]]], most: int) -> None:
        self._call, self._most = call, most
        self._waiting: list[tuple[Sequence[Request], asyncio.Future[list[Response]]]] = []
        self._serving: asyncio.Task[None] | None = None

    async def ask(self, requests: Sequence[Request]) -> list[Response]:
        answered: asyncio.Future[list[Response]] = asyncio.get_running_loop().create_future()
        self._waiting.append((requests, answered))
        if self._serving is None or self._serving.done():
            self._serving = asyncio.create_task(self._serve())
        return await answered

    async def _serve(self) -> None:
        while self._waiting:
            for _ in range(SETTLING_TURNS):
                await asyncio.sleep(0)
            batch = self._next_batch()
            requests = [request for each, _ in batch for request in each]
            call = asyncio.ensure_future(self._call(requests))
            await asyncio.wait({call})
            if (error := call.exception()) is not None:
                for _, answered in batch:
                    if not answered.done():
                        answered.set_exception(error)
                continue
            answers = call.result()
            at = 0
            for each, answered in batch:
                if not answered.done():
                    answered.set_result(answers[at : at + len(each)])
                at += len(each)

    def _next_batch(self) -> list[tuple[Sequence[Request], asyncio.Future[list[Response]]]]:
        """Callers in order, at least one, at most `most` requests together."""
        size, count = 0, 0
        for requests, _ in self._waiting:
            if count and size + len(requests) > self._most:
                break
            size, count = size + len(requests), count + 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch


class BatchedSampler:
    """A sampler for many searches at once over one that likes large batches."""

    def __init__(self, sampler: Sampler, most: int = 1024) -> None:
        self._gatherer: _Gatherer[Draw, list[Step]] = _Gatherer(sampler.draw, most)

    async def draw(self, requests: Sequence[Draw]) -> list[list[Step]]:
        return await self._gatherer.ask(requests)


class BatchedJudge:
    """A judge for many searches at once over one that likes large batches."""

    def __init__(self, judge: Judge, most: int = 1024) -> None:
        self._gatherer: _Gatherer[Judgement, Mapping[str, float] | None] = _Gatherer(judge.judge, most)

    async def judge(self, requests: Sequence[Judgement]) -> list[Mapping[str, float] | None]:
        return await self._gatherer.ask(requests)
