"""Records from lines, parquet and data sets: the same records, and what is wrong is named by source, row and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeladder.launch import tasks
from safeladder.launch.config import ConfigError
from safeladder.launch.sections import Columns

ROWS: list[dict[str, Any]] = [
    {"question": "What is 1 + 1?", "answer": "2", "level": 1},
    {"question": "What is 2 + 2?", "answer": "4", "level": 2},
]
COLUMNS = Columns({"prompt": "question", "reference": "answer"}, "general_rule", "en")


def lines(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    files = pytest.importorskip("pyarrow.parquet", reason="the extra `data` is not installed")
    tables = pytest.importorskip("pyarrow", reason="the extra `data` is not installed")
    files.write_table(tables.Table.from_pylist(rows), path)
    return str(path)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": "a", "label": "normal"}, r"t\.jsonl:2: not a record: .*`prompt`"),
        ({"id": "a", "label": 5, "prompt": "?"}, r"t\.jsonl:2: not a record: .*`\$\.label`"),
        ({"id": "a", "label": "normal", "prompt": " "}, r"t\.jsonl:2: field `prompt` is empty"),
        ({"id": "first", "label": "normal", "prompt": "?"}, r"t\.jsonl:2: field `id`: 'first' stands at .*:1 too"),
        (
            {"id": "a", "label": "v", "prompt": "?", "choices": ["x"], "reference": "B"},
            r":2: field `reference` must be",
        ),
        ([1, 2], r"t\.jsonl:2: not a record"),
    ],
)
def test_what_is_wrong_with_a_line_is_named_by_file_line_and_field(tmp_path: Path, row: Any, said: str) -> None:
    source = lines(tmp_path / "t.jsonl", {"id": "first", "label": "normal", "prompt": "?"}, row)
    with pytest.raises(ConfigError, match=said):
        tasks.read([source])


@given(st.binary(max_size=60))
def test_no_line_is_read_as_anything_but_a_record_or_an_error(line: bytes) -> None:
    try:
        record = tasks.parse(line.decode("utf-8", "replace"), "here:1")
    except ConfigError as error:
        assert "here:1" in str(error)
    else:
        assert record.prompt.strip()


def test_the_embedded_files_are_read_by_name_and_one_that_is_not_there_is_named() -> None:
    assert {record.label for record in tasks.read(["embedded:held_out_search"])} == {"search"}
    assert len(tasks.read(["embedded"])) == len(tasks.read(["embedded:tasks"])) == 184
    with pytest.raises(ConfigError, match="embedded:nothing"):
        tasks.read(["embedded:nothing"])


def test_a_parquet_file_gives_records_by_its_columns(tmp_path: Path) -> None:
    first, second = tasks.read([parquet(tmp_path / "sums.parquet", ROWS)], COLUMNS)
    assert (first.id, first.prompt, first.reference, first.label) == ("sums-1", "What is 1 + 1?", "2", "general_rule")
    assert second.extra == {"level": 2}


def test_a_parquet_column_that_is_not_there_and_a_bad_row_are_named(tmp_path: Path) -> None:
    source = parquet(tmp_path / "sums.parquet", [*ROWS, {"question": None, "answer": "6", "level": 3}])
    with pytest.raises(ConfigError, match=r"sums\.parquet:1: data\.columns\.fields: no column \['task'\]"):
        tasks.read([source], Columns({"prompt": "task"}, "normal"))
    with pytest.raises(ConfigError, match=r"sums\.parquet:3: not a record: .*`prompt`"):
        tasks.read([source], COLUMNS)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not at all")
    with pytest.raises(ConfigError, match=r"cannot read .*broken\.parquet"):
        tasks.read([str(tmp_path / "broken.parquet")], COLUMNS)


def test_a_saved_data_set_gives_records_split_by_split(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra `data` is not installed")
    saved = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
    )
    saved.save_to_disk(str(tmp_path / "sums"))
    assert len(tasks.read([f"hf:{tmp_path / 'sums'}#train"], COLUMNS)) == 2
    assert [r.id for r in tasks.read([f"hf:{tmp_path / 'sums'}#test"], COLUMNS)] == ["sums-1"]
    with pytest.raises(ConfigError, match="say which split"):
        tasks.read([f"hf:{tmp_path / 'sums'}"], COLUMNS)
    with pytest.raises(ConfigError, match="cannot read"):
        tasks.read([f"hf:{tmp_path / 'sums'}#dev"], COLUMNS)
