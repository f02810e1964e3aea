"""What the logs tell of one process: its states, its versions, what it was busy with and how much it made."""

from __future__ import annotations

from collections import deque
from typing import Final

from safeladder.launch.view.series import Changes, Covered, Timeline

WAITING: Final = "waiting"
STATES_KEPT: Final = 256


class ProcessView:
    """name: `role/replica`. Times are seconds since the epoch."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.states: deque[tuple[float, str, str]] = deque(maxlen=STATES_KEPT)  # when, state, why
        self.activities: dict[str, Timeline] = {}
        self.busy, self.tokens, self.works = Timeline(), Timeline(), Timeline()
        self.version = Changes()
        self.began: float | None = None  # first and last moment of which the log tells
        self.ended: float | None = None
        self.logs_work = False
        self.handled: int | None = None
        self.credit: int | None = None
        self.wire_s = 0.0
        self.restarts = 0
        self._covered = Covered()

    @property
    def role(self) -> str:
        return self.name.partition("/")[0]

    def change(self, at: float, state: str, why: str = "") -> None:
        self.seen(at)
        self.states.append((at, state, why))

    def seen(self, at: float) -> None:
        if self.began is None or at < self.began:
            self.began = at
        if self.ended is None or at > self.ended:
            self.ended = at

    def did(self, activity: str, begin: float, end: float) -> None:
        """A stretch of an activity. Several at a time count once towards `busy`; waiting does not count."""
        self.seen(end)
        timeline = self.activities.get(activity)
        if timeline is None:
            timeline = self.activities[activity] = Timeline()
        if activity == WAITING:
            timeline.add(begin, end, end - begin)
            return
        self.logs_work = True
        for stretch in self._covered.add(begin, end):
            timeline.add(*stretch, stretch[1] - stretch[0])
            self.busy.add(*stretch, stretch[1] - stretch[0])

    def state(self, moment: float | None = None) -> tuple[str, str]:
        """(state, why) at a moment, or at the end of the log."""
        for at, state, why in reversed(self.states):
            if moment is None or at <= moment:
                return state, why
        return "not started", ""

    def busy_share(self, begin: float, end: float) -> float | None:
        """Part of a stretch of time spent at work, 0 to 1; None where this process does not log its work."""
        if not self.logs_work or end <= begin:
            return None
        return min(1.0, self.busy.total(begin, end) / (end - begin))
