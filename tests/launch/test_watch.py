"""The launcher's link: stalled and unheard-of workers are named, dead ones are not; against a real hub."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from safeladder.launch.config import Config, load
from safeladder.launch.guardian import Guardian
from safeladder.launch.rundir import RunDirectory, RunInfo
from safeladder.launch.watch import Watch
from safeladder.protocol.hub import HubOptions
from safeladder.protocol.hub_shell import Hub
from safeladder.protocol.messages import SCHEMA
from safeladder.protocol.transport import Link

DEADLINE_S = 15.0


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    endpoint = f"ipc://{tmp_path}/hub"
    options = HubOptions(durability="memory", beat_s=0.05, silence_s=0.4)
    hub = Hub(endpoint, options, tmp_path / "journal")
    stop = threading.Event()
    thread = threading.Thread(target=hub.serve, args=(stop,))
    thread.start()
    folder = RunDirectory(tmp_path)
    folder.write_info(RunInfo(endpoint, 0, "", SCHEMA))
    yield folder
    stop.set()
    thread.join(DEADLINE_S)


@pytest.fixture
def config() -> Config:
    return load("embedded", ["hub.silence_s=0.4", "hub.beat_s=0.05", "pools.rules.stall_s=50"])


@pytest.fixture
def watch(run: RunDirectory, config: Config) -> Iterator[Watch]:
    guardian = Guardian()
    watched = Watch(config, run, guardian)
    yield watched
    watched.close()
    guardian.close()


def until(condition: Callable[[], bool]) -> bool:
    """Asks as the supervisor does, again and again, until the deadline."""
    end, pause = time.monotonic() + DEADLINE_S, threading.Event()
    while time.monotonic() < end:
        if condition():
            return True
        pause.wait(0.02)
    return False


def worker(run: RunDirectory, name: str, busy_s: float) -> Link:
    link = Link(run.endpoint, name, [name.partition("/")[0]], vitals=lambda: (1, busy_s, {}))
    link.start(DEADLINE_S)
    return link


def test_only_who_is_busy_for_longer_than_its_pool_allows_is_stalled(run: RunDirectory, watch: Watch) -> None:
    links = [worker(run, "rules/0", 51.0), worker(run, "generator/0", 51.0), worker(run, "stranger/0", 9999.0)]
    found: list[tuple[str, float]] = []
    assert until(lambda: bool(found.extend(watch.stalled()) or found))
    assert {name for name, _ in found} == {"rules/0"} and found[0][1] == 51.0
    for link in links:
        link.close()


def test_who_was_there_and_is_no_longer_heard_of_is_stalled_until_its_process_has_ended(
    run: RunDirectory, watch: Watch
) -> None:
    link = worker(run, "generator/0", 0.0)
    assert until(lambda: not watch.stalled() and "generator/0" in watch._seen)
    link.close()  # without a good-bye, as a process that was stopped
    assert until(lambda: any(name == "generator/0" and seconds > 1.2 for name, seconds in watch.stalled()))
    watch.on_exit("generator/0")
    assert watch.stalled() == [] and not until_soon(lambda: bool(watch.stalled()))


def until_soon(condition: Callable[[], bool]) -> bool:
    """Whether it comes true within a dozen answers of the hub."""
    pause = threading.Event()
    return any(condition() or pause.wait(0.02) for _ in range(12))


def test_without_a_hub_nothing_blocks(tmp_path: Path, config: Config) -> None:
    folder = RunDirectory(tmp_path)
    folder.write_info(RunInfo(f"ipc://{tmp_path}/nobody", 0, "", SCHEMA))
    guardian = Guardian()
    begun = time.monotonic()
    watch = Watch(config, folder, guardian)
    watch.on_exit("generator/0")
    assert watch.stalled() == []
    watch.close()
    assert time.monotonic() - begun < 1.0
    guardian.close()
