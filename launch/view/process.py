"""What the logs tell of one process: its states, its versions, what it was busy with and how much it made."""

from __future__ import annotations

from array import array
from collections import deque
from typing import Final

import numpy as np

from safeladder.launch.view.series import BATCH, Changes, Timeline, Worked

WAITING: Final = "waiting"
GENERATING: Final = "generating"
ACTIVITIES: Final = (GENERATING, WAITING, "training", "publishing", "saving", "loading weights", "working")
CODES: Final = {name: code for code, name in enumerate(ACTIVITIES)}
STATES_KEPT: Final = 256
LENGTH_BINS: Final = 64


class Histogram:
    """Counts of lengths in bins whose width doubles when a length is beyond the last one."""

    def __init__(self) -> None:
        self.width = 8
        self.counts = np.zeros(LENGTH_BINS, np.int64)

    def add(self, lengths: np.typing.NDArray[np.int64]) -> None:
        """[n], each 0 or more."""
        while len(lengths) and lengths.max() >= self.width * LENGTH_BINS:
            pairs = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.concatenate([pairs, np.zeros(LENGTH_BINS // 2, np.int64)])
            self.width *= 2
        self.counts += np.bincount(lengths // self.width, minlength=LENGTH_BINS)


class ProcessView:
    """name: `role/replica`. Times are seconds since the epoch; began, ended: first and last moment of which the log tells."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.states: deque[tuple[float, str, str]] = deque(maxlen=STATES_KEPT)  # when, state, why
        self.version = Changes()
        self.queues: list[str] = []  # as the hub told last
        self.leases, self.credits = Changes(), Changes()
        self.handled: int | None = None
        self.credit: int | None = None
        self.wire_s = 0.0
        self.restarts = 0
        self.codes: set[int] = set()
        self._activities: dict[str, Worked] = {}
        self._busy = Worked()  # all activities but waiting
        self._tokens, self._works = Timeline(), Timeline()
        self._lengths = Histogram()
        self._began, self._ended = np.inf, -np.inf
        self._fresh = array("d")

    @property
    def role(self) -> str:
        return self.name.partition("/")[0]

    def change(self, at: float, state: str, why: str = "") -> None:
        self.seen(at)
        self.states.append((at, state, why))

    def seen(self, at: float) -> None:
        self._began, self._ended = min(self._began, at), max(self._ended, at)

    def did(self, activity: str, begin: float, end: float, tokens: float = 0.0, works: float = 0.0) -> None:
        """A stretch of an activity, and what came of it. Several at a time count once."""
        self._fresh.extend((CODES[activity], begin, end, tokens, works))
        if len(self._fresh) >= 5 * BATCH:
            self._settle()

    def did_all(self, rows: bytes) -> None:
        """float64 [n, 5]: code of the activity, begin, end, tokens, works."""
        self._fresh.frombytes(rows)
        if len(self._fresh) >= 5 * BATCH:
            self._settle()

    def state(self, moment: float | None = None) -> tuple[str, str]:
        """(state, why) at a moment, or at the end of the log."""
        known = [change for change in reversed(self.states) if moment is None or change[0] <= moment]
        if not known:
            return ("not started", "") if self.states else ("unknown", "")
        return max(known, key=lambda change: change[0])[
            1:
        ]  # the launcher's log tells of others, so they are not in order

    @property
    def began(self) -> float | None:
        self._settle()
        return self._began if np.isfinite(self._began) else None

    @property
    def ended(self) -> float | None:
        self._settle()
        return self._ended if np.isfinite(self._ended) else None

    @property
    def activities(self) -> dict[str, Worked]:
        """By name, in a fixed order; only those that occurred."""
        self._settle()
        return {name: self._activities[name] for name in ACTIVITIES if name in self._activities}

    @property
    def busy(self) -> Worked | None:
        """Time at work; None where this process does not log its work."""
        self._settle()
        return self._busy if any(name != WAITING for name in self._activities) else None

    @property
    def tokens(self) -> Timeline:
        self._settle()
        return self._tokens

    @property
    def works(self) -> Timeline:
        self._settle()
        return self._works

    @property
    def lengths(self) -> Histogram:
        """Tokens of the groups that it generated."""
        self._settle()
        return self._lengths

    def busy_share(self, begin: float, end: float) -> float | None:
        """Part of a stretch of time spent at work, 0 to 1; None where this process does not log its work."""
        busy = self.busy
        return None if busy is None or end <= begin else min(1.0, busy.total(begin, end) / (end - begin))

    def _settle(self) -> None:
        if not self._fresh:
            return
        codes, begins, ends, tokens, works = np.array(self._fresh).reshape(-1, 5).T
        self._fresh = array("d")
        self._began, self._ended = min(self._began, float(begins.min())), max(self._ended, float(ends.max()))
        for code in np.unique(codes):
            name, mine = ACTIVITIES[int(code)], codes == code
            self._activities.setdefault(name, Worked()).work(begins[mine], ends[mine])
        work = codes != CODES[WAITING]
        self._busy.work(begins[work], ends[work])
        for timeline, amounts in ((self._tokens, tokens), (self._works, works)):
            made = amounts > 0
            timeline.add(begins[made], ends[made], amounts[made])
        self._lengths.add(tokens[codes == CODES[GENERATING]].astype(np.int64))
