"""How old a group may be when it is trained, and the admission rule that keeps it so.

Names: a *step* is one optimizer step, counted from 0 in the surviving history; B groups make a batch; eta is the bound,
in steps. eta = 0 is synchronous training.

The proof that `Pace` bounds age at the gradient step
-----------------------------------------------------
1. Groups are numbered by admission and trained in that order, B a step; a group that is dropped leaves no hole
   (`InOrder`). So a group with j live predecessors trains at step floor(j / B).
2. `Pace` admits while admitted - dropped < (eta + s + 1) * B, where s is the step that the feeder knows of. The group
   so admitted has at most (eta + s + 1) * B - 1 live predecessors, hence trains at step floor(j / B) <= eta + s.
   Predecessors that are dropped later only lower j.
3. The feeder may learn late that a step was made or that a group was dropped. Either way it admits less, not more.
4. The group carries the weights' version known at its admission as `min_version`, and no older weights may sample it.
   They are those of step s, so every token's age at the gradient step is at most eta.                               QED

Time in queues is inside the bound, whatever the order in which groups are finished. A rollback lowers s and returns
what was admitted since, so the argument holds again from the step it went back to; numbers of versions are not reused,
so across a rollback a difference of versions can exceed the difference of steps. `ledger.VersionCounter.step_of` tells
the step of a version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Pace:
    """Admission by pace: nothing that was admitted is ever dropped for its age.

    eta: largest age at the gradient step, in steps, >= 0. batch: groups per step, >= 1. max_in_flight: groups that may
    be between admission and the learner's buffer at once, >= 1 (a bound on memory and credit, not on age).
    """

    eta: int
    batch: int
    max_in_flight: int

    def __post_init__(self) -> None:
        if self.eta < 0 or self.batch < 1 or self.max_in_flight < 1:
            raise ValueError(f"pace needs eta >= 0, batch >= 1 and max_in_flight >= 1: {self}")

    def capacity(self, step: int, admitted: int, dropped: int, running: int) -> int:
        """How many groups may be admitted now, >= 0.

        step: optimizer steps made; admitted: groups admitted since the beginning of this history; dropped: those of
        them that will never be trained; running: those on their way to the learner. The form is AReaL's (arXiv
        2505.24298, eq. 3).
        """
        by_age = (self.eta + step + 1) * self.batch - (admitted - dropped)
        return max(0, min(self.max_in_flight - running, by_age))


def staleness(versions: Sequence[Sequence[int]], learner_version: int) -> list[int]:
    """Age of each sample in versions: the learner's version minus that of the sample's oldest token.

    versions: for each sample, the version of each token. A sample without tokens has age 0.
    """
    return [max(0, learner_version - int(min(tokens))) if len(tokens) else 0 for tokens in versions]


class InOrder(Generic[Item]):
    """Puts what arrives in any order back into the order of admission, and hands it on in batches.

    `skip` leaves a tombstone where a group ended early, so that the order closes over it.
    """

    def __init__(self, batch: int, start: int = 0) -> None:
        """batch: items a `take`; start: the first sequence number not accounted for (the feeder's cursor on resume)."""
        if batch < 1 or start < 0:
            raise ValueError(f"batch must be >= 1 and start >= 0, not {batch} and {start}")
        self.batch = batch
        self.cursor = start  # every sequence number below it was taken or skipped
        self.passed: list[int] = []  # tombstones that the last `take` went over
        self.total: int | None = None
        self._items: dict[int, Item] = {}
        self._tombstones: set[int] = set()

    def __len__(self) -> int:
        """Items that wait in the buffer, in order or not."""
        return len(self._items)

    def add(self, sequence: int, item: Item) -> None:
        """Raises ValueError when the number was seen before: training it again would break exactly-once."""
        self._refuse_seen(sequence)
        self._items[sequence] = item

    def skip(self, sequence: int) -> None:
        """Says that `sequence` will never come. Raises ValueError when the number was seen before."""
        self._refuse_seen(sequence)
        self._tombstones.add(sequence)

    def withdraw(self, sequence: int) -> Item:
        """Takes an item out again, as if it had not come yet (it is sampled anew). KeyError when it is not here."""
        return self._items.pop(sequence)

    def items(self) -> list[Item]:
        """What waits in the buffer, in no particular order."""
        return list(self._items.values())

    @property
    def tombstones(self) -> int:
        """Tombstones that no `take` has passed over yet."""
        return len(self._tombstones)

    def end(self, total: int) -> None:
        """Says that nothing will follow sequence `total - 1`; the last batch may then be short."""
        latest = max([self.cursor - 1, *self._items, *self._tombstones])
        if total <= latest:
            raise ValueError(f"end of stream after {total} groups, but sequence {latest} was seen")
        self.total = total

    @property
    def finished(self) -> bool:
        """Whether the stream has ended and every number of it was taken or skipped."""
        return self.total is not None and self.cursor >= self.total

    def take(self) -> list[Item] | None:
        """The next `batch` items in order, or None while one of them is missing (nothing changes then).

        At the end of the stream the last batch holds what is left; it is empty when only tombstones were. `passed`
        names the tombstones that were passed over, those right after the batch included.
        """
        chosen: list[int] = []
        passed: list[int] = []
        cursor = self.cursor
        while True:
            if cursor in self._tombstones:
                passed.append(cursor)
            elif cursor in self._items and len(chosen) < self.batch:
                chosen.append(cursor)
            else:
                break
            cursor += 1
        at_end = self.total is not None and cursor >= self.total and not self.finished
        if len(chosen) < self.batch and not at_end:
            return None
        self.cursor, self.passed = cursor, passed
        self._tombstones.difference_update(passed)
        return [self._items.pop(sequence) for sequence in chosen]

    def _refuse_seen(self, sequence: int) -> None:
        if sequence < self.cursor or sequence in self._items or sequence in self._tombstones:
            raise ValueError(f"sequence {sequence} was seen before (cursor {self.cursor})")
        if self.total is not None and sequence >= self.total:
            raise ValueError(f"sequence {sequence} lies beyond the end of the stream at {self.total}")
