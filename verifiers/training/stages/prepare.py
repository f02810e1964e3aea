"""From files to rows that may be trained on: read, duplicates out, leaks out, split, balanced. What goes is counted by reason."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safeladder.verifiers.rows import Row, read
from safeladder.verifiers.training.stages.balance import downsampled
from safeladder.verifiers.training.stages.duplicates import exact_duplicates, near_duplicates
from safeladder.verifiers.training.stages.leakage import NGRAM, LeakageGate
from safeladder.verifiers.training.stages.split import Part, part_of


class DataError(ValueError):
    """The files do not hold what training needs; says which and what."""


@dataclass
class Data:
    """What to train on. Shares and similarities lie in [0, 1]."""

    files: list[str] = field(default_factory=list)
    label: str | None = None  # the field with 0 or 1; null: the first known one of a line
    evaluation: list[str] = field(default_factory=list)  # files of which nothing may be trained on
    held_out_sources: list[str] = field(default_factory=list)  # wholly in the test part
    validation: float = field(default=0.1, metadata={"low": 0.0, "high": 0.5})
    test: float = field(default=0.18, metadata={"low": 0.0, "high": 0.9})
    near: float = field(default=0.8, metadata={"above": 0.0, "high": 1.0})  # similarity of duplicates and of leaks
    ngram: int = field(default=NGRAM, metadata={"low": 1})  # words of the leakage gate's n-grams
    overlap: float = field(default=0.5, metadata={"above": 0.0, "high": 1.0})  # share of n-grams that makes a leak
    balance: bool = True  # cut each source and language to classes of one size, in the train part


@dataclass(frozen=True)
class Prepared:
    """Rows by part, each with its truth, and what was removed by reason."""

    train: list[Row]
    validation: list[Row]
    test: list[Row]
    removed: dict[str, int]

    def counts(self) -> dict[str, int]:
        return {"train": len(self.train), "validation": len(self.validation), "test": len(self.test)}


def prepare(data: Data, seed: int = 0) -> Prepared:
    """Raises DataError for malformed lines, for a file without labelled rows, and when a part that is asked for is empty."""
    rows = list(_read(data))
    removed: Counter[str] = Counter()
    rows = _without_duplicates(rows, data.near, removed)
    if data.evaluation:
        rows = _without_leaks(rows, data, removed)
    parts: dict[Part, list[Row]] = {"train": [], "validation": [], "test": []}
    for row in rows:
        source = row.record.source
        parts[part_of(row.record.prompt or row.text, source, data.held_out_sources, data.validation, data.test)].append(
            row
        )
    if data.balance:
        cells = [(row.record.source, row.record.language) for row in parts["train"]]
        kept = downsampled([row.truth for row in parts["train"]], cells, seed)
        removed["balance"] = len(parts["train"]) - len(kept)
        parts["train"] = [parts["train"][index] for index in kept]
    if not parts["train"]:
        raise DataError(f"no row is left to train on; removed: {dict(removed)}")
    return Prepared(parts["train"], parts["validation"], parts["test"], dict(removed))


def _read(data: Data) -> Iterator[Row]:
    if not data.files:
        raise DataError("data.files is empty")
    for file in data.files:
        rows, faults = read(Path(file).expanduser(), data.label)
        if faults:
            raise DataError(f"{len(faults)} malformed lines; first: {faults[0]}")
        labelled = [row for row in rows if row.truth is not None]
        if not labelled:
            raise DataError(f"{file}: no row has a label")
        yield from labelled


def _without_duplicates(rows: Sequence[Row], near: float, removed: Counter[str]) -> list[Row]:
    """One row of each content; none where two rows of one content contradict each other."""
    texts = [f"{row.record.prompt}\n{row.text}" for row in rows]
    groups: dict[int, list[int]] = defaultdict(list)
    for index, first in enumerate(exact_duplicates(texts)):
        groups[first].append(index)
    kept = []
    for first, members in groups.items():
        if len({rows[index].truth for index in members}) > 1:
            removed["contradiction"] += len(members)
        else:
            removed["exact duplicate"] += len(members) - 1
            kept.append(first)
    matches = near_duplicates([texts[i] for i in kept], [(rows[i].field, rows[i].truth) for i in kept], near)
    removed["near duplicate"] += sum(match is not None for match in matches)
    return [rows[index] for index, match in zip(kept, matches, strict=True) if match is None]


def _without_leaks(rows: Sequence[Row], data: Data, removed: Counter[str]) -> list[Row]:
    held: list[str] = []
    for file in data.evaluation:
        found, _ = read(Path(file).expanduser(), None, prompts=True)
        held += [text for row in found for text in (row.record.prompt, row.text)]
    gate = LeakageGate(held, data.near, data.ngram, data.overlap)
    kept = []
    for row in rows:
        leak = gate.leak(row.record.prompt) or gate.leak(row.text)
        if leak is None:
            kept.append(row)
        else:
            removed[f"leak, {leak}"] += 1
    return kept
