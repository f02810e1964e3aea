"""`safeladder mi-peaks`, with the tiny model for both."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from safeladder.launch import cli
from safeladder.launch.mi_peaks import ItemError, read_items
from safeladder.policies.mi_peaks import peaks


def written(folder: Path, *records: dict[str, object]) -> Path:
    path = folder / "items.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_both_models_are_analysed_and_what_they_came_to_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = written(
        tmp_path, {"id": "a", "prompt": "2 + 3?", "reference": "5"}, {"prompt": "Sky?", "reference": ["blue", "grey"]}
    )
    out = tmp_path / "out"
    assert (
        cli.main(["mi-peaks", "tiny", "tiny", "--items", str(items), "--out", str(out), "--max-new-tokens", "12"]) == 0
    )
    found = json.loads((out / "mi-peaks.json").read_text())
    assert found["before"] == found["after"]  # greedy, and the same model
    for thought in found["before"]["thoughts"]:
        assert len(thought["tokens"]) == len(thought["values"]) > 0
        assert all(value >= 0 for value in thought["values"])
        assert thought["peaks"] == peaks(thought["values"])
    assert found["before"]["count"] == sum(len(thought["tokens"]) for thought in found["before"]["thoughts"])
    assert (out / "mi-peaks.png").read_bytes().startswith(b"\x89PNG")
    assert "before (tiny)" in capsys.readouterr().out


def test_an_item_without_a_reference_is_named_by_file_line_and_field(tmp_path: Path) -> None:
    path = written(tmp_path, {"prompt": "2 + 3?", "reference": "5"}, {"prompt": "And this?", "reference": None})
    with pytest.raises(ItemError, match=r"items\.jsonl:2: reference: a text is needed here, not None"):
        read_items(path)


def test_a_file_without_items_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ItemError, match="no items"):
        read_items(written(tmp_path))


def test_without_matplotlib_it_ends_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # what an import meets where the extra is not installed
    items = written(tmp_path, {"prompt": "2 + 3?", "reference": "5"})
    assert cli.main(["mi-peaks", "no-model", "no-model", "--items", str(items), "--out", str(tmp_path / "out")]) == 78
    assert "safeladder[plots]" in capsys.readouterr().err
