"""The life of works in the hub, as rows for the log: what `safeladder why` and `where` read.

Rows of a tick go into one event, `work.hops`: a line of its own for each would be mostly header. A row is a map; what would say
nothing is left out. `at` is on the hub's monotonic clock, as the line's `mono_ns` is.

    accepted  id queue sequence lane        submitted, waits
    leased    id queue to wait_s attempt    handed out, after `wait_s` in the queue
    moved     id queue by service_s         done by its holder after `service_s`; waits in the next queue
    ended     id queue by service_s reason  ended before its last stop, which is told so
    finished  id by service_s reason        left the hub
    returned  id queue by service_s reason  the lease ended without an answer: waits again, in the queue named
    died      id queue by service_s reason  set aside as a dead letter
"""

from __future__ import annotations

from typing import Any, Final

from safeladder.protocol.board import Item

Row = dict[str, Any]
MAX_REASON: Final = 300


class Hops:
    """Collects rows until they are taken. `queue` is where the work is after the hop; for `died`, where it failed."""

    def __init__(self) -> None:
        self._rows: list[Row] = []

    def take(self) -> list[Row]:
        rows, self._rows = self._rows, []
        return rows

    def accepted(self, item: Item, now: float) -> None:
        work = item.root.work
        row = {"do": "accepted", "id": item.id, "at": round(now, 3), "queue": item.queue, "sequence": work.sequence}
        self._rows.append(row if work.lane == "training" else {**row, "lane": work.lane})

    def leased(self, item: Item, to: str, now: float) -> None:
        wait_s = round(now - item.entered_at, 3)
        row = {"do": "leased", "id": item.id, "at": round(now, 3), "queue": item.queue, "to": to, "wait_s": wait_s}
        self._rows.append(row if item.attempts == 1 else {**row, "attempt": item.attempts})

    def left(self, do: str, item: Item, by: str, now: float, reason: str = "") -> None:
        """The end of a lease. To be called when the work is where it goes, which is then its queue."""
        row = {"do": do, "id": item.id, "at": round(now, 3), "by": by, "service_s": round(now - item.leased_at, 3)}
        if do != "finished":
            row["queue"] = item.queue
        if reason:
            row["reason"] = reason[:MAX_REASON]
        self._rows.append(row)
