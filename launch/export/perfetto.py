"""A trace file for ui.perfetto.dev and chrome://tracing, in the JSON format that both read (`Trace Event Format`).

    process             a process of the run, its rows numbered: as many leases as it holds at once
    slice               a lease, or of the learner the phases of its step and its checkpoints
    arrow               from each stop of a work to the next
    counter             works that wait in a queue; leases of a process; figures of the training
    flag                a warning

Times are microseconds since the first event. The file is written as the events come and is whole after `close`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

import msgspec

from safeladder.launch.config import ConfigError
from safeladder.launch.events import Event, seconds
from safeladder.launch.export.leases import Lease, Leases

STEPS: Final = 0  # the row of a process's own phases; those of its leases begin at 1
FIGURES: Final = ("reward_mean", "unsafe_rate", "kl", "entropy", "ess", "tokens_per_s")
_CATEGORY: Final = "lease"


class PerfettoSink:
    """target: the file."""

    LIVE_TARGET: ClassVar[str | None] = None

    def __init__(self, run: str, target: str) -> None:
        try:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            self._file = Path(target).open("wb")  # noqa: SIM115 - until `close`
        except OSError as error:
            raise ConfigError(f"{target}: cannot be written: {error.strerror}") from None
        self._file.write(b'{"displayTimeUnit":"ms","otherData":%s,"traceEvents":[' % msgspec.json.encode({"run": run}))
        self._comma = b"\n"
        self._zero: float | None = None
        self._processes: dict[str, int] = {}
        self._rows = _Rows()
        self._flows: dict[str, int] = {}  # work -> number of its arrows
        self._works = 0
        self._leases = Leases()
        self._last = 0.0

    def take(self, event: Event) -> None:
        at = seconds(event)
        if self._zero is None:
            self._zero = at
        self._last = max(self._last, at)
        match event.get("event"):
            case "work.hops":
                for lease, begins in self._leases.take(event):
                    if begins:
                        self._rows.take(lease)
                    else:
                        self._lease(lease)
            case "hub.status":
                self._state(at, event)
            case "step.completed" if "step_s" in event:
                self._step(at, event)
            case "checkpoint.committed" if event.get("seconds"):
                self._slice(_speaker(event), STEPS, "save", at - event["seconds"], at, {"step": event["step"]})
            case "weights.loaded":
                self._write("i", _speaker(event), STEPS, at, name=f"weights {event['version']}", s="t")
        if event.get("level") in ("warning", "error"):
            said = {key: event[key] for key in ("reason", "error", "found", "advice") if event.get(key)}
            self._write("i", _speaker(event), STEPS, at, name=str(event.get("event")), s="p", args=said)

    def close(self) -> None:
        for lease in self._leases.held():  # as far as the logs tell
            lease.end, lease.ended = self._last, "held"
            self._lease(lease)
        self._file.write(b"\n]}\n")
        self._file.close()

    def _lease(self, lease: Lease) -> None:
        row = self._rows.leave(lease)
        about = {"work": lease.id, "waited_s": round(lease.begin - lease.waited_from, 3), "ended": lease.ended}
        about |= {"attempt": lease.attempt} if lease.attempt > 1 else {}
        about |= {"reason": lease.reason} if lease.reason else {}
        self._slice(lease.process, row, lease.id, lease.begin, lease.end, about)
        number = self._flows.get(lease.id)
        if number is None:
            self._works += 1
            number = self._flows[lease.id] = self._works
            if not lease.closes:
                self._arrow("s", lease, row, number)
        else:
            self._arrow("f" if lease.closes else "t", lease, row, number)
        if lease.closes:
            del self._flows[lease.id]

    def _arrow(self, phase: str, lease: Lease, row: int, number: int) -> None:
        """Bound to the slice that is there at its time."""
        extra = {"bp": "e"} if phase != "s" else {}
        self._write(phase, lease.process, row, lease.begin, name="work", cat=_CATEGORY, id=number, **extra)

    def _step(self, at: float, event: Event) -> None:
        learner, step = _speaker(event), event["step"]
        begin = at - event["step_s"]
        trains, publishes = begin + event["wait_s"], at - event["publish_s"]
        for name, since, until in (("wait", begin, trains), ("train", trains, publishes), ("publish", publishes, at)):
            if until > since:
                self._slice(learner, STEPS, f"{name} {step}", since, until, {"version": event["version"]})
        for figure in FIGURES:
            self._counter(learner, at, figure, event.get(figure))

    def _state(self, at: float, event: Event) -> None:
        for queue, depth in event["waiting"].items():
            self._counter(_speaker(event), at, f"waiting in {queue}", depth)
        for name, worker in event["workers"].items():
            if worker["queues"]:
                self._counter(name, at, "leases", worker["leases"])

    def _counter(self, process: str, at: float, name: str, value: float | None) -> None:
        if value is not None:
            self._write("C", process, STEPS, at, name=name, args={"value": value})

    def _slice(self, process: str, row: int, name: str, begin: float, end: float, about: Mapping[str, Any]) -> None:
        length = round(1e6 * max(0.0, end - begin), 1)
        self._write("X", process, row, begin, name=name, cat=_CATEGORY if row else "phase", dur=length, args=about)

    def _write(self, phase: str, process: str, row: int, at: float, **fields: Any) -> None:
        number = self._processes.get(process)
        if number is None:
            number = self._processes[process] = len(self._processes) + 1
            self._put({"ph": "M", "pid": number, "tid": STEPS, "name": "process_name", "args": {"name": process}})
        since = round(1e6 * (at - (self._zero or 0.0)), 1)
        self._put({"ph": phase, "pid": number, "tid": row, "ts": since, **fields})

    def _put(self, entry: Mapping[str, Any]) -> None:
        self._file.write(self._comma + msgspec.json.encode(entry))
        self._comma = b",\n"


class _Rows:
    """Which row of its process a lease has: the lowest that is free, so that no two slices of a row overlap."""

    def __init__(self) -> None:
        self._taken: dict[str, dict[int, str]] = {}  # process -> row -> work

    def take(self, lease: Lease) -> None:
        rows = self._taken.setdefault(lease.process, {})
        row = 1
        while row in rows:
            row += 1
        rows[row] = lease.id

    def leave(self, lease: Lease) -> int:
        rows = self._taken[lease.process]
        row = next(row for row, work in rows.items() if work == lease.id)
        del rows[row]
        return row


def _speaker(event: Event) -> str:
    return f"{event.get('role')}/{event.get('replica')}"
