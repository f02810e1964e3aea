"""What the tests of the examples run in: a real hub on a thread, a bench that submits and receives, the Node actor's process."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from safeladder.launch import examples
from safeladder.protocol import codec
from safeladder.protocol import link as links
from safeladder.protocol import messages as m
from safeladder.protocol.hub import HubOptions
from safeladder.protocol.hub_shell import Hub
from safeladder.protocol.keys import HubKeys
from safeladder.protocol.transport import Link

DEADLINE_S = 30.0
NODE_ACTOR = Path(next(iter(examples.__path__))) / "node" / "politeness.mjs"
OPTIONS = HubOptions(beat_s=0.1, silence_s=3.0, lease_s=1.0, adopt_grace_s=2.0)


class RunningHub:
    """A hub on a thread, with a journal that its successor reads. `heard` keeps every message as it came."""

    def __init__(self, journal: Path, keys: HubKeys | None = None) -> None:
        self.journal, self.keys = journal, keys
        self.endpoint = "tcp://127.0.0.1:*"
        self.heard: list[list[bytes]] = []
        self.start()

    def start(self) -> None:
        self.hub = Hub(self.endpoint, OPTIONS, self.journal, self.keys, sync=False)
        self.endpoint = self.hub.endpoint
        receive = self.hub.core.receive

        def listen(peer: bytes, parts: list[memoryview], now: float, user: str | None = None) -> None:
            self.heard.append([bytes(part) for part in parts])
            receive(peer, parts, now, user)

        self.hub.core.receive = listen  # type: ignore[method-assign]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.hub.serve, args=(self._stop,))
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(DEADLINE_S)


class Bench:
    """Submits groups and receives what reaches the end of their route, `sink`."""

    def __init__(self, endpoint: str) -> None:
        self._arrived: queue.Queue[codec.Parcel] = queue.Queue()
        self.link = Link(endpoint, "bench/0", ["sink"], credit=100, on_event=self._on_event)
        self.link.start(DEADLINE_S)

    def _on_event(self, event: links.Event) -> None:
        if isinstance(event, links.Leased):
            self._arrived.put(event.parcel)
            self.link.done(event.lease)

    def submit(self, texts: list[str], stop: str, count: int = 1, **fields: Any) -> dict[str, codec.Parcel]:
        """`count` groups that pass `stop` and then come back here, each with `texts` as its completions."""
        parcels = [group(f"{stop}-{number}", texts, [stop, "sink"], **fields) for number in range(count)]
        assert self.link.submit(parcels).result(DEADLINE_S)["status"] == "accepted"
        return {parcel.work.id: parcel for parcel in parcels}

    def take(self, count: int) -> list[codec.Parcel]:
        return [self._arrived.get(timeout=DEADLINE_S) for _ in range(count)]

    def ask(self, what: Any) -> dict[str, Any]:
        return self.link.query(what).result(DEADLINE_S)

    def wait_for(self, what: Any, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Asks the hub until the answer is as wanted. Fails at the deadline."""
        end = time.monotonic() + DEADLINE_S
        while not condition(answer := self.ask(what)):
            assert time.monotonic() < end, answer
        return answer


def group(identity: str, texts: list[str], route: list[str], **fields: Any) -> codec.Parcel:
    """A generated group with arrays of several types, one of them empty, and a seed that needs 63 bits."""
    record = m.Record("r1", "normal", "Say hello.", reference="hello", extra={"seen": 2**40, "名": ["值", None]})
    completions = [m.Completion(text, "stop") for text in texts]
    sampling = m.Sampling(samples=len(texts), temperature=0.7, seed=2**62 + 1)
    earlier = [m.Verdict(0, "length", "1", "rules", "ok", score=1.0)]
    payload = m.Group(record, sampling, completions=completions, verdicts=earlier, **fields)
    arrays = {
        "completion_ids": np.arange(7, dtype=np.int32) * 1000,
        "behaviour_logprobs": np.linspace(-3, 0, 7, dtype=np.float32).reshape(7, 1),
        "versions": np.zeros(0, np.int32),
    }
    return codec.pack(payload, arrays, id=identity, route=route, sequence=5)


def group_of(parcel: codec.Parcel) -> m.Group:
    payload, _ = codec.unpack(parcel)
    assert isinstance(payload, m.Group)
    return payload


def assert_only_verdicts_added(sent: codec.Parcel, received: codec.Parcel, verifier: str) -> list[m.Verdict]:
    """The received work is the one sent, with one verdict of `verifier` a completion, which are returned."""
    assert [bytes(frame) for frame in received.frames] == [bytes(frame) for frame in sent.frames]
    assert received.work.arrays == sent.work.arrays
    before, after = group_of(sent), group_of(received)
    added = after.verdicts[len(before.verdicts) :]
    assert msgspec.structs.replace(after, verdicts=before.verdicts) == before
    assert after.verdicts[: len(before.verdicts)] == before.verdicts
    assert [(v.verifier, v.sample) for v in added] == [(verifier, n) for n in range(len(before.completions))]
    return added


class NodeActor:
    """politeness.mjs as the launcher would start it; its lines of standard output are parsed as they come."""

    def __init__(self, endpoint: str, directory: Path, delay_ms: int = 0, credit: int = 2, **more: str) -> None:
        schema = directory / "schema.json"
        schema.write_text(json.dumps(m.json_schema() | {"x-schema": m.SCHEMA}))
        variables = {
            "SAFELADDER_ENDPOINT": endpoint,
            "SAFELADDER_NAME": "politeness/0",
            "SAFELADDER_QUEUES": "politeness",
            "SAFELADDER_CREDIT": str(credit),
            "SAFELADDER_SCHEMA_FILE": str(schema),
        }
        command = ["node", str(NODE_ACTOR), "--delay-ms", str(delay_ms)]
        self.lines: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            command, env={**os.environ, **variables, **more}, stdout=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(json.loads(line))
                self._changed.notify_all()

    def events(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == event]

    def wait_for(self, event: str, count: int = 1) -> dict[str, Any]:
        """The `count`-th line of `event`, when it has come."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.events(event)) >= count, DEADLINE_S), self.lines
        return self.events(event)[count - 1]

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        return code


@contextlib.contextmanager
def node_actor(endpoint: str, directory: Path, delay_ms: int = 0, credit: int = 2, **more: str) -> Iterator[NodeActor]:
    actor = NodeActor(endpoint, directory, delay_ms, credit, **more)
    try:
        yield actor
    finally:
        if actor.process.poll() is None:
            actor.process.kill()
        actor.wait()
