"""A request on its way through the stepper: its samples as rows of the batch, and what is new of each."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from safeladder.policies.engines.base import Chunk, Finish, GeneratedSequence
from safeladder.protocol.messages import LANES, Lane, Sampling

if TYPE_CHECKING:
    from safeladder.policies.vision import Picture


@dataclass(slots=True, eq=False)
class Row:
    """One sample in the making. All its tokens but the newest stand in the cache.

    sent: tokens that the reader has, those that it began with included. current: whether the weights of now made all
    that the cache holds of this row, so that others may use it.
    """

    request: Request
    sample: int
    sequence: GeneratedSequence = field(default_factory=GeneratedSequence)
    sent: int = 0
    done: bool = False
    told: bool = False
    current: bool = True

    @property
    def cached(self) -> int:
        """Tokens in the cache, which is also the position id of the newest token."""
        return len(self.request.prompt_ids) + len(self.sequence.token_ids) - 1

    @property
    def cached_ids(self) -> list[int]:
        return self.request.prompt_ids + self.sequence.token_ids[:-1]

    def end(self, finish: Finish) -> None:
        self.sequence.finish, self.done = finish, True

    def news(self) -> Chunk | None:
        """What the reader has not got yet, once."""
        ids, finish = self.sequence.token_ids, self.sequence.finish if self.done else None
        if self.told or (len(ids) == self.sent and finish is None):
            return None
        new = slice(self.sent, len(ids))
        self.sent, self.told = len(ids), self.done
        return Chunk(self.sample, ids[new], self.sequence.logprobs[new], self.sequence.versions[new], finish)


@dataclass(slots=True, eq=False)
class Request:
    """`begun`: what another engine made of the samples, see `Engine.stream`; one for each, or none at all. `pictures`: what the image
    tokens of `prompt_ids` name."""

    name: str
    prompt_ids: list[int]
    sampling: Sampling
    lane: Lane
    priority: int = 0
    begun: Sequence[GeneratedSequence] = ()
    pictures: Mapping[int, Picture] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rows = [Row(self, sample) for sample in range(self.sampling.samples)]
        for row, start in zip(self.rows, self.begun, strict=False):
            row.sequence.token_ids += start.token_ids
            row.sequence.logprobs += start.logprobs
            row.sequence.versions += start.versions
            row.sent = len(start.token_ids)
            if start.finish != "abort":
                row.end(start.finish)
            elif row.sent >= self.sampling.max_new_tokens:
                row.end("length")

    @property
    def longest(self) -> int:
        """Tokens of its longest row at the very end."""
        return len(self.prompt_ids) + self.sampling.max_new_tokens

    @property
    def sequences(self) -> list[GeneratedSequence]:
        return [row.sequence for row in self.rows]

    @property
    def going(self) -> list[Row]:
        return [row for row in self.rows if not row.done]

    def end(self, finish: Finish) -> None:
        """Marks every row that is still going as finished in this way."""
        for row in self.going:
            row.end(finish)

    def news(self) -> list[Chunk]:
        return [chunk for row in self.rows if (chunk := row.news()) is not None]


class Waiting:
    """Requests in the order in which they are served: by lane, then by priority, then first come first served."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, int, Request]] = []
        self._arrivals = itertools.count()

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[Request]:
        return (entry[-1] for entry in sorted(self._heap))

    def put(self, request: Request) -> None:
        place = LANES.index(request.lane), request.priority, next(self._arrivals)
        heapq.heappush(self._heap, (*place, request))

    def first(self) -> Request | None:
        return self._heap[0][-1] if self._heap else None

    def take(self) -> Request:
        return heapq.heappop(self._heap)[-1]

    def remove(self, request: Request) -> None:
        self._heap = [entry for entry in self._heap if entry[-1] is not request]
        heapq.heapify(self._heap)
