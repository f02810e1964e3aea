"""A block of log lines in, what a `RunView` takes of it out: much smaller, and made in any process (`readers.py`).

Lines that are many come as columns or as changes; those of which a run has few, or that need an order, are passed on as they are;
of what nobody asks for, nothing but the name is looked at.
"""

from __future__ import annotations

import heapq
import zlib
from array import array
from collections.abc import Callable, Collection
from typing import Any, Final

import msgspec
from msgspec import Struct

from safeladder.launch.view import records
from safeladder.launch.view.process import CODES, GENERATING

SLOWEST: Final = 20
_TELL_THEMSELVES: Final = ("generator/", "learner/")  # of their work, and more than others could
SAMPLED: Final = (b"group.judged", b"group.texts")  # of which `judged.py` keeps a sample, by their ids
_SERVED: Final = ("moved", "finished", "ended")
_WORKLESS: Final = ("launcher/", "client/")
_MARK: Final = b'"event":"'
_OURS: Final = b'"level":"info","event":"'  # how our own lines go on after the time
_QUIET: Final = (b'"level":"info"', b'"level":"debug"')
_HEAD: Final = 200  # bytes in which our own lines carry level and event
_ID: Final = b'"id":"'
_STATUS: Final = b"hub.status"


class Slow(Struct, order=True):
    """A group that took long to generate. at: when it was done."""

    seconds: float
    id: str
    tokens: int
    at: float
    process: str
    oldest: int | None


class Told(Struct, array_like=True):
    """A line that is passed on. loud: a warning or an error."""

    event: bytes
    line: bytes
    loud: bool


class Digest(Struct):
    """bytes, lines: of the block; unreadable: lines not of the shape that their name promises.

    did: process -> rows of `ProcessView.did_all`. depths, credits, leases, versions: queue or process -> pairs of `Changes.set_all`.
    queues: process -> what it works on. dead: as the hub said last. span: first and last time at which the hub told its state.
    """

    size: int = 0
    lines: int = 0
    unreadable: int = 0
    told: list[Told] = []
    did: dict[str, bytes] = {}
    slowest: list[Slow] = []
    depths: dict[str, bytes] = {}
    credits: dict[str, bytes] = {}
    leases: dict[str, bytes] = {}
    versions: dict[str, bytes] = {}
    queues: dict[str, list[str]] = {}
    dead: int | None = None
    span: tuple[float, float] | None = None


class Changed:
    """Values by name, with the times at which they changed."""

    def __init__(self) -> None:
        self._pairs: dict[str, array[float]] = {}

    def set(self, name: str, at: float, value: float) -> None:
        pairs = self._pairs.get(name)
        if pairs is None:
            self._pairs[name] = array("d", (at, value))
        elif pairs[-1] != value:
            pairs.extend((at, value))

    def pairs(self) -> dict[str, bytes]:
        return {name: pairs.tobytes() for name, pairs in self._pairs.items()}


class Digester:
    """wanted: names of the events to pass on. Lines of the levels warning and error are passed on whatever they are called.

    stride: of the hub's state, which it tells every two seconds, every so manieth line and the last one of a block are decoded.
    """

    def __init__(self, wanted: Collection[bytes], stride: int = 1) -> None:
        self._wanted, self._stride = frozenset(wanted), stride
        self._reduced: dict[bytes, tuple[Callable[[bytes], Any], Callable[[Any], None]]] = {
            b"group.generated": (records.decoder(records.Generated), self._generated),
            b"weights.loaded": (records.decoder(records.Loaded), self._loaded),
            b"work.handled": (records.decoder(records.Handled), self._handled),
            b"work.hops": (records.decoder(records.Hops), self._hops),
        }
        self._decode_status = records.decoder(records.Status)

    def digest(self, block: bytes, bar: int = 1 << 32) -> Digest:
        """block: whole lines. bar: of groups that are sampled, those whose hash is not below it are left out."""
        self._did: dict[str, array[float]] = {}
        self._slowest: list[Slow] = []
        self._depths, self._credits, self._leases, self._versions = Changed(), Changed(), Changed(), Changed()
        lines = block.split(b"\n")[:-1]
        found = self._found = Digest(len(block), len(lines), told=[], queues={})
        wanted, reduced = self._wanted, self._reduced
        states: list[bytes] = []
        for line in lines:
            begin = line.find(_OURS, 0, _HEAD)
            if begin >= 0:
                begin += len(_OURS)
                name, loud = line[begin : line.find(b'"', begin)], False
            else:
                name, loud = _other(line)
            if name in reduced:
                decode, take = reduced[name]
                try:
                    take(decode(line))
                except (msgspec.DecodeError, ValueError, OverflowError):
                    found.unreadable += 1
                    continue
            elif name == _STATUS and not loud:
                states.append(line)
            elif name in wanted:
                if name not in SAMPLED or loud or _below(line, bar):
                    found.told.append(Told(name, line, loud))
                continue
            if loud:
                found.told.append(Told(b"", line, True))
        for line in [*states[: -1 : self._stride], *states[-1:]]:
            try:
                self._status(self._decode_status(line))
            except (msgspec.DecodeError, ValueError, OverflowError):
                found.unreadable += 1
        found.did = {name: rows.tobytes() for name, rows in self._did.items()}
        found.slowest = self._slowest
        found.depths, found.credits = self._depths.pairs(), self._credits.pairs()
        found.leases, found.versions = self._leases.pairs(), self._versions.pairs()
        return found

    def _work(self, process: str, code: int, begin: float, end: float, tokens: float, works: float = 1.0) -> None:
        rows = self._did.get(process)
        if rows is None:
            rows = self._did[process] = array("d")
        rows.extend((code, begin, end, tokens, works))

    def _generated(self, group: records.Generated) -> None:
        at, seconds, slowest = group.at, group.seconds, self._slowest
        self._work(group.process, CODES[GENERATING], at - seconds, at, group.tokens)
        if len(slowest) < SLOWEST or seconds > slowest[0].seconds:
            keep_slowest(
                slowest, Slow(seconds, group.id, group.tokens, at, group.process, min(group.versions, default=None))
            )

    def _loaded(self, loaded: records.Loaded) -> None:
        at, process = loaded.at, loaded.process
        if loaded.version is not None:
            self._versions.set(process, at, loaded.version)
        if loaded.seconds:
            self._work(process, CODES["loading weights"], at - loaded.seconds, at, 0.0, 0.0)

    def _handled(self, work: records.Handled) -> None:
        process = work.process
        if not process.startswith(_TELL_THEMSELVES):
            at = work.at
            self._work(process, CODES["working"], at - work.seconds, at, 0.0)

    def _hops(self, hops: records.Hops) -> None:
        """Times of the rows are on the hub's clock; the line itself has both."""
        offset, code = hops.at - hops.mono_ns / 1e9, CODES["working"]
        for hop in hops.rows:
            by = hop.by
            if by and hop.do in _SERVED and not by.startswith(_TELL_THEMSELVES):
                at = hop.at + offset
                self._work(by, code, at - hop.service_s, at, 0.0)

    def _status(self, status: records.Status) -> None:
        at, found = status.at, self._found
        found.span = (at, at) if found.span is None else (min(found.span[0], at), max(found.span[1], at))
        found.dead = status.dead
        for queue, depth in status.waiting.items():
            self._depths.set(queue, at, depth)
        for name, worker in status.workers.items():
            if not name.startswith(_WORKLESS):  # they take no work
                self._leases.set(name, at, worker.leases)
                self._credits.set(name, at, worker.credit)
                found.queues[name] = worker.queues


def keep_slowest(slowest: list[Slow], row: Slow) -> None:
    """A heap of the `SLOWEST` ones."""
    if len(slowest) < SLOWEST:
        heapq.heappush(slowest, row)
    else:
        heapq.heappushpop(slowest, row)


def _other(line: bytes) -> tuple[bytes, bool]:
    """Name and loudness of a line that does not begin as our quiet ones do."""
    begin = line.find(_MARK) + len(_MARK)
    name = line[begin : line.find(b'"', begin)] if begin >= len(_MARK) else b""
    return name, all(line.find(quiet, 0, _HEAD) < 0 for quiet in _QUIET)


def _below(line: bytes, bar: int) -> bool:
    """Whether a group may be in the sample. Where its id is written with escapes, the sample itself decides."""
    begin = line.find(_ID) + len(_ID)
    identity = line[begin : line.find(b'"', begin)]
    return begin < len(_ID) or b"\\" in identity or zlib.crc32(identity) < bar
