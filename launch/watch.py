"""The launcher's own link to the hub: tells it of deaths, asks it who makes no progress, learns where the weights are.

The hub would notice both by itself, after `hub.silence_s`; through this link it is milliseconds. Without a connection
nothing here blocks or fails: the supervisor does its work, only later.
"""

from __future__ import annotations

import concurrent.futures
import threading
import time
from pathlib import Path
from typing import Any

import structlog

from safeladder.launch.config import Config
from safeladder.launch.guardian import Guardian
from safeladder.launch.rundir import RunDirectory
from safeladder.protocol.keys import load_worker
from safeladder.protocol.transport import Link, LinkError

NAME = "launcher/0"
JOIN_S = 30.0
SHARED_MEMORY = Path("/dev/shm")


class Watch:
    """`on_exit` and `stalled` are the supervisor's hooks, called on its thread; `close` ends the link."""

    def __init__(self, config: Config, run: RunDirectory, guardian: Guardian) -> None:
        self._run, self._guardian = run, guardian
        self._keys = load_worker(Path(config.hub.keys), NAME) if config.hub.keys else None
        self._stall_s = {
            f"{name}/{replica}": pool.stall_s for name, pool in config.pools.items() for replica in range(pool.replicas)
        }
        self._patience_s = 3 * config.hub.silence_s
        self._missing: dict[str, float] = {}  # a worker that was there once -> since when it is not
        self._seen: set[str] = set()
        self._query: concurrent.futures.Future[dict[str, Any]] | None = None
        self._link: Link | None = None
        self._closed = threading.Event()
        self._joining = threading.Thread(target=self._join, name="watch", daemon=True)
        self._joining.start()

    def on_exit(self, name: str) -> None:
        """A worker's process has ended: its leases can go to others at once."""
        self._query = None  # what it will say of this worker is about the dead one
        self._seen.discard(name)
        self._missing.pop(name, None)
        if self._link is not None:
            self._link.command("exited", name)

    def stalled(self) -> list[tuple[str, float]]:
        """Workers that are busy without progress for longer than their pool allows, or alive but not heard of."""
        if self._link is None:
            return []
        query, found = self._query, []
        self._mark_shared_memory(self._link)
        if query is None or query.done():
            self._query = self._link.query("workers")
        if query is not None and query.done() and query.exception() is None:
            found = self._judge(query.result(), time.monotonic())
        return found

    def close(self) -> None:
        self._closed.set()
        if self._link is not None:
            self._link.close()

    def _mark_shared_memory(self, link: Link) -> None:
        """Weights in shared memory must not stay there when the run is gone: the checkpoints hold what lasts."""
        directory = link.state.get("policy", {}).get("directory")
        if directory and Path(directory).is_relative_to(SHARED_MEMORY):
            self._guardian.remove(str(Path(directory).parent))

    def _judge(self, workers: dict[str, Any], now: float) -> list[tuple[str, float]]:
        found = []
        for name, limit in self._stall_s.items():
            if name in workers:
                self._seen.add(name)
                self._missing.pop(name, None)
                if workers[name]["busy_s"] > limit:
                    found.append((name, float(workers[name]["busy_s"])))
            elif name in self._seen:
                since = self._missing.setdefault(name, now)
                if now - since > self._patience_s:
                    found.append((name, now - since))
        return found

    def _join(self) -> None:
        """The hub may take its time to start; until then there is nothing to tell it."""
        log = structlog.get_logger()
        while not self._closed.is_set():
            link = Link(self._run.endpoint, NAME, keys=self._keys, role="launcher")
            try:
                link.start(JOIN_S)
            except LinkError as error:
                log.warning("hub.unreachable", error=str(error))
            else:
                self._link = link
                return
