"""What the hub costs: works through it per second and their latency, beside raw ZeroMQ over the same transport in the same run.

    python tests/benchmarks/hub.py [RUN...]

A producer process submits works with one array of 1 KB, 50 KB or 1 MB, a worker process leases each and says done, the hub stands
between them in a process of its own, with its journal off (memory), with ids, and with every hop (full). The baseline is a PUSH / PULL
pair of processes that moves the same bytes once and promises nothing. Latency is of one submission at a time, until the hub
has acknowledged it, which with a journal means that it is on disk. With run directories as arguments it also prints the share
of a training step that those runs spent on the wire.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from rich.console import Console
from rich.table import Table

from safeladder.protocol import codec
from safeladder.protocol import link as links
from safeladder.protocol import messages as m
from safeladder.protocol.hub import HubOptions
from safeladder.protocol.hub_shell import Hub
from safeladder.protocol.transport import Link

SIZES = {"1 KB": (1_000, 3000), "50 KB": (50_000, 1500), "1 MB": (1_000_000, 150)}  # bytes, works
WINDOW = 64  # works under way at once
ROUNDS = 150  # of the latency measurement
DEADLINE_S = 60.0

_spawn = multiprocessing.get_context("spawn")


# ------------------------------------------------------------------------------------------------------- the processes


def quiet() -> None:
    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))


def hub_process(endpoint: str, durability: Any, journal: str, ready: Connection) -> None:
    quiet()
    hub = Hub(endpoint, HubOptions(durability=durability), Path(journal))
    stop = threading.Event()
    threading.Thread(target=lambda: (ready.recv(), stop.set()), daemon=True).start()
    ready.send(True)
    hub.serve(stop)


def worker_process(endpoint: str, ready: Connection) -> None:
    """Says done to every work, from the link's own thread: what is measured is the wire."""
    quiet()

    def on_event(event: links.Event) -> None:
        if isinstance(event, links.Leased):
            link.done(event.lease)

    link = Link(endpoint, "worker/0", ["work"], WINDOW, on_event)
    link.start()
    ready.send(True)
    ready.recv()
    link.close()


def push_process(endpoint: str, size: int, count: int) -> None:
    socket = zmq.Context.instance().socket(zmq.PUSH)
    socket.connect(endpoint)
    payload = bytes(size)
    for _ in range(count):
        socket.send_multipart([b"header", b"body", payload], copy=False)
    socket.close(linger=30_000)
    zmq.Context.instance().term()


# ------------------------------------------------------------------------------------------------------- measurements


def raw(folder: Path, size: int, count: int) -> float:
    """Seconds for `count` messages through PUSH / PULL, first one excluded."""
    context = zmq.Context()
    socket = context.socket(zmq.PULL)
    endpoint = f"ipc://{folder}/raw-{size}"
    socket.bind(endpoint)
    process = _spawn.Process(target=push_process, args=(endpoint, size, count + 1))
    process.start()
    assert socket.poll(DEADLINE_S * 1000)
    socket.recv_multipart(copy=False)
    begun = time.perf_counter()
    for _ in range(count):
        assert socket.poll(DEADLINE_S * 1000)
        socket.recv_multipart(copy=False)
    seconds = time.perf_counter() - begun
    process.join(DEADLINE_S)
    context.destroy(linger=0)
    return seconds


class Through:
    """A producer with a hub and a worker in processes of their own."""

    def __init__(self, folder: Path, durability: str) -> None:
        self.endpoint = f"ipc://{folder}/{durability}"
        self._pipes, self._processes = [], []
        self._start(hub_process, self.endpoint, durability, str(folder / f"journal-{durability}"))
        self._start(worker_process, self.endpoint)
        self.link = Link(self.endpoint, "producer/0")
        self.link.start()

    def _start(self, target: Callable[..., None], *arguments: Any) -> None:
        ours, theirs = _spawn.Pipe()
        process = _spawn.Process(target=target, args=(*arguments, theirs), daemon=True)
        process.start()
        assert ours.poll(DEADLINE_S), "the process did not come up"
        ours.recv()
        self._pipes.append(ours)
        self._processes.append(process)

    def close(self) -> None:
        self.link.close()
        for pipe, process in reversed(list(zip(self._pipes, self._processes, strict=True))):
            pipe.send(True)
            process.join(10)

    def _finished(self) -> int:
        return int(self.link.query("status").result(DEADLINE_S)["counters"].get("done", 0))

    def run(self, label: str, size: int, count: int) -> float:
        """Seconds from the first submission until the hub has closed the last lease."""
        array = np.zeros(size, np.uint8)
        before = self._finished()
        under_way: list[Any] = []
        begun = time.perf_counter()
        for number in range(count):
            work = codec.pack(m.Document("x"), {"a": array}, id=f"{label}-{number}", route=["work"], sequence=number)
            under_way.append(self.link.submit([work]))
            if len(under_way) >= WINDOW:
                under_way.pop(0).result(DEADLINE_S)
        end = time.monotonic() + DEADLINE_S
        while self._finished() < before + count:
            assert time.monotonic() < end, "the works did not end"
        return time.perf_counter() - begun

    def latency(self, label: str, size: int) -> tuple[float, float]:
        """Median and 99th percentile, in milliseconds, of one submission until it is acknowledged."""
        array = np.zeros(size, np.uint8)
        times = []
        for number in range(ROUNDS):
            work = codec.pack(m.Document("x"), {"a": array}, id=f"{label}-l{number}", route=["work"])
            begun = time.perf_counter()
            self.link.submit([work]).result(DEADLINE_S)
            times.append(1000 * (time.perf_counter() - begun))
        return float(np.percentile(times, 50)), float(np.percentile(times, 99))


def wire_share(run: Path) -> float:
    """Time on encoding, decoding, sockets and journal in all processes of a run, over the sum of its steps' durations."""
    wire = steps = 0.0
    for log in run.glob("logs/*.jsonl"):
        for line in log.read_bytes().splitlines():
            event = json.loads(line)
            if event["event"] == "process.finished":
                wire += event.get("wire_s", 0.0)
            elif event["event"] == "step.completed":
                steps += event["step_s"]
    return wire / steps


def main() -> None:
    quiet()
    table = Table(title="works through the hub (submit, lease, done), against raw PUSH / PULL over ipc")
    for column in ("payload", "path", "works/s", "MB/s", "of raw", "ack p50 ms", "ack p99 ms"):
        table.add_column(column, justify="right" if column != "path" else "left")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, (size, count) in SIZES.items():
            baseline = count / raw(folder, size, count)
            table.add_row(name, "raw PUSH / PULL", f"{baseline:,.0f}", f"{baseline * size / 1e6:,.1f}", "1", "", "")
            for durability in ("memory", "ids", "full"):
                inside = folder / name.replace(" ", "")
                inside.mkdir(exist_ok=True)
                through = Through(inside, durability)
                try:
                    rate = count / through.run("r", size, count)
                    middle, high = through.latency("r", size)
                finally:
                    through.close()
                ratio = f"1/{baseline / rate:,.0f}"
                row = (name, f"hub, journal {durability}", f"{rate:,.0f}", f"{rate * size / 1e6:,.1f}", ratio)
                table.add_row(*row, f"{middle:.2f}", f"{high:.2f}")
    console = Console(width=110)
    console.print(table)
    for run in sys.argv[1:]:
        console.print(f"{run}: {100 * wire_share(Path(run)):.2f} % of the step time is spent on the wire")


if __name__ == "__main__":
    main()
