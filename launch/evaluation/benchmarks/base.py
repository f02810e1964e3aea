"""What a benchmark is: a suite that reads its own public files.

Rows come from JSON, JSON lines, CSV, TSV and, where pyarrow is installed, parquet, alone or all those of a folder.
"""

from __future__ import annotations

import base64
import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import msgspec

from safeladder.launch.config import ConfigError
from safeladder.launch.evaluation.suite import Suite
from safeladder.protocol.messages import Record

KINDS: Final = (".json", ".jsonl", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class Line:
    """A row as it stands in a file. `where`: file and number, from 1. `folder`: what its image paths are relative to."""

    fields: Mapping[str, Any]
    where: str
    folder: Path
    stem: str

    def text(self, *names: str) -> str:
        """The first of these fields that holds text. Raises ConfigError where none does."""
        for name in names:
            value = self.fields.get(name)
            if isinstance(value, str) and value.strip():
                return value
        raise ConfigError(f"{self.where}: field `{names[0]}` is missing or holds no text")

    def maybe(self, *names: str) -> str | None:
        """As `text`; a number as text; None where there is none."""
        for name in names:
            value = self.fields.get(name)
            if isinstance(value, str | int | float) and not isinstance(value, bool) and str(value).strip():
                return str(value).strip()
        return None

    def images(self, *names: str) -> list[Any]:
        """The pictures that these fields name, as a record's `images`: paths made absolute, bytes (of parquet) in base64."""
        found: list[Any] = []
        for name in names:
            value = self.fields.get(name)
            for entry in value if isinstance(value, list) else [value]:
                if isinstance(entry, Mapping) and isinstance(entry.get("bytes"), bytes):
                    found.append({"data": base64.b64encode(entry["bytes"]).decode(), "type": "image/png"})
                elif isinstance(entry, str) and entry:
                    found.append(entry if entry.startswith("data:") else str(self.picture(entry)))
        return found

    def picture(self, name: str) -> Path:
        """A picture's file: beside the rows, or in a folder `images`, `imgs` or `img` there. Raises ConfigError."""
        for place in (self.folder, *(self.folder / each for each in ("images", "imgs", "img"))):
            if (place / name).is_file():
                return (place / name).resolve()
        raise ConfigError(f"{self.where}: there is no picture {name!r} in or below {self.folder}")


class Benchmark(Suite):
    """`name` marks its records in `extra.benchmark`; subclasses write `item`, `judged_by` and `columns`."""

    name: ClassVar[str]
    language: ClassVar[str] = "en"

    @classmethod
    def read(cls, place: Path) -> list[Record]:
        return [record for line in rows(place) for record in cls.item(line)]

    @classmethod
    def item(cls, line: Line) -> Iterator[Record]:
        """The records of a row. Raises ConfigError for a row that does not have the benchmark's fields."""
        raise NotImplementedError

    def judged_by(self, record: Record) -> tuple[str, ...]:
        raise NotImplementedError

    def roles(self, record: Record) -> tuple[str, ...]:
        return self.judged_by(record) if record.extra.get("benchmark") == self.name else ()

    @classmethod
    def record(cls, line: Line, prompt: str, *, label: str, id: str | None = None, **fields: Any) -> Record:
        """A record of this benchmark. `fields`: of Record; `extra` is added to the mark."""
        extra = {"benchmark": cls.name, **(fields.pop("extra", None) or {})}
        name = f"{cls.name}-{line.stem}-{id or line.where.rpartition(':')[2]}"[:200]
        fields.setdefault("language", cls.language)
        try:
            return msgspec.convert(
                {"id": name, "label": label, "prompt": prompt, "source": cls.name, "extra": extra, **fields}, Record
            )
        except msgspec.ValidationError as error:
            raise ConfigError(f"{line.where}: {error}") from None


def rows(place: Path) -> Iterator[Line]:
    """Every row of a file, or of the files of a folder and those below it. Raises ConfigError."""
    if place.is_dir():
        files = sorted(path for path in place.rglob("*") if path.suffix in KINDS)
    elif place.is_file():
        files = [place]
    else:
        raise ConfigError(f"benchmarks: there is no file or folder {place}")
    root = place if place.is_dir() else place.parent
    for file in files:
        for number, fields in enumerate(_read(file), 1):
            if not isinstance(fields, dict):
                raise ConfigError(f"{file}:{number}: a row is a map of fields, not a {type(fields).__name__}")
            yield Line(fields, f"{file}:{number}", root, file.stem)


def _read(file: Path) -> list[Any]:
    try:
        if file.suffix == ".parquet":
            return _parquet(file)
        content = file.read_text("utf-8-sig")
        if file.suffix in (".csv", ".tsv"):
            with file.open(encoding="utf-8-sig", newline="") as lines:
                return list(csv.DictReader(lines, delimiter="\t" if file.suffix == ".tsv" else ","))
        if file.suffix == ".jsonl":
            return [msgspec.json.decode(line) for line in content.splitlines() if line.strip()]
        return _entries(msgspec.json.decode(content))
    except (OSError, UnicodeDecodeError, csv.Error, msgspec.DecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None


def _entries(value: Any) -> list[Any]:
    """A list as it is; a map of maps as their list, the key as `key`; a map of lists as theirs, the key as `split`."""
    if isinstance(value, list):
        return value
    if isinstance(value, dict) and value and all(isinstance(each, dict) for each in value.values()):
        return [{"key": key, **each} for key, each in value.items()]
    if isinstance(value, dict) and value and all(isinstance(each, list) for each in value.values()):
        return [{"split": key, **each} for key, entries in value.items() for each in entries]
    return [value]


def _parquet(file: Path) -> list[Any]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise ConfigError(f"{file}: reading parquet needs the package pyarrow") from None
    found: list[Any] = parquet.read_table(file).to_pylist()
    return found


def letter(index: int) -> str:
    return chr(ord("A") + index)
