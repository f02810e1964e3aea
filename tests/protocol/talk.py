"""A hub core and its peers on a clock that the test moves: what the tests of the wire's logic speak through."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from safeladder.protocol import codec
from safeladder.protocol import journal as j
from safeladder.protocol import messages as m
from safeladder.protocol.hub import HubCore, HubOptions

ROUTE = ["generator", "verifier", "learner"]


def task(identity: str, n: int = 0, **work: Any) -> codec.Parcel:
    """A small work with one array, at the first stop of ROUTE unless told otherwise."""
    work = {"route": ROUTE, "sequence": n, **work}
    return codec.pack(m.Document("task", {"n": n}), {"n": np.array([n], np.int64)}, id=identity, **work)


class Talk:
    """One hub and everybody who speaks with it. `records` is the disk: what survives `restart`."""

    def __init__(self, **options: Any) -> None:
        self.options = HubOptions(**{"beat_s": 1.0, "silence_s": 3.0, "lease_s": 6.0, "adopt_grace_s": 2.0, **options})
        self.now = 0.0
        self.records: list[j.Record] = []
        self.inbox: dict[bytes, list[tuple[Any, list[codec.Parcel]]]] = {}
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.boot = 0
        self.peers: list[Peer] = []
        self.restart()

    def restart(self) -> None:
        """The hub is killed and started on what it had made durable."""
        self.boot += 1
        self.hub = HubCore(self.options, self.boot, list(self.records), self.now)
        self.flush()

    def flush(self) -> None:
        effects = self.hub.collect()
        self.records += effects.records
        self.events += effects.events
        for peer, parts in effects.sends:
            _, body, parcels = codec.decode_from_hub([bytes(part) for part in parts])
            self.inbox.setdefault(peer, []).append((body, parcels))

    def deliver(self, peer: bytes, parts: list[Any], user: str | None = None) -> None:
        self.hub.receive(peer, parts, self.now, user)
        self.flush()

    def pass_time(self, seconds: float, beating: tuple[Peer, ...] = ()) -> None:
        """Time goes on in ticks; `beating` peers show that they live, twice a second."""
        end = self.now + seconds
        beat_at = self.now
        while self.now < end:
            self.now = min(end, self.now + 0.1)
            if self.now >= beat_at:
                beat_at += 0.5
                for peer in beating:
                    peer.beat()
            self.hub.tick(self.now)
            self.flush()
        for peer in self.peers:
            peer.look()

    def join(self, name: str, *queues: str, credit: int = 1, **hello: Any) -> Peer:
        peer = Peer(self, name, queues, credit, **hello)
        peer.hello()
        return peer


class Peer:
    """A worker as the hub sees it: raw messages, no link."""

    _boots = itertools.count(1)

    def __init__(self, talk: Talk, name: str, queues: tuple[str, ...] = (), credit: int = 1, **hello: Any) -> None:
        self.talk, self.name = talk, name
        boot = hello.pop("boot", None) or f"boot-{next(self._boots)}"
        self.user = hello.pop("user", None)
        self.introduction = m.Hello(name, boot, list(queues), credit, **hello)
        self.peer = f"{name}|{boot}".encode()
        self.leases: dict[int, m.Lease] = {}
        self.parcels: dict[int, codec.Parcel] = {}
        self.heard: list[Any] = []
        self.numbers = itertools.count(1)
        talk.peers.append(self)

    def say(self, body: Any, parcels: tuple[codec.Parcel, ...] | list[codec.Parcel] = ()) -> list[Any]:
        """Sends a body; returns what came for this peer in answer."""
        self.look()
        frames = [frame for parcel in parcels for frame in parcel.frames]
        self.talk.deliver(self.peer, codec.encode(body, self.name, frames), self.user)
        return self.look()

    def look(self) -> list[Any]:
        fresh = self.talk.inbox.pop(self.peer, [])
        for body, parcels in fresh:
            if isinstance(body, m.Lease):
                self.leases[body.lease], self.parcels[body.lease] = body, parcels[0]
        self.heard += [body for body, _ in fresh]
        return [body for body, _ in fresh]

    def hello(self, held: list[m.Held] | None = None) -> list[Any]:
        introduction = m.Hello(**{name: getattr(self.introduction, name) for name in m.Hello.__struct_fields__})
        introduction.held = held or []
        return self.say(introduction)

    def hold(self, *leases: int) -> list[m.Held]:
        return [m.Held(lease, self.leases[lease].work.id, self.leases[lease].work.stop) for lease in leases]

    def beat(self, *leases: int) -> list[Any]:
        return self.say(m.Beat(self.introduction.boot, leases=list(leases or self.leases)))

    def request(self) -> str:
        return f"{self.introduction.boot}.{next(self.numbers)}"

    def submit(self, *parcels: codec.Parcel, request: str | None = None) -> m.Ack:
        request = request or self.request()
        return self._ack(self.say(m.Submit(request, [p.work for p in parcels]), parcels), request)

    def lease(self, work: str | None = None) -> int:
        """The newest lease, of that work if one is named."""
        self.look()
        return max(token for token, lease in self.leases.items() if work in (None, lease.work.id))

    def done(self, lease: int, *outputs: codec.Parcel, ended: str | None = None, request: str | None = None) -> m.Ack:
        request = request or self.request()
        return self._ack(self.say(m.Done(request, lease, [p.work for p in outputs], ended), outputs), request)

    def onward(self, lease: int) -> m.Ack:
        """Done, with the work handed on to its next stop as it came."""
        parcel = self.parcels[lease]
        payload, arrays = codec.unpack(parcel)
        work = parcel.work
        return self.done(lease, codec.pack(payload, arrays, id=work.id, route=work.route, stop=work.stop + 1))

    def fail(self, lease: int, error: str = "broken", partial: codec.Parcel | None = None, **how: Any) -> m.Ack:
        request = self.request()
        fail = m.Fail(request, lease, error, partial=partial and partial.work, **how)
        return self._ack(self.say(fail, [partial] if partial else []), request)

    def command(self, what: Any, argument: str | None = None) -> dict[str, Any]:
        request = self.request()
        return next(b.value for b in self.say(m.Command(request, what, argument)) if isinstance(b, m.Report))

    def query(self, what: Any) -> dict[str, Any]:
        request = self.request()
        return next(b.value for b in self.say(m.Query(request, what)) if isinstance(b, m.Report))

    @staticmethod
    def _ack(answers: list[Any], request: str) -> m.Ack:
        return next(body for body in answers if isinstance(body, m.Ack) and body.request == request)
