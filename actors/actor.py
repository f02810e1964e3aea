"""The contract of an actor: what a role, ours or a user's own, has to write. Everything else is the base's.

A minimal actor is one class:

    class Shout(Actor):
        def handle(self, delivery: Delivery) -> Group:
            group = delivery.group
            ...
            return group              # goes on to the next stop of its route

named in `cluster.yaml` as `actor: my_package.my_module:Shout`. `handle` may be a coroutine; then as many run at once as the pool has
credit. A plain function runs in one worker thread, one at a time; with `batch` above 1 it is `handle_batch` that is
called, with up to that many deliveries.

The base (`actors/runtime.py`) owns leases, handing on, beats, progress, drain and stop. An exception gives the work back to be
tried again; after `hub.max_attempts` it becomes a dead letter. `Reject` sets it aside at once, `Postpone` gives it back
uncounted, and so does returning a `HandBack`, with what has been made of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import structlog

from safeladder.launch.config import Config, Pool
from safeladder.protocol import messages as m
from safeladder.protocol.codec import Arrays, Frame, Parcel, encode, pack
from safeladder.protocol.transport import Link


class Reject(Exception):
    """This work can never be handled: it becomes a dead letter without another try."""


class Postpone(Exception):
    """Not now, through no fault of the work: it goes back to its queue and the attempt does not count."""


class ActorError(RuntimeError):
    """The actor cannot do its work at all; the process ends and the supervisor decides what follows."""


@dataclass(frozen=True, slots=True)
class Output:
    """What a work carries to its next stop, where the arrays change too."""

    payload: m.Payload
    arrays: Arrays


@dataclass(frozen=True, slots=True)
class Ended:
    """The work ends here, before its last stop, for a reason that is recorded and told to the last stop."""

    reason: str


@dataclass(frozen=True, slots=True)
class HandBack:
    """Not finished, through no fault of the work: it goes back to its queue as `output`, and the attempt does not count.

    Whoever gets it next finds that payload and those arrays. For an actor that is told to stop in the middle of a long work.
    """

    reason: str
    output: Output


class Keep:
    """The actor keeps the lease and will settle it later with `Delivery.finish` or `Delivery.give_back`."""


Outcome = m.Payload | Output | Ended | HandBack | Keep | type[Keep] | None


@dataclass(slots=True, eq=False, weakref_slot=True)
class Delivery:
    """One leased work, decoded. `arrays` are read-only views of the received frames. `revoked`: the lease no longer stands."""

    lease: int
    attempt: int
    work: m.Work
    payload: m.Payload
    arrays: Arrays
    link: Link = field(repr=False)
    revoked: bool = False

    @property
    def id(self) -> str:
        return self.work.id

    @property
    def group(self) -> m.Group:
        """The payload as a group. Raises Reject for any other payload."""
        if not isinstance(self.payload, m.Group):
            raise Reject(f"{self.work.id!r} carries a {type(self.payload).__name__}, this actor takes groups")
        return self.payload

    @property
    def last_stop(self) -> bool:
        return self.work.stop == len(self.work.route) - 1

    def finish(self) -> None:
        """Settles a kept lease: the work has had its effect."""
        self.link.done(self.lease)

    def give_back(self, reason: str, restart: bool = False, output: Output | None = None) -> None:
        """Returns a kept lease without an attempt being counted; `restart` sends the work to its first stop.

        `output` is what the work has become: it waits at this stop as that. Not together with `restart`. Without effect when
        the lease was revoked.
        """
        if self.revoked:
            return
        partial = None if output is None else self.pack(output, self.work.stop)
        self.link.fail(self.lease, reason, restart=restart, returned=not restart, partial=partial)

    def message(self, lease_s: float) -> list[Frame]:
        """The lease as it is on the wire: header, body, raw frames. `lease_s`: of the hub. Arrays are not copied."""
        frames = [self.arrays[array.name].reshape(-1).view(np.uint8).data for array in self.work.arrays]
        return encode(m.Lease(self.lease, self.work, lease_s, self.attempt), "hub", frames)

    def pack(self, output: Output, stop: int) -> Parcel:
        """This work with another content, at `stop` of its route."""
        return pack(output.payload, output.arrays, id=self.id, route=self.work.route, stop=stop)


@dataclass(frozen=True, slots=True)
class Context:
    """What an actor is given: who it is, the run's configuration, and the link."""

    name: str  # pool/replica
    pool: Pool
    config: Config
    directory: Path
    link: Link
    log: Any = field(default_factory=structlog.get_logger)


class Actor:
    """Base of every actor. `Options` is checked strictly against the pool's `options` before anything starts."""

    role: ClassVar[str] = ""
    collects: ClassVar[bool] = False  # keeps leases until a commit of its own (the learner)
    batch: ClassVar[int] = 1

    @dataclass
    class Options:
        """No options."""

    def __init__(self, context: Context, options: Any) -> None:
        self.context = context
        self.options = options
        self.config = context.config
        self.link = context.link
        self.log = context.log
        self.stopping = asyncio.Event()
        self.progress = 0
        self.metrics: dict[str, float] = {}

    async def start(self) -> None:
        """Loads what the actor needs. Runs before the hub hands out work; has the pool's `start_s` to finish."""

    def handle(self, delivery: Delivery) -> Any:
        """Handles one work and returns an `Outcome`, or a coroutine of one."""
        raise NotImplementedError

    def handle_batch(self, deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        """Handles up to `batch` works at once; the outcomes stand in the same order."""
        raise NotImplementedError

    async def run(self) -> None:
        """The actor's own activity beside `handle`. The process ends in order when it returns."""
        await self.stopping.wait()

    def noticed(self, topic: str, value: Mapping[str, Any]) -> None:
        """A topic has a new value. Called on the event loop; must be quick."""

    def revoked(self, delivery: Delivery) -> None:
        """A lease no longer stands; what is being done for it is in vain."""

    async def stop(self) -> None:
        """Frees what `start` took, after the last work has been settled."""

    def worked(self) -> None:
        """Says that the role's code has come on. A busy actor that never says so is taken for stuck."""
        self.progress += 1
