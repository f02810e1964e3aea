"""The base under every actor, against a real hub: what a handler returns, raises or leaves undone, and what the hub is told."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from serving import DEADLINE_S, Place, Serving

from safeladder.actors.actor import Actor, Delivery, Ended, HandBack, Keep, Output, Postpone, Reject
from safeladder.protocol import codec
from safeladder.protocol import messages as m
from safeladder.protocol.transport import CallError


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


class Patient(Actor):
    """Counts up to seven, and hands back what it has when it is told to stop at three."""

    waiting: list[Delivery] = []  # noqa: RUF012

    async def handle(self, delivery: Delivery) -> Output | HandBack:
        count = int(delivery.arrays["count"][0]) if delivery.arrays else 0
        while count < 7:
            count += 1
            if count == 3:
                Patient.waiting.append(delivery)
                await asyncio.wait_for(self.stopping.wait(), DEADLINE_S)
                return HandBack("stopping", Output(m.Document("counted"), {"count": np.array([count])}))
        return Output(m.Document(f"came as {getattr(delivery.payload, 'kind', '')}"), {"count": np.array([count])})


def test_another_goes_on_from_what_a_stopping_worker_hands_back(place: Place) -> None:
    Patient.waiting = []
    with Serving(place, Patient):
        call = place.call("fresh")
        place.until(lambda: len(Patient.waiting) == 1)
    with Serving(place, Patient):
        payload, arrays = codec.unpack(call.result(DEADLINE_S))
    assert payload == m.Document("came as counted")
    assert arrays["count"].tolist() == [7]
    assert place.counters()["handed_back"] == 1
    assert place.counters().get("failed", 0) == 0


def test_nothing_is_handed_back_under_a_lease_that_was_revoked(place: Place) -> None:
    Patient.waiting = []
    with Serving(place, Patient):
        place.call("fresh")
        place.until(lambda: len(Patient.waiting) == 1)
        assert place.client.command("exited", "mine/0").result(DEADLINE_S)["known"]  # as the supervisor says it
        place.until(lambda: len(Patient.waiting) == 2)  # it joins again, and gets the work under another lease
        assert [delivery.revoked for delivery in Patient.waiting] == [True, False]
    counters = place.counters()
    assert (counters["handed_back"], counters["returned"]) == (1, 1)  # of two that wanted to


class Stuck(Plain):
    """Its engine does not end."""

    async def stop(self) -> None:
        await asyncio.Event().wait()


def test_a_stop_that_does_not_end_has_a_deadline_and_the_link_says_good_bye(place: Place) -> None:
    serving = Serving(place, Stuck, drain_s=0.4)
    with pytest.raises(TimeoutError), serving:
        place.until(lambda: "mine/0" in place.client.query("workers").result(DEADLINE_S))
    assert "mine/0" not in place.client.query("workers").result(DEADLINE_S)
