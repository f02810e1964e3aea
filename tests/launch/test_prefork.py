"""Processes forked from one with its imports done: they are the launcher's children like those that are started plainly."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from safeladder.launch.child import Child
from safeladder.launch.prefork import Prefork
from safeladder.launch.processes import Process

DEADLINE_S = 60.0
SAYS = """
import json, os, sys, threading
print(json.dumps({
    "argv": sys.argv[1:], "name": __name__, "variable": os.environ.get("VARIABLE"), "path": os.environ.get("PATH"),
    "torch": "torch" in sys.modules, "threads": sys.modules["torch"].get_num_threads() if "torch" in sys.modules else 0,
    "draw": sys.modules["numpy"].random.random() if "numpy" in sys.modules else os.getpid(),
    "group": os.getpgid(0), "parent": os.getppid(),
}), flush=True)
if "fail" in sys.argv:
    raise RuntimeError("last words")
if "stay" in sys.argv:
    import signal
    while True:
        signal.pause()
sys.exit(3)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prefork")
    (path / "says.py").write_text(SAYS)
    return path


@pytest.fixture(scope="module")
def prefork(folder: Path) -> Iterator[Prefork]:
    made = ready(folder)
    yield made
    made.close()


def ready(folder: Path) -> Prefork:
    prefork = Prefork({**os.environ, "PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}"}, ("torch",))
    wait(lambda: not prefork.preparing())
    return prefork


def process(folder: Path, name: str, *arguments: str) -> Process:
    environment = {"VARIABLE": name, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "says", *arguments]
    return Process(name, command, environment, folder / f"{name.replace('/', '-')}.out", forks=True)


def wait(done: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


def said(child: Child) -> dict[str, object]:
    wait(lambda: child.process.output.read_bytes().endswith(b"}\n"))
    return json.loads(child.process.output.read_text())  # type: ignore[no-any-return]


def test_a_forked_process_is_what_the_plain_start_makes_it(folder: Path, prefork: Prefork) -> None:
    forked, plain = Child(process(folder, "a/0", "x"), prefork), Child(process(folder, "b/0", "x"))
    for child, has_torch in ((forked, True), (plain, False)):
        wait(child.ended)
        heard, end = said(child), child.reap()
        assert (end.code, end.reason) == (3, "exit 3")
        assert heard["argv"] == ["x"]
        assert (heard["name"], heard["variable"], heard["path"]) == ("__main__", child.name, None)
        assert (heard["torch"], heard["threads"]) == (has_torch, 2 if has_torch else 0)
        assert (heard["group"], heard["parent"]) == (child.pid, os.getpid())
    assert psutil.Process(prefork.pid).num_threads() == 1  # a fork would lose the others


def test_each_draws_its_own_numbers(folder: Path, prefork: Prefork) -> None:
    children = [Child(process(folder, f"draw/{index}"), prefork) for index in range(2)]
    for child in children:
        wait(child.ended)
    assert said(children[0])["draw"] != said(children[1])["draw"]
    for child in children:
        child.reap()


def test_its_failure_and_its_death_are_told_as_they_are(folder: Path, prefork: Prefork) -> None:
    failing, staying = (
        Child(process(folder, "fail/0", "fail"), prefork),
        Child(process(folder, "stay/0", "stay"), prefork),
    )
    wait(failing.ended)
    end = failing.reap()
    assert (end.code, end.tail[-1]) == (1, "RuntimeError: last words")
    said(staying)
    assert "-m says stay" in " ".join(psutil.Process(staying.pid).cmdline())
    staying.kill_group()
    wait(staying.ended)
    assert staying.reap().reason == "SIGKILL"


def test_what_it_started_outlives_it_and_the_next_starts_plainly(folder: Path) -> None:
    prefork = ready(folder)
    first = Child(process(folder, "first/0", "stay"), prefork)
    assert said(first)["torch"]
    os.kill(prefork.pid, signal.SIGKILL)
    second = Child(process(folder, "second/0", "stay"), prefork)
    assert not said(second)["torch"]
    assert not first.ended()
    for child in (first, second):
        child.kill_group()
        wait(child.ended)
        child.reap()
    prefork.close()


def test_one_that_is_never_ready_is_given_up(folder: Path) -> None:
    prefork = Prefork({"PATH": os.environ["PATH"], "PYTHONHOME": str(folder)})
    wait(lambda: not prefork.preparing())
    assert prefork.fork([sys.executable, "-m", "says"], {}, folder / "no.out") is None
    assert not prefork.ready and "ended before it was ready" in str(prefork.lost)
    prefork.close()
