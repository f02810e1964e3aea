"""An actor's side of the wire as a state machine: no socket, no clock, no thread (those are in `protocol/transport.py`).

What it promises to the code above it:

* A request (submit, done, fail, publish) is sent again until the hub has settled it; the hub recognises repetitions.
* A lease is renewed with every beat until its *done* or *fail* is settled, or the hub says that it no longer stands.
* When the hub restarts, or the connection was cut, the link says hello again by itself, names what it holds, and sends what
  was not settled. Nobody above has to notice.
* A call ends in an answer or an error no later than its deadline.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from safeladder.protocol import codec
from safeladder.protocol import messages as m

RESEND_S = 2.0
HELLO_S = 1.0


@dataclass(frozen=True, slots=True)
class Welcomed:
    hub_boot: int
    run: str
    state: dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Refused:
    reason: str


@dataclass(frozen=True, slots=True)
class Leased:
    lease: int
    attempt: int
    parcel: codec.Parcel


@dataclass(frozen=True, slots=True)
class Revoked:
    """The lease no longer stands: what is being done for it is in vain."""

    lease: int


@dataclass(frozen=True, slots=True)
class Noticed:
    topic: str
    value: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Settled:
    """A request's end. `value` is a report, or {"status": ..., "detail": ...} of an acknowledgement."""

    request: str
    value: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Replied:
    call: str
    parcel: codec.Parcel | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Silent:
    """Nothing has come from the hub for `seconds`; the link goes on trying."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Complained:
    """The hub could not read something that was sent, or will not have us for now; the link goes on trying."""

    reason: str


Event = Welcomed | Refused | Leased | Revoked | Noticed | Settled | Replied | Silent | Complained


@dataclass(slots=True)
class _Pending:
    body: Any
    parts: list[codec.Frame]
    sent_at: float
    tries: int = 0


@dataclass(slots=True)
class _Call:
    deadline: float


@dataclass(slots=True)
class LinkEffects:
    sends: list[list[codec.Frame]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)


class LinkCore:
    """One worker's conversation with the hub. `hello.held` is filled in here."""

    def __init__(self, hello: m.Hello, silence_s: float = 10.0) -> None:
        self.hello = hello
        self.name = hello.name
        self.silence_s = silence_s
        self.held: dict[int, m.Held] = {}
        self.welcomed = False
        self.progress = 0
        self.busy_s = 0.0
        self.metrics: dict[str, float] = {}
        self._hub_boot: int | None = None
        self._beat_s = 1.0
        self._beat_at = self._hello_at = self._heard_at = 0.0
        self._said_silent = False
        self._over = False  # refused, or gone: says nothing any more
        self._pending: dict[str, _Pending] = {}
        self._closing: dict[str, int] = {}  # request -> the lease that it closes
        self._calls: dict[str, _Call] = {}
        self._numbers = itertools.count(1)
        self._effects = LinkEffects()

    def collect(self) -> LinkEffects:
        effects, self._effects = self._effects, LinkEffects()
        return effects

    # ----------------------------------------------------------------------------------------------- what actors ask
    # Requests raise WireError when they could not travel (`codec.check_bounds`).

    def start(self, now: float) -> None:
        self._heard_at = now
        self._say_hello(now)

    def submit(self, parcels: Sequence[codec.Parcel], now: float) -> str:
        frames = [frame for parcel in parcels for frame in parcel.frames]
        return self._request(m.Submit("", [parcel.work for parcel in parcels]), frames, now)

    def done(self, lease: int, outputs: Sequence[codec.Parcel], now: float, ended: str | None = None) -> str:
        frames = [frame for parcel in outputs for frame in parcel.frames]
        request = self._request(m.Done("", lease, [parcel.work for parcel in outputs], ended), frames, now)
        self._closing[request] = lease
        return request

    def fail(
        self,
        lease: int,
        error: str,
        now: float,
        retry: bool = True,
        restart: bool = False,
        returned: bool = False,
        partial: codec.Parcel | None = None,
    ) -> str:
        work, frames = (partial.work, partial.frames) if partial else (None, [])
        request = self._request(m.Fail("", lease, error[:10_000], retry, restart, returned, work), frames, now)
        self._closing[request] = lease
        return request

    def publish(self, topic: str, value: dict[str, Any], now: float) -> str:
        return self._request(m.Publish("", topic, value), [], now)

    def query(self, what: Any, now: float) -> str:
        return self._request(m.Query("", what), [], now)

    def command(self, what: Any, argument: str | None, now: float) -> str:
        return self._request(m.Command("", what, argument), [], now)

    def call(self, parcel: codec.Parcel, now: float, deadline_s: float) -> str:
        """Sends a work whose last output comes back as `Replied`. Returns the work's id."""
        work = msgspec.structs.replace(parcel.work, reply_to=self.name, deadline_s=deadline_s)
        self.submit([codec.Parcel(work, parcel.frames)], now)
        self._calls[work.id] = _Call(now + deadline_s)
        return work.id

    def set_credit(self, credit: int) -> None:
        self.hello = msgspec.structs.replace(self.hello, credit=credit)
        if self.welcomed:
            self._send(m.Credit(credit))

    def leave(self, reason: str) -> None:
        """Says good-bye; everything held goes back to the hub."""
        self._send(m.Bye(reason))
        self.held.clear()
        self._over = True

    @property
    def unsettled(self) -> int:
        """Requests that the hub has not settled yet."""
        return len(self._pending)

    # ------------------------------------------------------------------------------------------------ the shell's side

    def connected(self, now: float) -> None:
        """A connection has just come about, to this hub or to its successor: whoever is there is told who we are."""
        if not self._over:
            self.welcomed = False
            self._say_hello(now)

    def receive(self, parts: Sequence[codec.Frame], now: float) -> None:
        """Handles one message from the hub. Raises WireError for one that cannot be read."""
        try:
            _, body, parcels = codec.decode_from_hub(parts)
        except codec.SchemaMismatch as error:  # the hub's refusal too is written in the hub's schema
            self._refuse(str(error))
            return
        self._heard_at, self._said_silent = now, False
        match body:
            case m.Welcome():
                self._on_welcome(body, now)
            case m.Refused(retry=True):
                self._hello_at = now
                self._emit(Complained(body.reason))
            case m.Refused():
                self._refuse(body.reason)
            case m.Lease():
                work = body.work
                self.held[body.lease] = m.Held(body.lease, work.id, work.stop)
                self._emit(Leased(body.lease, body.attempt, parcels[0]))
            case m.Ack():
                self._on_ack(body)
            case m.Report():
                if self._pending.pop(body.request, None):
                    self._emit(Settled(body.request, body.value))
            case m.Pong():
                self._on_pong(body, now)
            case m.Notice():
                self._emit(Noticed(body.topic, body.value))
            case m.Reply():
                if self._calls.pop(body.call, None):
                    self._emit(Replied(body.call, parcels[0] if parcels else None, body.error))
            case m.Problem():
                self._emit(Complained(body.reason))

    def not_sent(self, now: float) -> None:
        """Nothing could be sent, because there is no connection yet: the next hello follows soon."""
        if not self.welcomed:
            self._hello_at = now - HELLO_S + 0.1

    def tick(self, now: float) -> None:
        """To be called a few times a beat: beats, repetitions, deadlines."""
        for identity, call in list(self._calls.items()):
            if now > call.deadline:
                del self._calls[identity]
                self._emit(Replied(identity, None, "no answer before the deadline"))
        if self._over:
            return
        if not self.welcomed and now - self._hello_at >= HELLO_S:
            self._say_hello(now)
        if self.welcomed and now - self._beat_at >= self._beat_s:
            self._beat_at = now
            self._send(m.Beat(self.hello.boot, self.progress, self.busy_s, list(self.held), self.metrics))
        if self.welcomed:
            for pending in self._pending.values():
                if now - pending.sent_at >= RESEND_S * min(2**pending.tries, 8):
                    pending.sent_at, pending.tries = now, pending.tries + 1
                    self._effects.sends.append(pending.parts)
        silent_s = now - self._heard_at
        if silent_s > self.silence_s:
            self.welcomed = False  # say hello to whoever answers next
            if not self._said_silent:
                self._said_silent = True
                self._emit(Silent(silent_s))

    # ---------------------------------------------------------------------------------------------------------- details

    def _on_welcome(self, welcome: m.Welcome, now: float) -> None:
        self.welcomed, self._hub_boot, self._beat_s = True, welcome.hub_boot, welcome.beat_s
        self._beat_at = now
        for lease in [lease for lease in self.held if lease not in welcome.kept]:
            self._revoke(lease)
        self._emit(Welcomed(welcome.hub_boot, welcome.run, welcome.state))
        for pending in self._pending.values():
            pending.sent_at = now
            self._effects.sends.append(pending.parts)

    def _on_ack(self, ack: m.Ack) -> None:
        pending = self._pending.pop(ack.request, None)
        if pending is None:
            return
        lease = self._closing.pop(ack.request, None)
        if lease is not None:
            self.held.pop(lease, None)
        if ack.status == "refused" and isinstance(pending.body, m.Submit):
            for work in pending.body.works:
                if self._calls.pop(work.id, None):
                    self._emit(Replied(work.id, None, ack.detail))
        self._emit(Settled(ack.request, {"status": ack.status, "detail": ack.detail}))

    def _on_pong(self, pong: m.Pong, now: float) -> None:
        if not self.welcomed or self._over:
            return  # a hello is under way, and `tick` repeats it
        if pong.hub_boot != self._hub_boot:
            self.welcomed = False
            self._say_hello(now)
            return
        for lease in pong.revoked:
            self._revoke(lease)

    def _refuse(self, reason: str) -> None:
        self._over = True
        self._emit(Refused(reason))

    def _revoke(self, lease: int) -> None:
        if lease in self._closing.values():
            return  # its request will be settled as stale
        if self.held.pop(lease, None):
            self._emit(Revoked(lease))

    def _say_hello(self, now: float) -> None:
        self._hello_at = now
        self._send(msgspec.structs.replace(self.hello, held=list(self.held.values())))

    def _request(self, body: Any, frames: list[codec.Frame], now: float) -> str:
        request = f"{self.hello.boot}.{next(self._numbers)}"
        body = msgspec.structs.replace(body, request=request)
        parts = codec.encode(body, self.name, frames)
        codec.check_bounds(parts)
        self._pending[request] = _Pending(body, parts, now)
        if self.welcomed:
            self._effects.sends.append(parts)
        return request

    def _send(self, body: Any, frames: Sequence[codec.Frame] = ()) -> None:
        self._effects.sends.append(codec.encode(body, self.name, frames))

    def _emit(self, event: Event) -> None:
        self._effects.events.append(event)
