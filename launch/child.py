"""One running operating-system process: started in a session of its own, seen to end at once, ended with everything it
started.

Its end is noticed through a pidfd, 0.2 ms after it; where the kernel has none, by asking (`pidfd` is then None).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safeladder.launch.processes import Process

if TYPE_CHECKING:
    from safeladder.launch.prefork import Prefork

TAIL_BYTES = 4096
TAIL_LINES = 8
_PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)


@dataclass(frozen=True)
class Exit:
    """How a process ended. code: its exit status, or minus the signal's number. tail: its last lines of output."""

    code: int
    seconds: float
    tail: list[str]

    @property
    def reason(self) -> str:
        """`exit 1`, `SIGKILL`."""
        if self.code >= 0:
            return f"exit {self.code}"
        try:
            return signal.Signals(-self.code).name
        except ValueError:
            return f"signal {-self.code}"


class Child:
    """A started process.

    Make it on the launcher's main thread: the kernel sends the parent's-death signal when the thread that made it ends.
    """

    def __init__(self, process: Process, prefork: Prefork | None = None) -> None:
        """Starts it, by `prefork` if that can. Raises OSError when its command cannot be run."""
        self.process = process
        self.started = time.monotonic()
        process.output.parent.mkdir(parents=True, exist_ok=True)
        with process.output.open("ab") as output:
            self._offset = output.tell()
        self._popen: subprocess.Popen[bytes] | None = None
        pid = prefork.fork(process.command, process.environment, process.output) if prefork else None
        if pid is None:
            self._popen = _start(process)
            pid = self._popen.pid
        self.pid = pid
        try:
            self.pidfd: int | None = os.pidfd_open(self.pid)
        except OSError:
            self.pidfd = None

    @property
    def name(self) -> str:
        return self.process.name

    def ended(self) -> bool:
        """Whether it has ended. It is not reaped yet, so that its number, which names its group, is still its own."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill_group(self) -> None:
        """Kills it and whatever it has started in its group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def reap(self) -> Exit:
        """Collects an ended process and kills what it left in its group. Call once, after `ended`."""
        self.kill_group()
        code = self._popen.wait() if self._popen else os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        if self.pidfd is not None:
            os.close(self.pidfd)
        return Exit(code, time.monotonic() - self.started, last_lines(self.process.output, self._offset))


def last_lines(path: Path, offset: int = 0) -> list[str]:
    """The last lines of a file, of what stands after `offset`."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(offset, end - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-TAIL_LINES:]


def die_with(parent: int) -> None:
    """Runs in a new process before anything else: asks for SIGKILL at the parent's death, and goes if it is dead."""
    LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _start(process: Process) -> subprocess.Popen[bytes]:
    parent = os.getpid()
    with process.output.open("ab") as output:
        return subprocess.Popen(
            process.command,
            env=process.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: die_with(parent),
        )
