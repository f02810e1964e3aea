"""Real runs for tests: a launcher as a process of its own, its run directory, and faults at a moment of one's choice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safeladder.launch.rundir import RunDirectory

TINY = Path(__file__).parent / "tiny.yaml"
COMMAND = [sys.executable, "-m", "safeladder.launch.cli"]


def safeladder(*arguments: str, deadline_s: float = 120.0) -> subprocess.CompletedProcess[str]:
    """Runs a subcommand to its end."""
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=deadline_s, check=False)


class Running:
    """A launcher at work. `with` ends it, whatever happened."""

    def __init__(self, folder: Path, *overrides: str, file: Path = TINY, resume: Path | None = None) -> None:
        self.run = RunDirectory(resume or folder / "run")
        arguments = [f"--resume={resume}"] if resume else [str(file), f"run.directory={folder}", "run.name=run"]
        self.output = folder / f"launcher-{os.getpid()}-{time.monotonic_ns()}.out"
        with self.output.open("wb") as output:
            self._process = subprocess.Popen(
                [*COMMAND, "launch", *arguments, *overrides], stdout=output, stderr=subprocess.STDOUT, cwd=folder
            )

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()  # the guardian ends the rest
        self._process.wait(30)

    def events(self, role: str, event: str | None = None, replica: int = 0) -> list[dict[str, Any]]:
        """What a replica of a role has logged so far."""
        path = self.run.log(role, replica)
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        found = [json.loads(line) for line in lines if line.endswith(b"\n")]
        return [line for line in found if event in (None, line["event"])]

    @property
    def steps(self) -> int:
        """Steps that the learner has reported, those that a rollback undid included."""
        return len(self.events("learner", "step.completed"))

    def until(self, condition: Callable[[], bool], deadline_s: float = 90.0) -> None:
        """Waits for a condition; fails at the deadline or when the run ends first, with the launcher's output."""
        end = time.monotonic() + deadline_s
        while not condition():
            assert time.monotonic() < end, f"not within {deadline_s} s; {self.said()}"
            assert self._process.poll() is None, f"the run ended first; {self.said()}"
            time.sleep(0.02)

    def kill(self, role: str) -> None:
        """SIGKILL to the present process of a role."""
        born = ("process.started", "process.restarted")
        started = [e for e in self.events("launcher") if e["event"] in born and e.get("name") == f"{role}/0"]
        os.kill(started[-1]["child_pid"], signal.SIGKILL)

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def wait(self, deadline_s: float = 120.0) -> int:
        try:
            return self._process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {deadline_s} s; {self.said()}") from None

    def summary(self) -> dict[str, Any]:
        return json.loads(self.run.summary.read_text())

    def audit(self) -> subprocess.CompletedProcess[str]:
        return safeladder("audit", str(self.run.path))

    def said(self) -> str:
        return f"the launcher said:\n{self.output.read_text()[-3000:]}"
