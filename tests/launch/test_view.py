"""The reader of a run's logs: what it keeps, what it forgets, and that a log cannot break it."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeladder.launch.view import lines, readers
from safeladder.launch.view.digest import Digester
from safeladder.launch.view.judged import GROUPS, Columns, Judged
from safeladder.launch.view.series import MAX_NAMED, Changes, Table, Timeline, Worked
from safeladder.launch.view.snapshot import snapshot, suppliers
from safeladder.launch.view.state import RunView

MOMENT = "2026-01-01T00:{:02d}:{:06.3f}Z"


def line(at: float, event: str, role: str = "learner", level: str = "info", **fields: Any) -> bytes:
    moment = MOMENT.format(int(at // 60), at % 60)
    head = {"ts": moment, "mono_ns": int(at * 1e9), "level": level, "event": event, "role": role, "replica": 0}
    return json.dumps({**head, **fields}, separators=(",", ":")).encode() + b"\n"


def step(at: float, number: int, **fields: Any) -> bytes:
    known = {
        "step": number,
        "steps": 9,
        "published": number,
        "step_s": 4.0,
        "wait_s": 1.0,
        "publish_s": 0.5,
        "tokens": 40,
    }
    return line(at, "step.completed", **{**known, "staleness": [1, 1], "families": {"safety": float(number)}, **fields})


def write(run: Path, **logs: bytes) -> RunView:
    (run / "logs").mkdir(exist_ok=True)
    for role, content in logs.items():
        with (run / "logs" / f"{role}-0.jsonl").open("ab") as file:
            file.write(content)
    return RunView(run)


def test_a_step_that_is_made_again_counts_as_made_last(tmp_path: Path) -> None:
    view = write(tmp_path, learner=step(10, 1) + step(20, 2) + step(30, 3) + step(40, 2, families={"safety": 7.0}))
    view.read()
    assert view.steps.steps.tolist() == [1, 2]
    assert view.steps.column("family:safety").tolist() == [1.0, 7.0]
    assert view.ages() == [0, 4]


def test_a_torn_last_line_is_read_once_it_is_whole(tmp_path: Path) -> None:
    whole = step(10, 1) + step(20, 2)
    view = write(tmp_path, learner=whole[:-20])
    view.read()
    assert len(view.steps) == 1
    write(tmp_path, learner=whole[-20:])
    view.read()
    assert len(view.steps) == 2 and view.unreadable == 0


def test_a_rotated_file_is_read_on_and_nothing_twice(tmp_path: Path) -> None:
    view = write(tmp_path, learner=step(10, 1))
    view.read()
    write(tmp_path, learner=step(20, 2))
    (tmp_path / "logs" / "learner-0.jsonl").rename(tmp_path / "logs" / "learner-0.jsonl.1")
    write(tmp_path, learner=step(30, 3))
    view.read()
    assert view.steps.steps.tolist() == [1, 2, 3]
    assert view.lines == 3


@given(st.lists(st.one_of(st.binary(max_size=60), st.text(max_size=30).map(lambda text: text.encode())), max_size=8))
def test_no_line_whatever_it_holds_stops_the_reader(
    tmp_path_factory: pytest.TempPathFactory, garbage: list[bytes]
) -> None:
    run = tmp_path_factory.mktemp("run")
    names = [
        b'{"event":"step.completed",',
        b'{"event":"hub.status","ts":3,',
        b'{"event":"group.judged","verdicts":',
        b"",
    ]
    noise = b"".join(names[index % 4] + bytes(part).replace(b"\n", b" ") + b"\n" for index, part in enumerate(garbage))
    view = write(run, learner=noise + step(10, 1))
    view.read()
    assert len(view.steps) == 1
    assert view.unreadable == len(garbage)


def test_lines_that_nobody_asked_for_are_not_passed_on() -> None:
    quiet, asked = line(1, "groups.admitted", count=4), line(2, "engine.started", version=1)
    debug, loud = line(3, "engine.started", level="debug", version=2), line(4, "something.odd", level="warning")
    found = Digester({b"engine.started"}).digest(quiet + asked + debug + loud)
    assert [(told.event, told.line + b"\n", told.loud) for told in found.told] == [
        (b"engine.started", asked, False), (b"engine.started", debug, False), (b"", loud, True)
    ]  # fmt: skip
    assert found.lines == 4


def test_groups_above_the_bar_of_the_sample_are_left_out_and_no_others() -> None:
    judged = [line(1, "group.judged", "rules", id=name, verdicts={}) for name in ("a", "b", 'quo"ted', "c")]
    crcs = {name: zlib.crc32(name.encode()) for name in ("a", "b", "c")}
    bar = sorted(crcs.values())[1]
    found = Digester({b"group.judged"}).digest(b"".join(judged), bar)
    kept = [json.loads(told.line)["id"] for told in found.told]
    assert kept == [name for name in ("a", "b", 'quo"ted', "c") if crcs.get(name, 0) < bar]


def test_a_warning_that_comes_often_is_one_kind_with_its_count_and_advice(tmp_path: Path) -> None:
    stalled = [
        line(at, "process.stalled", "launcher", "warning", name="generator/0", seconds=at) for at in range(1, 51)
    ]
    view = write(tmp_path, launcher=b"".join(stalled) + line(60, "drift.alarm", level="warning", advice="restart it"))
    view.read()
    drift, stall = view.warnings.until()
    assert (stall.count, drift.advice) == (50, "restart it")
    assert "stall_s" in stall.advice
    assert view.process("generator/0").state()[0] == "stalled"


def test_the_steps_of_a_verifiers_training_are_none_of_the_run(tmp_path: Path) -> None:
    view = write(tmp_path, learner=step(10, 1) + step(20, 2, kind="judge"))
    view.read()
    assert len(view.steps) == 1


def test_overlapping_groups_keep_a_generator_busy_once(tmp_path: Path) -> None:
    groups = [line(at, "group.generated", "generator", id=str(at), tokens=100, seconds=10.0) for at in (10, 12, 14, 30)]
    view = write(tmp_path, generator=b"".join(groups))
    view.read()
    begin, _ = view.span
    generator = view.processes["generator/0"]
    assert generator.busy is not None
    assert generator.busy.total(begin, begin + 30) == pytest.approx(14 + 10, abs=0.01)
    assert generator.tokens.total(begin, begin + 30) == pytest.approx(400, rel=1e-3)
    assert [row.seconds for row in view.slowest] == [10.0] * 4


def test_the_hubs_rows_make_the_other_roles_time(tmp_path: Path) -> None:
    rows = [{"do": "moved", "by": "rules/0", "at": 8.0, "service_s": 3.0}, {"do": "leased", "to": "rules/0", "at": 8.5}]
    view = write(tmp_path, hub=line(9, "work.hops", "hub", rows=rows))
    view.read()
    busy = view.processes["rules/0"].busy
    assert busy is not None and busy.total(0, 4e9) == pytest.approx(3.0, abs=0.01)


def test_a_moment_in_the_past_shows_what_was_known_then(tmp_path: Path) -> None:
    launcher = line(1, "process.started", "launcher", name="learner/0", starts=1)
    launcher += line(50, "process.exited", "launcher", name="learner/0", code=0, reason="exit 0")
    view = write(tmp_path, learner=line(5, "actor.ready", credit=8) + step(10, 1) + step(40, 2), launcher=launcher)
    view.read()
    begin, _ = view.span
    routes = suppliers({"recipe": {"families": {"f": {"route": ["generator", "learner"]}}}})
    then, last = snapshot(view, routes, begin + 20), snapshot(view, routes)
    assert (then.step, then.version, then.roles[0].state) == (1, 1.0, "ready")
    assert (last.step, last.version, last.roles[0].state) == (2, 2.0, "finished")
    assert snapshot(view, routes, begin + 1).roles[0].state == "starting"


def test_who_is_idle_waits_for_the_role_before_it_on_the_route(tmp_path: Path) -> None:
    view = write(tmp_path, rules=line(1, "actor.ready", "rules"), generator=line(1, "actor.ready", "generator"))
    view.read()
    routes = suppliers({"recipe": {"families": {"f": {"route": ["generator", "rules", "learner"]}}}})
    workers = {
        "rules/0": {"queues": ["rules"], "credit": 4, "leases": 0, "busy_s": 0.0},
        "generator/0": {"queues": ["generator"], "credit": 4, "leases": 3, "busy_s": 2.0},
    }
    now = snapshot(view, routes, live=True, status={"waiting": {"generator": 5, "rules": 0}, "workers": workers})
    shown = {role.process: role for role in now.roles}
    assert shown["rules/0"].doing == "waits for generator"
    assert shown["generator/0"].doing == "busy 2.0 s, 3 leases"
    assert (shown["generator/0"].queue, shown["rules/0"].queue) == (5, 0)


def test_queues_and_leases_of_the_past_come_from_the_hubs_log(tmp_path: Path) -> None:
    def status(at: float, depth: int) -> bytes:
        workers = {"rules/0": {"queues": ["rules"], "credit": 4, "leases": depth, "busy_s": 0.0, "metrics": {}}}
        return line(at, "hub.status", "hub", waiting={"rules": depth}, workers=workers, dead=0, leased=depth)

    view = write(tmp_path, hub=status(2, 7) + status(8, 3), rules=line(1, "actor.ready", "rules"))
    view.read()
    begin, _ = view.span
    shown = [snapshot(view, {}, begin + after).roles for after in (0.5, 3.0, 7.5)]
    rules = [next(role for role in roles if role.process == "rules/0") for roles in shown]
    assert [(role.queue, role.leases) for role in rules] == [(None, None), (7, 7), (3, 3)]


intervals = st.lists(st.tuples(st.floats(0, 5000), st.floats(0.01, 300)), min_size=1, max_size=60)


@given(intervals)
def test_a_timeline_loses_nothing_however_often_it_is_widened(parts: list[tuple[float, float]]) -> None:
    timeline = Timeline()
    for begin, length in sorted(parts):
        timeline.add(np.array([begin]), np.array([begin + length]), np.array([length]))
    whole = sum(length for _, length in parts)
    assert timeline.total(-1, 6000) == pytest.approx(whole, rel=1e-6)
    assert timeline.rates(0, 6000, 37).sum() * 6000 / 37 == pytest.approx(whole, rel=1e-6)


@given(intervals, st.integers(1, 20))
def test_time_at_work_is_the_union_of_its_stretches(parts: list[tuple[float, float]], batch: int) -> None:
    """The batches are those in which a reader happens to look; they may not change the result."""
    ordered = sorted(((begin, begin + length) for begin, length in parts), key=lambda part: part[1])
    worked = Worked()
    for index in range(0, len(ordered), batch):
        rows = np.array(ordered[index : index + batch])
        worked.work(rows[:, 0], rows[:, 1])
    union, reach = 0.0, -np.inf
    for begin, end in sorted(ordered):
        union += max(0.0, end - max(begin, reach))
        reach = max(reach, end)
    assert worked.total(-1, 6000) == pytest.approx(union, rel=1e-6, abs=1e-6)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=40))
def test_steps_are_those_of_the_surviving_history(numbers: list[int]) -> None:
    table, history = Table(["figure"]), []
    for number in numbers:
        table.append(number, float(number), [number / 2], {"kind": {"name": float(number)}})
        history = [known for known in history if known < number] + [number]
    assert table.steps.tolist() == history
    assert table.column("figure").tolist() == [number / 2 for number in history]
    assert table.column("kind:name").tolist() == [float(number) for number in history]


def test_a_log_that_names_ever_new_channels_does_not_grow_the_table_without_end() -> None:
    table = Table(["figure"])
    for number in range(MAX_NAMED + 50):
        table.append(number, 0.0, [None], {"channel": {f"name-{number}": 1.0}})
    assert len(table.names("channel:")) == MAX_NAMED
    assert np.isnan(table.column("figure")).all()


def test_changes_know_what_held_when() -> None:
    changes = Changes()
    for at in range(3 * Changes.KEEP):
        changes.set(float(at), float(at))
    assert changes.at(None) == 3 * Changes.KEEP - 1
    assert changes.at(-1.0) is None
    middle = changes.at(1.5 * Changes.KEEP)
    assert middle is not None and abs(middle - 1.5 * Changes.KEEP) < Changes.KEEP / 8


def test_the_sample_of_groups_is_bounded_and_the_same_for_every_verifier() -> None:
    judged = Judged()
    names = [f"group-{number}" for number in range(4 * GROUPS)]
    for verifier in ("rules", "safety"):
        for name in names:
            judged.judge(name, {verifier: Columns(scores=[0.5, None], labels=[None, "Unsafe"])})
    assert GROUPS / 8 < len(judged.groups) <= GROUPS
    scores = judged.scores()
    assert set(scores["safety"]) <= set(scores["rules"])
    assert len(scores["safety"]) == len(judged.groups)


def test_texts_are_kept_only_when_asked_for() -> None:
    for asked in (False, True):
        judged = Judged(texts=asked)
        judged.tell("a", "prompt", ["answer"])
        assert [group.prompt for group in judged.groups.values()] == ["prompt"] * asked


def test_a_big_log_read_by_several_processes_tells_what_one_reader_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several blocks of several files, with a segment that was closed, a line longer than a block, and a torn end."""
    hub = b"".join(
        line(at, "work.hops", "hub", rows=[{"do": "moved", "by": "rules/0", "at": at - 0.5, "service_s": 0.25}])
        + line(at, "hub.status", "hub", waiting={"rules": at % 3}, workers={"rules/0": {"queues": ["rules"], "leases": at % 5}})
        for at in range(1, 3000)
    )  # fmt: skip
    groups = b"".join(
        line(at, "group.generated", "generator", id=f"group-{at}", tokens=at, seconds=at / 100, versions=[at])
        + line(at, "group.judged", "rules", id=f"group-{at}", verdicts={"rules": {"scores": [at / 3000]}})
        for at in range(1, 3000)
    )
    long = line(2999, "learner.waiting", level="warning", reason="x" * 100_000)
    write(tmp_path, learner=b"".join(step(at, at) for at in range(1, 500)))
    (tmp_path / "logs" / "learner-0.jsonl").rename(tmp_path / "logs" / "learner-0.jsonl.000001")
    write(tmp_path, hub=hub, generator=groups, learner=long + step(600, 500) + b'{"torn"')
    monkeypatch.setattr(lines, "BLOCK", 64 << 10)
    one, several = RunView(tmp_path), RunView(tmp_path)
    one.read()
    monkeypatch.setattr(readers, "WORTHWHILE", 0)
    several.read()
    routes = suppliers({})
    assert snapshot(several, routes) == snapshot(one, routes)
    assert several.lines == one.lines == 4 * 2999 + 501
    assert (several.slowest, several.judged.groups) == (one.slowest, one.judged.groups)
    begin, end = one.span
    for name, process in one.processes.items():
        assert several.processes[name].works.rates(begin, end, 7) == pytest.approx(process.works.rates(begin, end, 7))


def test_a_reader_that_fails_is_told_of_and_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view = write(tmp_path, learner=step(10, 1))
    monkeypatch.setattr(readers, "WORTHWHILE", 0)
    monkeypatch.setattr(lines.Piece, "path", str(tmp_path / "gone"))
    with pytest.raises(readers.ReadersError, match="has ended"):
        view.read()
    assert not [child for child in psutil.Process().children() if "readers" in " ".join(child.cmdline())]
