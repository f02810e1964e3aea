"""Faults of live processes are named in plain words, by the wait graph or by a health rule. How soon: tests/benchmarks/faults.py."""

from __future__ import annotations

from pathlib import Path

import faults
import pytest
from running import Running


def test_eight_faults_of_a_live_run_are_each_named_in_plain_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(faults.HERE))
    for name, value in faults.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    with Running(tmp_path, *faults.SETTINGS) as running:
        named = {found.fault: found for found in faults.Faults(running, tmp_path).all()}
    assert len(named) == 8
    assert all(found.words and found.by for found in named.values())
