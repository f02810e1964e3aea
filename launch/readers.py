"""Sources of task records: JSON lines, parquet, data sets of the hub or of a folder. Each gives rows as (where it stands, its fields).

    tasks.jsonl, embedded, embedded:NAME        one record a line
    file.parquet                                one record a row (extra `data`: pyarrow)
    hf:OWNER/NAME#SPLIT, hf:OWNER/NAME/CONFIG#SPLIT, hf:FOLDER#SPLIT
                                                a data set of the hub, or one that `save_to_disk` wrote (extra `data`: datasets)

Parquet files and data sets have columns of their own: `data.columns` says which field is in which. A row without an id is called after its
source and number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from safeladder.launch.config import ConfigError
from safeladder.launch.sections import Columns

DATASET: Final = "hf:"
Row = tuple[str, dict[str, Any]]


def rows(source: str, path: Path, columns: Columns) -> Iterator[Row]:
    """`path`: where the source is, of files. Raises ConfigError naming the source, and of a line that is no map its number."""
    if source.startswith(DATASET):
        yield from _columns(source, _dataset(source), columns)
    elif path.suffix == ".parquet":
        yield from _columns(source, _parquet(source, path), columns)
    else:
        yield from _lines(source, path)


def is_path(source: str) -> bool:
    """Whether a source is a path that may be made absolute, rather than a name."""
    return not source.startswith((DATASET, "embedded:")) and source != "embedded"


def _lines(source: str, path: Path) -> Iterator[Row]:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"data.tasks: cannot read {source}: {error}") from None
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield f"{source}:{number}", msgspec.json.decode(line, type=dict[str, Any])
            except msgspec.DecodeError as error:
                raise ConfigError(f"{source}:{number}: not a record: {error}") from None


def _columns(source: str, found: Iterator[Mapping[str, Any]], columns: Columns) -> Iterator[Row]:
    """Rows under the names that records have. Raises ConfigError for a column that is not there."""
    taken = {column: name for name, column in columns.fields.items()}
    stem = Path(source.partition("#")[0].removeprefix(DATASET)).stem
    for number, row in enumerate(found, 1):
        where = f"{source}:{number}"
        if missing := taken.keys() - row.keys():
            raise ConfigError(f"{where}: data.columns.fields: no column {sorted(missing)}; there are {sorted(row)}")
        fields = {taken.get(name, name): value for name, value in row.items() if value is not None}
        fields.setdefault("id", f"{stem}-{number}")
        for name in ("label", "language"):
            if (value := getattr(columns, name)) is not None:
                fields.setdefault(name, value)
        yield where, fields


def _parquet(source: str, path: Path) -> Iterator[dict[str, Any]]:
    """Batch by batch: the file need not fit in memory twice."""
    parquet = _imported("pyarrow.parquet", source)
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise ConfigError(f"data.tasks: cannot read {source}: {error}") from None


def _dataset(source: str) -> Iterator[dict[str, Any]]:
    datasets = _imported("datasets", source)
    name, _, split = source.removeprefix(DATASET).partition("#")
    if not split:
        raise ConfigError(f"data.tasks: {source}: say which split, {source}#train for instance")
    try:
        if Path(name).expanduser().is_dir():
            found = datasets.load_from_disk(str(Path(name).expanduser()))
            yield from found[split] if isinstance(found, datasets.DatasetDict) else found
            return
        owner_and_name, config = (name, None) if name.count("/") < 2 else name.rsplit("/", 1)
        yield from datasets.load_dataset(owner_and_name, config, split=split)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"data.tasks: cannot read {source}: {error}") from None


def _imported(module: str, source: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        raise ConfigError(f"data.tasks: {source} needs {package}: pip install 'safeladder[data]' ({error})") from None
