"""The file under the logs: nobody waits, nothing grows without bound, a crash costs no whole line, no secret is written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from safeladder.launch import log_file
from safeladder.launch.events import Tail
from safeladder.launch.log_file import LineFile, segments


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_segments_are_closed_by_size_the_newest_are_kept_and_a_tail_follows_them(tmp_path: Path) -> None:
    tail, file, found = Tail(tmp_path), LineFile(tmp_path / "rules-0.jsonl", max_bytes=400, keep=3), []
    for n in range(60):
        file.write(event="a.b", n=n)
        if n % 7 == 0:
            file.flush()
            found += [event["n"] for event in tail.read()]
    file.close()
    found += [event["n"] for event in tail.read()]
    assert found == list(range(60))
    closed = segments(tmp_path / "rules-0.jsonl")
    assert len(closed) == 3 and all(path.stat().st_size <= 400 for path in closed)
    assert [event["n"] for event in Tail(tmp_path).read()] == found[-sum(len(read(p)) for p in [*closed, file.path]) :]


def test_a_full_queue_drops_lines_at_once_and_the_next_line_says_how_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "slow-0.jsonl"  # a disk that hangs: the writer's thread stands in its first write
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    monkeypatch.setattr(log_file.os, "pread", lambda *_: b"\n")
    monkeypatch.setattr(log_file, "MAX_QUEUED_BYTES", 200_000)
    file = LineFile(pipe)
    for n in range(40):
        file.write(event="a.b", n=n, text="x" * 10_000)
    lost = file.lost
    assert lost > 0 and not file.flush(0.0)
    os.set_blocking(reader, True)
    data = b""
    while data.count(b"\n") < 40 - lost:
        data += os.read(reader, 1 << 16)
    assert file.flush()
    file.write(event="c.d")
    while b"c.d" not in data or not data.endswith(b"\n"):
        data += os.read(reader, 1 << 16)
    assert json.loads(data.splitlines()[-1])["dropped_lines"] == lost
    file.close()
    os.close(reader)


def test_a_torn_last_line_costs_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "hub-0.jsonl"
    path.write_bytes(b'{"event":"a.b"}\n{"event":"to')
    file = LineFile(path)
    file.write(event="c.d")
    file.close()
    tail = Tail(tmp_path)
    assert [event["event"] for event in tail.read()] == ["a.b", "c.d"] and tail.torn == 1


KILLED = """
import os, pathlib, signal, sys
from safeladder.launch import logs
log = logs.configure("run", "hub", 0, pathlib.Path(sys.argv[1]))
for n in range(2000):
    log.info("work.handled", n=n)
log.error("process.failed", error="last words")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_error_is_in_the_file_although_the_process_is_killed_right_after(tmp_path: Path) -> None:
    path = tmp_path / "hub-0.jsonl"
    ended = subprocess.run([sys.executable, "-c", KILLED, str(path)], timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL
    lines = read(path)
    assert [line["seq"] for line in lines] == list(range(2001)) and lines[-1]["error"] == "last words"


SECRETS = """
import logging, pathlib, sys
from safeladder.launch import logs
log = logs.configure("run", "rules", 0, pathlib.Path(sys.argv[1]))
logs.hide(bytes.fromhex("00ff" * 16), 'quo"ted-secret')
log.info("verdict.failed", error="401 for Bearer sk-very-secret-value", url="http://x/?key=sk-very-secret-value")
log.info("work.failed", error="key " + "00ff" * 16, detail={"deep": ['quo"ted-secret']})
logging.getLogger("http").warning("header %s", "sk-very-secret-value")
"""


def test_no_secret_stands_in_a_line_neither_a_named_one_nor_one_of_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "rules-0.jsonl"
    environment = {**os.environ, "JUDGE_API_KEY": "sk-very-secret-value"}
    subprocess.run([sys.executable, "-c", SECRETS, str(path)], env=environment, timeout=60, check=True)
    text = path.read_text()
    assert len(read(path)) == 3 and text.count("[secret]") == 5
    assert not [secret for secret in ("sk-very", "00ff00ff", "ted-secret") if secret in text]
