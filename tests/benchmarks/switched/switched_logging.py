"""A switch for all logging of a process, and an account of what it costs; for `overhead.py`.

The file SWITCH names holds one byte, 1 for on. Switched off, a log call returns at once; what its arguments cost stays in both arms. Each
process writes at its end, beside that file, the seconds that it has spent in log calls and in the thread that writes.
"""

from __future__ import annotations

import atexit
import mmap
import os
import time
from pathlib import Path
from typing import Any

if switch := os.environ.get("SWITCH"):
    import structlog

    from safeladder.launch.log_file import LineFile

    with Path(switch).open("r+b") as file:
        STATE = mmap.mmap(file.fileno(), 1)
    spent = {"calls_s": 0.0, "writing_s": 0.0, "lines": 0}
    plain = structlog.make_filtering_bound_logger
    append = LineFile._append

    def switched(level: int) -> Any:
        base: Any = plain(level)

        def guard(name: str) -> Any:
            log = getattr(base, name)

            def call(self: Any, *arguments: Any, **fields: Any) -> None:
                if STATE[0]:
                    begun = time.thread_time()
                    log(self, *arguments, **fields)
                    spent["calls_s"] += time.thread_time() - begun
                    spent["lines"] += 1

            return call

        return type("Switched", (base,), {name: guard(name) for name in ("info", "warning", "error")})

    def counted(self: LineFile, line: bytes) -> bool:
        begun = time.thread_time()
        whole = append(self, line)
        spent["writing_s"] += time.thread_time() - begun
        return whole

    def report() -> None:
        Path(f"{switch}.{os.getpid()}").write_text(" ".join(f"{value:.6f}" for value in spent.values()))

    structlog.make_filtering_bound_logger = switched
    LineFile._append = counted  # type: ignore[method-assign]
    atexit.register(report)
