"""The pool under a real hub: every completion judged once, what was judged before not again, failures tried again."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from safeladder.actors.actor import Context
from safeladder.actors.runtime import Runtime
from safeladder.actors.verifier import VerifierPool, columns
from safeladder.launch.config import Config, Pool
from safeladder.protocol import codec
from safeladder.protocol import messages as m
from safeladder.protocol.hub import HubOptions
from safeladder.protocol.hub_shell import Hub
from safeladder.protocol.transport import Link
from safeladder.verifiers.cache import CacheOptions
from safeladder.verifiers.certainty import certainty
from safeladder.verifiers.contract import Item, Verifier

DEADLINE_S = 20.0


class Counting(Verifier):
    """Counts how often it is asked about a text; fails the first time it is asked about "twice"."""

    name, version, principle = "counting", "1", "rules"
    asked: ClassVar[list[str]] = []

    def judge_one(self, item: Item) -> m.Verdict:
        Counting.asked.append(item.answer)
        if item.answer == "twice" and Counting.asked.count("twice") == 1:
            raise RuntimeError("not the first time")
        return self.ok(item, 1.0)


class Meeting(Verifier):
    """Judges once two items of different groups are here, which only happens when groups are judged at the same time."""

    name, version, principle = "meeting", "1", "value"
    present: ClassVar[set[str]] = set()

    async def judge_async(self, item: Item) -> m.Verdict:
        Meeting.present.add(item.record.id)
        while len(Meeting.present) < 2:
            await asyncio.sleep(0.001)
        return self.ok(item, 1.0)


class Served:
    """A hub, a pool that it feeds, and a client."""

    def __init__(self, folder: Path, credit: int = 2, **options: Any) -> None:
        folder.mkdir(exist_ok=True)
        hub = Hub(f"ipc://{folder}/hub", HubOptions(durability="memory", beat_s=0.2), folder / "journal")
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=hub.serve, args=(self._stop,))]
        self._threads[0].start()
        self.client = Link(hub.endpoint, "client/0")
        self.client.start(DEADLINE_S)
        self.runtime = Runtime(VerifierPool, drain_s=5.0)
        link = Link(hub.endpoint, "judges/0", ["judges"], on_event=self.runtime.on_event, vitals=self.runtime.vitals)
        context = Context("judges/0", Pool(actor="x:X", credit=credit, queues=["judges"]), Config(), folder, link)
        self._threads.append(
            threading.Thread(target=lambda: asyncio.run(self._run(context, VerifierPool.Options(**options))))
        )
        self._threads[1].start()
        self._calls = 0

    async def _run(self, context: Context, options: Any) -> None:
        self._loop = asyncio.get_running_loop()
        await self.runtime.run(context, options)

    def ask(self, *groups: m.Group) -> list[list[m.Verdict]]:
        """The verdicts on each group; all are sent before any is waited for."""
        calls = []
        for group in groups:
            self._calls += 1
            parcel = codec.pack(group, id=f"{group.record.id}-{self._calls}-{time.monotonic_ns()}", route=["judges"])
            calls.append(self.client.call(parcel, DEADLINE_S))
        found = [codec.unpack(call.result(DEADLINE_S))[0] for call in calls]
        return [group.verdicts for group in found if isinstance(group, m.Group)]

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self.runtime.stop)
        self._threads[1].join(DEADLINE_S)
        self.client.close()
        self._stop.set()
        self._threads[0].join(DEADLINE_S)


def group(texts: Sequence[str], record: str = "r", prefix: str = "") -> m.Group:
    completions = [m.Completion(text, "stop") for text in texts]
    return m.Group(m.Record(id=record, label="x", prompt="p"), m.Sampling(), completions=completions, prefix=prefix)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    Counting.asked.clear()
    Meeting.present.clear()
    yield tmp_path


def test_what_was_judged_before_is_not_judged_again(folder: Path) -> None:
    served = Served(folder, verifiers={f"{__name__}:Counting": {}})
    try:
        (first,), (second,) = served.ask(group(["a", "b"])), served.ask(group(["b", "c"], record="other"))
    finally:
        served.close()
    assert [(v.sample, v.status, v.score) for v in first + second] == [(0, "ok", 1.0), (1, "ok", 1.0)] * 2
    assert sorted(Counting.asked) == ["a", "b", "c"]
    assert {"cache_hits": 1, "cache_misses": 3, "failed_verdicts": 0}.items() <= served.runtime.vitals()[2].items()


def test_a_failure_is_tried_again_and_not_remembered(folder: Path) -> None:
    served = Served(folder, verifiers={f"{__name__}:Counting": {}}, tries=1)
    try:
        (first,), (second,) = served.ask(group(["twice"])), served.ask(group(["twice"]))
    finally:
        served.close()
    assert [v.status for v in first + second] == ["error", "ok"]
    Counting.asked.clear()
    patient = Served(folder / "b", verifiers={f"{__name__}:Counting": {}}, tries=2, cache=CacheOptions(entries=0))
    try:
        ((verdict,),) = patient.ask(group(["twice"]))
    finally:
        patient.close()
    assert verdict.status == "ok"


def test_groups_wait_for_a_judge_at_the_same_time(folder: Path) -> None:
    served = Served(folder, credit=2, verifiers={f"{__name__}:Meeting": {}}, timeout_s=DEADLINE_S)
    try:
        verdicts = served.ask(group(["x"], record="one"), group(["x"], record="two"))
    finally:
        served.close()
    assert [[v.status for v in given] for given in verdicts] == [["ok"], ["ok"]]


def test_each_step_that_the_policy_wrote_is_judged(folder: Path) -> None:
    served = Served(folder, verifiers={f"{__name__}:Counting": {}}, steps=True)
    try:
        (verdicts,) = served.ask(group(["one\n\ntwo", "three"], prefix="<think>given\n\n"))
    finally:
        served.close()
    assert [(v.sample, v.step, v.target) for v in verdicts] == [(0, 0, "step"), (0, 1, "step"), (1, 0, "step")]
    assert sorted(Counting.asked) == ["one", "three", "two"]


def test_the_certainty_is_that_of_the_answers_tokens() -> None:
    """Two completions of four tokens: the answer is half of the first, and all of the second."""
    judged = group(["ab</think>answer4chars", "all"])
    arrays = {
        "lengths": np.array([4, 2], np.int32),
        "behaviour_logprobs": np.log(np.array([0.1, 0.1, 0.5, 0.5, 0.25, 1.0], np.float32)),
    }
    answer = len("answer4chars") / len("ab</think>answer4chars")
    assert round(4 * answer) == 2
    assert certainty(judged, arrays, 0) == pytest.approx(0.5, rel=1e-5)
    assert certainty(judged, arrays, 1) == pytest.approx(math.sqrt(0.25), rel=1e-5)
    assert certainty(judged, {}, 0) is None


def test_verdicts_are_logged_in_columns_and_what_a_judge_said_only_when_asked_for() -> None:
    def verdict(sample: int, status: str, **said: Any) -> m.Verdict:
        return m.Verdict(sample, "judge", "2", "safety", status, **said)

    given = [
        verdict(0, "ok", score=0.123456, label="Safe", rationale="it quotes the answer"),
        verdict(1, "timeout", error="60 s"),
        m.Verdict(0, "length", "1", "rules", "ok", score=1.0),
        m.Verdict(1, "length", "1", "rules", "ok", score=0.0),
    ]
    judge = {
        "statuses": ["ok", "timeout"],
        "scores": [0.12346, None],
        "labels": ["Safe", None],
        "errors": [None, "60 s"],
        "versions": ["2"],
    }
    length = {"scores": [1.0, 0.0], "versions": ["1"]}
    assert columns(given, texts=False) == {"judge": judge, "length": length}
    assert columns(given, texts=True)["judge"]["rationales"] == ["it quotes the answer", None]
