"""A run's folder: logs, lock, resume, progress, summary, audit; on hand-made files, with each promise broken once."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from safeladder.launch import logs, run, summary
from safeladder.launch.ask import dead_letters
from safeladder.launch.audit import audit, holds, newest_state, show
from safeladder.launch.config import ConfigError, load, save_resolved
from safeladder.launch.events import Tail
from safeladder.launch.progress import StepProgress, detail
from safeladder.launch.rundir import RunDirectory, RunInfo
from safeladder.launch.serve import serving
from safeladder.launch.supervisor import Ended, Outcome, Record
from safeladder.policies.ledger import Entry, Ledger
from safeladder.protocol import codec, journal
from safeladder.protocol import messages as m

# -------------------------------------------------------------------------------------------------------------- logs


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield tmp_path / "logs" / "rules-1.jsonl"
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_every_line_says_who_when_and_what_in_one_write(log_file: Path) -> None:
    early = structlog.get_logger("made before the logs were configured")
    log = logs.configure("run", "rules", 1, log_file)
    log.info("work.handled", id="a", odd=object, nan=float("nan"))
    early.warning("lease.lost", pid=7)
    logging.getLogger("library").warning("careful with %s", "that")
    warnings.warn("deprecated", stacklevel=1)
    log.debug("too.detailed")
    try:
        raise ValueError("bad")
    except ValueError:
        log.exception("work.failed")
    logs.flush()
    lines = [json.loads(line) for line in log_file.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["work.handled", "lease.lost", *["library.logged"] * 2, "work.failed"]
    assert [line["seq"] for line in lines] == list(range(5))
    fixed = {"ts", "mono_ns", "level", "event", "run", "role", "replica", "boot", "pid", "seq"}
    assert all(fixed <= set(line) for line in lines)
    assert (lines[0]["role"], lines[0]["replica"], lines[0]["nan"]) == ("rules", 1, None)
    assert lines[1]["pid"] == 7  # what the event says of another process stands
    assert lines[2]["message"] == "careful with that" and lines[2]["level"] == "warning"
    assert "ValueError: bad" in lines[4]["exception"]


def test_a_full_disk_drops_lines_counts_them_and_stops_nobody() -> None:
    full = logs.LineFile(Path("/dev/full"))
    full.write(event="a.b")
    full.write(event="c.d")
    full.flush()
    assert full.lost == 2


@settings(max_examples=50, deadline=None)
@given(cuts=st.lists(st.integers(1, 200), max_size=8))
def test_a_tail_reads_each_whole_line_once_however_it_is_written(cuts: list[int], tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("tail")
    data = b"".join(json.dumps({"event": "a.b", "n": n, "t": "é" * n}).encode() + b"\n" for n in range(8))
    data = data[:60] + b"torn{\n" + data[60:] if b"\n" in data[59:60] else data
    tail, found, at = Tail(folder), [], 0
    for cut in [*cuts, len(data)]:
        with (folder / "x-0.jsonl").open("ab") as file:
            file.write(data[at : at + cut])
        at = min(at + cut, len(data))
        found += [event["n"] for event in tail.read()]
    assert found == list(range(8))


def test_a_torn_line_is_passed_over_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"event":"a"}\n{"eve\n{"event":"b"}\n{"event":"un')
    tail = Tail(tmp_path)
    assert [event["event"] for event in tail.read()] == ["a", "b"] and tail.torn == 1


# ---------------------------------------------------------------------------------------------------------- progress


def step(number: int, reward: float = 0.5, **fields: Any) -> dict[str, Any]:
    head = {"ts": "2026-01-01T00:00:00Z", "event": "step.completed", "role": "learner", "replica": 0, "pid": 1}
    body = {"step": number, "steps": 3, "published": number, "reward_mean": reward, "staleness_max": 1, "tokens": 10}
    return {**head, **body, "staleness": [0, 1], "unsafe_rate": None, **fields}


def write_log(folder: Path, name: str, events: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)


def test_progress_without_a_terminal_is_one_plain_line_a_step_and_the_last_is_not_lost(tmp_path: Path) -> None:
    write_log(tmp_path, "learner-0.jsonl", [step(1), {"event": "checkpoint.committed"}])
    write_log(tmp_path, "generator-0.jsonl", [step(9)])
    out = io.StringIO()
    progress = StepProgress(tmp_path, 3, out)
    progress.notice("generator/0 ended (SIGKILL); restart 1 in 0.5 s")
    write_log(tmp_path, "learner-0.jsonl", [step(2, step_s=1.25)])
    progress.close()
    lines = out.getvalue().splitlines()
    assert sorted(lines) == sorted(
        [
            "generator/0 ended (SIGKILL); restart 1 in 0.5 s",
            "step 1/3  reward 0.500  staleness 1",
            "step 2/3  reward 0.500  staleness 1  1.2 s",
        ]
    )


def test_a_resumed_run_shows_no_step_of_its_past(tmp_path: Path) -> None:
    write_log(tmp_path, "learner-0.jsonl", [step(1)])
    out = io.StringIO()
    progress = StepProgress(tmp_path, 3, out, from_end=True)
    write_log(tmp_path, "learner-0.jsonl", [step(2)])
    progress.close()
    assert [line[:8] for line in out.getvalue().splitlines()] == ["step 2/3"]


def test_what_a_step_did_not_measure_is_not_shown() -> None:
    assert detail({"reward_mean": None, "loss": 0.25}) == "loss 0.2500"


# ----------------------------------------------------------------------------------------------------------- summary


def outcome() -> Outcome:
    killed = Ended(11, -9, "SIGKILL", 1.5, ["last words"])
    generator = Record("generator/0", 2, [killed, Ended(12, 0, "exit 0", 3.0, [])])
    return Outcome(0, "done", [Record("learner/0", 1, [Ended(10, 0, "exit 0", 5.0, [])]), generator])


def test_the_summary_is_of_the_surviving_history(tmp_path: Path) -> None:
    folder = RunDirectory(tmp_path / "r")
    write_log(folder.path / "logs", "learner-0.jsonl", [step(1, 0.1), step(2, 0.2), step(3, 0.9)])
    write_log(folder.path / "logs", "learner-0.jsonl", [step(2, 0.3, published=5), step(3, 0.4, published=6)])
    born = {"event": "process.started", "role": "rules", "replica": 0, "pid": 5, "ts": "2026-01-01T00:00:00.000Z"}
    died = {**born, "event": "process.finished", "ts": "2026-01-01T00:00:10.000Z", "wire_s": 0.5}
    write_log(folder.path / "logs", "rules-0.jsonl", [born, died])
    report = summary.write(folder, outcome(), 12.0)
    assert summary.load(folder) == msgspec.json.decode(msgspec.json.encode(report))
    assert [row["reward_mean"] for row in report["per_step"]] == [0.1, 0.3, 0.4]
    assert report["steps"] == 3 and report["versions_published"] == 5 and report["tokens"] == 30
    assert report["staleness"] == {"max": 1, "histogram": {"0": 3, "1": 3}}
    assert report["restarts"] == 1 and report["wire"] == {"seconds": 0.5, "share": 0.05, "processes": {"rules/0": 0.5}}
    out = io.StringIO()
    summary.show(report, out)
    assert "reward 0.100 -> 0.400" in out.getvalue() and "wire 5.00%" in out.getvalue()
    assert "SIGKILL" in out.getvalue() and "last words" in out.getvalue() and "learner/0" not in out.getvalue()


def test_a_run_that_failed_before_its_first_step_has_a_summary_too(tmp_path: Path) -> None:
    folder = RunDirectory(tmp_path)
    report = summary.write(folder, Outcome(78, "pools.rules: no such actor", []), 0.1)
    out = io.StringIO()
    summary.show(report, out)
    assert "no such actor" in out.getvalue() and report["per_step"] == [] and report["exit"]["code"] == 78


# ------------------------------------------------------------------------------------------------- audit of the files

ETA = 1


class HandMade:
    """A run of two steps of two tasks, and one task that ended early, as a sound run would have left it."""

    def __init__(self, folder: Path) -> None:
        self.run = RunDirectory(folder)
        for name in ("learner", "hub", "checkpoints"):
            (folder / name).mkdir(parents=True)
        self.configure()
        self.cursor = 5
        self.steps: list[dict[str, Any]] = [
            {"ids": [task(0), task(1)], "sequences": [0, 1], "staleness": [0, 1]},
            {"ids": [task(3), task(4)], "sequences": [3, 4], "staleness": [1, 1], "dropped": [task(2)]},
        ]
        self.submitted = list(range(6))  # the last one is pending
        self.records: list[journal.Record] = [
            *(journal.Finished(task(n), "done") for n in (0, 1, 3, 4)),
            journal.Dead(task(2), 1, 3, "the engine died"),
            journal.Finished(task(2), "skipped"),
        ]

    def configure(self, *overrides: str) -> None:
        save_resolved(load("embedded", [f"staleness.eta={ETA}", *overrides]), self.run.config)

    def write(self, step_of_checkpoint: int = 2, versions: tuple[int, ...] = (0, 1, 2)) -> RunDirectory:
        ledger, head = Ledger(self.run.ledger), ""
        for number, fields in enumerate(self.steps):
            entry = Entry(number, versions[number], versions[number + 1], "boot", head, **fields)
            entry = msgspec.structs.replace(entry, hash=entry.digest())
            with self.run.ledger.open("ab") as file:  # past the ledger's own guard: the audit must not rely on it
                file.write(msgspec.json.encode(entry) + b"\n")
            head = entry.hash
        ledger.close()
        self.checkpoint(step_of_checkpoint, head)
        out = journal.Journal(self.run.journal, sync=False)
        out.append([journal.Booted(1), *(journal.submitted(group(n)) for n in self.submitted), *self.records])
        out.close()
        return self.run

    def checkpoint(self, number: int, head: str, name: str | None = None) -> None:
        folder = self.run.checkpoints / (name or f"step-{number:08d}")
        folder.mkdir()
        state = {
            "step": number,
            "version": number,
            "ledger_head": head,
            "feeder_cursor": self.cursor,
            "extra": {"more": 1},
        }
        (folder / "state.json").write_text(json.dumps(state))


def task(number: int) -> str:
    return f"{number:08d}-task"


def group(number: int, lane: m.Lane = "training") -> codec.Parcel:
    payload = m.Group(m.Record(task(number), "normal", "hello"), m.Sampling(), sequence=number)
    return codec.pack(payload, id=task(number), route=["generator", "learner"], sequence=number, lane=lane)


@pytest.fixture
def made(tmp_path: Path) -> HandMade:
    return HandMade(tmp_path / "run")


def broken(folder: RunDirectory) -> dict[str, str]:
    """The rules that do not hold, with what was said."""
    return {rule.name: " ".join(rule.problems) for rule in audit(folder) if not rule.holds}


def test_a_sound_run_holds_and_its_balance_is_shown(made: HandMade) -> None:
    rules = audit(made.write())
    assert holds(rules) and not any(rule.skipped for rule in rules)
    out = io.StringIO()
    show(rules, out)
    assert "6 = 4 + 1 + 1" in out.getvalue() and "the engine died" in out.getvalue()


def test_a_task_trained_twice_is_named(made: HandMade) -> None:
    made.steps[1]["ids"] = [task(1), task(4)]
    assert task(1) in broken(made.write())["no task is trained twice"]


def test_a_task_dropped_and_trained_is_named(made: HandMade) -> None:
    made.steps[1]["dropped"] = [task(0)]
    assert task(0) in broken(made.write())["no task is trained twice"]


def test_a_task_that_was_never_issued_is_named(made: HandMade) -> None:
    made.submitted.remove(3)
    made.records = [record for record in made.records if getattr(record, "id", "") != task(3)]
    assert task(3) in broken(made.write())["nothing is trained that was not issued"]


def test_a_task_settled_but_not_in_the_history_is_lost(made: HandMade) -> None:
    made.records.append(journal.Finished(task(5), "done"))
    assert task(5) in broken(made.write())["issued = trained + dropped + pending"]


def test_a_task_trained_although_it_ended_early_is_named(made: HandMade) -> None:
    made.records.append(journal.Dead(task(4), 1, 3, "no"))
    assert task(4) in broken(made.write())["issued = trained + dropped + pending"]


def test_a_task_issued_twice_is_named(made: HandMade) -> None:
    made.submitted.append(5)
    assert task(5) in broken(made.write())["issued = trained + dropped + pending"]


def test_a_task_trained_too_old_is_named_with_its_age(made: HandMade) -> None:
    made.steps[1]["staleness"] = [1, ETA + 1]
    assert f"{task(4)} (2)" in broken(made.write())["nothing is trained too old"]


def test_a_task_without_an_age_is_named(made: HandMade) -> None:
    made.steps[0]["staleness"] = []
    assert task(0) in broken(made.write())["nothing is trained too old"]


def test_training_out_of_order_is_found(made: HandMade) -> None:
    made.steps[0]["sequences"] = [1, 0]
    assert "0 after 1" in broken(made.write())["trained in order"]


def test_a_gap_that_no_dropped_task_explains_is_found(made: HandMade) -> None:
    made.steps[1] = {"ids": [task(3), task(5)], "sequences": [3, 5], "staleness": [0, 0], "dropped": [task(2)]}
    made.records = [r for r in made.records if getattr(r, "id", "") != task(4)]
    found = broken(made.write())
    assert "numbers: 4" in found["nothing is passed over for good"]


def test_a_number_passed_over_beyond_the_cursor_is_found_where_order_is_promised(made: HandMade) -> None:
    made.steps[1] = {"ids": [task(3), task(5)], "sequences": [3, 5], "staleness": [0, 0], "dropped": [task(2)]}
    made.records = [r for r in made.records if getattr(r, "id", "") != task(4)]
    made.cursor = 4
    assert "1 before 4" in broken(made.write())["trained in order"]


def test_a_window_allows_as_many_to_pass_as_it_says_and_no_more(made: HandMade) -> None:
    made.configure("staleness.policy=windowed", "staleness.window=2")
    made.steps[0] |= {"ids": [task(0), task(3)], "sequences": [0, 3]}
    made.steps[1] |= {"ids": [task(1), task(4)], "sequences": [1, 4]}
    assert broken(made.write()) == {}
    made.configure("staleness.policy=pace")
    assert "1 after 3" in broken(made.run)["trained in order"]


@pytest.mark.parametrize("policy", ["drop", "wait"])
def test_where_no_order_is_promised_none_is_asked_for(made: HandMade, policy: str) -> None:
    made.configure(f"staleness.policy={policy}")
    made.steps[0] |= {"ids": [task(4), task(3)], "sequences": [4, 3]}
    made.steps[1] |= {"ids": [task(1), task(0)], "sequences": [1, 0]}
    rules = audit(made.write())
    assert holds(rules) and [rule.name for rule in rules if rule.skipped] == ["trained in order"]


def test_a_group_that_the_learner_dropped_is_explained_by_the_ledger_alone(made: HandMade) -> None:
    made.steps[1] |= {"dropped": [task(2)], "dropped_sequences": [2], "reasons": ["uninformative"]}
    made.records = [r for r in made.records if getattr(r, "id", "") != task(2)]
    made.records.append(journal.Finished(task(2), "done"))
    out = io.StringIO()
    rules = audit(made.write())
    show(rules, out)
    assert holds(rules) and "1 for 'uninformative'" in out.getvalue()


def test_a_requeued_dead_letter_may_come_late(made: HandMade) -> None:
    late = task(2) + "~1"
    made.steps.append({"ids": [task(5), late], "sequences": [5, 2], "staleness": [0, 0]})
    parcel = group(2)
    successor = codec.Parcel(msgspec.structs.replace(parcel.work, id=late), parcel.frames)
    made.records += [journal.Requeued(task(2), late), journal.submitted(successor), journal.Finished(late, "done")]
    assert broken(made.write(3, (0, 1, 2, 3))) == {}


def test_a_version_used_twice_is_found_also_on_a_branch_that_was_left(made: HandMade) -> None:
    assert "1" in broken(made.write(versions=(0, 1, 1)))["no weight version is used twice"]


def test_a_checkpoint_that_disagrees_with_its_history_is_found(made: HandMade) -> None:
    assert "3 steps" in broken(made.write(step_of_checkpoint=3))["checkpoint and ledger agree"]


def test_a_checkpoint_of_another_run_is_found(made: HandMade) -> None:
    made.checkpoint(9, "0" * 32)
    assert "checkpoints" in broken(made.write())["checkpoint and ledger agree"]


def test_an_uncommitted_checkpoint_does_not_count(made: HandMade) -> None:
    folder = made.write()
    made.checkpoint(9, "0" * 32, ".step-00000009.partial")
    state = newest_state(folder.checkpoints)
    assert state is not None and state.step == 2 and broken(folder) == {}


def test_a_compacted_journal_still_proves_the_run(made: HandMade) -> None:
    made.submitted = [5]  # of what is finished only the ends are left
    assert broken(made.write()) == {}


def test_evaluation_and_the_end_of_the_stream_are_not_training(made: HandMade) -> None:
    evaluated = group(77, lane="evaluation")
    end = codec.pack(m.End(6), id="end-6", route=["learner"], sequence=6)
    made.records += [journal.submitted(evaluated), journal.Finished(task(77), "done")]
    made.records += [journal.submitted(end), journal.Finished("end-6", "done")]
    assert broken(made.write()) == {}


def test_without_a_journal_its_rules_are_skipped_not_passed(made: HandMade) -> None:
    folder = made.write()
    folder.journal.unlink()
    assert sum(1 for rule in audit(folder) if rule.skipped) == 2


def test_the_command_exits_1_and_names_the_id(made: HandMade) -> None:
    made.steps[1]["ids"] = [task(1), task(4)]
    folder = made.write()
    done = cli("audit", str(folder.path))
    assert done.returncode == 1 and "BROKEN" in done.stdout and task(1) in done.stdout


# -------------------------------------------------------------------------------------------- the folder and the lock


def cli(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "safeladder.launch.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def test_a_run_is_created_once_and_latest_leads_to_it(tmp_path: Path) -> None:
    overrides = [f"run.directory={tmp_path}", "data.tasks=[tasks.jsonl]"]
    first = run.create(load("embedded", [*overrides, "run.name=a"]))
    second = run.create(load("embedded", [*overrides, "run.name=b"]))
    assert (tmp_path / "latest").resolve() == second.path != first.path
    with pytest.raises(ConfigError, match=r"is a run already; go on with `--resume"):
        run.create(load("embedded", [*overrides, "run.name=a"]))
    # what was relative to the working folder stays what it was
    assert load(first.config).data.tasks == [str(Path.cwd() / "tasks.jsonl")]


def ended(folder: Path, *overrides: str) -> RunDirectory:
    """A run with one checkpoint whose launcher is gone."""
    made = run.create(load("embedded", [f"run.directory={folder}", "run.name=ended", *overrides]))
    made.write_info(RunInfo("ipc:///nowhere", 1, "2026-01-01", m.SCHEMA))
    made.lock.touch()
    (made.checkpoints / "step-00000001").mkdir(parents=True)
    return made


def test_a_run_that_has_ended_is_not_waited_for_when_its_dead_letters_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not running"):
        dead_letters(ended(tmp_path))


def test_an_ended_run_is_served_with_who_draws_judges_and_looks_things_up(tmp_path: Path) -> None:
    retriever = "{actor: 'safeladder.actors.retriever:Retriever', options: {corpus: ['embedded:corpus']}}"
    made = ended(tmp_path, f"pools.retriever={retriever}")
    assert set(serving(made, tmp_path / "served").pools) == {"generator", "safety", "retriever"}


def test_a_resumed_run_keeps_its_configuration_but_for_its_length(tmp_path: Path) -> None:
    created = run.create(load("embedded", [f"run.directory={tmp_path}", "run.name=a", "sampling.samples=6"]))
    folder, config = run.reopen(created.path, ["learner.steps=99"])
    assert (config.learner.steps, config.sampling.samples, folder.path) == (99, 6, created.path)
    with pytest.raises(ConfigError, match=r"only learner\.steps may change"):
        run.reopen(created.path, ["sampling.samples=2"])
    with pytest.raises(ConfigError, match="no run directory"):
        run.reopen(tmp_path / "absent")


def test_a_second_launcher_on_one_run_is_refused(tmp_path: Path) -> None:
    config = load("embedded", [f"run.directory={tmp_path}", "run.name=a"])
    folder = run.create(config)
    with run.locked(folder):
        done = cli("launch", "--resume", str(folder.path))
    assert done.returncode == 78 and "another launcher (pid" in done.stderr and "Traceback" not in done.stderr


# ----------------------------------------------------------------------------------------------------------- commands


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["launch", "absent.yaml"], 78, "absent.yaml: there is no such file"),
        (["launch", "embedded", "learner.step=3"], 78, "did you mean 'steps'?"),
        (["launch", "embedded", "pools.learner.credit=1"], 78, "pools.learner.credit"),
        (["launch"], 2, "--resume RUN"),
        (["check", "embedded", "pools.learner.credit=1"], 1, "pools.learner.credit"),
        (["summary", "absent"], 78, "no summary.json"),
        (["audit", "absent"], 78, "no such file"),
    ],
)
def test_an_error_is_one_line_without_a_traceback(tmp_path: Path, arguments: list[str], code: int, said: str) -> None:
    done = cli(*arguments, cwd=tmp_path)
    assert done.returncode == code
    assert said in done.stdout + done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = cli("--debug", "launch", "absent.yaml", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" in done.stderr and "ConfigError" in done.stderr


def test_schema_prints_the_wires_json_schema() -> None:
    assert json.loads(cli("schema").stdout)["title"] == "SafeLadder wire"


def test_help_comes_without_heavy_imports() -> None:
    code = (
        "import sys, safeladder.launch.cli as c\n"
        "try: c.main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'torch', 'omegaconf', 'zmq', 'msgspec'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30).returncode == 0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_is_a_bar_that_counts_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    write_log(tmp_path, "learner-0.jsonl", [step(1), step(2)])
    out = Terminal()
    progress = StepProgress(tmp_path, 3, out)
    progress.notice("rules/0 ended (exit 1); restart 1 in 0.5 s")
    progress.close()
    assert "2/3" in out.getvalue() and "restart 1" in out.getvalue() and "reward 0.500" in out.getvalue()
