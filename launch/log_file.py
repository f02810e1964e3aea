"""An append-only file of JSON lines that never makes its writers wait: a bounded queue, one thread, rotation by size.

    caller: encode, hide secrets, put in the queue      thread: one write a line, rotation      reader: events.Tail

What a full queue or a full disk loses is counted and said by the next line that gets through (`dropped_lines`). A crash loses
at most what stands in the queue, which is microseconds old unless the disk hangs; errors are on their way to the disk when their
call returns. Where a crash or a short write left half a line, the next begins on a line of its own.

    ROLE-I.jsonl            is written to
    ROLE-I.jsonl.000001     the oldest closed segment; its number never changes again
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections import deque
from pathlib import Path
from typing import Any, Final

import msgspec

MAX_QUEUED_BYTES: Final = 8 * 2**20
MAX_BYTES: Final = 256 * 2**20
KEEP: Final = 16
ERROR_FLUSH_S: Final = 1.0
CLOSE_S: Final = 5.0
HIDDEN: Final = b"[secret]"


class LineFile:
    """The writer of one file; also the factory that structlog asks for a logger. Safe to use from any thread."""

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES, keep: int = KEEP) -> None:
        """max_bytes: size at which a segment is closed; keep: closed segments that stay."""
        self.path = path
        self.max_bytes, self.keep = max_bytes, keep
        self._secrets: list[bytes] = []
        self._torn = False  # the file ends within a line
        self._open()
        self._queue: deque[tuple[bytes, int]] = deque()  # lines, each with the lost ones that it tells of
        self._queued_bytes = 0
        self._lost = 0
        self._writing = self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._serve, name="log", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def __call__(self, *_: Any) -> LineFile:
        return self

    @property
    def lost(self) -> int:
        """Lines lost since the last one that got through."""
        with self._changed:
            return self._lost

    def hide(self, *secrets: str | bytes) -> None:
        """From now on none of these stands in a line. Shorter ones than 8 characters would hide ordinary text."""
        for secret in secrets:
            plain = [secret] if isinstance(secret, str) else [secret.hex(), secret.decode("utf-8", "ignore")]
            self._secrets += [msgspec.json.encode(text)[1:-1] for text in plain if len(text) >= 8]

    def write(self, **event: Any) -> None:
        if told := self._lost:
            event["dropped_lines"] = told
        line = msgspec.json.encode(event, enc_hook=repr) + b"\n"
        for secret in self._secrets:
            if secret in line:
                line = line.replace(secret, HIDDEN)
        with self._changed:
            if self._closed or self._queued_bytes + len(line) > MAX_QUEUED_BYTES:
                self._lost += 1
                return
            self._lost -= min(told, self._lost)
            self._queue.append((line, told))
            self._queued_bytes += len(line)
            if len(self._queue) == 1:  # else the thread has not come to the others yet
                self._changed.notify_all()

    def write_through(self, **event: Any) -> None:
        """For errors: the process may end right after."""
        self.write(**event)
        self.flush(ERROR_FLUSH_S)

    debug = info = warning = write
    error = critical = exception = write_through

    def flush(self, deadline_s: float = CLOSE_S) -> bool:
        """Waits until everything queued has been tried. False at the deadline."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue and not self._writing, deadline_s)

    def close(self) -> None:
        """Writes what is queued, for some seconds at most, and ends the thread. A second call does nothing."""
        atexit.unregister(self.close)
        self.flush()
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        self._thread.join(CLOSE_S)
        if not self._thread.is_alive():
            os.close(self._file)

    # ------------------------------------------------------------------------------------------------- the thread

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return
                line, told = self._queue.popleft()
                self._queued_bytes -= len(line)
                self._writing = True
            whole = self._append(line)
            with self._changed:
                self._lost += 0 if whole else 1 + told
                self._writing = False
                self._changed.notify_all()

    def _append(self, line: bytes) -> bool:
        """One write. False when the disk did not take all of it."""
        if self._size and self._size + len(line) > self.max_bytes:
            self._rotate()
        data = b"\n" + line if self._torn else line
        try:
            written = os.write(self._file, data)
        except OSError:
            return False
        self._size += written
        self._torn = data[written - 1 : written] != b"\n" if written else self._torn
        return written == len(data)

    def _open(self) -> None:
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._size = os.fstat(self._file).st_size
        self._torn = self._size > 0 and os.pread(self._file, 1, self._size - 1) != b"\n"

    def _rotate(self) -> None:
        """Closes the segment and begins a new one. Where that fails, the file goes on growing and it is tried again later."""
        closed = segments(self.path)
        number = 1 + (segment_number(closed[-1]) if closed else 0)
        before = self._file
        try:
            self.path.rename(self.path.with_name(f"{self.path.name}.{number:06d}"))
            self._open()
        except OSError:
            self._size = 0
            return
        os.close(before)
        for old in segments(self.path)[: -self.keep]:
            with contextlib.suppress(OSError):
                old.unlink()


def segments(path: Path) -> list[Path]:
    """The closed segments of a log, oldest first."""
    found = [other for other in path.parent.glob(f"{path.name}.*") if other.suffix[1:].isdigit()]
    return sorted(found, key=segment_number)


def segment_number(path: Path) -> int:
    return int(path.suffix[1:])
