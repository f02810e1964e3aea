"""Structured logs: one JSON object a line, one write a line, one file a process.

Every line has `ts` (UTC, milliseconds), `mono_ns`, `level`, `event` (noun.verb), `run`, `role`, `replica`, `boot`
(new for each process start), `pid` and `seq` (a gap proves a lost line). What libraries say through `logging` or
`warnings` becomes `library.logged`.

A log must not stop a run: a line that cannot be written (a full disk) is dropped and counted, and the next that can
be says how many.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import structlog
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

Logger = FilteringBoundLogger

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def configure(run: str, role: str, replica: int, path: Path, level: str = "info") -> Logger:
    """Sends every log line of this process to `path`. Call once, before the process does anything else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    identity = {"run": run, "role": role, "replica": replica, "boot": uuid.uuid4().hex[:12], "pid": os.getpid()}
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            _Stamp(identity),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=LineFile(path),
        cache_logger_on_first_use=False,  # module-level loggers made before this call must follow it
    )
    logging.basicConfig(handlers=[_Library()], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    logger: Logger = structlog.get_logger()
    return logger


class LineFile:
    """An append-only file of lines; also the factory that structlog asks for a logger. Safe to use from any thread."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._dropped = 0

    def __call__(self, *_: Any) -> LineFile:
        return self

    def write(self, **event: Any) -> None:
        if self._dropped:
            event["dropped_lines"] = self._dropped
        line = msgspec.json.encode(event, enc_hook=repr) + b"\n"
        try:
            os.write(self._file, line)
        except OSError:
            self._dropped += 1
        else:
            self._dropped = 0

    debug = info = warning = error = critical = exception = write


class _Stamp:
    """Puts who and when before what."""

    def __init__(self, identity: dict[str, Any]) -> None:
        self._identity = identity
        self._sequence = itertools.count()

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
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
