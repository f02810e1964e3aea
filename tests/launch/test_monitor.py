"""The launcher's watch over the logs: what it sees there, it writes into its own log without being asked."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from events_of import START, line, status, step, worker

from safeladder.launch import catalogue, logs
from safeladder.launch.events import Tail
from safeladder.launch.monitor import Monitor
from safeladder.launch.waits import Layout

LAYOUT = Layout([["generator", "learner"]], {"generator": ["generator/0"], "learner": ["learner/0"]})


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    logs.configure("run", "launcher", 0, tmp_path / "launcher-0.jsonl")
    yield tmp_path
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def write(folder: Path, role: str, events: list[dict[str, Any]]) -> None:
    with (folder / f"{role}-0.jsonl").open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)


def test_a_dead_pool_and_a_broken_rule_are_told_in_the_launchers_log(folder: Path) -> None:
    ago = time.time() - START - 60.0
    gone = {"waiting": {"generator": 5}, "workers": {"generator/0": worker("other")}}
    write(
        folder,
        "hub",
        [status(ago, done=1), status(ago + 2, done=2), *(status(ago + t, done=2, **gone) for t in range(4, 60, 2))],
    )
    write(folder, "learner", [step(n, ago + 1, ess=0.01) for n in range(1, 6)])
    write(folder, "custom", [{**line("actor.ready", role="custom", queues=[], credit=1), "event": "my.own"}])
    Monitor(folder, LAYOUT).close()
    logs.flush()
    told = {event["event"]: event for event in Tail(folder, "launcher-*.jsonl").read()}
    assert told["run.stalled"]["cause"] == "no process takes from 'generator', where 5 works wait: generator/0 should"
    assert told["health.warning"]["rule"] == "ess_collapse" and told["health.warning"]["step"] == 5
    assert all(not list(catalogue.problems(event)) for event in told.values())


def test_the_past_of_a_resumed_run_is_not_told_again(folder: Path) -> None:
    write(folder, "learner", [step(n, ess=0.01) for n in range(1, 6)])
    Monitor(folder, LAYOUT, from_end=True).close()
    logs.flush()
    assert list(Tail(folder, "launcher-*.jsonl").read()) == []
