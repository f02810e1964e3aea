"""Lines of data as rows: every kind of line, what a verifier may see, and how a bad line is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from safeladder.verifiers.rows import Row, RowsError, fields_of, polarity, read


def write(folder: Path, *lines: Any) -> Path:
    path = folder / "data.jsonl"
    path.write_text(
        "".join((line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)) + "\n" for line in lines)
    )
    return path


def test_each_kind_of_line_becomes_rows(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"prompt": "p", "response": "r", "harmful": 1, "source": "s"},
        {"prompt": "p", "chosen": "good", "rejected": "bad"},
        {"text": "我很好。", "acceptable": 0},
        {"problem": "1+1+1", "steps": ["1+1=2", "2+1=4", "done"], "first_error": 1},
        {
            "id": "t",
            "label": "value",
            "prompt": "q",
            "response": "a",
            "reference": ["x"],
            "language": "zh",
            "category": "c",
        },
    )
    rows, faults = read(path)
    assert faults == []
    assert [(row.field, row.truth, row.text) for row in rows] == [
        ("harmful", 1, "r"),
        ("preferred", 1, "good"),
        ("preferred", 0, "bad"),
        ("acceptable", 0, "我很好。"),
        ("sound", 1, "1+1=2"),
        ("sound", 0, "1+1=2\n\n2+1=4"),  # what follows the first error is neither right nor wrong
        (None, None, "a"),
    ]
    assert [row.record.language for row in rows] == ["en", "en", "en", "zh", "en", "en", "zh"]
    assert rows[5].text[rows[5].begin :] == "2+1=4"
    assert (rows[5].item().step, rows[5].item().answer, rows[0].item().step) == (1, "2+1=4", None)
    assert rows[6].record.reference == ["x"] and rows[6].record.category == "c"
    assert rows[0].where == f"{path}:1"
    assert fields_of(rows) == ["harmful", "preferred", "acceptable", "sound"]


def test_what_is_known_never_reaches_the_verifier(tmp_path: Path) -> None:
    line = {"prompt": "p", "response": "r", "evidence": "e", "harmful": 1, "correct": 0, "hallucinated": 1, "mine": 1}
    (row,), _ = read(write(tmp_path, line), label="mine")
    assert row.truth == 1
    assert row.item().record.extra == {"evidence": "e"}


def test_a_field_with_a_value_is_a_label_too(tmp_path: Path) -> None:
    path = write(tmp_path, {"prompt": "a", "label": "safety"}, {"prompt": "b", "label": "normal"})
    rows, faults = read(path, label="label=safety", prompts=True)
    assert [row.truth for row in rows] == [1, 0] and not faults
    assert polarity("label=safety") == "bad" == polarity("hallucinated")
    assert polarity("correct") == "good" and polarity("correct", "bad") == "bad"


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("not json", "(line)"),
        ({"prompt": "p"}, "response"),
        ({"response": "r"}, "prompt"),
        ({"prompt": "p", "response": 3}, "response"),
        ({"prompt": "p", "response": "r", "harmful": 2}, "harmful"),
        ({"prompt": "p", "response": "r", "choices": 5}, "choices"),
        ({"prompt": "p", "chosen": "c"}, "rejected"),
        ({"problem": "p", "steps": "x", "first_error": 0}, "steps"),
        ({"problem": "p", "steps": ["x"], "first_error": 1}, "first_error"),
    ],
)
def test_a_malformed_line_is_named_by_file_line_and_field_and_quoted_nowhere(
    tmp_path: Path, line: Any, field: str
) -> None:
    path = write(tmp_path, {"prompt": "fine", "response": "fine"}, line)
    rows, faults = read(path)
    assert len(rows) == 1
    assert [(fault.where, fault.field) for fault in faults] == [(f"{path}:2", field)]


def test_rows_of_one_content_have_one_digest(tmp_path: Path) -> None:
    first = {"id": "1", "source": "a", "prompt": "p", "response": "r", "harmful": 1}
    rows, _ = read(write(tmp_path, first, {**first, "id": "2", "source": "b"}, {**first, "response": "r2"}))
    digests = [row.digest() for row in rows]
    assert digests[0] == digests[1] != digests[2]
    changed: Row = rows[0].with_text("p2", "r")
    assert changed.digest() != digests[0] and changed.truth == 1


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(RowsError, match="cannot be read"):
        read(tmp_path / "absent.jsonl")
