"""The supervisor with real processes: restarts, budgets, stalls, signals, the order of the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from stand_ins import DEADLINE_S, LEARNS, SERVES, STUBBORN, WITH_CHILD, Director, Reports, gone, once

from safeladder.launch.guardian import Guardian
from safeladder.launch.processes import Process
from safeladder.launch.sections import Restart
from safeladder.launch.supervisor import Limits, Outcome, Supervisor

QUICK = Limits(finish_s=5.0, drain_s=5.0, dump_s=0.3, term_s=0.3)


@pytest.fixture
def reports() -> Iterator[Reports]:
    received = Reports()
    yield received
    received.close()


def supervise(processes: list[Process], director: Director, **hooks: Any) -> Outcome:
    """Runs the supervisor here while `director` plays its part in a thread; the director's failure ends the run."""
    guardian = Guardian()
    supervisor = Supervisor(processes, guardian, limits=hooks.pop("limits", QUICK), **hooks)
    with ThreadPoolExecutor(1) as pool:
        directed = pool.submit(director)
        directed.add_done_callback(lambda done: supervisor.stop("the director failed") if done.exception() else None)
        try:
            outcome = supervisor.run()
        finally:
            guardian.close()
        directed.result(DEADLINE_S)
    return outcome


def everybody_up(reports: Reports) -> None:
    for name in ("hub", "feeder", "generator", "learner"):
        reports.wait(f"{name}/0 up")


def finish(reports: Reports) -> None:
    """The learner ends in order, as after its last step."""
    os.kill(reports.wait("learner/0 up"), signal.SIGUSR2)


def record(outcome: Outcome, name: str) -> Any:
    return next(record for record in outcome.processes if record.name == name)


def test_the_run_ends_with_the_learner_and_drains_source_first_hub_last(tmp_path: Path, reports: Reports) -> None:
    def director() -> None:
        everybody_up(reports)
        finish(reports)

    outcome = supervise(reports.cluster(tmp_path), director)
    assert (outcome.code, outcome.reason) == (0, "done")
    ends = [said for said in reports.drain() if said.endswith("ends")]
    assert ends == ["learner/0 ends", "feeder/0 ends", "generator/0 ends", "hub/0 ends"]
    assert all(end.code == 0 for record in outcome.processes for end in record.exits)


def test_a_killed_worker_is_restarted_alone_and_the_hub_is_told(tmp_path: Path, reports: Reports) -> None:
    told: list[str] = []
    code = once(tmp_path, "generator", "print('last words', flush=True)\nos.kill(os.getpid(), 9)", SERVES)

    def director() -> None:
        everybody_up(reports)
        finish(reports)

    outcome = supervise(reports.cluster(tmp_path, generator=code), director, on_exit=told.append)
    generator = record(outcome, "generator/0")
    assert outcome.code == 0 and generator.restarts == 1
    assert (generator.exits[0].reason, generator.exits[0].tail) == ("SIGKILL", ["last words"])
    assert told[0] == "generator/0"
    assert [r.name for r in outcome.processes if r.restarts] == ["generator/0"]


def test_a_killed_hub_comes_back_and_nobody_else_restarts(tmp_path: Path, reports: Reports) -> None:
    told: list[str] = []

    def director() -> None:
        everybody_up(reports)
        os.kill(reports.wait("hub/0 up"), signal.SIGKILL)
        reports.wait("hub/0 up", times=2)
        assert "hub/0" not in told
        finish(reports)

    outcome = supervise(reports.cluster(tmp_path), director, on_exit=told.append)
    assert outcome.code == 0
    assert [r.name for r in outcome.processes if r.restarts] == ["hub/0"]


def test_a_server_that_ends_in_order_unasked_is_started_again(tmp_path: Path, reports: Reports) -> None:
    def director() -> None:
        everybody_up(reports)
        os.kill(reports.wait("generator/0 up"), signal.SIGTERM)
        reports.wait("generator/0 up", times=2)
        finish(reports)

    outcome = supervise(reports.cluster(tmp_path), director)
    assert outcome.code == 0 and record(outcome, "generator/0").restarts == 1


def test_a_source_that_is_done_is_left_alone(tmp_path: Path, reports: Reports) -> None:
    processes = reports.cluster(tmp_path)
    processes[1] = reports.process(tmp_path, "feeder/0", "say('up')", stage=0, server=False)

    def director() -> None:
        assert gone(reports.wait("feeder/0 up"))
        everybody_up(reports)
        finish(reports)

    outcome = supervise(processes, director)
    assert outcome.code == 0 and record(outcome, "feeder/0").starts == 1


def test_a_spent_budget_ends_the_run_in_order_and_says_why(tmp_path: Path, reports: Reports) -> None:
    notices: list[str] = []
    processes = reports.cluster(tmp_path)
    go = tmp_path / "go"
    code = f"""
        while not os.path.exists({str(go)!r}):
            time.sleep(0.01)
        print('boom', file=sys.stderr)
        sys.exit(3)
    """
    processes[2] = reports.process(
        tmp_path, "generator/0", textwrap.dedent(code), restart=Restart(max=2, per_s=60, backoff_s=0.01)
    )

    def director() -> None:
        for name in ("hub", "feeder", "learner"):  # who is told to end before it can be told says nothing
            reports.wait(f"{name}/0 up")
        go.touch()

    outcome = supervise(processes, director, notice=notices.append)
    assert outcome.code == 1
    assert "generator/0 ended (exit 3)" in outcome.reason and "2 restarts" in outcome.reason
    assert "boom" in outcome.reason
    assert record(outcome, "generator/0").starts == 3
    assert len(notices) == 2 and "boom" in notices[0]
    ends = [said for said in reports.drain() if said.endswith("ends")]
    assert ends.index("learner/0 ends") < ends.index("feeder/0 ends") < ends.index("hub/0 ends")


def test_replicas_of_a_pool_share_one_budget(tmp_path: Path, reports: Reports) -> None:
    restart = Restart(max=1, per_s=60, backoff_s=0.01)
    processes = reports.cluster(tmp_path)
    processes += [reports.process(tmp_path, f"rules/{i}", "sys.exit(1)", restart=restart) for i in range(2)]
    outcome = supervise(processes, lambda: None)
    assert outcome.code == 1 and "rules/" in outcome.reason
    assert sum(record(outcome, f"rules/{i}").starts for i in range(2)) <= 3


def test_the_wait_before_a_restart_grows(tmp_path: Path, reports: Reports) -> None:
    notices: list[str] = []
    processes = reports.cluster(tmp_path)
    restart = Restart(max=3, per_s=60, backoff_s=0.2)
    processes[2] = reports.process(tmp_path, "generator/0", "sys.exit(1)", restart=restart)
    supervise(processes, lambda: None, notice=notices.append)
    waits = [float(notice.rpartition(" in ")[2].removesuffix(" s")) for notice in notices]
    for wait, longest in zip(waits, (0.2, 0.4, 0.8), strict=True):
        assert longest / 2 - 0.06 <= wait <= longest + 0.06  # jitter of half, shown to one decimal


def test_a_configuration_error_is_never_restarted(tmp_path: Path, reports: Reports) -> None:
    code = "print('pools.generator.options.engine: no such engine', file=sys.stderr)\nsys.exit(78)"
    outcome = supervise(reports.cluster(tmp_path, generator=code), lambda: None)
    assert outcome.code == 78
    assert outcome.reason.endswith("no such engine")
    assert record(outcome, "generator/0").starts == 1


def test_a_command_that_does_not_exist_is_a_configuration_error(tmp_path: Path, reports: Reports) -> None:
    processes = reports.cluster(tmp_path)
    processes.append(Process("mine/0", ["./no-such-actor"], dict(os.environ), tmp_path / "mine.out"))
    outcome = supervise(processes, lambda: None)
    assert outcome.code == 78 and "no-such-actor" in outcome.reason


def test_a_stalled_worker_dumps_its_threads_and_is_replaced(tmp_path: Path, reports: Reports) -> None:
    stuck = "faulthandler.register(signal.SIGUSR1)\n" + STUBBORN
    code = once(tmp_path, "generator", stuck, SERVES)
    stalled: list[tuple[str, float]] = []

    def director() -> None:
        everybody_up(reports)
        stalled.append(("generator/0", 700.0))
        assert gone(reports.pids["generator/0 up"])
        stalled.clear()
        reports.wait("generator/0 up", times=2)
        finish(reports)

    outcome = supervise(reports.cluster(tmp_path, generator=code), director, stalled=lambda: list(stalled))
    generator = record(outcome, "generator/0")
    assert outcome.code == 0 and generator.exits[0].reason == "SIGKILL"
    assert any("most recent call first" in line for line in generator.exits[0].tail)


def test_who_ignores_sigterm_is_killed_at_the_deadline_of_its_stage(tmp_path: Path, reports: Reports) -> None:
    def director() -> None:
        everybody_up(reports)
        finish(reports)

    limits = Limits(finish_s=5.0, drain_s=0.3)
    outcome = supervise(reports.cluster(tmp_path, generator=STUBBORN), director, limits=limits)
    assert outcome.code == 0
    assert record(outcome, "generator/0").exits[-1].reason == "SIGKILL"
    assert record(outcome, "hub/0").exits[-1].reason == "exit 0"


def test_what_a_dead_process_left_behind_is_killed_with_it(tmp_path: Path, reports: Reports) -> None:
    def director() -> None:
        everybody_up(reports)
        child = reports.wait("generator/0 child")
        os.kill(reports.pids["generator/0 up"], signal.SIGKILL)
        assert gone(child)
        finish(reports)

    assert supervise(reports.cluster(tmp_path, generator=WITH_CHILD), director).code == 0


# ------------------------------------------------------------------------------ a launcher that signals are sent to

LAUNCHER = """
    import json, os, sys
    from pathlib import Path
    from safeladder.launch.guardian import Guardian
    from safeladder.launch.processes import Process
    from safeladder.launch.supervisor import Limits, Supervisor
    given = json.loads(sys.argv[1])
    guardian = Guardian()
    guardian.remove(given["folder"])
    processes = [Process(n, c, dict(os.environ), Path(o), stage=s, final=f) for n, c, o, s, f in given["processes"]]
    outcome = Supervisor(processes, guardian, limits=Limits(finish_s=10.0, drain_s=10.0)).run()
    guardian.close()
    sys.exit(outcome.code)
"""


def launcher(processes: list[Process], folder: Path) -> subprocess.Popen[bytes]:
    rows = [[p.name, p.command, str(p.output), p.stage, p.final] for p in processes]
    given = json.dumps({"processes": rows, "folder": str(folder)})
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(LAUNCHER), given])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_lets_the_learner_end_first_and_exits_130(
    tmp_path: Path, reports: Reports, number: signal.Signals
) -> None:
    process = launcher(reports.cluster(tmp_path), tmp_path / "ipc")
    everybody_up(reports)
    process.send_signal(number)
    assert process.wait(DEADLINE_S) == 130
    ends = [said for said in reports.drain() if said.endswith("ends")]
    assert ends == ["learner/0 ends", "feeder/0 ends", "generator/0 ends", "hub/0 ends"]


def test_a_second_signal_kills_everything_at_once(tmp_path: Path, reports: Reports) -> None:
    asked = "def ask(*_): say('asked')\nsignal.signal(signal.SIGTERM, ask)\nsay('up')\nidle()"
    process = launcher(reports.cluster(tmp_path, learner=asked, generator=WITH_CHILD), tmp_path / "ipc")
    everybody_up(reports)
    process.send_signal(signal.SIGINT)
    reports.wait("learner/0 asked")
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE_S) == 130
    assert all(gone(pid, 1.0) for pid in reports.pids.values())
    assert "feeder/0 ends" not in reports.drain()


def test_a_killed_launcher_leaves_no_orphan_not_even_a_childs_child(tmp_path: Path, reports: Reports) -> None:
    ipc = tmp_path / "ipc"
    ipc.mkdir()
    process = launcher(reports.cluster(tmp_path, generator=WITH_CHILD, learner=LEARNS), ipc)
    everybody_up(reports)
    reports.wait("generator/0 child")
    process.kill()
    process.wait(DEADLINE_S)
    assert all(gone(pid) for pid in reports.pids.values())
    assert "feeder/0 ends" not in reports.drain()


def test_a_killed_guardian_is_replaced_and_its_successor_knows_everything(tmp_path: Path) -> None:
    folder = tmp_path / "ipc"
    folder.mkdir()
    group = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    guardian = Guardian()
    guardian.watch(group.pid)
    guardian.remove(str(folder))
    first = guardian.pid
    os.kill(first, signal.SIGKILL)
    assert gone(first)
    guardian.ensure()
    assert guardian.pid != first
    guardian.close()  # the end of the pipe, as when the launcher dies
    assert group.wait(DEADLINE_S) == -signal.SIGKILL
    assert not folder.exists()


def test_the_guardian_spares_what_it_was_told_to_forget() -> None:
    group = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    guardian = Guardian()
    guardian.watch(group.pid)
    guardian.forget(group.pid)
    guardian.close()
    assert group.poll() is None
    group.kill()
    group.wait()
