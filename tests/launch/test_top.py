"""The terminal monitor, run without a terminal, and what it prints for programs."""

from __future__ import annotations

import asyncio
import fcntl
import json
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from test_view import line, step, write

from safeladder.launch.cli import main
from safeladder.launch.config import load, save_resolved
from safeladder.launch.rundir import RunDirectory, RunInfo
from safeladder.launch.top.once import now, opened
from safeladder.launch.top.panels import bar, number, spark
from safeladder.protocol.hub import HubOptions
from safeladder.protocol.hub_shell import Hub
from safeladder.protocol.messages import SCHEMA
from safeladder.protocol.transport import Link

TINY = Path(__file__).parents[1] / "tiny.yaml"
DEADLINE_S = 20.0


def run(folder: Path) -> Path:
    launcher = line(1, "process.started", "launcher", name="learner/0", starts=1)
    steps = b"".join(step(10.0 * n, n, reward_mean=n / 9, kl=0.1 * n) for n in range(1, 6))
    waiting = line(12, "learner.waiting", "learner", "warning", reason="[red]no groups[/red]")
    write(folder, launcher=launcher, learner=line(5, "actor.ready", credit=8) + waiting + steps)
    return folder


def drive(folder: Path, size: tuple[int, int], act: Callable[..., Awaitable[None]]) -> None:
    """Runs the monitor over a run and lets `act` press its keys, once the logs have been read."""
    from safeladder.launch.top.app import Monitor

    async def session() -> None:
        app = Monitor(opened(folder))
        async with app.run_test(size=size) as pilot:
            assert await asyncio.to_thread(app.loaded.wait, DEADLINE_S)
            await settled(app, pilot)
            await act(app, pilot)

    asyncio.run(asyncio.wait_for(session(), DEADLINE_S))


async def settled(app: object, pilot: object) -> None:
    await app.workers.wait_for_complete()  # type: ignore[attr-defined]
    await pilot.pause()  # type: ignore[attr-defined]


def shown(app: object) -> str:
    """Everything on the screen, as text."""
    return "\n".join("".join(part.text for part in row) for row in app.screen._compositor.render_strips())  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [(160, 50), (80, 70)])
def test_the_screen_shows_roles_figures_and_advice_in_wide_and_narrow_terminals(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    async def look(app: object, pilot: object) -> None:
        text = shown(app)
        for expected in ("learner/0", "step 5/9", "KL to reference", "safety", "age 1", "[red]no", "look at the roles"):
            assert expected in text, f"{expected!r} is not on:\n{text}"

    drive(run(tmp_path), size, look)


def test_the_slider_goes_back_in_time_and_on_again(tmp_path: Path) -> None:
    async def press(app: object, pilot: object) -> None:
        await pilot.press("home")  # type: ignore[attr-defined]
        await settled(app, pilot)
        assert "step 0/9" in shown(app) and "starting" in shown(app)
        for _ in range(5):
            await pilot.press("right_square_bracket")  # type: ignore[attr-defined]
        await settled(app, pilot)
        assert "step 2/9" in shown(app) and "replay" in shown(app)
        await pilot.press("end")  # type: ignore[attr-defined]
        await settled(app, pilot)
        assert "step 5/9" in shown(app)

    drive(run(tmp_path), (160, 50), press)


def test_what_a_live_run_adds_comes_onto_the_screen(tmp_path: Path) -> None:
    folder = run(tmp_path)

    async def follow(app: object, pilot: object) -> None:
        write(folder, learner=step(60, 6))
        app.look()  # type: ignore[attr-defined]
        await settled(app, pilot)
        assert "step 6/9" in shown(app)

    drive(folder, (160, 50), follow)


def test_once_prints_tables_and_json_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(tmp_path)
    assert main(["top", str(folder), "--once"]) == 0
    said = capsys.readouterr().out
    assert "step 5/9" in said and "[red]no groups[/red]" in said
    assert main(["top", str(folder), "--once", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["step"], found["live"], found["staleness"]) == (5, False, [0, 10])
    assert found["training"]["kl"] == pytest.approx(0.5)
    assert found["roles"][0]["process"] == "learner/0"


def test_of_a_live_run_the_hub_itself_is_asked(tmp_path: Path) -> None:
    """A real hub with a real worker, and the run's lock held as its launcher holds it."""
    folder, endpoint, stop = run(tmp_path), f"ipc://{tmp_path}/hub", threading.Event()
    hub = Hub(endpoint, HubOptions(durability="memory"), tmp_path / "journal")
    thread = threading.Thread(target=hub.serve, args=(stop,))
    thread.start()
    worker = Link(endpoint, "rules/0", ["rules"], credit=3)
    directory = RunDirectory(folder)
    directory.write_info(RunInfo(endpoint, 0, "", SCHEMA))
    save_resolved(load(TINY), directory.config)
    write(folder, rules=line(2, "actor.ready", "rules", credit=1))
    try:
        worker.start(DEADLINE_S)
        with directory.lock.open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            _, shown = now(folder)
        _, after = now(folder)
    finally:
        worker.close("done")
        stop.set()
        thread.join(DEADLINE_S)
    rules = next(role for role in shown.roles if role.process == "rules/0")
    assert (shown.live, rules.credit, rules.leases) == (True, 3, 0)
    assert rules.doing == "waits for generator"
    assert not after.live


def test_top_refuses_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", str(tmp_path), "--once"]) == 78
    assert "no run directory" in capsys.readouterr().err


def test_small_pictures_keep_to_their_width() -> None:
    import numpy as np

    assert spark(np.array([0.0, np.nan, 1.0]), 24) == "▁█"
    assert len(spark(np.arange(1000.0), 24)) == 24
    assert (bar(1.0, 10), bar(0.001, 10), bar(0.0, 10)) == ("█" * 10, "█", "")
    assert (number(None), number(float("nan")), number(3.0), number(0.25)) == ("-", "-", "3", "0.2500")
