"""Warnings of a run, collected by kind, each with what to do about it."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct

KEEP: Final = 200  # kinds of warning; a run that has more shows the first ones
MAX_TEXT: Final = 400

# what a reader of the warning can do; an event's own field `advice` comes first
ADVICE: Final = {
    "connection.failed": "nothing if it happened while the run started; else see whether the hub's process runs (logs/hub-0.out)",
    "hub.silent": "see whether the hub's process runs, and whether its disk is full",
    "hub.refused": "the process and the hub disagree about schema, keys or name: the reason says which",
    "hub.unreachable": "the supervisor goes on without the hub's word; look into logs/hub-0.out",
    "learner.waiting": "look at the roles before the learner: the one that is busy while others wait needs replicas or threads",
    "run.stalled": "safeladder who-waits RUN says who waits for whom at this moment; its kinds are in docs/operations.md",
    "process.stalled": "its stacks are in logs/ROLE-I.out; raise the pool's stall_s if the work is only slow",
    "process.failed": "the last lines of logs/ROLE-I.out say why; the supervisor restarts within the pool's budget",
    "process.killed": "it did not end in time when asked; look for a blocking call in its stop()",
    "work.failed": "see its error; after hub.max_attempts it is set aside: safeladder dead RUN",
    "verdict.failed": "the samples are left out of their groups; raise the verifier's timeout_s, or look into its pool's log",
    "group.rejected": "a stop of its route did not deliver what the learner needs; the error names it",
    "group.skipped": "the group ended before it was complete; its reason names the stop",
    "group.begun_anew": "it could not be continued under the new weights; nothing is lost but time",
    "weights.refused": "the generator goes on with the version it has; compare its weights.key and engine with the learner's",
    "weights.no_shared_memory": "publications go to the run directory; give /dev/shm room for three of them if steps are slow",
    "drift.alarm": "compare the generator's dtype and engine version with the learner's",
    "staleness.violated": "a defect: keep the run directory and report it",
    "checkpoint.failed": "free disk space: the leases are kept until a checkpoint is written",
    "journal.blocked": "free space on the hub's disk; it tries again every second",
    "message.rejected": "a peer sent what is no message of this version; its name tells which",
    "engine.failed": "the engine's requests went back to the queue; its error is in the generator's log",
    "library.logged": "said by a library; most often harmless",
}
OTHERWISE: Final = "its line in the log has the details"


class Warned(Struct):
    """Warnings of one kind from one process. first, last: seconds since the epoch. text: what the newest said."""

    event: str
    process: str
    level: str
    count: int
    first: float
    last: float
    text: str
    advice: str


class Warnings:
    """At most `KEEP` kinds; `passed_over` counts the lines of others."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str], Warned] = {}
        self.passed_over = 0

    def take(self, at: float, process: str, event: dict[str, Any]) -> None:
        name, level = str(event.get("event")), str(event.get("level"))
        if rule := event.get("rule"):  # of `health.warning`: each rule is a kind of its own
            name = f"{name} {rule}"
        known = self._kinds.get((name, process))
        if known is None:
            if len(self._kinds) >= KEEP:
                self.passed_over += 1
                return
            advice = str(event.get("advice") or ADVICE.get(name, OTHERWISE))[:MAX_TEXT]
            known = self._kinds[name, process] = Warned(name, process, level, 0, at, at, "", advice)
        known.count += 1
        known.level, known.last, known.text = level, at, _text(event)

    def until(self, moment: float | None = None) -> list[Warned]:
        """Those that had been said by a moment, errors first, then the newest. Counts are those of the whole log."""
        said = [kind for kind in self._kinds.values() if moment is None or kind.first <= moment]
        return sorted(said, key=lambda kind: (kind.level != "error", -kind.last))


_HEAD = {
    "ts",
    "mono_ns",
    "level",
    "event",
    "run",
    "role",
    "replica",
    "boot",
    "pid",
    "seq",
    "advice",
    "trace",
    "exc_info",
}


def _text(event: dict[str, Any]) -> str:
    for key in ("reason", "error", "message", "found", "cause"):
        if event.get(key):
            return str(event[key])[:MAX_TEXT]
    parts = [
        f"{key} {value if isinstance(value, str) else msgspec.json.encode(value).decode()}"
        for key, value in event.items()
        if key not in _HEAD
    ]
    return ", ".join(parts)[:MAX_TEXT]
