"""An evaluation's figures, its resumption, and what a remote model may do wrong. The policy is a real server in this process."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "verifiers" / "judges"))

from model_server import Answer, ModelServer, says
from six_labels import SixLabels

from safeladder.launch.cli import main
from safeladder.launch.config import ConfigError
from safeladder.launch.evaluation import Answering, Endpoint, EngineSection, Report, Settings, evaluate
from safeladder.verifiers.measure import wilson

SIX = {"safety": {"kind": "six_labels:SixLabels"}}
RECORDS: list[dict[str, Any]] = [
    {"label": "safety", "prompt": "harm 1", "category": "fraud", "pair": "a"},
    {"label": "safety", "prompt": "refuse 1", "category": "fraud"},
    {"label": "safety", "prompt": "warn 1", "category": "drugs", "pair": "b"},
    {"label": "normal", "prompt": "help 1", "pair": "a", "harmful": False},
    {"label": "normal", "prompt": "help 2", "pair": "b", "harmful": False},
    {"label": "safety", "prompt": "needless 1", "category": "borderline"},
    {"label": "general_rule", "prompt": "\\boxed{4}", "reference": "4"},
    {"label": "general_rule", "prompt": "\\boxed{5}", "reference": "4", "language": "zh"},
    {"label": "knowledge_rule", "prompt": "Answer: B", "reference": "B", "choices": ["ja", "nein"]},
    {"label": "knowledge_rule", "prompt": "It is Paris.", "reference": ["Paris", "paris"]},
    {"label": "value", "prompt": "Answer: A", "reference": "B", "choices": ["so", "anders"]},
]


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    lines = [json.dumps({"id": f"r-{number}", **row}, ensure_ascii=False) for number, row in enumerate(rows)]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return str(path)


@contextmanager
def model(script: Callable[[str, int], Answer] | None = None) -> Iterator[ModelServer]:
    """A server that says what it is asked, first line only, or what `script` makes of (question, number of the request)."""

    def answer(number: int) -> Answer:
        asked = server.requests[number]["messages"][-1]["content"].splitlines()[0]
        return says(asked) if script is None else script(asked, number)

    with ModelServer(answer) as server:
        yield server


def settings(server: ModelServer, records: str, **more: Any) -> Settings:
    how = {"backoff_s": 0.001, "timeout_s": 20.0, "tries": 4} | more.pop("endpoint", {})
    endpoint = Endpoint(address=server.address, model="m", **how)
    return Settings(endpoint=endpoint, records=[records], **{"judges": SIX, **more})


def run(given: Settings) -> Report:
    return evaluate(given, io.StringIO())


def test_every_suite_gives_its_figures_with_intervals_and_parts(tmp_path: Path) -> None:
    with model() as server:
        report = run(settings(server, written(tmp_path / "r.jsonl", RECORDS)))
    found = {suite: {name: each.value for name, each in measures.items()} for suite, measures in report.suites.items()}
    assert found["safety"]["safe_rate"] == pytest.approx(2 / 3)
    assert found["safety"]["safe_rate[category=fraud]"] == 0.5 and found["safety"]["warning_rate"] == pytest.approx(
        1 / 3
    )
    assert report.suites["safety"]["safe_rate"].plain() == {
        "value": pytest.approx(2 / 3),
        "low": pytest.approx(wilson(2, 3)[0]),
        "high": pytest.approx(wilson(2, 3)[1]),
        "n": 3,
    }
    assert found["over_refusal"]["refusal_rate"] == pytest.approx(1 / 3)
    assert found["over_refusal"]["borderline_refusal_rate"] == 1.0
    assert found["contrast"]["pair_rate"] == 0.5  # pair a fell for the harmful side
    assert found["general"]["accuracy"] == 0.75 and found["general"]["accuracy[language=zh]"] == 0.0
    assert found["value"]["accuracy"] == 0.0
    assert all(measures["failed"] == 0.0 for measures in found.values())


def test_attacks_are_every_request_in_every_wrapper(tmp_path: Path) -> None:
    rows = [{"label": "safety", "prompt": f"number {n}"} for n in range(4)]
    templates = tmp_path / "t.jsonl"
    templates.write_text('{"id": "dan", "text": "harm {prompt}"}\n{"id": "grandma", "text": "refuse {prompt}"}\n')
    with model() as server:
        given = settings(server, written(tmp_path / "r.jsonl", rows), suites=["attacks"], templates=str(templates))
        found = run(given).suites["attacks"]
    assert found["attack_rate[template=dan]"].value == 1.0 and found["attack_rate[template=grandma]"].value == 0.0
    assert found["broken_rate"].value == 1.0 and found["attack_rate"].n == 4 * 5


def test_a_server_that_misbehaves_costs_tries_and_never_a_score(tmp_path: Path) -> None:
    """Each question is answered wrongly in its own way at first; one is never answered at all."""
    faults: dict[str, list[Answer]] = {
        "busy": [(429, {"Retry-After": "0"}, b"{}"), (500, {}, b"oops")],
        "garbage": [(200, {}, b"<html>"), (200, {}, b'{"choices": []}'), says(None)],
        "nothing": [(200, {}, b""), says("  "), (-1, {}, b"")],
        "filtered": [
            (
                200,
                {},
                json.dumps({"choices": [{"message": {"content": "help"}, "finish_reason": "content_filter"}]}).encode(),
            )
        ],
        "refused": [(401, {}, b"no")] * 9,
        "dead": [(503, {}, b"")] * 99,
    }
    seen: dict[str, int] = {}

    def script(asked: str, number: int) -> Answer:
        place = seen[asked] = seen.get(asked, -1) + 1
        own = faults[asked.split()[1]]
        return own[place] if place < len(own) else says(asked)

    rows = [{"label": "safety", "prompt": f"help {name}"} for name in faults]
    out = tmp_path / "out"
    with model(script) as server:
        given = settings(server, written(tmp_path / "r.jsonl", rows), suites=["safety"], out=str(out))
        report = run(given)
    assert report.suites["safety"]["safe_rate"].plain()["n"] == 4 and report.suites["safety"]["safe_rate"].value == 1.0
    assert report.failed == {"safety": 2} and report.suites["safety"]["failed"].value == pytest.approx(2 / 6)
    kept = [json.loads(line) for line in (out / "responses.jsonl").read_text().splitlines()]
    assert {line["id"] for line in kept if "error" in line["response"]} == {"r-4", "r-5"}
    assert seen["help refused"] == 0 and seen["help dead"] == 3  # a refusal is final; tries bound the rest


def test_an_answer_has_a_deadline_whatever_the_server_asks_for(tmp_path: Path) -> None:
    with model(lambda asked, number: (429, {"Retry-After": "3600"}, b"{}")) as server:
        path = written(tmp_path / "r.jsonl", RECORDS[:2])
        report = run(settings(server, path, suites=["safety"], endpoint={"deadline_s": 0.2}))
    assert report.failed == {"safety": 2} and "safe_rate" not in report.suites["safety"]


def test_a_silent_server_costs_the_time_of_a_request_and_its_tries(tmp_path: Path) -> None:
    with model(lambda asked, number: (server.release.wait(20), says("harm"))[1]) as server:
        path = written(tmp_path / "r.jsonl", RECORDS[:1])
        report = run(settings(server, path, suites=["safety"], endpoint={"timeout_s": 0.05, "tries": 2}))
        assert len(server.requests) == 2
        server.release.set()
    assert report.failed == {"safety": 1}


def test_a_judgement_that_fails_is_asked_for_again_and_then_counted(tmp_path: Path) -> None:
    SixLabels.judged = 0
    rows = [{"label": "safety", "prompt": text} for text in ("crash 1", "harm 1", "help 1")]
    with model() as server:
        path = written(tmp_path / "r.jsonl", rows)
        report = run(settings(server, path, suites=["safety"], judge_tries=3, judge_batch=1))
    assert report.suites["safety"]["safe_rate"].n == 2 and report.failed == {"safety": 1}
    assert SixLabels.judged == 2 + 3


def test_what_was_answered_and_judged_is_not_asked_again(tmp_path: Path) -> None:
    path, out = written(tmp_path / "r.jsonl", RECORDS), tmp_path / "out"
    with model() as server:
        first = run(settings(server, path, out=str(out)))
        asked, SixLabels.judged = len(server.requests), 0
        with (out / "responses.jsonl").open("ab") as file:
            file.write(b'{"item": "torn')
        again = run(settings(server, path, out=str(out)))
        assert (len(server.requests), SixLabels.judged) == (asked, 0) and again.plain() == first.plain()
        run(settings(server, path, out=str(out), answering=Answering(temperature=0.5)))
        assert len(server.requests) == 2 * asked  # other settings, other answers
    assert all(json.loads(line) for line in (out / "responses.jsonl").read_text().splitlines())
    assert json.loads((out / "report.json").read_text()) == first.plain()


def test_five_hundred_records_go_on_after_sigkill_with_nothing_answered_twice(tmp_path: Path) -> None:
    rows = [{"label": "safety", "prompt": f"question {number}"} for number in range(500)]
    records, out = written(tmp_path / "r.jsonl", rows), tmp_path / "out"
    engine = {"median_tokens": 12.0, "step_s": 0.006, "step_sequence_s": 0.0, "scale": 1.0}
    file = tmp_path / "evaluation.yaml"
    file.write_text(
        json.dumps(
            {
                "policy": "tiny",
                "records": [records],
                "suites": ["safety"],
                "judges": SIX,
                "out": str(out),
                "answering": {"max_new_tokens": 24},
                "engine": {"name": "simulated", "options": engine},
            }
        )
    )
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "safeladder.launch.cli", "evaluate", str(file)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path})
    assert process.stderr is not None
    for line in process.stderr:  # ends with the process: the test's own time limit is the deadline
        if line.startswith("answers: ") and int(line.split()[1].partition("/")[0]) >= 100:
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait(30)
    process.stderr.close()
    before = (out / "responses.jsonl").read_bytes()
    assert before.count(b"\n") < 500
    given = Settings(
        policy="tiny",
        records=[records],
        suites=["safety"],
        judges=SIX,
        out=str(out),
        answering=Answering(max_new_tokens=24),
        engine=EngineSection(name="simulated", options=engine),
    )
    report = run(given)
    content = (out / "responses.jsonl").read_bytes()
    items = [json.loads(line)["item"] for line in content.splitlines()]
    assert content.startswith(before[: before.rfind(b"\n") + 1]) and len(items) == len(set(items)) == 500
    assert report.suites["safety"]["failed"].n == 500 and not report.real


def test_two_evaluations_are_compared_on_the_items_that_both_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"label": "safety", "prompt": f"harm {n}"} for n in range(12)]
    path = written(tmp_path / "r.jsonl", rows)
    for name, safe in (("a", 2), ("b", 9)):
        script = lambda asked, number, safe=safe: says("help" if int(asked.split()[1]) < safe else asked)  # noqa: E731
        with model(script) as server:
            run(settings(server, path, suites=["safety"], out=str(tmp_path / name)))
    assert main(["evaluate", "--json", "--compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    found = json.loads(capsys.readouterr().out)["safety"]["safe_rate"]
    assert (found["first"], found["second"], found["n"]) == (pytest.approx(2 / 12), 9 / 12, 12)
    assert found["p"] == pytest.approx(2 * 0.5**7) and found["low"] > 0  # seven gained, none lost


def test_human_labels_tell_how_far_a_judge_can_be_believed(tmp_path: Path) -> None:
    said = [("harm", 1)] * 8 + [("help", 0)] * 9 + [("harm long", 0)] + [("help", 1)] * 2
    rows = [{"prompt": f"p {n}", "response": f"{text} {n}", "harmful": truth} for n, (text, truth) in enumerate(said)]
    path = tmp_path / "labelled.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = run(Settings(labelled=[str(path)], judges=SIX)).suites["judge_validity"]
    assert found["accuracy[harmful]"].value == 0.85 and found["caught[harmful]"].value == 0.8
    assert found["kappa[harmful]"].value == pytest.approx(0.7)
    assert found["false_alarm_rate[harmful]"].value == 0.1 and found["verbosity_bias[harmful]"].value > 0


@pytest.mark.parametrize(
    ("change", "says_what"),
    [
        ({"suites": ["safty"]}, "did you mean 'safety'"),
        ({"suites": ["search"]}, "finds nothing to measure"),
        ({"strategy": "beam"}, "needs the policy's tokens"),
        ({"judges": {**SIX, "polite": {"kind": "six_labels:SixLabels"}}}, "judges.polite"),
        ({"benchmarks": {"flame": "x"}}, "did you mean 'flames'"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(tmp_path: Path, change: dict[str, Any], says_what: str) -> None:
    with model() as server, pytest.raises(ConfigError, match=says_what):
        run(settings(server, written(tmp_path / "r.jsonl", RECORDS), **change))


def test_the_command_reads_keys_strictly(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "polcy=tiny"]) == 78
    assert "did you mean 'policy'" in capsys.readouterr().err
