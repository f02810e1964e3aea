"""The report's page: nothing from a log reaches it unescaped, nothing is fetched, and its figures are those of the logs."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_view import line, step, write

from safeladder.launch.cli import main
from safeladder.launch.report.chart import Line, _ticks, curves
from safeladder.launch.report.overview import differences, flattened
from safeladder.launch.report.training import walk
from safeladder.launch.report.write import write as report

EVIL = "<script>alert(1)</script>&\"'"


def run(folder: Path, name: str = "run", settings: str = "learner: {steps: 9, batch: 2}\n") -> Path:
    path = folder / name
    path.mkdir()
    (path / "config.yaml").write_text(settings)
    steps = [
        step(10.0 * n, n, unsafe_rate=0.25 - 0.02 * n, samples=16, reward_mean=n / 9, channels={"boxed": n / 10, "safety": n / 20})
        for n in range(1, 10)
    ]  # fmt: skip
    groups = [
        line(10.0 * n, "group.generated", "generator", id=f"group-{n}", tokens=90, seconds=float(n))
        for n in range(1, 9)
    ]
    write(path, learner=b"".join(steps), generator=b"".join(groups))
    return path


def test_the_page_is_whole_and_fetches_nothing(tmp_path: Path) -> None:
    page = report([run(tmp_path)], tmp_path / "out" / "report.html").read_text()
    assert not re.search(r"(src|href|xlink:href)\s*=|url\(|@import|<script", page)
    assert page.index("Safety against capability") < page.index("Rewards")
    body = re.sub(r"<(meta|!doctype)[^>]*>", "", page)
    ElementTree.fromstring(body.replace("<br>", "<br/>"))  # well-formed: every element is closed
    for part in re.findall(r"<svg.*?</svg>", page, re.S):
        assert "nan" not in part and "inf" not in part


def test_what_logs_and_settings_say_is_escaped_everywhere(tmp_path: Path) -> None:
    path = run(tmp_path, settings=f"run: {{name: '{EVIL.replace(chr(39), '')}'}}\n")
    evil = step(
        99, 10, families={EVIL: 1.0}, channels={EVIL: 1.0}, constraints={EVIL: {"multiplier": 1.0, "margin": -1.0}}
    )
    judged = line(99, "group.judged", EVIL, id=EVIL, verdicts={EVIL: {"scores": [1.0], "labels": [EVIL]}})
    told = line(99, "group.texts", "generator", id=EVIL, prompt=EVIL, answers=[EVIL])
    slow = line(99, "group.generated", EVIL, id=EVIL, tokens=5, seconds=99.0)
    warned = line(99, "learner.waiting", EVIL, "warning", reason=EVIL, advice=EVIL)
    exited = line(99, "process.exited", "launcher", name=EVIL, code=1, reason=EVIL)
    write(
        path,
        learner=evil,
        rules=judged + told + slow + warned,
        launcher=exited + line(99, "run.finished", "launcher", reason=EVIL),
    )
    page = report([path], tmp_path / "report.html", texts=True).read_text()
    assert "<script" not in page
    assert unescape(page).count("<script>alert(1)</script>") > 10


def test_texts_stay_out_unless_they_are_asked_for(tmp_path: Path) -> None:
    path = run(tmp_path)
    judged = line(99, "group.judged", "safety", id="a", verdicts={"safety": {"scores": [0.0], "labels": ["Unsafe"]}})
    write(
        path,
        safety=judged,
        generator=line(99, "group.texts", "generator", id="a", prompt="how to", answers=["first do"]),
    )
    out = tmp_path / "report.html"
    assert "first do" not in report([path], out).read_text()
    with_texts = report([path], out, texts=True).read_text()
    assert "first do" in with_texts and "safety: Unsafe" in with_texts


def test_a_run_that_has_just_begun_makes_a_page_too(tmp_path: Path) -> None:
    (tmp_path / "run" / "logs").mkdir(parents=True)
    assert "not measured" in report([tmp_path / "run"], tmp_path / "report.html").read_text()


def test_what_is_no_run_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "report.html")]) == 78
    assert "no run directory" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_the_trajectory_is_what_the_steps_say(tmp_path: Path) -> None:
    view = write(run(tmp_path))
    view.read()
    found = walk(view, 0)
    assert found is not None
    assert found.x.tolist() == pytest.approx([0.2, 0.5, 0.8])
    assert found.y.tolist() == pytest.approx([0.79, 0.85, 0.91])
    assert (found.low < found.y).all() and (found.high > found.y).all()


def test_two_runs_stand_beside_each_other_with_what_differs(tmp_path: Path) -> None:
    one, two = run(tmp_path, "one"), run(tmp_path, "two", "learner: {steps: 20, batch: 2}\nhub: {bind: ipc}\n")
    page = report([one, two], tmp_path / "report.html").read_text()
    assert "What differs" in page and "learner.steps" in page
    flat = [
        flattened({"learner": {"steps": 9, "batch": 2}}),
        flattened({"learner": {"steps": 20, "batch": 2}, "hub": {}}),
    ]
    assert differences(flat) == [["hub", "not set", "{}"], ["learner.steps", "9", "20"]]


@given(st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(float("nan"))), max_size=400))
def test_any_series_can_be_drawn_inside_its_picture(values: list[float]) -> None:
    picture = curves("figure", [Line("run", np.arange(len(values)), np.array(values))])
    numbers = [
        float(n) for path in re.findall(r'class="line[^"]*" d="M([^"]*)"', picture) for n in re.split("[L ]", path)
    ]
    assert all(-1 <= number <= 361 for number in numbers)
    assert ("not measured" in picture) == bool(np.isnan(values).all() if values else True)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_an_axis_has_a_few_round_values(low: float, size: float) -> None:
    ticks = _ticks(low, low + size)
    assert 2 <= len(ticks) <= 9
    assert low - 1e-6 * size <= ticks[0] and ticks[-1] <= low + size * (1 + 1e-6)
