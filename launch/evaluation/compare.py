"""Two evaluations on the items that both have: paired tests measure by measure."""

from __future__ import annotations

from pathlib import Path

import msgspec

from safeladder.launch.config import ConfigError
from safeladder.launch.evaluation.statistics import Column, Difference, compare


class _Line(msgspec.Struct):
    suite: str
    measure: str
    items: list[str]
    rows: list[list[float]]
    statistic: str


def load(folder: Path) -> dict[str, dict[str, Column]]:
    """The columns of an evaluation's folder. Raises ConfigError where it holds none."""
    path = folder / "columns.jsonl"
    try:
        lines = [msgspec.json.decode(line, type=_Line) for line in path.read_bytes().splitlines()]
    except OSError:
        raise ConfigError(f"{folder} holds no finished evaluation: there is no {path.name}") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path} is damaged: {error}") from None
    found: dict[str, dict[str, Column]] = {}
    for line in lines:
        found.setdefault(line.suite, {})[line.measure] = Column(line.items, line.rows, line.statistic)
    return found


def comparison(first: Path, second: Path) -> dict[str, dict[str, Difference]]:
    """suite -> measure -> second less first, of what both have on the same items. Raises ConfigError when that is nothing."""
    ours, theirs = load(first), load(second)
    found: dict[str, dict[str, Difference]] = {}
    for suite, columns in ours.items():
        for name, column in columns.items():
            other = theirs.get(suite, {}).get(name)
            difference = None if other is None else compare(column, other)
            if difference is not None:
                found.setdefault(suite, {})[name] = difference
    if not found:
        raise ConfigError(f"{first} and {second} share no measure on the same items")
    return found
