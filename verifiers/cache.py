"""Verdicts that were given before, by what they depend on.

A verdict is kept under a hash of everything that the verifier could see and of the verifier itself: its class, name, version
and options, the whole record but for its id and source (images by their content), the text, and what of it was judged. Only
verdicts of status ok and abstain are kept: a time-out or an error says nothing about the item, and the next call may do better.

The newest `entries` stay in memory. With a `path` all go to a SQLite file too, which several processes may share and a later run may find;
there, the least recently used leave beyond `disk_entries`. A cache that cannot be read or written costs its verdicts, never the work.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Final

import msgspec
import structlog

from safeladder.protocol.images import ImageError, has_images, images
from safeladder.protocol.messages import Verdict
from safeladder.verifiers.contract import Item, Verifier

KEPT: Final = ("ok", "abstain")
_PATIENCE_S = 2.0  # for another process that writes
_TRIM_EVERY = 256  # writes between two looks at the file's length

log = structlog.get_logger()


@dataclasses.dataclass
class CacheOptions:
    """`entries`: verdicts in memory, 0 turns the cache off. `path`: a file for them; `disk_entries`: verdicts in it."""

    entries: int = 4096
    path: str | None = None
    disk_entries: int = 1_000_000


def key(verifier: Verifier, item: Item) -> bytes:
    """Names a judgement, 32 bytes: equal where verifier and item are, whatever the item's place in its group.

    Raises ImageError for an image that cannot be read.
    """
    kind, options, record = type(verifier), verifier.options, item.record
    extra = record.extra
    if has_images(record):
        seen = [image.hash for image in images(record)]
        extra = {name: value for name, value in extra.items() if name not in ("image", "images")} | {"images": seen}
    judged = [
        [kind.__module__, kind.__qualname__, verifier.name, verifier.version],
        dataclasses.asdict(options) if dataclasses.is_dataclass(options) else repr(options),
        [record.label, record.prompt, record.reference, record.category, record.choices, extra],
        [item.language, item.text, item.finish, item.step, item.begin],
        item.certainty if verifier.reads_certainty else None,
    ]
    return blake2b(msgspec.msgpack.encode(judged, order="deterministic"), digest_size=32).digest()


class VerdictCache:
    """`get` and `put` are thread-safe. `hits`, `misses`: how often `get` found something."""

    def __init__(self, options: CacheOptions) -> None:
        self._limit, self._disk_limit = options.entries, options.disk_entries
        self._memory: OrderedDict[bytes, Verdict] = OrderedDict()
        self._lock = threading.Lock()
        self._path = Path(options.path) if options.path else None
        self._disk: sqlite3.Connection | None = None
        self._written = 0
        self.hits = self.misses = 0
        with self._disk_work():
            self._disk = self._open()

    def get(self, name: bytes, item: Item) -> Verdict | None:
        """The verdict under that name, about this item's sample; None where there is none."""
        with self._lock:
            found = self._memory.get(name)
            if found is None:
                found = self._read(name)
            if found is None:
                self.misses += 1
                return None
            self.hits += 1
            self._remember(name, found)
        return msgspec.structs.replace(found, sample=item.sample, seconds=0.0)

    def put(self, name: bytes, verdict: Verdict) -> None:
        if verdict.status not in KEPT or not self._limit:
            return
        with self._lock:
            self._remember(name, verdict)
            self._write(name, verdict)

    def close(self) -> None:
        with self._lock, self._disk_work():
            if self._disk is not None:
                self._disk.close()
                self._disk = None

    def _remember(self, name: bytes, verdict: Verdict) -> None:
        self._memory[name] = verdict
        self._memory.move_to_end(name)
        while len(self._memory) > self._limit:
            self._memory.popitem(last=False)

    # --------------------------------------------------------------------------------------------------------- the file

    def _open(self) -> sqlite3.Connection | None:
        if self._path is None or not self._limit:
            return None
        self._path.parent.mkdir(parents=True, exist_ok=True)
        disk = sqlite3.connect(self._path, timeout=_PATIENCE_S, isolation_level=None, check_same_thread=False)
        disk.execute("PRAGMA journal_mode=WAL")
        disk.execute("PRAGMA synchronous=NORMAL")  # a power cut may cost the last verdicts, not the file
        disk.execute(
            "CREATE TABLE IF NOT EXISTS verdicts (name BLOB PRIMARY KEY, verdict BLOB, used REAL) WITHOUT ROWID"
        )
        return disk

    def _read(self, name: bytes) -> Verdict | None:
        with self._disk_work():
            if self._disk is not None:
                row = self._disk.execute("SELECT verdict FROM verdicts WHERE name = ?", (name,)).fetchone()
                if row is not None:
                    self._disk.execute("UPDATE verdicts SET used = ? WHERE name = ?", (time.time(), name))
                    return msgspec.msgpack.decode(row[0], type=Verdict)
        return None

    def _write(self, name: bytes, verdict: Verdict) -> None:
        with self._disk_work():
            if self._disk is None:
                return
            row = (name, msgspec.msgpack.encode(verdict), time.time())
            self._disk.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?)", row)
            self._written += 1
            if self._written % min(_TRIM_EVERY, self._disk_limit) == 0:
                self._disk.execute(
                    "DELETE FROM verdicts WHERE name IN (SELECT name FROM verdicts ORDER BY used LIMIT "
                    "max(0, (SELECT count(*) FROM verdicts) - ?))",
                    (self._disk_limit,),
                )

    @contextlib.contextmanager
    def _disk_work(self) -> Iterator[None]:
        """A file that fails is said once and left alone from then on; a damaged entry counts as none."""
        try:
            yield
        except msgspec.MsgspecError as error:
            log.warning("cache.damaged", path=str(self._path), error=str(error))
        except (sqlite3.Error, OSError) as error:
            log.warning("cache.failed", path=str(self._path), error=str(error))
            self._disk = None


def name_of(verifier: Verifier, item: Item) -> bytes | None:
    """As `key`; None where the item cannot be named, so that its verdict is not kept."""
    try:
        return key(verifier, item)
    except (ImageError, TypeError, OverflowError):  # TypeError: an extra that no msgpack holds
        return None
