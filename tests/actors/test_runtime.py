"""The base under every actor, against a real hub: what a handler returns, raises or leaves undone, and what the hub is told."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from safeladder.actors.actor import Actor, Context, Delivery, Ended, Keep, Postpone, Reject
from safeladder.actors.runtime import Runtime
from safeladder.launch.config import Config, Pool
from safeladder.protocol import codec
from safeladder.protocol import messages as m
from safeladder.protocol.hub import HubOptions
from safeladder.protocol.hub_shell import Hub
from safeladder.protocol.transport import CallError, Link

DEADLINE_S = 20.0


@dataclass
class Place:
    """A hub in a thread, and a client that calls through it."""

    endpoint: str
    client: Link

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


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    options = HubOptions(durability="memory", beat_s=0.2, silence_s=1.0, max_attempts=2)
    hub = Hub(f"ipc://{tmp_path}/hub", options, tmp_path / "journal")
    stop = threading.Event()
    thread = threading.Thread(target=hub.serve, args=(stop,))
    thread.start()
    client = Link(hub.endpoint, "client/0")
    client.start(DEADLINE_S)
    yield Place(hub.endpoint, client)
    client.close()
    stop.set()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()


class Serving:
    """An actor at work in a thread of its own."""

    def __init__(self, place: Place, kind: type[Actor], credit: int = 1) -> None:
        self.runtime = Runtime(kind, drain_s=5.0)
        link = Link(
            place.endpoint, "mine/0", ["mine"], on_event=self.runtime.on_event, vitals=self.runtime.vitals, role="mine"
        )
        pool = Pool(actor="x:X", credit=credit, queues=["mine"])
        context = Context("mine/0", pool, Config(), Path(), link)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(context, kind)))

    async def _run(self, context: Context, kind: type[Actor]) -> None:
        self._loop = asyncio.get_running_loop()
        await self.runtime.run(context, kind.Options())

    def __enter__(self) -> Serving:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self.runtime.stop)
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()


class Plain(Actor):
    """Does what the work's kind says."""

    tries = 0

    def handle(self, delivery: Delivery) -> Any:
        assert isinstance(delivery.payload, m.Document)
        match delivery.payload.kind:
            case "answer":
                return m.Document("answered")
            case "nothing":
                return None
            case "end":
                return Ended("enough")
            case "reject":
                raise Reject("never this one")
            case "fail":
                raise ValueError("broken")
            case "postpone":
                Plain.tries += 1
                if Plain.tries <= 5:  # more often than there are attempts
                    raise Postpone("later")
                return m.Document("answered at last")
            case "busy":
                end = time.monotonic() + 3.0
                while time.monotonic() < end:  # pure Python: holds the interpreter as long as it is let
                    pass
                return m.Document("done")
        return Keep


def test_what_a_handler_returns_is_the_answer(place: Place) -> None:
    with Serving(place, Plain):
        payload, _ = codec.unpack(place.call("answer").result(DEADLINE_S))
        assert payload == m.Document("answered")


@pytest.mark.parametrize(
    ("kind", "route", "said"),
    [
        ("nothing", ("mine", "other"), "returned nothing before the last stop"),
        ("end", ("mine", "other"), "enough"),
        ("reject", ("mine",), "never this one"),
        ("fail", ("mine",), "ValueError: broken"),
    ],
)
def test_a_work_that_is_not_handled_says_why(place: Place, kind: str, route: tuple[str, ...], said: str) -> None:
    with Serving(place, Plain), pytest.raises(CallError, match=said):
        place.call(kind, route).result(DEADLINE_S)


def test_a_failure_is_tried_again_and_a_rejection_is_not(place: Place) -> None:
    with Serving(place, Plain):
        for kind in ("fail", "reject"):
            with pytest.raises(CallError):
                place.call(kind).result(DEADLINE_S)
        assert place.counters()["failed"] == 2 + 1


def test_postponing_counts_as_no_attempt(place: Place) -> None:
    Plain.tries = 0
    with Serving(place, Plain):
        payload, _ = codec.unpack(place.call("postpone").result(DEADLINE_S))
    assert payload == m.Document("answered at last")
    assert Plain.tries == 6


def test_a_busy_interpreter_does_not_lose_the_worker(place: Place) -> None:
    with Serving(place, Plain):
        place.call("busy").result(DEADLINE_S)  # three seconds, where one of silence would be taken for death
        counters = place.counters()
        assert counters["leased"] == 1


class Together(Actor):
    """Coroutines run at once, as many as there is credit."""

    async def start(self) -> None:
        self.waiting = 0
        self.all_here = asyncio.Event()

    async def handle(self, delivery: Delivery) -> m.Document:
        self.waiting += 1
        if self.waiting == 3:
            self.all_here.set()
        await asyncio.wait_for(self.all_here.wait(), DEADLINE_S)
        return m.Document("together")


def test_coroutines_run_at_once(place: Place) -> None:
    with Serving(place, Together, credit=3):
        calls = [place.call("x") for _ in range(3)]
        assert all(codec.unpack(call.result(DEADLINE_S))[0] == m.Document("together") for call in calls)


class Batched(Actor):
    """Takes what there is at once; one bad work in a batch must not spoil the others."""

    batch = 4
    sizes: list[int] = []  # noqa: RUF012
    gate = threading.Event()

    def handle_batch(self, deliveries: Sequence[Delivery]) -> list[m.Document]:
        Batched.gate.wait(DEADLINE_S)
        Batched.sizes.append(len(deliveries))
        if any(d.payload == m.Document("bad") for d in deliveries):
            raise ValueError("a bad one")
        return [m.Document("good") for _ in deliveries]


def test_one_bad_work_does_not_spoil_its_batch(place: Place) -> None:
    with Serving(place, Batched, credit=5) as serving:
        first = place.call("first")  # held at the gate while the others gather behind it
        place.until(lambda: len(serving.runtime._active) == 1)
        calls = [place.call(kind) for kind in ("good", "bad", "good", "good")]
        place.until(lambda: serving.runtime._waiting.qsize() == 4)
        Batched.gate.set()
        assert codec.unpack(first.result(DEADLINE_S))[0] == m.Document("good")
        for index, call in enumerate(calls):
            if index == 1:
                with pytest.raises(CallError, match="a bad one"):
                    call.result(DEADLINE_S)
            else:
                assert codec.unpack(call.result(DEADLINE_S))[0] == m.Document("good")
    assert Batched.sizes[:6] == [1, 4, 1, 1, 1, 1]


def test_a_stopping_worker_returns_what_it_holds_without_an_attempt(place: Place) -> None:
    with Serving(place, Plain):
        call = place.call("keep")
        place.until(lambda: place.counters().get("leased", 0) == 1)
    place.until(lambda: "mine/0" not in place.client.query("workers").result(DEADLINE_S))
    with Serving(place, Plain):  # comes back at its first attempt
        place.until(lambda: place.counters().get("leased", 0) == 2)
        assert not call.done()
    assert place.counters().get("dead", 0) == 0
