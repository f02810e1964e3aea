"""One trace a work, from its admission to the gradient: spans out of the events of a run.

    work                                            accepted .. it has left the hub
      wait QUEUE      QUEUE                         each stop: in the queue, then with a process; again where a lease was lost
      step N                                        the optimizer step that trained it

What a stop had to say of a single completion is an event on its span: `sample` (length and end; reward, advantage, weight in the loss)
and `verdict`. The trace's id comes from the run's name and the work's id, so the same work has the same trace wherever it is exported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from safeladder.launch.events import Event, seconds
from safeladder.launch.export.leases import Lease, Leases

Value = str | int | float | bool
MAX_OPEN: Final = 100_000  # works whose end has not been told; beyond that the oldest trace is given as it is
CLOCKS_S: Final = 0.01
_RETURNED: Final = ("returned", "died", "lost")
_TOLD: Final = ("group.generated", "group.judged", "group.trained", "group.dropped")


@dataclass
class Moment:
    """Something that happened within a span. at: seconds since 1970."""

    at: float
    name: str
    attributes: dict[str, Value]


@dataclass
class Span:
    """Times are in seconds since 1970. parent: empty for the root. error: what went wrong, empty where nothing did."""

    trace: str
    id: str
    parent: str
    name: str
    begin: float
    end: float
    attributes: dict[str, Value]
    moments: list[Moment] = field(default_factory=list)
    error: str = ""


def trace_id(run: str, work: str) -> str:
    """32 hexadecimal digits."""
    return hashlib.blake2b(f"{run}\0{work}".encode(), digest_size=16).hexdigest()


@dataclass
class _Work:
    leases: list[Lease] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    steps: list[tuple[Event, float, float]] = field(default_factory=list)  # group.trained, begin and end of its step


class Traces:
    """Collects what is told of each work until it has left the hub."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._leases = Leases()
        self._works: dict[str, _Work] = {}
        self._training: list[Event] = []  # of the step that is not yet told of

    def take(self, event: Event) -> Iterator[list[Span]]:
        """The traces that are complete with this event."""
        name = event.get("event")
        if name == "work.hops":
            for lease, begins in self._leases.take(event):
                if begins:
                    self._work(lease.id).leases.append(lease)
                elif lease.closes and lease.id in self._works:
                    yield self._trace(lease.id)
            if len(self._works) > MAX_OPEN:
                yield self._trace(next(iter(self._works)))
        elif name in _TOLD:
            self._work(event["id"]).events.append(event)
            if name == "group.trained":
                self._training.append(event)
        elif name == "step.completed":
            end = seconds(event)
            begin = end - event["step_s"] + event["wait_s"]
            for trained in self._training:
                if work := self._works.get(trained["id"]):
                    work.steps.append((trained, begin, end))
            self._training = []

    def rest(self) -> Iterator[list[Span]]:
        """Those of works that are under way, as far as they have come."""
        for identity in list(self._works):
            yield self._trace(identity)

    def _work(self, identity: str) -> _Work:
        return self._works.setdefault(identity, _Work())

    def _trace(self, identity: str) -> list[Span]:
        return _spans(self._run, identity, self._works.pop(identity))


def _spans(run: str, identity: str, work: _Work) -> list[Span]:
    """The root first."""
    times = [seconds(event) for event in work.events]
    begin = min([lease.waited_from for lease in work.leases] + times)
    end = max([max(lease.begin, lease.end) for lease in work.leases] + times)
    trace = trace_id(run, identity)
    spans: list[Span] = []

    def add(name: str, begin: float, end: float, **attributes: Value) -> Span:
        named = {f"safeladder.{key}": value for key, value in attributes.items()}
        place = hashlib.blake2b(f"{trace}/{len(spans)}".encode(), digest_size=8).hexdigest()
        span = Span(trace, place, spans[0].id if spans else "", name, begin, end, named)
        spans.append(span)
        return span

    last = work.leases[-1] if work.leases else None
    root = add("work", begin, end, work=identity, run=run, outcome=(last and last.ended) or "under way")
    root.error = last.reason if last and last.ended == "died" else ""
    told = [(event, _stay(work.leases, event)) for event in work.events]
    for lease in work.leases:
        add(f"wait {lease.queue}", lease.waited_from, lease.begin, queue=lease.queue)
        until, ended = (lease.end, lease.ended) if lease.ended else (end, "held")
        where = {"queue": lease.queue, "process": lease.process, "ended": ended}
        stay = add(lease.queue, lease.begin, until, attempt=lease.attempt, **where)
        stay.error = (lease.reason or lease.ended) if lease.ended in _RETURNED else ""
        stay.moments = [moment for event, there in told if there is lease for moment in _moments(event)]
    for event, since, until in work.steps:
        step = add(
            f"step {event['step']}", since, until, **{key: event[key] for key in ("step", "published", "staleness")}
        )
        step.moments = list(_reckoned(event))
    return spans


def _stay(leases: list[Lease], event: Event) -> Lease | None:
    """During which stay of the work a process said this: the newest with it, by clocks that may differ a little."""
    with_it = [lease for lease in leases if lease.process == f"{event['role']}/{event['replica']}"]
    begun = [lease for lease in with_it if lease.begin <= seconds(event) + CLOCKS_S]
    return next(reversed(begun or with_it), None)


def _moments(event: Event) -> Iterator[Moment]:
    """What a process said of the work while it had it."""
    at = seconds(event)
    if event["event"] == "group.generated":
        for sample, (length, finish) in enumerate(zip(event["lengths"], event["finishes"], strict=False)):
            yield _moment(at, "sample", sample=sample, tokens=length, finish=finish)
    elif event["event"] == "group.judged":
        for verifier, columns in event["verdicts"].items():
            yield from _verdicts(at, verifier, columns)
    elif event["event"] == "group.dropped":
        yield _moment(at, "dropped", reason=event["reason"])


def _verdicts(at: float, verifier: str, columns: Mapping[str, list[Any]]) -> Iterator[Moment]:
    rows = {
        key: columns[key] for key in ("samples", "scores", "labels", "statuses", "errors", "steps") if key in columns
    }
    for row in range(max(map(len, rows.values()), default=0)):
        said = {key.removesuffix("es" if key == "statuses" else "s"): values[row] for key, values in rows.items()}
        yield _moment(at, "verdict", **{"verifier": verifier, "sample": row, **said})


def _reckoned(trained: Event) -> Iterator[Moment]:
    at = seconds(trained)
    columns = {
        "reward": "rewards",
        "advantage": "advantages",
        "correction": "corrections",
        "loss_weight": "loss_weights",
    }
    for sample in range(len(trained["rewards"])):
        said = {name: trained[key][sample] for name, key in columns.items() if key in trained}
        channels = {f"score.{name}": scores[sample] for name, scores in trained["channels"].items()}
        yield _moment(at, "sample", sample=sample, **said, **channels)


def _moment(at: float, name: str, **attributes: Any) -> Moment:
    """What was not measured is left out."""
    return Moment(at, name, {f"safeladder.{key}": value for key, value in attributes.items() if value is not None})
