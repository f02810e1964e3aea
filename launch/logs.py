"""Structured logs: one JSON object a line, one write a line, one file a process.

Every line has `ts` (UTC, milliseconds), `mono_ns`, `level`, `event` (noun.verb), `run`, `role`, `replica`, `boot`
(new for each process start), `pid` and `seq` (a gap proves a lost line). What libraries say through `logging` or
`warnings` becomes `library.logged`.

A log must not stop a run: lines go through a queue to a thread (`log_file.py`); one that cannot be written is dropped and
counted, and the next that can be says how many. Secrets that were named (`hide`), and what the environment holds under names
such as `JUDGE_API_KEY`, never stand in a line.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

from safeladder.launch.log_file import LineFile

__all__ = ["LineFile", "Logger", "configure", "flush", "hide", "limit"]

Logger = FilteringBoundLogger

_SECRET_NAME: Final = re.compile(r"(^|_)(KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS)$", re.IGNORECASE)
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


_file: LineFile | None = None  # where this process logs to


def configure(run: str, role: str, replica: int, path: Path, level: str = "info") -> Logger:
    """Sends every log line of this process to `path`. Call once, before the process does anything else."""
    global _file
    path.parent.mkdir(parents=True, exist_ok=True)
    if _file is not None:
        _file.close()
    _file = LineFile(path)
    hide(*(value for name, value in os.environ.items() if _SECRET_NAME.search(name)))
    identity = {"run": run, "role": role, "replica": replica, "boot": uuid.uuid4().hex[:12], "pid": os.getpid()}
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            _Stamp(identity),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=_file,
        cache_logger_on_first_use=False,  # module-level loggers made before this call must follow it
    )
    logging.basicConfig(handlers=[_Library()], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    logger: Logger = structlog.get_logger().bind()  # bound: one that is not would be with each line
    return logger


def limit(max_bytes: int, keep: int) -> None:
    """How large a segment of this process's log may grow, and how many closed ones stay."""
    if _file is not None:
        _file.max_bytes, _file.keep = max_bytes, keep


def hide(*secrets: str | bytes) -> None:
    """From now on none of these stands in a line of this process's log."""
    if _file is not None:
        _file.hide(*secrets)


def flush() -> None:
    """Waits some seconds at most until what was logged is in the file."""
    if _file is not None:
        _file.flush()


class _Stamp:
    """Puts who and when before what."""

    def __init__(self, identity: dict[str, Any]) -> None:
        self._identity = identity
        self._sequence = itertools.count()
        self._clock = (-1, "")  # a second, and how it is written

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        second, rest = divmod(time.time_ns(), 1_000_000_000)
        clock = self._clock
        if second != clock[0]:
            clock = self._clock = (second, datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S"))
        now = f"{clock[1]}.{rest // 1_000_000:03d}Z"
        head = {"ts": now, "mono_ns": time.monotonic_ns(), "level": event.pop("level"), "event": event.pop("event")}
        return {**head, **self._identity, "seq": next(self._sequence), **event}


class _Library(logging.Handler):
    """Takes what libraries log into the same file."""

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, Any] = {"logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            fields["exc_info"] = record.exc_info
        level = min(max(record.levelno, logging.DEBUG), logging.ERROR)
        structlog.get_logger().log(level, "library.logged", **fields)
