"""The life of a work on hand-made logs: where it is, how it ended, and what was undone; runs of real processes: test_runs.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from events_of import START, Event, line, trained

from safeladder.launch.lineage import LineageError, count, lives, where, why
from safeladder.launch.rundir import RunDirectory, RunInfo
from safeladder.policies.ledger import Entry, Ledger

ID = "00000001-task"


def hop(do: str, at: float, identity: str = ID, **fields: Any) -> dict[str, Any]:
    return {"do": do, "id": identity, "at": at, **fields}


def accepted(identity: str = ID, at: float = 0.0) -> dict[str, Any]:
    return hop("accepted", at, identity, queue="generator", sequence=int(identity[:8]))


LEASED = hop("leased", 1.0, queue="generator", to="generator/0", wait_s=1.0)
MOVED = hop("moved", 3.0, by="generator/0", service_s=2.0, queue="rules")


class Made:
    """A run directory with the given rows of the hub and lines of roles; `commit` makes what was trained stand."""

    def __init__(self, folder: Path) -> None:
        self.run = RunDirectory(folder)
        (folder / "logs").mkdir()
        self.run.write_info(RunInfo("ipc://x", 1, "now", "1"))

    def hub(self, *rows: dict[str, Any], at: float = 10.0) -> None:
        self.log("hub", line("work.hops", at, rows=list(rows)))

    def log(self, role: str, *events: Event) -> None:
        with self.run.log(role, 0).open("a") as file:
            file.writelines(json.dumps(event) + "\n" for event in events)

    def commit(self, **fields: Any) -> None:
        entry = Entry(0, 0, 1, "boot", "", **{"ids": [], "sequences": [], "dropped": [], **fields})
        head = Ledger(self.run.ledger).append(entry)
        folder = self.run.checkpoints / "step-00000001"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(json.dumps({"step": 1, "version": 1, "ledger_head": head}))


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([accepted()], "waits in queue 'generator', for 20.0 s"),
        ([accepted(), LEASED], "held by generator/0, which took it from queue 'generator', for 19.0 s"),
        ([accepted(), LEASED, MOVED], "waits in queue 'rules', for 17.0 s"),
        (
            [accepted(), LEASED, hop("died", 4.0, by="generator/0", service_s=3.0, queue="generator", reason="boom")],
            "set aside as a dead letter at 'generator': boom",
        ),
    ],
)
def test_where_names_the_queue_or_the_lease_and_for_how_long(made: Made, rows: list[dict[str, Any]], said: str) -> None:
    made.hub(*rows)
    assert where(made.run, "1", START + 20.0) == f"{ID}: {said}"


def test_every_work_has_one_outcome_and_what_the_ledger_says_goes_first(made: Made) -> None:
    names = [f"{n:08d}-task" for n in range(7)]
    made.hub(
        *(accepted(name) for name in names),
        hop("accepted", 0, "question-1", queue="searcher", sequence=0, lane="interactive"),
    )
    made.log("learner", trained(0, {"length": [0.5]}), trained(5, {"length": [0.5]}))
    made.hub(hop("died", 5, names[2], by="rules/0", service_s=1.0, queue="rules", reason="bad"))
    made.hub(hop("ended", 5, names[3], by="rules/0", service_s=1.0, queue="learner", reason="enough"))
    made.commit(ids=[names[0]], sequences=[0], dropped=[names[1]], dropped_sequences=[1], reasons=["stale"])
    assert count(made.run) == {"trained": 1, "dropped": 1, "died": 1, "ended": 1, "undone": 1, "pending": 2}
    assert "a roll-back undid" in next(why(made.run, "5"))


def test_why_tells_each_hop_with_its_times_and_of_a_sample_its_own_numbers_alone(made: Made) -> None:
    again = hop("returned", 2.0, by="generator/0", service_s=1.0, queue="generator", reason="generator/0 exited")
    second = hop("leased", 2.5, queue="generator", to="generator/1", wait_s=0.5, attempt=2)
    made.hub(accepted(), LEASED, again, second, {**MOVED, "by": "generator/1", "service_s": 0.5})
    made.log("hub", line("answer.refused", 2.8, name="generator/0", work=ID))
    columns = {"scores": [0.1, None], "statuses": ["ok", "timeout"], "errors": [None, "60 s"], "versions": ["2"]}
    made.log("rules", line("group.judged", 3.5, role="rules", id=ID, verdicts={"judge": columns}))
    problem = {"problems": {"1": "judge: timeout"}}
    made.log("learner", {**trained(1, {"judge": [0.1, None]}, at=4.0), "rewards": [0.1, None], **problem})
    made.commit(ids=[ID], sequences=[1])
    said = list(why(made.run, f"{ID}#1"))
    assert said[0] == f"{ID}#1: trained, at step 1, which made version 1 of version 0"
    assert [text.split("  ")[-1] for text in said[1:]] == [
        "admitted as number 1; waits for generator",
        "generator/0 takes it from generator after a wait of 1 s",
        "generator/0 gives it up after 1 s: generator/0 exited; waits for generator",
        "generator/1 takes it from generator after a wait of 0.5 s, attempt 2",
        "hub/0 does not take a late answer of generator/0",
        "generator/1 is done after 0.5 s; waits for rules",
        "rules/0 judge 2: #1 no score timeout 60 s",
        "learner/0 trained it at step 1, 0 versions old; version 1",
        "learner/0 #1 reward none (judge none), advantage 0, correction 1, loss weight 0.1, left out: judge: timeout",
    ]


def test_a_name_that_fits_several_works_or_none_is_refused_with_what_there_is(made: Made) -> None:
    made.hub(accepted("00000001-task"), accepted("00000002-task"))
    with pytest.raises(LineageError, match=r"2 works of .* 00000001-task, 00000002-task"):
        list(why(made.run, "task"))
    with pytest.raises(LineageError, match="0 works"):
        list(why(made.run, "7"))
    assert set(lives(made.run)) == {"00000001-task", "00000002-task"}
