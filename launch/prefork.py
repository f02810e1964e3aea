"""Starts role processes from one that has imported torch and transformers already: in 30 ms in place of eight processor-seconds.

A process in a session of its own, started by the launcher (`Prefork`), imports what roles need (`PRELOAD`), starts no thread, touches no
device, and forks itself for each request: `python -m MODULE ARGUMENTS`, an environment, a file for the output. It forks twice, and the
launcher is a subreaper meanwhile, so that the new process is a child of the launcher like any other: it is waited for, signalled and
dies with its parent in the same way. What it shares with the others of the imported libraries stays in memory once.

Inbox: requests of the launcher. Outbox: the pids. If the launcher dies, so does this process, at the end of its socket or by the kernel. If
this process dies, does not answer or never gets ready, the launcher starts everything the plain way (`Prefork.fork` gives None).

Variables that libraries read when they are loaded have to be right for all: those of `processes.py` are, and a pool with variables of its
own (`env`) is started plainly. So is one on a GPU or with another interpreter.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from setproctitle import setproctitle

from safeladder.launch.child import LIBC, die_with

PRELOAD = (
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "safeladder.actors.generator",
    "safeladder.actors.learner",
    "safeladder.actors.reference",
    "safeladder.actors.training",
    "safeladder.actors.verifier",
    "safeladder.policies.engines.registry",
    "safeladder.verifiers.heads.model",
)
READY_S = 120.0  # imports take 5 s on a free core
ANSWER_S = 10.0
REQUEST_BYTES = 2**17
_PR_SET_CHILD_SUBREAPER = 36


class Prefork:
    """The launcher's side. Call it on the launcher's main thread."""

    def __init__(self, environment: Mapping[str, str], preload: Sequence[str] = PRELOAD) -> None:
        """Starts the process; it is ready later (`preparing`). preload: modules that it imports first."""
        self.lost: str | None = None  # why it is not to be had
        self.ready_s: float | None = None  # what its imports took
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (as long as this lives): its last words
        self._begun = time.monotonic()
        parent = os.getpid()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno()), str(parent), *preload],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[theirs.fileno()],
                preexec_fn=lambda: die_with(parent),
            )
        self.pid = self._process.pid

    @property
    def ready(self) -> bool:
        """Whether it can fork."""
        return self.ready_s is not None and self.lost is None

    def preparing(self) -> bool:
        """Whether it is still importing, so that it is worth a moment's wait. False when it is ready or not to be had."""
        if self.ready_s is not None or self.lost is not None:
            return False
        try:
            said = self._socket.recv(REQUEST_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            if time.monotonic() - self._begun > READY_S:
                self._give_up(f"not ready after {READY_S:.0f} s")
            return self.lost is None
        except OSError as error:
            self._give_up(str(error))
            return False
        if said:
            self.ready_s = round(time.monotonic() - self._begun, 3)
        else:
            self._give_up(f"it ended before it was ready: {self._last_words()}")
        return False

    def fork(self, command: Sequence[str], environment: Mapping[str, str], output: Path) -> int | None:
        """Starts `PYTHON -m MODULE ARGUMENTS`; its pid, or None if it has to be started the plain way."""
        if not self.ready:
            return None
        request = json.dumps({"command": list(command), "environment": dict(environment), "output": str(output)})
        if len(request.encode()) > REQUEST_BYTES or LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            return None
        try:
            self._socket.settimeout(ANSWER_S)
            self._socket.send(request.encode())
            answer = self._socket.recv(REQUEST_BYTES)
            if not answer.isdigit():
                self._give_up(answer.decode("utf-8", "replace") or f"it has ended: {self._last_words()}")
                return None
            return int(answer)
        except OSError as error:  # also a time-out
            self._give_up(str(error))
            return None
        finally:
            LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)

    def close(self) -> None:
        """Ends it; what it has started is not touched."""
        self.lost = self.lost or "it was closed"
        self._process.kill()
        self._process.wait()
        self._socket.close()

    def _last_words(self) -> str:
        self._output.seek(0)
        lines = self._output.read().decode("utf-8", "replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "no word of it")

    def _give_up(self, reason: str) -> None:
        self.lost = reason
        self.close()


def main() -> None:
    connection, launcher = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    for name in sys.argv[3:]:
        with contextlib.suppress(ImportError):  # whoever needs it says what is missing
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a collection in a forked process does not copy what was imported here
    connection.send(b"ready")
    while request := connection.recv(REQUEST_BYTES):
        read, write = os.pipe()
        between = os.fork()
        if between == 0:
            if os.fork() != 0:
                os._exit(0)
            os.setsid()
            os.write(write, b"%d" % os.getpid())
            os.close(write)
            os.close(read)
            connection.close()
            _become(json.loads(request), launcher)
            return
        os.close(write)
        os.waitpid(between, 0)  # from here on the new process is the launcher's child
        with os.fdopen(read, "rb") as answer:
            connection.send(answer.read() or b"it could not fork")


def _become(request: Mapping[str, Any], launcher: int) -> None:
    """In the new process: what `python -m` does."""
    end = time.monotonic() + ANSWER_S
    while os.getppid() != launcher and time.monotonic() < end:
        time.sleep(0.001)
    die_with(launcher)
    output = os.open(request["output"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    setproctitle(" ".join(request["command"]))  # it finds the place by the environment: before that changes
    os.environ.clear()
    os.environ.update(request["environment"])
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # or every process would draw the same
    _, _, module, *arguments = request["command"]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
