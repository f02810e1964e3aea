"""What a search may spend, and what it has spent. All three limits count drawing and judging alike; None is no limit.

A search asks before each round and ends with the best that it has. A round that was begun is finished, so `seconds` may be passed by
one round and `tokens` never (a draw is cut to what is left).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Budget:
    """`tokens`: sampled tokens. `calls`: draws and judgements, each of any number of branches. `seconds`: wall time."""

    tokens: int | None = None
    calls: int | None = None
    seconds: float | None = None


@dataclass
class Spent:
    """The running account of one search."""

    budget: Budget
    clock: Callable[[], float] = time.monotonic
    tokens: int = 0
    calls: int = 0
    began: float = field(init=False)

    def __post_init__(self) -> None:
        self.began = self.clock()

    @property
    def seconds(self) -> float:
        return self.clock() - self.began

    def over(self) -> str | None:
        """Which limit is used up, or None."""
        budget = self.budget
        if budget.tokens is not None and self.tokens >= budget.tokens:
            return "tokens"
        if budget.calls is not None and self.calls >= budget.calls:
            return "calls"
        if budget.seconds is not None and self.seconds >= budget.seconds:
            return "seconds"
        return None

    def allowance(self, branches: int, wanted: int) -> int:
        """Tokens that each of `branches` draws may have, at most `wanted`; 0 when not even one is left for each."""
        if self.budget.tokens is None:
            return wanted
        return max(0, min(wanted, (self.budget.tokens - self.tokens) // max(1, branches)))
