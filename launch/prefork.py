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
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog
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

    def __init__(self, environment: Mapping[str, str], output: Path) -> None:
        """Starts the process; it is ready later (`preparing`). output: where it and what fails between fork and start writes."""
        self._log: Any = structlog.get_logger()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._begun, self._ready = time.monotonic(), False
        parent = os.getpid()
        output.parent.mkdir(parents=True, exist_ok=True)
        with theirs, output.open("ab") as file:
            self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno()), str(parent)],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[theirs.fileno()],
                preexec_fn=lambda: die_with(parent),
            )
        self.pid = self._process.pid

    def preparing(self) -> bool:
        """Whether it is still importing, so that it is worth a moment's wait. False when it is ready or not to be had."""
        if self._process is None or self._ready:
            return False
        try:
            self._ready = self._socket.recv(REQUEST_BYTES, socket.MSG_DONTWAIT) == b"ready"
        except BlockingIOError:
            if time.monotonic() - self._begun > READY_S:
                self._give_up(f"not ready after {READY_S:.0f} s")
            return self._process is not None
        except OSError as error:
            self._give_up(str(error))
            return False
        if self._ready:
            self._log.info("prefork.ready", seconds=round(time.monotonic() - self._begun, 3), child_pid=self.pid)
        else:
            self._give_up("it ended before it was ready")
        return False

    def fork(self, command: Sequence[str], environment: Mapping[str, str], output: Path) -> int | None:
        """Starts `PYTHON -m MODULE ARGUMENTS`; its pid, or None if it has to be started the plain way."""
        if self._process is None or not self._ready:
            return None
        request = json.dumps({"command": list(command), "environment": dict(environment), "output": str(output)})
        if len(request.encode()) > REQUEST_BYTES or LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            return None
        try:
            self._socket.settimeout(ANSWER_S)
            self._socket.send(request.encode())
            answer = self._socket.recv(REQUEST_BYTES)
            if not answer.isdigit():
                self._give_up(answer.decode("utf-8", "replace") or "it has ended")
                return None
            return int(answer)
        except OSError as error:  # also a time-out
            self._give_up(str(error))
            return None
        finally:
            LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)

    def close(self) -> None:
        """Ends it; what it has started is not touched."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self._socket.close()

    def _give_up(self, reason: str) -> None:
        self.close()
        self._log.warning("prefork.lost", reason=reason, child_pid=self.pid)


def main() -> None:
    connection, launcher = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    for name in PRELOAD:
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
