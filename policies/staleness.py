"""How old a group may be when it is trained, and the admission rule that keeps it so.

Names: a *step* is one optimizer step, counted from 0 in the surviving history; B groups make a batch; eta is the bound,
in steps. eta = 0 is synchronous training.

Three policies decide it, by two numbers: how far ahead the feeder may admit (`Pace`), and how far a group may overtake
those that were admitted before it (the window of `Order`).

    pace       window 1: trained in order of admission. Loses nothing; a straggler holds up the batch that it belongs to
    windowed   window W > 1: a younger group may pass a straggler, at most W - 1 of them. Loses nothing; W - 1 fewer groups
               may be admitted ahead, which is the price of the same bound
    drop       no window and no bound on admission but max_in_flight: trained in order of completion, and what is older
               than eta when its turn comes is dropped, with a record, and made up for. Favours short completions:
               `selection.py` measures how much

The proof that `Pace` bounds age at the gradient step
-----------------------------------------------------
1. Groups are numbered by admission. `Order` takes B of them a step, none of which is W or more places younger than the
   oldest that is neither trained nor dropped. So before group j only groups with numbers below j + W are trained, and if j
   has l live predecessors (not dropped), at most l + W - 1 live groups are trained before it: it trains at step
   floor((l + W - 1) / B) or earlier. (W = 1: in order, at step floor(l / B).)
2. `Pace` admits while admitted - dropped < (eta + s + 1) * B - (W - 1), where s is the step that the feeder knows of. The
   group so admitted has l <= (eta + s + 1) * B - W live predecessors, hence trains at step
   floor(((eta + s + 1) * B - 1) / B) = eta + s at the latest. Groups that are dropped later only lower l.
3. The feeder may learn late that a step was made or that a group was dropped. Either way it admits less, not more.
4. The group carries the weights' version known at its admission as `min_version`, and no older weights may sample it.
   They are those of step s, so every token's age at the gradient step is at most eta.                               QED

The window moves on only if B groups can be admitted while one step's are in training: W - 1 <= eta * B, which is checked.

Time in queues is inside the bound, whatever the order in which groups are finished. A rollback lowers s and returns
what was admitted since, so the argument holds again from the step it went back to; numbers of versions are not reused,
so across a rollback a difference of versions can exceed the difference of steps. `ledger.VersionCounter.step_of` tells
the step of a version.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Pace:
    """Admission by pace: nothing that was admitted is ever dropped for its age.

    eta: largest age at the gradient step, in steps, >= 0. batch: groups per step, >= 1. max_in_flight: groups that may
    be between admission and the learner's buffer at once, >= 1 (a bound on memory and credit, not on age). window: that
    of the order in which they are trained; None is no window, and then age does not bound admission.
    """

    eta: int
    batch: int
    max_in_flight: int
    window: int | None = 1

    def __post_init__(self) -> None:
        if self.eta < 0 or self.batch < 1 or self.max_in_flight < 1:
            raise ValueError(f"pace needs eta >= 0, batch >= 1 and max_in_flight >= 1: {self}")
        if self.window is not None and not 0 <= self.window - 1 <= self.eta * self.batch:
            raise ValueError(
                f"the window is {self.window}; it must be from 1 to eta * batch + 1 = {self.eta * self.batch + 1}, or no "
                "batch could be admitted while another is trained"
            )

    def capacity(self, step: int, admitted: int, dropped: int, running: int) -> int:
        """How many groups may be admitted now, >= 0.

        step: optimizer steps made; admitted: groups admitted since the beginning of this history; dropped: those of
        them that will never be trained; running: those on their way to the learner. The form is AReaL's (arXiv
        2505.24298, eq. 3).
        """
        room = self.max_in_flight - running
        if self.window is not None:
            room = min(room, (self.eta + step + 1) * self.batch - (self.window - 1) - (admitted - dropped))
        return max(0, room)


def window(policy: str, chosen: int | None, eta: int, batch: int) -> int | None:
    """The window of a policy: 1 for pace, None for drop; for windowed what was chosen, or half of what eta allows."""
    if policy == "windowed":
        return chosen or eta * batch // 2 + 1
    return None if policy == "drop" else 1


def staleness(versions: Sequence[Sequence[int]], learner_version: int) -> list[int]:
    """Age of each sample in versions: the learner's version minus that of the sample's oldest token.

    versions: for each sample, the version of each token. A sample without tokens has age 0.
    """
    return [max(0, learner_version - int(min(tokens))) if len(tokens) else 0 for tokens in versions]


class Order(Generic[Item]):
    """Hands on what arrives in batches, in order of admission up to a window, or in order of arrival.

    `skip` leaves a tombstone where a group ended early, so that the order closes over it.
    """

    def __init__(
        self, batch: int, start: int = 0, window: int | None = 1, accounted: Collection[int] = frozenset()
    ) -> None:
        """batch: items a `take`; start: the first sequence number not accounted for (the feeder's cursor on resume).

        window: an item may be taken when it is less than this many places after the first number not accounted for, the
        oldest first; None: any item may, in order of arrival. accounted: numbers after `start` that were taken before.
        """
        if batch < 1 or start < 0 or (window is not None and window < 1):
            raise ValueError(f"batch and window must be >= 1 and start >= 0, not {batch}, {window} and {start}")
        self.batch = batch
        self.window = window
        self.cursor = start  # every sequence number below it was taken or skipped
        self.passed: list[int] = []  # tombstones that the last `take` accounted for
        self.total: int | None = None
        self._items: dict[int, Item] = {}  # in order of arrival
        self._tombstones: set[int] = set()
        self._taken: set[int] = {number for number in accounted if number >= start}

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
        """Tombstones that no `take` has accounted for yet."""
        return len(self._tombstones)

    @property
    def ahead(self) -> int:
        """Numbers from `cursor` on that are accounted for already: tombstones, and items that passed others."""
        return len(self._tombstones) + len(self._taken)

    def end(self, total: int) -> None:
        """Says that nothing will follow sequence `total - 1`; the last batch may then be short."""
        latest = max([self.cursor - 1, *self._items, *self._tombstones, *self._taken])
        if total <= latest:
            raise ValueError(f"end of stream after {total} groups, but sequence {latest} was seen")
        self.total = total

    @property
    def finished(self) -> bool:
        """Whether the stream has ended and every number of it was taken or skipped."""
        return self.total is not None and self.cursor >= self.total

    def take(self) -> list[Item] | None:
        """The next `batch` items, or None while there are not enough that may be taken (nothing changes then).

        At the end of the stream the last batch holds what is left; it is empty when only tombstones were. `passed` names
        the tombstones that came since the batch before.
        """
        chosen = self._choice()
        cursor = self._cursor_after(chosen)
        at_end = self.total is not None and cursor >= self.total and not self.finished
        if len(chosen) < self.batch and not at_end:
            return None
        accounted = self._taken | self._tombstones | set(chosen)
        self.cursor, self.passed = cursor, sorted(self._tombstones)
        self._taken = {number for number in accounted if number >= cursor}
        self._tombstones.clear()
        return [self._items.pop(sequence) for sequence in chosen]

    def _choice(self) -> list[int]:
        """Numbers of the items that the next batch may have: one at a time, for each one taken may move the window on."""
        if self.window is None:
            return list(self._items)[: self.batch]
        chosen: list[int] = []
        waiting = sorted(self._items)
        while len(chosen) < self.batch:
            cursor = self._cursor_after(chosen)
            found = next((n for n in waiting if n not in chosen and n < cursor + self.window), None)
            if found is None:
                break
            chosen.append(found)
        return chosen

    def _cursor_after(self, chosen: Sequence[int]) -> int:
        """Where the cursor would stand if the numbers `chosen` were taken."""
        cursor = self.cursor
        while cursor in self._taken or cursor in self._tombstones or cursor in chosen:
            cursor += 1
        return cursor

    def _refuse_seen(self, sequence: int) -> None:
        seen = self._items.keys() | self._tombstones | self._taken
        if sequence < self.cursor or sequence in seen:
            raise ValueError(f"sequence {sequence} was seen before (cursor {self.cursor})")
        if self.total is not None and sequence >= self.total:
            raise ValueError(f"sequence {sequence} lies beyond the end of the stream at {self.total}")
