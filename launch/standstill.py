"""Sees from the stream of events that a run stands still, and says so once, with the wait graph, within a bounded time.

Something moves when the hub's counters of accepted and done works do, when a process that is at a work makes progress, or when the
learner makes a step. What counts as too long without any of it:

    a queue with works and no process, a blocked or silent hub, nobody at work     QUIET_S
    a process is stuck, or in a long piece of work: nobody can tell                QUIET_S, or three times the longest pause that
                                                                                   has ended by itself, if that is more
    the learner computes                                                           the same, with COMPUTING_S for QUIET_S
    before the first work is done (models are being loaded)                        START_S

So the report is in the log at most 2 s (the next `hub.status`) and a beat after that. The bounds are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from safeladder.launch.events import Event, seconds
from safeladder.launch.waits import BUSY_S, Layout, Waits, diagnose

QUIET_S: Final = 6.0
COMPUTING_S: Final = 30.0
START_S: Final = 60.0
PATIENCE: Final = 3.0
_MOVES: Final = ("accepted", "done")
_LEARNER: Final = ("step.completed", "checkpoint.committed", "group.trained")
_ENDING: Final = ("run.stopping", "run.draining", "run.finished", "run.killed")

Said = tuple[str, dict[str, Any]]


class Standstill:
    """Fed with every event of a run; `look` gives what is to be said now. Times are those of the lines, in seconds."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.status: Mapping[str, Any] | None = None
        self._status_at = self._moved_at = 0.0
        self._counts: tuple[int, ...] = ()
        self._moved = self._ending = self._helped = False
        self._blocked: str | None = None
        self._longest = 0.0
        self._missing_since: float | None = None
        self._said_at: float | None = None

    def note(self, event: Event) -> None:
        now = seconds(event)
        match event.get("event"):
            case "run.started":
                self._ending, self._moved, self._said_at, self.status = False, False, None, None
                self._moved_at = self._status_at = now
            case "hub.status" if not self._ending:  # how it was before everybody was told to go
                self._note_status(event, now)
            case "journal.blocked":
                self._blocked = str(event["error"])
            case "process.stalled":  # the supervisor ends this pause: it says nothing of how long they are
                self._helped = True
            case name if name in _LEARNER:
                self._move(now)
            case name if name in _ENDING:
                self._ending = True

    def waits(self, now: float) -> Waits | None:
        """The wait graph as of now, or as of when the run began to end; None before the hub's first word."""
        if self.status is None:
            return None
        silent_s = 0.0 if self._ending else now - self._status_at
        return diagnose(self.status, self._layout, silent_s, self._blocked)

    def look(self, now: float) -> Iterator[Said]:
        """run.stalled once a standstill, run.moving at its end."""
        waits = None if self._ending else self.waits(now)
        if waits is None:
            return
        still = now - self._moved_at
        if self._orphaned(waits, now):
            still = max(still, now - (self._missing_since or now))
        elif self._said_at is not None and still < QUIET_S:
            yield "run.moving", {"seconds": round(now - self._said_at, 1)}
            self._said_at = None
        if self._said_at is None and still > self._bound(waits):
            self._said_at = now - still
            fields = {"kind": waits.kind, "cause": waits.cause, "waits": waits.waits}
            yield "run.stalled", {"seconds": round(still, 1), **fields}

    def _bound(self, waits: Waits) -> float:
        if waits.kind == "blocked":
            return QUIET_S
        if not self._moved:
            return START_S
        least = COMPUTING_S if waits.kind == "computing" else QUIET_S
        return max(least, PATIENCE * self._longest) if waits.kind in ("computing", "stuck") else QUIET_S

    def _orphaned(self, waits: Waits, now: float) -> bool:
        """Works wait for nobody, whatever else moves."""
        if waits.kind != "missing" or not self._moved:
            self._missing_since = None
            return False
        self._missing_since = now if self._missing_since is None else self._missing_since
        return True

    def _note_status(self, event: Event, now: float) -> None:
        counters = event["counters"]
        counts = tuple(counters.get(name, 0) for name in _MOVES)
        at_work = [w for w in event["workers"].values() if w["busy_s"] > 0 and w["progress_s"] < BUSY_S]
        if self.status is None:
            self._moved_at = now
        elif (counts != self._counts or at_work) and (self._moved or counts[1]):
            self._move(now)
        self.status, self._status_at, self._counts, self._blocked = event, now, counts, None

    def _move(self, now: float) -> None:
        if self._moved and not self._helped:
            self._longest = max(self._longest, now - self._moved_at)
        self._helped = False
        self._moved, self._moved_at = True, max(now, self._moved_at)
