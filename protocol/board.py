"""The hub's books: which work waits where, who holds what, what is finished and what is set aside.

A `Board` knows nothing of sockets, peers' addresses or time-outs of workers: it is asked for the next work of a queue and told
what became of it. Every change that must survive a crash is returned as journal records.

States of an item: waiting (in the queue `route[stop]`), leased (one token, one holder), claimed (restored after a hub
crash, waiting for its holder to say so). A finished item leaves only its id and outcome.
"""

from __future__ import annotations

import heapq
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import msgspec

from safeladder.protocol import journal as j
from safeladder.protocol import messages as m
from safeladder.protocol.codec import Parcel, pack

_STEM = 180
_PRECEDENCE = {lane: rank for rank, lane in enumerate(m.LANES)}


@dataclass(slots=True)
class Item:
    """One work in the hub. `parcel` is None only while a worker holds what the hub itself lost in a crash."""

    root: Parcel
    parcel: Parcel | None
    stop: int
    attempts: int = 0
    lease: int | None = None
    fence: int = 0  # leases up to this one have been answered for good
    claimable: bool = False
    journaled: bool = True
    accepted_at: float = 0.0
    entered_at: float = 0.0
    leased_at: float = 0.0
    deadline: float | None = None

    @property
    def id(self) -> str:
        return self.root.work.id

    @property
    def queue(self) -> str:
        return self.root.work.route[self.stop]

    @property
    def last_stop(self) -> bool:
        return self.stop == len(self.root.work.route) - 1


@dataclass(slots=True)
class DeadLetter:
    """A work that was set aside."""

    root: Parcel
    stop: int
    attempts: int
    error: str


@dataclass(slots=True)
class _Queue:
    """Waiting works of one queue, by lane and then by sequence. Entries of works that moved on are passed over."""

    heap: list[tuple[int, int, int, str]] = field(default_factory=list)
    waiting: int = 0


class Board:
    """All works of a run. `durability` decides which records its methods return."""

    def __init__(self, durability: j.Durability = "ids") -> None:
        self.durability = durability
        self.items: dict[str, Item] = {}
        self.finished: dict[str, str] = {}
        self.dead: dict[str, DeadLetter] = {}
        self.calls: dict[str, dict[str, Item]] = {}  # caller -> its calls by id
        self._queues: dict[str, _Queue] = {}
        self._arrivals = 0

    # ------------------------------------------------------------------------------------------- coming and going

    def known(self, identity: str) -> bool:
        return identity in self.items or identity in self.finished

    def accept(self, parcel: Parcel, now: float) -> list[j.Record]:
        """Takes in a new work. The caller has checked that its id is not known."""
        work = parcel.work
        item = Item(parcel, parcel, work.stop, accepted_at=now, journaled=work.reply_to is None)
        if work.reply_to is not None:
            self.calls.setdefault(work.reply_to, {})[work.id] = item
            if work.deadline_s is not None:
                item.deadline = now + work.deadline_s
        self.items[work.id] = item
        self._wait(item, now)
        return [j.submitted(parcel)] if self._durable(item) else []

    def move(self, item: Item, parcel: Parcel, now: float) -> list[j.Record]:
        """Hands a work on to the stop that `parcel` names. The caller has checked that it is a later one.

        Lane, sequence and return address stay those of the first state, whatever the output says.
        """
        records = self._become(item, parcel)
        item.attempts, item.lease = 0, None
        self._wait(item, now)
        return records

    def advance(self, item: Item, parcel: Parcel) -> list[j.Record]:
        """What a worker has made so far of the work that it holds and will now give back (`release`), at the same stop.

        The lease is kept with it as a fence: after a hub crash no claim under it, or an older one, can bring back less.
        """
        item.fence = item.lease or 0
        return self._become(item, parcel)

    def finish(self, item: Item, outcome: str) -> list[j.Record]:
        """The work is over."""
        self._leave(item)
        del self.items[item.id]
        if not item.journaled:
            caller = item.root.work.reply_to or ""
            del self.calls[caller][item.id]
            if not self.calls[caller]:
                del self.calls[caller]
            return []
        self.finished[item.id] = outcome
        return [j.Finished(item.id, outcome)] if self._durable(item) else []

    def end_early(self, item: Item, reason: str, now: float) -> list[j.Record]:
        """The work ends before its last stop, which is told so by a `Skipped` in its place."""
        if item.last_stop or not item.journaled:
            return self.finish(item, reason)
        records: list[j.Record] = []
        if self._durable(item):
            records.append(j.Dead(item.id, item.stop, item.attempts, reason, kept=False))
        self._bury(item, reason, now)
        return records

    def set_aside(self, item: Item, error: str, now: float) -> list[j.Record]:
        """Too many attempts: a dead letter, and the end of the route is told."""
        self.dead[item.id] = DeadLetter(item.root, item.stop, item.attempts, error)
        records: list[j.Record] = []
        if self._durable(item):
            records.append(j.Dead(item.id, item.stop, item.attempts, error))
        if item.last_stop:
            return records + self.finish(item, f"dead: {error}")
        self._bury(item, f"dead: {error}", now)
        return records

    def requeue(self, identity: str, now: float) -> tuple[str, list[j.Record]]:
        """Puts a dead letter back at its first stop, as a work of a new id (its old one is accounted for as skipped)."""
        letter = self.dead.pop(identity)
        stem = re.sub(r"~\d+$", "", identity)[:_STEM]  # an id has a bound, and the number must fit in
        lives = (f"{stem}~{life}" for life in itertools.count(1))
        successor = next(life for life in lives if not self.known(life))
        work = msgspec.structs.replace(letter.root.work, id=successor)
        records: list[j.Record] = [] if self.durability == "memory" else [j.Requeued(identity, successor)]
        return successor, records + self.accept(Parcel(work, letter.root.frames), now)

    # ----------------------------------------------------------------------------------------------------- leases

    def waiting(self, queue: str) -> int:
        return self._queues[queue].waiting if queue in self._queues else 0

    def queues(self) -> Iterator[str]:
        return iter(self._queues)

    def next(self, queue: str) -> Item | None:
        """The item to lease next, still waiting; `lease` takes it."""
        entries = self._queues.get(queue)
        while entries and entries.heap:
            item = self.items.get(entries.heap[0][3])
            if item and item.lease is None and not item.claimable and item.queue == queue:
                return item
            heapq.heappop(entries.heap)
        return None

    def lease(self, item: Item, token: int) -> None:
        item.lease = token
        item.attempts += 1
        entries = self._queues[item.queue]
        heapq.heappop(entries.heap)
        entries.waiting -= 1

    def release(self, item: Item, now: float, restart: bool = False, forgive: bool = False) -> None:
        """Takes a lease back and queues the work again: at its stop, or at its first one when asked to or when it must."""
        item.lease = None
        if forgive:
            item.attempts -= 1
        if restart or item.parcel is None:
            item.parcel, item.stop = item.root, item.root.work.stop
        self._wait(item, now)

    def claim(self, item: Item, token: int, stop: int) -> bool:
        """A worker says after a hub crash that it holds this work. False when the work has gone elsewhere since."""
        if not item.claimable and not (item.lease is not None and item.lease < token and item.parcel is None):
            return False
        if token <= item.fence:
            return False  # it has been given back, with what was made under it, or was overtaken by one that was
        if not item.stop <= stop < len(item.root.work.route):
            return False  # the journal is further: what the worker made of it was accepted, or the work has ended
        if item.stop != stop:
            item.parcel = None  # what the worker holds is further than what the journal had
        item.claimable, item.lease, item.stop, item.attempts = False, token, stop, 1
        return True

    def unclaimed(self, now: float) -> None:
        """The time to claim is over: what nobody claimed waits again."""
        for item in self.items.values():
            if item.claimable:
                item.claimable = False
                self._wait(item, now)

    # --------------------------------------------------------------------------------------------------- recovery

    def restore(self, records: Iterable[j.Record], now: float) -> dict[str, dict[str, object]]:
        """Rebuilds the books from a journal; returns the latest value of every topic."""
        topics: dict[str, dict[str, object]] = {}
        for record in records:
            match record:
                case j.Submitted():
                    parcel = Parcel(record.work, list(record.frames))
                    self.items[record.id] = Item(parcel, parcel, record.work.stop, accepted_at=now)
                case j.Moved():
                    if item := self.items.get(record.id):
                        item.parcel, item.stop = Parcel(record.work, list(record.frames)), record.work.stop
                        item.fence = record.fence
                case j.Finished():
                    self.items.pop(record.id, None)
                    self.finished[record.id] = record.outcome
                case j.Dead():
                    if item := self.items.get(record.id):
                        self._restore_dead(item, record)
                case j.Requeued():
                    self.dead.pop(record.id, None)
                case j.Topic():
                    topics[record.topic] = record.value
        for item in self.items.values():
            item.claimable = True
        return topics

    def snapshot(self) -> Iterator[j.Record]:
        """The records from which `restore` makes these books again."""
        for identity, outcome in self.finished.items():
            yield j.Finished(identity, outcome)
        for item in self.items.values():
            if not item.journaled or item.id in self.dead:
                continue
            yield j.submitted(item.root)
            if self.durability == "full" and item.parcel is not None and item.parcel is not item.root:
                yield j.moved(item.parcel, item.fence)
        for identity, letter in self.dead.items():
            yield j.submitted(letter.root)
            yield j.Dead(identity, letter.stop, letter.attempts, letter.error)
            if identity in self.finished:
                yield j.Finished(identity, self.finished[identity])

    # ---------------------------------------------------------------------------------------------------- details

    def _become(self, item: Item, parcel: Parcel) -> list[j.Record]:
        output = parcel.work
        work = msgspec.structs.replace(
            item.root.work, payload=output.payload, arrays=output.arrays, stop=output.stop, deadline_s=None
        )
        parcel = item.parcel = Parcel(work, parcel.frames)
        item.stop = output.stop
        return [j.moved(parcel, item.fence)] if self._durable(item) and self.durability == "full" else []

    def _durable(self, item: Item) -> bool:
        return item.journaled and self.durability != "memory"

    def _wait(self, item: Item, now: float) -> None:
        self._arrivals += 1
        item.entered_at = now
        entries = self._queues.setdefault(item.queue, _Queue())
        work = item.root.work
        heapq.heappush(entries.heap, (_PRECEDENCE[work.lane], work.sequence, self._arrivals, item.id))
        entries.waiting += 1

    def _leave(self, item: Item) -> None:
        if item.lease is None and not item.claimable:
            self._queues[item.queue].waiting -= 1

    def _bury(self, item: Item, reason: str, now: float) -> None:
        self._leave(item)
        self._replace_by_tombstone(item, reason)
        self._wait(item, now)

    def _replace_by_tombstone(self, item: Item, reason: str) -> None:
        work = item.root.work
        last = len(work.route) - 1
        tombstone = pack(
            m.Skipped(work.sequence, reason),
            id=work.id,
            route=work.route,
            stop=last,
            lane=work.lane,
            sequence=work.sequence,
        )
        item.root = item.parcel = tombstone
        item.stop, item.attempts, item.lease = last, 0, None

    def _restore_dead(self, item: Item, record: j.Dead) -> None:
        if record.kept:
            self.dead[item.id] = DeadLetter(item.root, record.stop, record.attempts, record.error)
        self._replace_by_tombstone(item, f"dead: {record.error}" if record.kept else record.error)
