"""A curriculum: which record comes next, by family and by what the policy has made of it so far. Pure; `actors/feeder.py` keeps its file.

Positions are planned block by block. A block holds each family by its quota, and of a family first what is neither too easy nor too hard:

    quota       w_f = quota_f * clamp(mean c / c_f, 1 / reweight, reweight),   c_f = (trained_f + block) / (done_f + block)
    difficulty  a <- a + smoothing (group accuracy - a); in the pool while low <= a <= high, or a is unknown

c_f is the share of a family's groups that reached a step, of those of which it is known what became. Families that are too slow to be
fresh, or whose groups are dropped for want of spread, are planned more often, so that what is *trained* has the quotas. What is outside
the pool is tried again in one of 1 / revisit turns, so that it can come back as the policy changes. The interval 0.1 to 0.9 is the online
filter of MM-EUREKA (its README); the rest is ours.

A family's records are gone through in turns, each a permutation of its own: none comes twice in a turn. A block that was planned is what
its positions are, whatever is observed later; so a feeder that has saved the plan goes on exactly.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from safeladder.launch.config import ConfigError
from safeladder.launch.sections import CurriculumSection
from safeladder.protocol.messages import Record

KEPT_BLOCKS: Final = 64  # plans that stay known: what a rollback may ask for again
REMEMBERED: Final = 4096  # sequence numbers of which it is known that they were observed


class Block(Struct):
    """first: position of its first record. records: indices into the data."""

    number: int
    first: int
    records: list[int]


class CurriculumState(Struct):
    """All that a plan follows from, beside records, seed and settings. accuracy: record id -> running accuracy in [0, 1].

    cursors: family -> place in its endless turns. debts: family -> what rounding still owes it. observed: newest sequence numbers.
    """

    digest: str
    blocks: list[Block] = []
    accuracy: dict[str, float] = {}
    done: dict[str, int] = {}
    trained: dict[str, int] = {}
    cursors: dict[str, int] = {}
    debts: dict[str, float] = {}
    observed: list[int] = []


class Curriculum:
    """Position -> record. `plan` is called for a position that is not planned yet, and `save` before anybody sees what it gave."""

    def __init__(
        self,
        records: Sequence[Record],
        seed: int,
        settings: CurriculumSection,
        families: Mapping[str, float] | None = None,
        epochs: int | None = None,
        state: bytes | None = None,
    ) -> None:
        """state: what `save` gave for the same records, seed and settings. Raises ConfigError for another one, or unknown families."""
        self._records, self._seed, self._settings = list(records), seed, settings
        counts = Counter(record.label for record in records)
        self._quota = {f: w for f, w in (families or {}).items() if w > 0} or {
            f: float(n) for f, n in sorted(counts.items())
        }
        if missing := self._quota.keys() - counts.keys():
            raise ConfigError(f"data.families: no record of {sorted(missing)}; the data holds {sorted(counts)}")
        self._pools = {f: [i for i, record in enumerate(self._records) if record.label == f] for f in self._quota}
        self.total = None if epochs is None else epochs * len(self._records)
        named = [[r.id for r in self._records], seed, self._quota, msgspec.to_builtins(settings)]
        digest = hashlib.blake2b(msgspec.json.encode(named), digest_size=8).hexdigest()
        self._state = CurriculumState(digest) if state is None else msgspec.json.decode(state, type=CurriculumState)
        if self._state.digest != digest:
            raise ConfigError("data: the curriculum of this run was planned for other records, quotas or settings")
        self._observed = deque(self._state.observed, REMEMBERED)
        self._turns: dict[str, tuple[int, list[int]]] = {}

    # ------------------------------------------------------------------------------------------------------- reading

    def record(self, position: int) -> Record | None:
        """The record at a position, None where it is not planned yet. Raises ConfigError for one whose plan is forgotten."""
        for block in reversed(self._state.blocks):
            if position >= block.first:
                offset = position - block.first
                return self._records[block.records[offset]] if offset < len(block.records) else None
        if self._state.blocks:
            raise ConfigError(f"position {position} was planned too long ago: {KEPT_BLOCKS} blocks are kept")
        return None

    def outside(self, record: Record) -> bool:
        """Whether a record is too easy or too hard, as far as it is known."""
        known = self._state.accuracy.get(record.id)
        return known is not None and not self._settings.low <= known <= self._settings.high

    def save(self) -> bytes:
        """JSON of the state. Anything planned after is lost with the process."""
        self._state.observed = list(self._observed)
        return msgspec.json.encode(self._state)

    # ---------------------------------------------------------------------------------------------------- what happens

    def observe(self, position: int, accuracy: float | None, trained: bool) -> None:
        """What became of the group at a position. A second word about it changes nothing. accuracy: share of its samples that qualified;
        None:
        unknown."""
        record = self.record(position) if self._state.blocks and position >= self._state.blocks[0].first else None
        if record is None or position in self._observed:
            return
        self._observed.append(position)
        self._state.done[record.label] = self._state.done.get(record.label, 0) + 1
        if trained:
            self._state.trained[record.label] = self._state.trained.get(record.label, 0) + 1
        if accuracy is not None:
            known = self._state.accuracy.get(record.id)
            step = self._settings.smoothing if known is not None else 1.0
            self._state.accuracy[record.id] = (known or 0.0) + step * (accuracy - (known or 0.0))

    def plan(self) -> Block | None:
        """Plans the next block; None at the end of the data."""
        blocks = self._state.blocks
        first = blocks[-1].first + len(blocks[-1].records) if blocks else 0
        size = self._settings.block if self.total is None else min(self._settings.block, self.total - first)
        if size <= 0:
            return None
        number = blocks[-1].number + 1 if blocks else 0
        chosen = [index for family, count in self._sizes(size).items() for index in self._drawn(family, count)]
        random.Random(f"{self._seed}/block/{number}").shuffle(chosen)
        block = Block(number, first, chosen)
        self._state.blocks = [*blocks, block][-KEPT_BLOCKS:]
        return block

    def weights(self) -> dict[str, float]:
        """The share of each family in what is planned next; they add up to 1."""
        block, most = self._settings.block, self._settings.reweight
        reached = {
            f: (self._state.trained.get(f, 0) + block) / (self._state.done.get(f, 0) + block) for f in self._quota
        }
        mean = sum(reached.values()) / len(reached)
        raw = {f: quota * min(most, max(1 / most, mean / reached[f])) for f, quota in self._quota.items()}
        total = sum(raw.values())
        return {f: weight / total for f, weight in raw.items()}

    def _sizes(self, size: int) -> dict[str, int]:
        """Whole numbers that add up to `size`, what rounding takes from a family being owed to it."""
        wanted = {f: share * size + self._state.debts.get(f, 0.0) for f, share in self.weights().items()}
        sizes = {f: max(0, int(want)) for f, want in wanted.items()}
        while sum(sizes.values()) < size:
            sizes[max(wanted, key=lambda f: (wanted[f] - sizes[f], f))] += 1
        while sum(sizes.values()) > size:
            sizes[min((f for f in sizes if sizes[f]), key=lambda f: (wanted[f] - sizes[f], f))] -= 1
        self._state.debts = {f: wanted[f] - sizes[f] for f in sizes}
        return sizes

    def _drawn(self, family: str, count: int) -> list[int]:
        """The next records of a family that are in the pool, or are tried again; any, where a whole turn had none."""
        pool, taken, passed = self._pools[family], [], 0
        while len(taken) < count:
            turn, offset = divmod(self._state.cursors.get(family, 0), len(pool))
            index = self._turn(family, turn)[offset]
            self._state.cursors[family] = turn * len(pool) + offset + 1
            if passed >= len(pool) or not self.outside(self._records[index]) or self._due(self._records[index], turn):
                taken.append(index)
                passed = 0 if passed < len(pool) else passed
            else:
                passed += 1
        return taken

    def _turn(self, family: str, turn: int) -> list[int]:
        """The order of a family's records in a turn; the newest is kept."""
        if self._turns.get(family, (-1, []))[0] != turn:
            permuted = list(self._pools[family])
            random.Random(f"{self._seed}/{family}/{turn}").shuffle(permuted)
            self._turns[family] = (turn, permuted)
        return self._turns[family][1]

    def _due(self, record: Record, turn: int) -> bool:
        """Whether a record outside the pool is tried in this turn: one turn in 1 / revisit, not the same for all."""
        every = round(1 / self._settings.revisit) if self._settings.revisit else 0
        place = int.from_bytes(hashlib.blake2b(record.id.encode(), digest_size=4).digest(), "little")
        return every > 0 and (turn + place) % every == 0


def outcome(value: Any) -> tuple[int, float | None, bool]:
    """One entry of the topic `outcomes`: [position, accuracy or null, 1 if it was trained]. Raises ValueError for anything else."""
    try:
        position, accuracy, trained = msgspec.convert(value, tuple[int, float | None, bool | int])
    except msgspec.ValidationError as error:
        raise ValueError(f"no outcome: {error}") from None
    return position, accuracy, bool(trained)
