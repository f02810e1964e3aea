"""The hub as a process: one ROUTER socket, one journal, one loop around `HubCore`.

Inbox: every worker's messages. Outbox: leases, acknowledgements, notices, replies. What blocks it: the disk (a round's records
are durable before its messages go); a full disk stops the round and is tried again each second, while workers repeat what was
not acknowledged. A worker's death shows as silence or as the supervisor's word, and its leases go back to their queues. If the hub
itself dies, its successor reads the journal, waits `adopt_grace_s` for workers to name what they hold, and goes on.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import structlog
import zmq

from safeladder.protocol import journal as j
from safeladder.protocol import sockets
from safeladder.protocol.allow_list import AllowList
from safeladder.protocol.hub import Effects, HubCore, HubOptions
from safeladder.protocol.keys import HubKeys

ROUND = 256  # messages read before the round is committed
STATUS_S = 2.0  # between two lines `hub.status`, from which a standstill is seen
COMPACT_BYTES = 256 * 2**20


class Hub:
    """A hub bound to `endpoint`. Raises EndpointError or JournalError when it cannot start."""

    def __init__(
        self, endpoint: str, options: HubOptions, journal: Path, keys: HubKeys | None = None, sync: bool = True
    ) -> None:
        self.options = options
        self._log = structlog.get_logger("hub")
        with contextlib.ExitStack() as held:  # given back in reverse order, also when the start fails half way
            if (claim := sockets.claim_ipc(endpoint)) is not None:
                held.callback(os.close, claim)
            self._journal = j.Journal(journal, sync) if options.durability != "memory" else None
            if self._journal:
                held.callback(self._journal.close)
            context: zmq.Context[Any] = zmq.Context()
            held.callback(context.term)
            self._keyed = keys is not None
            if keys is not None:
                authenticator = AllowList(context, keys.allowed)
                authenticator.start()
                held.callback(authenticator.stop)
            self._socket = sockets.bind_hub(context, endpoint, keys)
            held.callback(self._socket.close, linger=1000)
            self._held = held.pop_all()
        recovered = self._journal.recovered if self._journal else []
        boot = max([record.number for record in recovered if isinstance(record, j.Booted)], default=0) + 1
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.core = HubCore(options, boot, recovered, time.monotonic())
        if self._journal:
            self._log.info(
                "journal.recovered",
                records=len(recovered),
                live=len(self.core.board.items),
                cut_bytes=self._journal.cut_bytes,
                hub_boot=boot,
            )
            self._journal.recovered = []
        self.wire_s = 0.0
        self.rounds = 0
        self._process = psutil.Process()
        self._compact_at = COMPACT_BYTES

    def serve(self, stop: threading.Event, on_round: Callable[[], None] | None = None) -> None:
        """Runs until `stop` is set or a "stop" command has been answered."""
        tick_s = min(0.1, self.options.beat_s / 4)
        ticked = told = 0.0
        try:
            while not stop.is_set():
                ready = self._socket.poll(int(tick_s * 1000))
                begun = time.perf_counter()
                now = time.monotonic()
                if ready:
                    self._receive(now)
                if now - ticked >= tick_s:
                    ticked = now
                    self.core.tick(now)
                effects = self.core.collect()
                if not self._commit(effects, stop):
                    break
                self._send(effects)
                if ready or effects.sends:
                    self.wire_s += time.perf_counter() - begun
                    self.rounds += 1
                self._tell(effects.events)
                if now - told >= STATUS_S:
                    told = now
                    self._log.info("hub.status", **self.status(now))
                if on_round:
                    on_round()
                if self.core.stopping:
                    break
        finally:
            self.core.tell_hops()
            self._tell(self.core.collect().events)
            self.close()

    def status(self, now: float) -> dict[str, Any]:
        """What `hub.status` says: the hub's report, with the workers' numbers that their beats brought."""
        report = self.core.report("status", now)
        return {"hub_boot": report.pop("boot"), **report, "rss_bytes": self._process.memory_info().rss}

    def _tell(self, events: list[tuple[str, dict[str, Any]]]) -> None:
        for event, fields in events:
            self._log.info(event, **fields)

    def close(self) -> None:
        """Gives back socket, journal and path. A second call does nothing."""
        self._held.close()

    def _receive(self, now: float) -> None:
        for _ in range(ROUND):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            user = str(frames[-1].get("User-Id")) if self._keyed else None
            self.core.receive(frames[0].bytes, [frame.buffer for frame in frames[1:]], now, user)

    def _commit(self, effects: Effects, stop: threading.Event) -> bool:
        """Makes the round's records durable. Waits while the disk is full; False when told to stop meanwhile."""
        if self._journal is None or not effects.records:
            return True
        while True:
            try:
                self._journal.append(effects.records)
                break
            except j.JournalError as error:
                self._log.error("journal.blocked", error=str(error), retry_s=1.0)
                if stop.wait(1.0):
                    return False
        if self._journal.appended_bytes >= self._compact_at:
            self._compact(self._journal)
        return True

    def _compact(self, journal: j.Journal) -> None:
        """Rewrites the journal without what is over. A failure is no harm but space: the old file stays and goes on."""
        before = journal.size
        topics = [j.Topic(topic, value) for topic, value in self.core.topics.items()]
        try:
            journal.rewrite(itertools.chain([j.Booted(self.core.boot), *topics], self.core.board.snapshot()))
        except j.JournalError as error:
            self._compact_at += COMPACT_BYTES
            self._log.error("journal.uncompacted", error=str(error), bytes=before)
            return
        self._compact_at = COMPACT_BYTES
        self._log.info("journal.compacted", before_bytes=before, after_bytes=journal.size)

    def _send(self, effects: Effects) -> None:
        for peer, parts in effects.sends:
            try:
                self._socket.send_multipart([peer, *parts], zmq.NOBLOCK, copy=False)
            except zmq.ZMQError as error:
                # Gone or not reading. Nothing is lost: requests are repeated, leases expire, a returning worker says hello.
                self.core.counters["undeliverable"] = self.core.counters.get("undeliverable", 0) + 1
                self._log.debug("message.undeliverable", peer=peer.hex()[:64], error=error.strerror)
