"""Lines on disk: what was whole before a crash is there after it, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeladder.protocol.line_file import LineFile, LineFileError


class Line(msgspec.Struct):
    number: int
    text: str


def refuse(line: Line) -> None:
    raise AssertionError(f"nothing stood there, and {line} was found")


@given(st.lists(st.text(max_size=8), max_size=6), st.data())
def test_a_file_cut_anywhere_goes_on_after_its_last_whole_line(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("lines") / "lines.jsonl"
    lines = [Line(number, text) for number, text in enumerate(texts)]
    with LineFile(path, Line, refuse) as file:
        file.append(lines)
    content = path.read_bytes()
    kept = content[: data.draw(st.integers(0, len(content)))]
    path.write_bytes(kept)
    found: list[Line] = []
    with LineFile(path, Line, found.append) as file:
        assert found == lines[: kept.count(b"\n")]
        file.append([Line(99, "after")])
    found.clear()
    with LineFile(path, Line, found.append):
        assert found == [*lines[: kept.count(b"\n")], Line(99, "after")]


def test_a_foreign_line_is_refused_by_its_number_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"number":1,"text":"a"}\n{"other":2}\n')
    with pytest.raises(LineFileError, match=r"lines\.jsonl:2: "):
        LineFile(path, Line, lambda line: None)
    assert path.read_bytes().endswith(b'{"other":2}\n')


def test_without_a_path_nothing_is_kept() -> None:
    with LineFile(None, Line, refuse) as file:
        file.append([Line(1, "a")])
