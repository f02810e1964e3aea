"""Task records: read, validated, and drawn in an order that the seed alone decides."""

from __future__ import annotations

import random
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final

import msgspec

from safeladder.launch import readers
from safeladder.launch.config import ConfigError
from safeladder.launch.sections import Columns
from safeladder.protocol import images
from safeladder.protocol.messages import Record

EMBEDDED: Final = "embedded"
_KNOWN = {field.name for field in msgspec.structs.fields(Record)} - {"extra"}


def read(sources: Sequence[str], columns: Columns | None = None) -> list[Record]:
    """All records of the sources (`launch/readers.py`). Raises ConfigError naming file, line and field.

    Images are looked at: a file that is none, or too large, is refused here. Their paths are relative to the task file.
    """
    records: list[Record] = []
    seen: dict[str, str] = {}
    for source in sources:
        for where, fields in readers.rows(source, located(source), columns or Columns()):
            record = _looked_at(of_fields(fields, where), located(source), where)
            if record.id in seen:
                raise ConfigError(f"{where}: field `id`: {record.id!r} stands at {seen[record.id]} too")
            seen[record.id] = where
            records.append(record)
    if not records:
        raise ConfigError(f"data.tasks: no record in {list(sources)}")
    return records


def parse(line: str, where: str) -> Record:
    """One line of a task file."""
    try:
        return of_fields(msgspec.json.decode(line, type=dict[str, Any]), where)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{where}: not a record: {error}") from None


def of_fields(fields: dict[str, Any], where: str) -> Record:
    """A record. Fields that this version does not know go to `extra`, beside what a field `extra` holds."""
    fields = dict(fields)
    try:
        extra = msgspec.convert(fields.pop("extra", None) or {}, dict[str, object])
        unknown = {name: fields.pop(name) for name in list(fields) if name not in _KNOWN}
        if twice := sorted(extra.keys() & unknown.keys()):
            raise ConfigError(f"{where}: field `{twice[0]}` stands in `extra` too")
        record = msgspec.convert({**fields, "extra": {**extra, **unknown}}, Record)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: not a record: {error}") from None
    if not record.prompt.strip():
        raise ConfigError(f"{where}: field `prompt` is empty")
    if record.choices and record.reference not in _letters(len(record.choices)):
        raise ConfigError(f"{where}: field `reference` must be a letter of the {len(record.choices)} choices")
    return record


def _looked_at(record: Record, path: Path, where: str) -> Record:
    try:
        return images.check(record, path.absolute().parent)
    except images.ImageError as error:
        raise ConfigError(f"{where}: {error}") from None


def line(record: Record) -> bytes:
    """A line as `read` takes it: what stands in `extra` are fields of the line."""
    plain = msgspec.to_builtins(record)
    return msgspec.json.encode({**{k: v for k, v in plain.items() if k != "extra"}, **record.extra}) + b"\n"


class Draw:
    """The endless (or `epochs` long) sequence of tasks: position -> record, a pure function of the records and the seed.

    Each epoch is a permutation of its own. With quotas, an epoch holds each family in the proportion asked for: as many records as
    the data has, drawn family by family without repetition until a family is used up, then from its next permutation.
    """

    def __init__(
        self,
        records: Sequence[Record],
        seed: int,
        families: dict[str, float] | None = None,
        shuffle: bool = True,
        epochs: int | None = None,
    ) -> None:
        self._records = list(records)
        self._seed, self._shuffle = seed, shuffle
        self._quota = {label: weight for label, weight in (families or {}).items() if weight > 0}
        present = {record.label for record in records}
        if missing := set(self._quota) - present:
            raise ConfigError(f"data.families: no record of {sorted(missing)}; the data holds {sorted(present)}")
        self._pools = {label: [r for r in self._records if r.label == label] for label in sorted(present)}
        self._size = len(self._records)
        self.total = None if epochs is None else epochs * self._size
        self._epoch: tuple[int, list[Record]] = (-1, [])

    def __getitem__(self, position: int) -> Record:
        epoch, offset = divmod(position, self._size)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._arrange(epoch))
        return self._epoch[1][offset]

    def _arrange(self, epoch: int) -> list[Record]:
        if not self._quota:
            return self._permute(self._records, f"{self._seed}/{epoch}")
        total = sum(self._quota.values())
        counts = {label: round(self._size * weight / total) for label, weight in self._quota.items()}
        chosen: list[Record] = []
        for label, count in counts.items():
            pool, first = self._pools[label], epoch * count
            for index in range(first, first + count):
                turn, offset = divmod(index, len(pool))
                chosen.append(self._permute(pool, f"{self._seed}/{label}/{turn}")[offset])
        largest = max(counts, key=lambda label: counts[label])
        while len(chosen) < self._size:  # rounding left some places
            chosen.append(self._pools[largest][len(chosen) % len(self._pools[largest])])
        return self._permute(chosen[: self._size], f"{self._seed}/order/{epoch}")

    def _permute(self, records: Sequence[Record], key: str) -> list[Record]:
        permuted = list(records)
        if self._shuffle:
            random.Random(key).shuffle(permuted)
        return permuted


def is_embedded(source: str) -> bool:
    """Whether a source is `embedded` or `embedded:NAME` rather than a path."""
    return source == EMBEDDED or source.startswith(f"{EMBEDDED}:")


def located(source: str) -> Path:
    """The file of a source: a path, or `embedded:NAME` for NAME.jsonl of the package's `launch/data`; `embedded` is `embedded:tasks`."""
    if not is_embedded(source):
        return Path(source).expanduser()
    name = source.partition(":")[2] or "tasks"
    return Path(str(resources.files("safeladder.launch.data").joinpath(f"{name}.jsonl")))


def _letters(count: int) -> list[str]:
    return [chr(ord("A") + index) for index in range(count)]
