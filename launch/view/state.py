"""A run as its logs tell it: events in, state out. Memory does not grow with the log but by a row of figures a step."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from safeladder.launch.view import readers, records
from safeladder.launch.view.advice import Warnings
from safeladder.launch.view.digest import Digest, Digester, Slow, keep_slowest
from safeladder.launch.view.judged import Judged
from safeladder.launch.view.lines import Lines
from safeladder.launch.view.process import WAITING, ProcessView
from safeladder.launch.view.series import Changes, Table

STATES_AT_FULL: Final = 256 << 20  # bytes of a log up to which each line of the hub's state is decoded
AGES: Final = 32  # ages of 31 and more are counted together
MAX_PROCESSES: Final = 4096

_STATES: Final = {
    "process.started": "starting",
    "process.restarted": "restarting",
    "actor.ready": "ready",
    "process.finished": "finished",
    "process.exited": "exited",
    "process.failed": "failed",
    "process.stalled": "stalled",
}
_ENDED: Final = ("exited", "failed")
Handler = tuple[Callable[[bytes], Any], Callable[[Any], None]]  # decodes a line, takes in what it says
_RUN: Final = ("run.started", "run.draining", "run.stopping", "run.finished", "run.killed")


class RunView:
    """The state of the run in `path` (a run directory). `read` takes in what its logs have gained since the last call."""

    def __init__(self, path: Path, texts: bool = False) -> None:
        """texts: keep prompts and answers of a sample of the groups, where the run has logged them."""
        self.path = path
        self.judged = Judged(texts)
        self.steps = Table(records.FIGURES)
        self.steps_asked: int | None = None
        self.processes: dict[str, ProcessView] = {}
        self.warnings = Warnings()
        self.dead: int | None = None  # works set aside, as the hub said last
        self.waiting: dict[str, Changes] = {}  # queue -> works that waited in it
        self.run_state, self.run_reason = "no log yet", ""
        self._began, self._ended = math.inf, -math.inf
        self.unreadable = 0  # lines that were no event, or not of the shape their name promises
        self.dropped: Counter[str] = Counter()
        self.failed_verdicts: Counter[tuple[str, str]] = Counter()  # (verifier, status)
        self._ages: list[bytes] = []
        self._slowest: list[Slow] = []
        self._any = msgspec.json.Decoder(dict[str, Any])
        self._speakers: dict[tuple[str, int], ProcessView] = {}
        self._handlers = self._table()
        self.lines = 0
        self._lines = Lines(path / "logs")
        self._digester = Digester(self._handlers)

    def read(self, on_progress: Callable[[float], None] | None = None) -> None:
        """Takes in the new lines. on_progress is told the share that has been read, now and then. Raises ReadersError."""
        size, done = self._lines.fresh_bytes(), 0
        for digest in self._digests(size):
            self._take(digest)
            done += digest.size
            if on_progress:
                on_progress(min(1.0, done / max(1, size)))

    def _digests(self, size: int) -> Iterator[Digest]:
        if size < readers.WORTHWHILE:
            for piece in self._lines.pieces():
                yield self._digester.digest(piece.read(), self.judged.bar)
        else:
            stride = 1 + size // STATES_AT_FULL  # beyond that, more states than `Changes` keeps
            yield from readers.digests(self._lines.pieces(), list(self._handlers), stride, lambda: self.judged.bar)

    def _take(self, digest: Digest) -> None:
        self.lines += digest.lines
        self.unreadable += digest.unreadable
        for told in digest.told:
            try:
                if told.loud:
                    self._warning(self._any.decode(told.line))
                if told.event:
                    decode, take = self._handlers[told.event]
                    take(decode(told.line))
            except (msgspec.DecodeError, ValueError, OverflowError, KeyError):
                self.unreadable += 1
        self._take_status(digest)
        for name, rows in digest.did.items():
            self.process(name).did_all(rows)
        for name, pairs in digest.versions.items():
            self.process(name).version.set_all(pairs)
        for row in digest.slowest:
            keep_slowest(self._slowest, row)

    def _take_status(self, digest: Digest) -> None:
        """What the hub has told every two seconds: it grows to a few thousand changes a worker, and no further."""
        if digest.span is None:
            return
        for at in digest.span:
            self._time(at)
        self.dead = digest.dead
        for queue, pairs in digest.depths.items():
            self.waiting.setdefault(queue, Changes()).set_all(pairs)
        for name, queues in digest.queues.items():
            process = self.process(name)
            process.queues = queues
            process.leases.set_all(digest.leases[name])
            process.credits.set_all(digest.credits[name])

    @property
    def slowest(self) -> list[Slow]:
        """Groups that took longest to generate, slowest first."""
        return sorted(self._slowest, reverse=True)

    def ages(self, rows: int | None = None, last: int | None = None) -> list[int]:
        """Groups trained at each age in steps, over the first `rows` steps, or the `last` ones of these."""
        chosen = self._ages[: rows if rows is not None else len(self._ages)]
        chosen = chosen[-last:] if last else chosen
        counts: Counter[int] = Counter(age for ages in chosen for age in ages)
        return [counts[age] for age in range(max(counts, default=-1) + 1)]

    def rows_until(self, moment: float | None) -> int:
        """Steps completed by a moment."""
        return len(self.steps) if moment is None else int(np.searchsorted(self.steps.times, moment, side="right"))

    @property
    def span(self) -> tuple[float, float]:
        """First and last moment of which the logs tell, in seconds since the epoch; (0, 0) for empty logs."""
        begins = [process.began for process in self.processes.values() if process.began is not None]
        ends = [process.ended for process in self.processes.values() if process.ended is not None]
        begin, end = min([*begins, self._began]), max([*ends, self._ended])
        return (begin, end) if begin <= end else (0.0, 0.0)

    def process(self, name: str) -> ProcessView:
        found = self.processes.get(name)
        if found is None:
            found = ProcessView(name)
            if len(self.processes) < MAX_PROCESSES:
                self.processes[name] = found
        return found

    def _speaker(self, line: records.Line) -> ProcessView:
        found = self._speakers.get((line.role, line.replica))
        if found is None:
            found = self._speakers[line.role, line.replica] = self.process(line.process)
        return found

    # ------------------------------------------------------------------------------------------------------- the events

    def _table(self) -> dict[bytes, Handler]:
        change, loaded, run = (records.decoder(kind) for kind in (records.Change, records.Loaded, records.RunChange))
        found: dict[bytes, Handler] = {
            b"step.completed": (records.decoder(records.Step), self._step),
            b"engine.started": (loaded, self._loaded),
            b"learner.ready": (loaded, self._loaded),
            b"checkpoint.committed": (records.decoder(records.Saved), self._saved),
            b"group.judged": (records.decoder(records.JudgedGroup), self._judged),
        }
        if self.judged.texts:
            found[b"group.texts"] = (records.decoder(records.Texts), self._told)
        found |= {name.encode(): (change, self._change) for name in _STATES}
        found |= {name.encode(): (run, self._run) for name in _RUN}
        return found

    def _time(self, at: float) -> float:
        self._began, self._ended = min(self._began, at), max(self._ended, at)
        return at

    def _step(self, step: records.Step) -> None:
        if step.kind is not None or step.step < 0:
            return
        at = self._time(step.at)
        self.steps_asked = step.steps or self.steps_asked
        named = {"family": step.families, "channel": step.channels}
        if step.constraints:
            named |= _of_constraints(step.constraints)
        self.steps.append(step.step, at, records.figures(step), named)
        del self._ages[len(self.steps) - 1 :]
        self._ages.append(bytes(min(max(0, age), AGES - 1) for age in step.staleness))
        if step.dropped:
            self.dropped.update(step.dropped)
        self._learned(step, at)

    def _learned(self, step: records.Step, at: float) -> None:
        learner, whole = self._speaker(step), step.step_s or 0.0
        waited, published = min(step.wait_s or 0.0, whole), min(step.publish_s or 0.0, whole)
        begin = at - whole
        if waited:
            learner.did(WAITING, begin, begin + waited)
        learner.did(
            "training", begin + waited, max(begin + waited, at - published), step.tokens or 0.0, step.groups or 0.0
        )
        if published:
            learner.did("publishing", at - published, at)
        if step.published is not None:
            learner.version.set(at, step.published)

    def _loaded(self, loaded: records.Loaded) -> None:
        process, at = self._speaker(loaded), loaded.at
        if loaded.version is not None:
            process.version.set(at, loaded.version)
        if loaded.seconds:
            process.did("loading weights", at - loaded.seconds, at)

    def _saved(self, saved: records.Saved) -> None:
        at = saved.at
        self._speaker(saved).did("saving", at - saved.seconds, at)

    def _judged(self, group: records.JudgedGroup) -> None:
        self.judged.judge(group.id, group.verdicts)

    def _told(self, group: records.Texts) -> None:
        self.judged.tell(group.id, group.prompt, group.answers)

    def _change(self, change: records.Change) -> None:
        at, process = self._time(change.at), self.process(change.about)
        state = _STATES[change.event]
        if change.event == "process.exited" and change.code == 0:
            state = "finished"
        if state == "starting" and change.role == "hub":
            state = "ready"  # it says nothing more before it serves
        process.handled = change.handled if change.handled is not None else process.handled
        process.credit = change.credit if change.credit is not None else process.credit
        process.wire_s += change.wire_s or 0.0
        process.restarts = max(process.restarts, (change.starts or 1) - 1)
        process.change(at, state, change.error or change.reason or "")

    def _run(self, run: records.RunChange) -> None:
        self._time(run.at)
        self.run_state, self.run_reason = run.event.partition(".")[2], run.reason or self.run_reason

    def _warning(self, event: dict[str, Any]) -> None:
        at = self._time(records.Line(ts=str(event["ts"])).at)
        process = f"{event.get('role')}/{event.get('replica')}"
        self.warnings.take(at, process, event)
        if event.get("event") == "verdict.failed":
            self.failed_verdicts[str(event.get("verifier")), str(event.get("status"))] += 1


def _of_constraints(found: dict[str, records.Constraint]) -> dict[str, dict[str, float | None]]:
    """By kind of figure, then by constraint."""
    return {
        "margin": {name: constraint.margin for name, constraint in found.items()},
        "multiplier": {name: constraint.multiplier for name, constraint in found.items()},
        "cost": {name: constraint.cost for name, constraint in found.items()},
        "limit": {name: constraint.limit for name, constraint in found.items()},
    }
