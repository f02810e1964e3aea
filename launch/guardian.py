"""Ends what a launcher leaves behind when it is killed.

A small process in a session of its own, at the end of a pipe that only the launcher writes to: "+PGID" when a process
group starts, "-PGID" when it is gone, "~PATH" for a folder that is the run's only while it lives. End of file means
that the launcher is gone, however it went: every group still named is killed, grandchildren included, and the folders
are removed. Needs nothing but the standard library, so it starts in 20 ms.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from typing import BinaryIO


class Guardian:
    """The launcher's end of the pipe. A guardian that was killed itself is replaced at the next call."""

    def __init__(self) -> None:
        self._orders: dict[str, None] = {}  # those that stand, in order
        self._process = self._start()

    def watch(self, group: int) -> None:
        """Names a process group that must not outlive this process."""
        self._orders[f"+{group}\n"] = None
        self._tell(f"+{group}\n")

    def forget(self, group: int) -> None:
        """The group is gone; its number may be another's soon."""
        self._orders.pop(f"+{group}\n", None)
        self._tell(f"-{group}\n")

    def remove(self, folder: str) -> None:
        """Names a folder to remove in the end."""
        if f"~{folder}\n" not in self._orders:
            self._orders[f"~{folder}\n"] = None
            self._tell(f"~{folder}\n")

    def ensure(self) -> None:
        """Starts another guardian if this one is gone, and repeats to it every order that stands."""
        if self._process.poll() is not None:
            self._process = self._start()
            for order in self._orders:
                self._write(order)

    def close(self) -> None:
        """Lets it do its work now: kill what is left, remove the folders."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _start(self) -> subprocess.Popen[bytes]:
        # -I -S: nothing of the user's environment may keep it from starting
        return subprocess.Popen([sys.executable, "-I", "-S", __file__], stdin=subprocess.PIPE, start_new_session=True)

    def _tell(self, order: str) -> None:
        self._write(order)
        self.ensure()

    def _write(self, order: str) -> None:
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):  # it is gone, and `ensure` tells its successor everything
                os.write(self._process.stdin.fileno(), order.encode())


def guard(orders: BinaryIO) -> None:
    """Reads orders until their end, then cleans up."""
    groups: set[int] = set()
    folders: list[str] = []
    for line in orders:
        sign, value = line[:1], line[1:].rstrip(b"\n").decode()
        if sign == b"+":
            groups.add(int(value))
        elif sign == b"-":
            groups.discard(int(value))
        elif sign == b"~":
            folders.append(value)
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    guard(sys.stdin.buffer)
