"""Ranks are real processes that speak through gloo on this machine. A lost one is noticed within the deadline."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE

import pytest
import torch

from safeladder.policies.model import resolve
from safeladder.policies.ranks import Ranks

PROCESS = Path(__file__).with_name("rank_process.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
DEADLINE_S = 200.0  # for everything that a case does, on a busy machine


def run_ranks(case, folder, world=2, starting=None, timeout_s=60.0, meeting=None, lost=()):
    """Runs a case on every rank of `starting` and returns what each found; those `lost` are ended once the others are."""
    meeting = meeting or f"file://{folder}/meeting-{case}"
    running = {}
    try:
        for rank in range(world) if starting is None else starting:
            command = [sys.executable, str(PROCESS), case, str(rank), str(world), meeting, str(folder), str(timeout_s)]
            with (folder / f"rank-{rank}.log").open("w") as log:
                running[rank] = subprocess.Popen(
                    command, stdin=PIPE, stdout=PIPE, stderr=log, text=True, env=ENVIRONMENT
                )
        for rank, process in running.items():
            assert process.stdout.readline() == "ready\n", (folder / f"rank-{rank}.log").read_text()
        for process in running.values():
            process.stdin.write("go\n")
            process.stdin.flush()
        end = time.monotonic() + DEADLINE_S
        for rank, process in running.items():
            if rank not in lost:
                status = process.wait(timeout=end - time.monotonic())
                assert status == 0, (folder / f"rank-{rank}.log").read_text()
    finally:
        for process in running.values():
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            process.communicate(timeout=30)
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in running if rank not in lost]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return resolve("tiny", tmp_path_factory.mktemp("models"))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("scheme", ["tcp", "file"])
def test_what_is_said_reaches_every_rank(tmp_path, scheme):
    meeting = f"tcp://127.0.0.1:{free_port()}" if scheme == "tcp" else f"file://{tmp_path}/meeting"
    for found in run_ranks("talk", tmp_path, world=3, meeting=meeting):
        assert found == {
            "shared": True,
            "empty": "",
            "sum": [pytest.approx(0.3), 6.0],
            "collected": [[], [0, 1, 2], [0, 1, 2, 3, 4, 5]],
            "masks": [[True, True], [False, True], [False, True]],
            "nothing": [[], [], []],
            "no_fault": [],
            "fault": ["the löss is nan", "the löss is nan"],
        }


@pytest.mark.parametrize("case", ["killed_in_backward", "killed_before_message"])
def test_a_rank_that_dies_is_noticed_by_the_others(tmp_path, tiny, case):
    (tmp_path / "model").symlink_to(tiny)
    (found,) = run_ranks(case, tmp_path, lost=[1])
    assert "rank 0 of 2" in found["lost"] and "another rank is gone" in found["lost"]


def test_a_rank_that_hangs_is_noticed_after_the_timeout(tmp_path, tiny):
    (tmp_path / "model").symlink_to(tiny)
    (found,) = run_ranks("stopped_in_backward", tmp_path, timeout_s=25.0, lost=[1])
    assert "rank 0 of 2, the second step" in found["lost"] and "Timed out" in found["lost"]


@pytest.mark.parametrize("scheme", ["tcp", "file"])
@pytest.mark.parametrize("present", [0, 1])
def test_a_rank_that_never_comes_is_not_waited_for_beyond_the_timeout(tmp_path, scheme, present):
    meeting = f"tcp://127.0.0.1:{free_port()}" if scheme == "tcp" else f"file://{tmp_path}/meeting"
    (found,) = run_ranks("meet", tmp_path, starting=[present], timeout_s=2.0, meeting=meeting)
    assert f"rank {present} of 2: no meeting at {meeting} within 2 s" in found["lost"]


def test_alone_everything_is_the_identity():
    ranks = Ranks.join(0, 1, "unused", 1.0)
    assert (ranks.rank, ranks.world, ranks.first, ranks.mesh) == (0, 1, True, None)
    assert ranks.share(b"a") == b"a"
    assert ranks.sum([1, 2.5]) == [1.0, 2.5]
    assert torch.equal(ranks.collect(torch.ones(2))[0], torch.ones(2))
    assert ranks.faults("no") == ["no"] and ranks.faults() == []
    ranks.close()


def test_only_what_is_about_a_lost_rank_is_called_so():
    with pytest.raises(RuntimeError, match=r"^shapes$") as caught, Ranks.alone().noticing("a step"):
        raise RuntimeError("shapes")
    assert type(caught.value) is RuntimeError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2, 2, "tcp://localhost:1", 1.0), "rank 2 is not in 0 .. 1"),
        ((0, 2, "tcp://localhost:1", 0.0), "timeout_s is 0.0"),
        ((0, 2, "tcp://localhost", 1.0), "cannot meet at 'tcp://localhost'"),
        ((0, 2, "file://there/x", 1.0), "cannot meet"),
        ((0, 2, "env://", 1.0), "cannot meet"),
    ],
)
def test_a_place_or_meeting_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Ranks.join(*arguments)
