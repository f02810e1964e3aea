"""Who waits for whom, in plain words: from the hub's last `hub.status` and the routes, live or afterwards.

    feeder -> learner (admission stops until groups are accounted for) -> its last stop before -> ... -> generator -> feeder

The graph is drawn per pool; `diagnose` names the one thing behind all the waiting, the most certain cause first:

    blocked    the hub cannot write its journal, or says nothing     credit     a pool holds all it may and waits for more
    missing    works wait in a queue that no process takes from      cycle      everybody waits, nobody computes, nothing is queued
    stuck      a process is at one work without progress, or silent  starved    no work is in the run at all
    computing  nothing is wrong: this is the pool that the others wait for
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from safeladder.launch.config import Config

STUCK_S: Final = 5.0  # at a work without progress, or without a beat
BUSY_S: Final = 2.5  # the learner says each second that it is only waiting; longer without a word, it computes
HUB_SILENT_S: Final = 7.0  # `hub.status` comes every two seconds

Worker = Mapping[str, Any]


@dataclass(frozen=True)
class Layout:
    """What should be there. routes: lists of queues; takers: queue -> the processes that should take from it."""

    routes: list[list[str]]
    takers: dict[str, list[str]]
    source: str = "feeder"

    @classmethod
    def of(cls, config: Config) -> Layout:
        takers: dict[str, list[str]] = {}
        for name, pool in config.pools.items():
            for queue in pool.queues:
                takers.setdefault(queue, []).extend(f"{name}/{replica}" for replica in range(pool.replicas))
        routes = [list(family.route) for family in config.recipe.families.values() if family.route]
        sources = [name for name, pool in config.pools.items() if (pool.actor or "").endswith(":Feeder")]
        return cls([list(route) for route in dict.fromkeys(map(tuple, routes))], takers, (sources or ["feeder"])[0])

    @property
    def queues(self) -> list[str]:
        return list(dict.fromkeys(queue for route in self.routes for queue in route))

    @property
    def last(self) -> set[str]:
        return {route[-1] for route in self.routes}

    def before(self, queue: str) -> list[str]:
        """The queues from which works come to this one; none where the source puts them in."""
        pairs = (pair for route in self.routes for pair in pairwise(route))
        return list(dict.fromkeys(first for first, second in pairs if second == queue))


@dataclass(frozen=True)
class Waits:
    """kind: see above. cause: one sentence. waits: a sentence a pool."""

    kind: str
    cause: str
    waits: list[str]

    @property
    def broken(self) -> bool:
        return self.kind != "computing"


def diagnose(status: Mapping[str, Any], layout: Layout, silent_s: float = 0.0, blocked: str | None = None) -> Waits:
    """status: fields of `hub.status`. silent_s: its age in a run that is live; blocked: why the journal is, if it is."""
    view = _View(status, layout)
    waits = list(view.sentences())
    if blocked is not None:
        cause = f"the hub cannot write its journal ({blocked}): it acknowledges nothing until the disk takes it"
        return Waits("blocked", cause, waits)
    if silent_s > HUB_SILENT_S:
        cause = f"the hub has said nothing for {silent_s:.0f} s: it is gone, stopped, or its disk hangs"
        return Waits("blocked", cause, waits)
    for kind in ("missing", "stuck", "credit", "starved", "cycle"):
        found: str | None = getattr(view, kind)()
        if found:
            return Waits(kind, found, waits)
    return Waits("computing", view.computing(), waits)


class _View:
    """A status, by queue and by process."""

    def __init__(self, status: Mapping[str, Any], layout: Layout) -> None:
        self._layout = layout
        self._workers: Mapping[str, Worker] = status["workers"]
        self._waiting: Mapping[str, int] = status["waiting"]
        self._leased = int(status["leased"])
        self._oldest: Sequence[Mapping[str, Any]] = status.get("oldest", [])

    def _takers(self, queue: str) -> dict[str, Worker]:
        return {name: worker for name, worker in self._workers.items() if queue in worker["queues"]}

    def _computes(self, worker: Worker, queue: str) -> bool:
        """The last stop keeps what it takes: it computes when it does not say, each second, that it waits."""
        if queue in self._layout.last:
            return bool(worker["leases"]) and worker["progress_s"] > BUSY_S
        return float(worker["busy_s"]) > 0

    # ------------------------------------------------------------------------------------------------ the causes

    def missing(self) -> str | None:
        empty = [queue for queue in self._layout.queues if not self._takers(queue)]
        empty.sort(key=lambda queue: -self._waiting.get(queue, 0))
        for queue in empty:
            pool = " or ".join(self._layout.takers.get(queue, [])) or "no pool of the configuration"
            return f"no process takes from {queue!r}, where {_works(self._waiting.get(queue, 0))}: {pool} should"
        if not self._takers(self._layout.source) and not self._under_way():
            return f"{self._layout.source}, which admits the tasks, has no process"
        return None

    def stuck(self) -> str | None:
        silent = [(w["heard_s"], name) for name, w in self._workers.items() if w["heard_s"] > STUCK_S and w["leases"]]
        if silent:
            seconds, name = max(silent)
            held = self._workers[name]["leases"]
            return (
                f"{name} holds {_count(held)} and has not been heard of for {seconds:.0f} s: stopped, or its machine is"
            )
        at_it = [(w["busy_s"], name) for name, w in self._workers.items() if w["busy_s"] > STUCK_S]
        if at_it:
            seconds, name = max(at_it)
            held = self._workers[name]["leases"]
            return f"{name} has made no progress for {seconds:.0f} s with the {_count(held)} it holds"
        return None

    def credit(self) -> str | None:
        for queue in self._layout.queues:
            takers, waiting = self._takers(queue), self._waiting.get(queue, 0)
            full = [name for name, w in takers.items() if w["leases"] >= w["credit"] and not self._computes(w, queue)]
            if waiting and takers and len(full) == len(takers) and all(w["credit"] for w in takers.values()):
                name = full[0]
                held, pool = takers[name]["leases"], name.partition("/")[0]
                return (
                    f"{name} holds {_count(held)}, all that its credit allows, and does nothing with them, while "
                    f"{_works(waiting)} for it: raise pools.{pool}.credit"
                )
        return None

    def starved(self) -> str | None:
        if self._leased or self._under_way() or self._loading():
            return None
        return f"no work is in the run: all wait for {self._layout.source} to admit some"

    def cycle(self) -> str | None:
        workers = [(q, w) for q in self._layout.queues for w in self._takers(q).values()]
        if self._loading() or any(self._computes(worker, queue) for queue, worker in workers):
            return None
        for work in self._oldest:
            if work["holder"] and work["seconds"] > STUCK_S:
                return f"{work['holder']} holds {work['id']!r} for {work['seconds']:.0f} s and does not work on it"
        if self._under_way():
            return None
        route = self._layout.routes[0]
        chain = " -> ".join([self._layout.source, *reversed(route), self._layout.source])
        return f"everybody waits and nobody computes: {chain}; {_count(self._leased)} are held at the end"

    def computing(self) -> str:
        found = [
            (self._waiting.get(queue, 0), name, queue)
            for queue in self._layout.queues
            for name, worker in self._takers(queue).items()
            if self._computes(worker, queue)
        ]
        if not found and (loading := self._loading()):
            return f"{loading[0]} is loading, or about to end: it takes nothing yet"
        if not found:
            return "nothing stands still: works are on their way between two processes"
        waiting, name, _ = max(found)
        held = _count(self._workers[name]["leases"])
        return f"{name} computes, and the others wait for it; {_works(waiting)} in front of it, and it holds {held}"

    def _loading(self) -> list[str]:
        """Who takes nothing yet, or no more."""
        queues = [self._layout.source, *self._layout.queues]
        return [name for queue in queues for name, worker in self._takers(queue).items() if not worker["credit"]]

    def _under_way(self) -> bool:
        return any(self._waiting.get(queue, 0) for queue in self._layout.queues) or bool(self._oldest)

    # --------------------------------------------------------------------------------------------- the sentences

    def sentences(self) -> Iterator[str]:
        last = " and ".join(sorted(self._layout.last))
        source = next(iter(self._takers(self._layout.source)), None)
        yield f"{source or self._layout.source} waits for {last} to account for groups" + (
            "" if source else " (no process)"
        )
        for queue in self._layout.queues:
            waiting = self._waiting.get(queue, 0)
            for name, worker in self._takers(queue).items():
                yield f"{name} {self._does(name, worker, queue)}; {_works(waiting)} for it"
            if not self._takers(queue):
                yield f"{queue} has no process; {_works(waiting)} for it"
        for work in self._oldest:
            where = f"is with {work['holder']}" if work["holder"] else f"waits in {work['queue']!r}"
            yield f"{work['id']} {where} for {work['seconds']:.1f} s"

    def _does(self, name: str, worker: Worker, queue: str) -> str:
        held = f"holds {worker['leases']} of {worker['credit']}"
        if worker["heard_s"] > STUCK_S:
            return f"was last heard of {worker['heard_s']:.0f} s ago, {held}"
        if not worker["credit"]:
            return "takes nothing: it loads or ends"
        if self._computes(worker, queue):
            return f"computes for {max(worker['busy_s'], worker['progress_s']):.1f} s, {held}"
        before = self._layout.before(queue) or [self._layout.source]
        return f"waits for works from {' and '.join(before)}, {held}"


def _works(count: int) -> str:
    return "1 work waits" if count == 1 else f"{count} works wait"


def _count(count: int) -> str:
    return "1 work" if count == 1 else f"{count} works"
