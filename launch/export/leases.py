"""Leases out of the hub's hops: who worked on what from when to when, and how long it had waited before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from safeladder.launch.events import Event, seconds


@dataclass
class Lease:
    """A stay of the work `id` with `process`, which took it from `queue`. Times are in seconds since 1970.

    waited_from: when it had come into the queue. ended: moved, finished, ended, returned or died (`protocol/hops.py`), lost, or empty
    as long as it is held; then `end` means nothing. opens, closes: the first and the last stay of the work.
    """

    id: str
    queue: str
    process: str
    attempt: int
    waited_from: float
    begin: float
    opens: bool
    end: float = 0.0
    ended: str = ""
    reason: str = ""

    @property
    def closes(self) -> bool:
        return self.ended in ("finished", "died")


class Leases:
    """Follows `work.hops`. A lease whose beginning the logs do not tell (rotated away) is left out."""

    def __init__(self) -> None:
        self._open: dict[str, Lease] = {}
        self._known: set[str] = set()

    def take(self, event: Event) -> Iterator[tuple[Lease, bool]]:
        """Each lease twice: when it begins (True) and when it ends (False)."""
        if event.get("event") != "work.hops":
            return
        offset = seconds(event) - event["mono_ns"] / 1e9
        for row in event["rows"]:
            identity, at = row["id"], row["at"] + offset
            if row["do"] != "accepted" and identity in self._open:
                # leased again without an end: a killed hub took its last rows with it
                yield (
                    self._end(identity, at, "lost" if row["do"] == "leased" else row["do"], row.get("reason", "")),
                    False,
                )
            if row["do"] == "leased":
                first = identity not in self._known
                self._known.add(identity)
                lease = Lease(identity, row["queue"], row["to"], row.get("attempt", 1), at - row["wait_s"], at, first)
                self._open[identity] = lease
                yield lease, True

    def _end(self, identity: str, at: float, how: str, reason: str) -> Lease:
        lease = self._open.pop(identity)
        lease.end, lease.ended, lease.reason = at, how, reason
        if lease.closes:
            self._known.discard(identity)
        return lease

    def held(self) -> list[Lease]:
        """Those that have not ended."""
        return list(self._open.values())
