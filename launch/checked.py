"""The checks of a launch, made by a process that has torch already: the launcher itself does without.

`python -m safeladder.launch.checked CONFIG OUT` writes the findings of a resolved configuration as JSON.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from safeladder.launch.check import Finding, check
from safeladder.launch.child import Child
from safeladder.launch.config import Config, load_resolved, save_resolved
from safeladder.launch.prefork import Prefork
from safeladder.launch.processes import Process

CHECK_S = 120.0
POLL_S = 0.01


def checked(config: Config, prefork: Prefork | None) -> list[Finding]:
    """What `check` says, from a process that `prefork` forks; here where it cannot, or where the checks themselves fail."""
    while prefork is not None and prefork.preparing():
        time.sleep(POLL_S)
    if prefork is None or not prefork.ready:
        return check(config)
    with tempfile.TemporaryDirectory(prefix="safeladder-check-") as folder:
        file, out = Path(folder) / "config.yaml", Path(folder) / "findings.json"
        save_resolved(config, file)
        command = [sys.executable, "-m", __name__, str(file), str(out)]
        child = Child(Process("check/0", command, dict(os.environ), Path(folder) / "check.out"), prefork)
        end = time.monotonic() + CHECK_S
        while not child.ended():
            if time.monotonic() > end:
                child.kill_group()
            time.sleep(POLL_S)
        if child.reap().code:
            return check(config)
        return msgspec.json.decode(out.read_bytes(), type=list[Finding])


if __name__ == "__main__":
    Path(sys.argv[2]).write_bytes(msgspec.json.encode(check(load_resolved(Path(sys.argv[1])))))
