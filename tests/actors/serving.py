"""A hub in a thread, a client that calls through it, and actors at work in threads of their own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from structlog.testing import LogCapture

from safeladder.actors.actor import Actor, Context
from safeladder.actors.runtime import Runtime
from safeladder.launch.config import Config, Pool
from safeladder.protocol import codec
from safeladder.protocol import messages as m
from safeladder.protocol.transport import Link

DEADLINE_S = 20.0


@dataclass
class Place:
    """A hub in a thread, and a client that calls through it."""

    endpoint: str
    client: Link
    folder: Path

    def call(self, kind: str, route: Sequence[str] = ("mine",), **work: Any) -> Future[codec.Parcel]:
        parcel = codec.pack(m.Document(kind), id=f"{kind}-{time.monotonic_ns()}", route=list(route), **work)
        return self.client.call(parcel, DEADLINE_S)

    def counters(self) -> dict[str, int]:
        return self.client.query("status").result(DEADLINE_S)["counters"]

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.02)


class Serving:
    """An actor at work in a thread of its own."""

    def __init__(
        self,
        place: Place,
        kind: type[Actor],
        credit: int = 1,
        config: Config | None = None,
        drain_s: float = 5.0,
        options: Any = None,
        queue: str = "mine",
    ) -> None:
        self.runtime = Runtime(kind, drain_s=drain_s)
        self._options = kind.Options() if options is None else options
        name = f"{queue}/0"
        link = Link(
            place.endpoint, name, [queue], on_event=self.runtime.on_event, vitals=self.runtime.vitals, role=queue
        )
        pool = Pool(actor="x:X", credit=credit, queues=[queue])
        self._said = LogCapture()
        log = structlog.wrap_logger(None, processors=[self._said], wrapper_class=structlog.BoundLogger)
        context = Context(name, pool, config or Config(), place.folder, link, log)
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, args=(context, kind))

    def _serve(self, context: Context, kind: type[Actor]) -> None:
        try:
            asyncio.run(self._run(context, kind))
        except Exception as error:  # noqa: BLE001 - the test's thread raises it
            self.error = error

    async def _run(self, context: Context, kind: type[Actor]) -> None:
        self._loop = asyncio.get_running_loop()
        await self.runtime.run(context, self._options)

    @property
    def events(self) -> set[str]:
        """What the actor has logged so far, by name."""
        return {entry["event"] for entry in self._said.entries}

    @property
    def actor(self) -> Any:
        return self.runtime._actor

    def __enter__(self) -> Serving:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self.runtime.stop)
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error
