"""Stand-ins for role processes: real processes that report over a datagram socket what happens to them."""

from __future__ import annotations

import os
import select
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from safeladder.launch.processes import Process
from safeladder.launch.sections import Restart

DEADLINE_S = 20.0

# What every stand-in begins with: `say(what)` reports "NAME what pid".
PRELUDE = """
import faulthandler, os, signal, socket, subprocess, sys, time
_to = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
def say(what, pid=None):
    _to.sendto(f"{sys.argv[1]} {what} {pid or os.getpid()}".encode(), sys.argv[2])
def end_on(number, code=0):
    def end(*_):
        say("ends")
        os._exit(code)
    signal.signal(number, end)
def idle():
    while True:
        signal.pause()
"""
SERVES = "end_on(signal.SIGTERM)\nsay('up')\nidle()"
LEARNS = "end_on(signal.SIGTERM)\nend_on(signal.SIGUSR2)\nsay('up')\nidle()"
STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nsay('up')\nidle()"
WITH_CHILD = "child = subprocess.Popen(['sleep', '1000'])\nsay('child', child.pid)\n" + SERVES


class Reports:
    """Receives what the stand-ins say, in order."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="reports-")
        self.address = str(Path(self._folder.name) / "s")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self.heard: list[str] = []
        self.pids: dict[str, int] = {}

    def wait(self, what: str, times: int = 1) -> int:
        """Waits until `what` ("generator/0 up") was said that often; returns the pid that came with the last."""
        end = time.monotonic() + DEADLINE_S
        while self.heard.count(what) < times:
            self._socket.settimeout(max(0.001, end - time.monotonic()))
            try:
                self._take()
            except TimeoutError:
                raise AssertionError(f"{what!r} x{times} was not heard; heard: {self.heard}") from None
        return self.pids[what]

    def drain(self) -> list[str]:
        """Everything said until now."""
        self._socket.settimeout(0.0)
        try:
            while True:
                self._take()
        except BlockingIOError:
            return self.heard

    def _take(self) -> None:
        said, _, pid = self._socket.recv(1024).decode().rpartition(" ")
        self.heard.append(said)
        self.pids[said] = int(pid)

    def close(self) -> None:
        self._socket.close()
        self._folder.cleanup()

    def process(
        self, folder: Path, name: str, code: str = SERVES, stage: int = 1, restart: Restart | None = None, **flags: bool
    ) -> Process:
        command = [sys.executable, "-I", "-S", "-c", PRELUDE + code, name, self.address]
        output = folder / f"{name.replace('/', '-')}.out"
        return Process(name, command, dict(os.environ), output, restart or Restart(backoff_s=0.01), stage, **flags)

    def cluster(self, folder: Path, **codes: str) -> list[Process]:
        """Hub, feeder, generator and learner; `codes` replaces what one of them does."""
        return [
            self.process(folder, "hub/0", codes.get("hub", SERVES), stage=3),
            self.process(folder, "feeder/0", codes.get("feeder", SERVES), stage=0),
            self.process(folder, "generator/0", codes.get("generator", SERVES), stage=1),
            self.process(folder, "learner/0", codes.get("learner", LEARNS), stage=2, final=True),
        ]


def gone(pid: int, deadline_s: float = DEADLINE_S) -> bool:
    """Whether the process ends within the deadline; it need not be a child of ours."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], deadline_s)[0])
    finally:
        os.close(descriptor)


def once(folder: Path, name: str, first: str, then: str) -> str:
    """Code that does `first` in the first process of that name and `then` in its successors."""
    marker = folder / f"{name}.marker"
    return f"if not os.path.exists({str(marker)!r}):\n    open({str(marker)!r}, 'w').close()\n" + "".join(
        [f"    {line}\n" for line in first.splitlines()] + ["else:\n"] + [f"    {line}\n" for line in then.splitlines()]
    )


Director = Callable[[], None]
