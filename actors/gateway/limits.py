"""How much the gateway takes on: requests at work, and requests a minute of each owner. What is beyond is told when to come again.

Nothing waits here: a request is at work or refused at once, so that a client's own time-outs and retries mean what they say. The pools
queue what is at work, by lane.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass


class Overloaded(Exception):
    """Come again in `retry_after_s` seconds; says which limit was reached."""

    def __init__(self, reason: str, retry_after_s: float) -> None:
        super().__init__(reason)
        self.retry_after_s = max(1, math.ceil(retry_after_s))


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class Place:
    """One request's place among those at work, until `leave`, which may be called twice."""

    def __init__(self, leave: Callable[[], None]) -> None:
        self._at_end = [leave]

    def at_end(self, act: Callable[[], None]) -> None:
        """Something else to do when the request is no longer at work."""
        self._at_end.append(act)

    def leave(self) -> None:
        while self._at_end:
            self._at_end.pop()()


class Admission:
    """Counts the requests at work. `most`: at once. `per_minute`: of one owner, None for no limit; as many may come in one go."""

    def __init__(self, most: int, per_minute: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.most, self.per_minute, self._clock = most, per_minute, clock
        self.working = 0
        self._buckets: dict[str, _Bucket] = {}
        self._seconds = 1.0  # how long a request takes, the recent ones weighing most

    def enter(self, owner: str) -> Place:
        """A place for a request of `owner`. Raises Overloaded."""
        now = self._clock()
        if self.working >= self.most:
            # places become free evenly over the time that a request takes; half of it is worth a try
            raise Overloaded(f"{self.most} requests are at work already", self._seconds / 2)
        self._take(owner, now)
        self.working += 1
        return Place(lambda: self._left(now))

    def _take(self, owner: str, now: float) -> None:
        if self.per_minute is None:
            return
        bucket = self._buckets.setdefault(owner, _Bucket(self.per_minute, now))
        bucket.tokens = min(self.per_minute, bucket.tokens + (now - bucket.at) * self.per_minute / 60)
        bucket.at = now
        if bucket.tokens < 1:
            raise Overloaded(
                f"{self.per_minute} requests a minute is the limit", (1 - bucket.tokens) * 60 / self.per_minute
            )
        bucket.tokens -= 1

    def _left(self, since: float) -> None:
        self.working -= 1
        self._seconds += 0.1 * (self._clock() - since - self._seconds)
