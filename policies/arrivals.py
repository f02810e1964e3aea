"""What has come to the learner and waits to be trained, by its number in the order of admission.

A number is in one of three states: outstanding (it will come), here (it waits), accounted for (it was taken into a batch, or
dropped for good). Numbers may be taken in any order; the *cursor* is the first that is not accounted for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Arrivals(Generic[Item]):
    """Keeps the order of arrival. A staleness policy chooses from it, `take` accounts for what was chosen."""

    def __init__(self, start: int = 0, ahead: Iterable[int] = ()) -> None:
        """start: first number not accounted for (the checkpoint's cursor). ahead: those beyond it that are, nevertheless."""
        if start < 0:
            raise ValueError(f"start must be >= 0, not {start}")
        self.cursor = start
        self.total: int | None = None
        self._items: dict[int, Item] = {}
        self._ahead = {number for number in ahead if number >= start}
        self._close()

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, number: int) -> bool:
        return number in self._items

    # ---------------------------------------------------------------------------------------------------- what is known

    @property
    def accounted(self) -> int:
        """How many numbers are accounted for."""
        return self.cursor + len(self._ahead)

    def accounted_for(self, number: int) -> bool:
        return number < self.cursor or number in self._ahead

    def numbers(self) -> list[int]:
        """What is here, first come first."""
        return list(self._items)

    def items(self) -> list[Item]:
        """What is here, first come first."""
        return list(self._items.values())

    def outstanding(self, count: int) -> list[int]:
        """The lowest `count` numbers not accounted for, here or not, rising; fewer where the stream ends before."""
        found: list[int] = []
        number = self.cursor
        while len(found) < count and (self.total is None or number < self.total):
            if number not in self._ahead:
                found.append(number)
            number += 1
        return found

    @property
    def complete(self) -> bool:
        """Whether the stream has ended and everything not accounted for is here."""
        return self.total is not None and self.total - self.accounted == len(self._items)

    @property
    def finished(self) -> bool:
        """Whether the stream has ended and every number of it is accounted for."""
        return self.total is not None and self.cursor >= self.total

    # -------------------------------------------------------------------------------------------------------- changes

    def add(self, number: int, item: Item) -> None:
        """Raises ValueError when the number was seen before: training it again would break exactly-once."""
        self._refuse_seen(number)
        self._items[number] = item

    def drop(self, number: int) -> None:
        """Says that `number` will never be trained. Raises ValueError when it is here, or accounted for already."""
        self._refuse_seen(number)
        self._account((number,))

    def withdraw(self, number: int) -> Item:
        """Takes an item out again, as if it had not come yet (it is sampled anew). KeyError when it is not here."""
        return self._items.pop(number)

    def take(self, numbers: Sequence[int]) -> list[Item]:
        """Takes these out for good. KeyError, and nothing changes, when one is not here."""
        chosen = [self._items[number] for number in numbers]
        for number in numbers:
            del self._items[number]
        self._account(numbers)
        return chosen

    def end(self, total: int) -> None:
        """Says that nothing will follow number `total - 1`; the last batch may then be short."""
        latest = max([self.cursor - 1, *self._items, *self._ahead])
        if total <= latest:
            raise ValueError(f"end of stream after {total} groups, but number {latest} was seen")
        self.total = total

    def _account(self, numbers: Iterable[int]) -> None:
        self._ahead.update(numbers)
        self._close()

    def _close(self) -> None:
        while self.cursor in self._ahead:
            self._ahead.remove(self.cursor)
            self.cursor += 1

    def _refuse_seen(self, number: int) -> None:
        if number in self._items or self.accounted_for(number):
            raise ValueError(f"number {number} was seen before (cursor {self.cursor})")
        if self.total is not None and number >= self.total:
            raise ValueError(f"number {number} lies beyond the end of the stream at {self.total}")
