"""Brings a run's events to its sinks: all of a finished run, or, from a thread of its own, those of a live one as they are written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from safeladder.launch.events import Event, Tail, merged, seconds
from safeladder.launch.export.sink import Sink, sink_class
from safeladder.launch.rundir import RunDirectory
from safeladder.launch.sections import Watch

LOOK_S = 1.0
ADVICE = "the run goes on without it; `safeladder export` makes the same from the logs afterwards"
CLOSE_S = 30.0  # a sink may have to write out or to send what it holds


def export(logs: Path, sink: Sink) -> int:
    """All events that stand in the logs now, in order of time. Returns their number."""
    count = 0
    try:
        for event in merged(logs):
            sink.take(event)
            count += 1
    finally:
        sink.close()
    return count


class Feed:
    """Follows the logs until `close`, a second behind. Events are in order of time within each look.

    The sinks' libraries are not ours: one that fails is left out from then on, which the log tells (`sink.failed`), and the run goes on.
    """

    def __init__(self, logs: Path, sinks: Sequence[tuple[str, Sink]], from_end: bool = False) -> None:
        """sinks: each with its name. from_end: what stands in the logs already (a resumed run's past) is not told again."""
        self._logs, self._sinks, self._past = logs, list(sinks), not from_end
        self._tail = Tail(logs, from_end=True)
        self._newest: dict[
            tuple[Any, ...], int
        ] = {}  # process start -> number of its newest line that was told as past
        self._log = structlog.get_logger()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="feed", daemon=True)
        if self._sinks:
            self._thread.start()

    def close(self) -> None:
        """The last lines are told too."""
        self._closed.set()
        if self._thread.ident is not None:
            self._thread.join(CLOSE_S)

    def _follow(self) -> None:
        if self._past:
            self._tell_past()
        while not self._closed.wait(LOOK_S):
            self._look()
        self._look()
        for name, sink in self._sinks:
            self._did(name, sink.close)

    def _tell_past(self) -> None:
        """As a stream: it may be long. Lines written meanwhile are met here or by the tail, or by both, and are told once."""
        for event in merged(self._logs):
            if self._closed.is_set():
                return
            start = _start(event)
            self._newest[start] = max(event.get("seq", 0), self._newest.get(start, -1))
            self._tell([event])

    def _look(self) -> None:
        fresh = [event for event in self._tail.read() if event.get("seq", 0) > self._newest.get(_start(event), -1)]
        if fresh:
            self._tell(sorted(fresh, key=seconds))

    def _tell(self, events: Sequence[Event]) -> None:
        self._sinks = [(name, sink) for name, sink in self._sinks if self._did(name, partial(_take, sink, events))]

    def _did(self, name: str, act: Callable[[], None]) -> bool:
        try:
            act()
        except Exception as error:  # the boundary to libraries that send and write
            kind = type(error).__name__
            self._log.warning("sink.failed", sink=name, error=f"{kind}: {error}", advice=ADVICE)
            return False
        return True


def _take(sink: Sink, events: Sequence[Event]) -> None:
    for event in events:
        sink.take(event)


def _start(event: Event) -> tuple[Any, ...]:
    return event.get("role"), event.get("replica"), event.get("boot")


def live_sinks(watch: Watch, run: RunDirectory) -> list[tuple[str, Sink]]:
    """What the section `watch` asks for. Raises ConfigError where one cannot begin."""
    log, found = structlog.get_logger(), list[tuple[str, Sink]]()
    if watch.metrics_port is not None:
        from safeladder.launch.export.metrics import Metrics

        served = Metrics(run.path.name, watch.metrics_host, watch.metrics_port)
        found.append(("metrics", served))
        log.info("sink.opened", sink="metrics", target=f"http://{watch.metrics_host}:{served.port}/metrics")
    for asked in watch.sinks:
        name, _, target = asked.partition("=")
        kind = sink_class(name)
        target = target or str(run.path / "export" / (kind.LIVE_TARGET or ""))
        found.append((name, kind(run.path.name, target)))
        log.info("sink.opened", sink=name, target=target)
    return found
