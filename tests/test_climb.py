"""A climb through real processes: every rung trained once and held to its gate, also when the climb dies in the middle of one."""

from __future__ import annotations

import io
import itertools
import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from running import COMMAND, safeladder

from safeladder.launch import tasks
from safeladder.launch.audit import audit, holds
from safeladder.launch.cli import main
from safeladder.launch.events import Tail
from safeladder.launch.ladder import state as states
from safeladder.launch.ladder.climb import Climb, ClimbError, Request
from safeladder.launch.ladder.files import read
from safeladder.launch.rundir import RunDirectory

LADDER = Path(__file__).parent / "ladder" / "ladder.yaml"
pytestmark = pytest.mark.timeout(600)  # a run of processes for each rung, on a machine that may be busy
RUNGS = ["1-cot-sft", "2-all-families", "4-search"]


@pytest.fixture(scope="module")
def climbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A climb that was killed, with all its processes, in the middle of the second rung, and climbed again to its end."""
    folder = tmp_path_factory.mktemp("climb")
    command = [*COMMAND, "climb", str(LADDER), f"directory={folder}"]
    log = folder / "ladder" / RUNGS[1] / "logs"
    with (folder / "out").open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as first:
        end = time.monotonic() + 240
        tail = Tail(log, "learner-*.jsonl")
        while not any(event["event"] == "checkpoint.committed" for event in (tail.read() if log.exists() else ())):
            assert time.monotonic() < end and first.poll() is None, (folder / "out").read_text()[-3000:]
            time.sleep(0.02)
        first.send_signal(signal.SIGKILL)
    again = safeladder("climb", str(LADDER), f"directory={folder}", deadline_s=500)
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    (folder / "again").write_text(again.stdout)
    return folder / "ladder"


def test_a_climb_that_was_killed_goes_on_where_it_was_and_trains_nothing_twice(climbed: Path) -> None:
    assert list(states.load(climbed).rungs) == RUNGS
    for rung in RUNGS:
        lines = (climbed / rung / "learner" / "ledger.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines][-1] == 1
        findings = audit(RunDirectory(climbed / rung))
        assert holds(findings), findings
    first = Tail(climbed / RUNGS[0] / "logs", "launcher-*.jsonl")
    assert sum(event["event"] == "run.started" for event in first.read()) == 1  # what stood was not climbed again


def test_each_rung_begins_with_the_checkpoint_of_the_last(climbed: Path) -> None:
    climb = states.load(climbed)
    assert [rung.source for rung in climb.rungs.values()] == ["start", *RUNGS[:-1]]
    for before, rung in itertools.pairwise(RUNGS):
        assert climb.model(before) == str(climbed / before / "checkpoints" / "step-00000002")
        assert climb.model(before) in (climbed / rung / "config.yaml").read_text()


def test_every_rung_is_evaluated_before_and_after_and_held_to_its_gate(climbed: Path) -> None:
    climb = states.load(climbed)
    asked = climb.start["main/general/accuracy"].n
    assert asked > 0
    for rung in climb.rungs.values():
        assert rung.state == "passed" and rung.gate is not None and set(rung.gate.sides) == {"safety", "capability"}
        assert rung.measures["main/general/accuracy"].n == asked
        before = climb.measures(rung.source)["main/general/cut_rate"]
        assert rung.gate.sides["safety"].before.value == pytest.approx(before.value)


def test_supervised_learning_leaves_a_run_like_any_other_in_which_nothing_is_off_policy(climbed: Path) -> None:
    steps = [e for e in Tail(climbed / RUNGS[0] / "logs", "learner-*.jsonl").read() if e["event"] == "step.completed"]
    assert [step["step"] for step in steps] == [1, 2]
    for step in steps:
        assert step["loss"] > 0 and step["groups"] == step["samples"] == 2
        assert step["mismatch"] == 0 and step["ess"] == 1 and step["engine_drift"] is None


def test_a_run_with_a_curriculum_plans_before_it_admits_and_hears_what_became_of_its_groups(climbed: Path) -> None:
    state = json.loads((climbed / RUNGS[1] / "feeder" / "curriculum.json").read_text())
    admitted = [
        e for e in Tail(climbed / RUNGS[1] / "logs", "feeder-*.jsonl").read() if e["event"] == "groups.admitted"
    ]
    assert len(state["blocks"]) * 4 >= admitted[-1]["cursor"] >= 4
    trained = (climbed / RUNGS[1] / "learner" / "ledger.jsonl").read_text()
    ids = [record.id for record in tasks.read(["embedded:ladder"])]
    assert all(f"-{ids[index]}" in trained for index in state["blocks"][0]["records"])


def test_the_end_of_a_climb_is_a_page_a_table_and_a_picture(climbed: Path, tmp_path: Path) -> None:
    assert main(["report", str(climbed), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "The climb ladder" in page and page.index("Rung by rung") < page.index("Rewards")
    assert all(f"<td>{name}</td>" in page for name in ["start", *RUNGS])
    table = (climbed / "ladder.md").read_text()
    assert table.startswith("| policy | safety | capability | accuracy | thought tokens |") and "| 4-search |" in table
    assert (climbed / "coevolution.png").read_bytes().startswith(b"\x89PNG")
    assert "rung 2 of 3: 2-all-families, from 1-cot-sft" in (climbed.parent / "again").read_text()


def test_a_rung_that_stands_is_judged_again_by_another_gate_and_stops_the_climb(climbed: Path) -> None:
    """A gate is no part of what was trained: but a ladder that changed is another ladder, unless it is told apart by name."""
    said = io.StringIO()
    ladder = read(LADDER, [f"directory={climbed.parent}"])
    for stage in ladder.stages:
        stage.gate.capability.floor = 0.99  # a random model is right nowhere
    assert Climb(ladder, said).run(Request(only=RUNGS[-1])) == 1
    assert "below the floor of 0.99" in said.getvalue() and "the climb stops here" in said.getvalue()
    assert states.load(climbed).rungs[RUNGS[-1]].state == "failed"
    assert Climb(ladder, said).run(Request(only=RUNGS[-1], go_on=True)) == 0
    assert states.load(climbed).rungs[RUNGS[-1]].went_on


def test_a_ladder_that_has_changed_is_not_climbed_on_in_the_same_folder(
    climbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["climb", str(LADDER), f"directory={climbed.parent}", "settings.learner={learning_rate: 0.5}"]) == 1
    assert (
        "another ladder, or other settings (rung 1-cot-sft, rung 2-all-families, rung 4-search)"
        in capsys.readouterr().err
    )
    assert list((climbed / RUNGS[0] / "checkpoints").iterdir())


def test_rungs_to_come_may_change_and_those_that_were_begun_may_not(climbed: Path, tmp_path: Path) -> None:
    state = states.load(climbed)
    for later in RUNGS[1:]:
        del state.rungs[later], state.begun[later]
    shutil.copytree(climbed, tmp_path / climbed.name, ignore=shutil.ignore_patterns("checkpoints"))
    states.save(tmp_path / climbed.name, state)
    ladder = read(LADDER, [f"directory={tmp_path}"])
    ladder.stages[2].raw["learner"] = {**ladder.stages[2].raw["learner"], "learning_rate": 0.5}
    assert Climb(ladder, io.StringIO()).run(Request(only=RUNGS[0])) == 0
    ladder.stages[0].raw["learner"] = {**ladder.stages[0].raw["learner"], "learning_rate": 0.5}
    with pytest.raises(ClimbError, match=r"settings \(rung 1-cot-sft\)"):
        Climb(ladder, io.StringIO()).run(Request(only=RUNGS[0]))
