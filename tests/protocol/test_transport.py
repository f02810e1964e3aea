"""Real sockets: start and close, a hub that is killed, keys, hostile peers, and a role that hogs the interpreter."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from safeladder.protocol import codec, keys
from safeladder.protocol import journal as j
from safeladder.protocol import link as links
from safeladder.protocol import messages as m
from safeladder.protocol.hub import HubOptions
from safeladder.protocol.hub_shell import Hub
from safeladder.protocol.sockets import MAX_IPC_PATH_BYTES, EndpointError
from safeladder.protocol.transport import CallError, Link, LinkError

DEADLINE_S = 10.0
ROUTE = ["generator", "learner"]
OPTIONS = {"beat_s": 0.2, "silence_s": 5.0, "lease_s": 5.0, "adopt_grace_s": 3.0}


@contextlib.contextmanager
def serving(endpoint: str, journal: Path, worker_keys: keys.HubKeys | None = None, **options: Any) -> Iterator[Hub]:
    """A hub in a thread of this process."""
    hub = Hub(endpoint, HubOptions(**{**OPTIONS, **options}), journal, worker_keys)
    stop = threading.Event()
    thread = threading.Thread(target=hub.serve, args=(stop,), name="hub")
    thread.start()
    try:
        yield hub
    finally:
        stop.set()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


class Inbox:
    """Collects a link's events and lets a test wait for one, with a deadline."""

    def __init__(self) -> None:
        self.events: list[links.Event] = []
        self._changed = threading.Condition()

    def __call__(self, event: links.Event) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def wait(self, wanted: Callable[[links.Event], bool], count: int = 1) -> list[Any]:
        """The first `count` events that are wanted."""
        with self._changed:
            found = self._changed.wait_for(lambda: len([e for e in self.events if wanted(e)]) >= count, DEADLINE_S)
            assert found, f"not among {self.events}"
            return [event for event in self.events if wanted(event)][:count]

    def lease(self, count: int = 1) -> Any:
        return self.wait(lambda event: isinstance(event, links.Leased), count)[-1]


@contextlib.contextmanager
def joined(endpoint: str, name: str, *queues: str, credit: int = 1, **how: Any) -> Iterator[tuple[Link, Inbox]]:
    inbox = Inbox()
    link = Link(endpoint, name, queues, credit, inbox, **how)
    link.start(DEADLINE_S)
    try:
        yield link, inbox
    finally:
        link.close("over")


def task(identity: str, **work: Any) -> codec.Parcel:
    return codec.pack(m.Document("task"), {"n": np.arange(3)}, id=identity, **{"route": ROUTE, **work})


def onward(event: links.Leased) -> codec.Parcel:
    payload, arrays = codec.unpack(event.parcel)
    work = event.parcel.work
    return codec.pack(payload, arrays, id=work.id, route=work.route, stop=work.stop + 1)


def settled(future: Any) -> str:
    return str(future.result(DEADLINE_S)["status"])


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/hub.ipc"


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    end = time.monotonic() + DEADLINE_S
    for thread in set(threading.enumerate()) - before:
        thread.join(max(0.0, end - time.monotonic()))
    assert not set(threading.enumerate()) - before


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ------------------------------------------------------------------------------------------------------- start and close


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_start_and_close_leave_no_thread_and_no_file(endpoint: str, journal: Path) -> None:
    counts = []
    for _ in range(3):
        with serving(endpoint, journal), joined(endpoint, "generator/0", "generator"):
            pass
        Link(endpoint, "never/started").close()
        with pytest.raises(EndpointError):
            Hub("tcp://0.0.0.0:0", HubOptions(), journal)
        counts.append((threading.active_count(), open_files()))
    assert counts[0] == counts[1] == counts[2]


def test_a_work_goes_round_and_joining_takes_no_beat(endpoint: str, journal: Path) -> None:
    with serving(endpoint, journal, beat_s=5.0, silence_s=60.0, lease_s=60.0):
        begun = time.monotonic()
        with joined(endpoint, "source/0") as (source, _), joined(endpoint, "all/0", *ROUTE) as (worker, inbox):
            assert settled(source.submit([task("w0")])) == "accepted"
            first = inbox.lease()
            assert settled(worker.done(first.lease, [onward(first)])) == "accepted"
            assert settled(worker.done(inbox.lease(2).lease)) == "accepted"
            assert source.query("status").result(DEADLINE_S)["finished"] == 1
            assert time.monotonic() - begun < 3.0


def test_a_link_without_a_hub_says_so_and_leaves_nothing(endpoint: str) -> None:
    link = Link(endpoint, "generator/0")
    with pytest.raises(LinkError, match=r"generator/0 got no welcome from ipc://.* in 0.3 s: nobody answers there"):
        link.start(0.3)


def test_requests_after_close_fail_at_once_and_open_ones_with_it(endpoint: str, journal: Path) -> None:
    with serving(endpoint, journal):
        inbox = Inbox()
        link = Link(endpoint, "gateway/0", on_event=inbox)
        link.start(DEADLINE_S)
        call = link.call(task("c0", route=["nobody"]), 60.0)
        cancelled = link.call(task("c1", route=["nobody"]), 0.2)
        cancelled.cancel()  # an actor's task was cancelled; the thread that answers must live on
        assert settled(link.submit([task("w0")])) == "accepted"
        link.close()
        for future in (call, link.submit([task("w1")]), link.call(task("c2"), 1.0), link.query("status")):
            with pytest.raises(LinkError, match="the link of gateway/0 was closed"):
                future.result(DEADLINE_S)


def test_a_request_that_could_not_travel_fails_and_the_link_goes_on(endpoint: str, journal: Path) -> None:
    with serving(endpoint, journal), joined(endpoint, "source/0") as (link, _):
        big = {"a": np.zeros(m.MAX_FRAME_BYTES + 1, np.uint8)}
        text = m.Document("text", {"text": "x" * m.MAX_BODY_BYTES})
        for parcel in (codec.pack(m.End(1), big, id="w", route=["q"]), codec.pack(text, id="w", route=["q"])):
            with pytest.raises(LinkError, match="source/0 cannot send this"):
                link.submit([parcel]).result(DEADLINE_S)
            with pytest.raises(LinkError, match="cannot send this"):
                link.call(parcel, 5.0).result(DEADLINE_S)
        assert settled(link.submit([task("w0")])) == "accepted"


def test_a_second_worker_of_a_live_name_learns_why_it_cannot_join(endpoint: str, journal: Path) -> None:
    live = joined(endpoint, "generator/0")
    refused = pytest.raises(LinkError, match="the name 'generator/0' belongs to a live worker")
    with serving(endpoint, journal, silence_s=60.0), live, refused:
        Link(endpoint, "generator/0").start(3.0)


def test_a_call_ends_no_later_than_its_deadline(endpoint: str, journal: Path) -> None:
    with serving(endpoint, journal) as hub, joined(endpoint, "gateway/0") as (link, _):
        begun = time.monotonic()
        with pytest.raises(CallError, match=r"deadline"):
            link.call(task("c0", route=["nobody"]), 0.3).result(DEADLINE_S)
        assert 0.25 < time.monotonic() - begun < 2.0
        with joined(endpoint, "searcher/0", "searcher", credit=1) as (searcher, inbox):
            answer = link.call(task("c1", route=["searcher"]), DEADLINE_S)
            lease = inbox.lease()
            searcher.done(lease.lease, [codec.pack(m.Answer("yes", "s"), id="c1", route=["searcher"])])
            assert codec.unpack(answer.result(DEADLINE_S))[0] == m.Answer("yes", "s")
        assert not hub.core.board.items


# ------------------------------------------------------------------------------------------------------ the hub is killed

HUB = """
import sys, threading
from pathlib import Path
from safeladder.protocol.hub import HubOptions
from safeladder.protocol.hub_shell import Hub
hub = Hub(sys.argv[1], HubOptions(beat_s=0.2, silence_s=5.0, lease_s=5.0, adopt_grace_s=3.0), Path(sys.argv[2]))
hub.serve(threading.Event())
"""


def hub_process(endpoint: str, journal: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", HUB, endpoint, str(journal)], stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
def test_a_killed_hub_comes_back_and_requests_settle_and_leases_stand(
    scheme: str, endpoint: str, journal: Path
) -> None:
    endpoint = endpoint if scheme == "ipc" else f"tcp://127.0.0.1:{free_port()}"
    process = hub_process(endpoint, journal)
    try:
        with (
            joined(endpoint, "source/0") as (source, said),
            joined(endpoint, "generator/0", "generator") as (worker, inbox),
        ):
            assert settled(source.submit([task("w0")])) == "accepted"
            held = inbox.lease()
            process.send_signal(signal.SIGKILL)
            process.wait(DEADLINE_S)
            pending = source.submit([task("w1"), task("w0")])
            done = worker.done(held.lease, [onward(held)])
            assert not pending.done()
            process = hub_process(endpoint, journal)
            assert settled(pending) == "accepted"
            assert settled(done) == "accepted"
            said.wait(lambda event: isinstance(event, links.Welcomed) and event.hub_boot == 2)
            assert inbox.lease(2).parcel.work.id == "w1"
            assert not [event for event in inbox.events if isinstance(event, links.Revoked)]
            status = source.query("status").result(DEADLINE_S)
            assert (status["boot"], status["waiting"]["learner"]) == (2, 1)
    finally:
        process.kill()
        process.wait(DEADLINE_S)
    records = [type(record).__name__ for record in j.read(journal)]
    assert records == ["Booted", "Submitted", "Booted", "Submitted"]


def test_a_worker_that_dies_is_replaced_and_its_work_is_done_by_another(endpoint: str, journal: Path) -> None:
    """A process that is killed: the hub hears nothing, and after `silence_s` hands its work to somebody else."""
    program = (
        "import sys, threading; from safeladder.protocol.transport import Link; seen = threading.Event()\n"
        "link = Link(sys.argv[1], 'generator/0', ['generator'], 1, lambda e: type(e).__name__ == 'Leased' and seen.set())\n"
        "link.start(); seen.wait(); print('leased', flush=True); threading.Event().wait()"
    )
    with serving(endpoint, journal, silence_s=1.0), joined(endpoint, "source/0") as (source, _):
        source.submit([task("w0")]).result(DEADLINE_S)
        victim = subprocess.Popen([sys.executable, "-c", program, endpoint], stdout=subprocess.PIPE)
        assert victim.stdout is not None
        assert any(b"leased" in line for line in victim.stdout)
        victim.kill()
        victim.communicate(timeout=DEADLINE_S)
        with joined(endpoint, "generator/1", "generator") as (_, inbox):
            assert inbox.lease().attempt == 2


# ---------------------------------------------------------------------------------------------------------- endpoints


def test_a_port_in_use_is_an_error_that_says_what_to_do(journal: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(EndpointError, match=r"cannot bind .*Address already in use.* Is another run using it\?"):
            Hub(f"tcp://127.0.0.1:{taken.getsockname()[1]}", HubOptions(), journal)


def test_an_ipc_path_of_another_hub_is_not_stolen(endpoint: str, journal: Path, tmp_path: Path) -> None:
    with serving(endpoint, journal), joined(endpoint, "source/0") as (link, _):
        with pytest.raises(EndpointError, match=r"hub.ipc belongs to another running hub: stop that one"):
            Hub(endpoint, HubOptions(), tmp_path / "other")
        with pytest.raises(j.JournalError, match="belongs to another running hub"):
            Hub(f"ipc://{tmp_path}/other.ipc", HubOptions(), journal)
        assert settled(link.submit([task("w0")])) == "accepted"


def test_an_ipc_path_that_is_too_long_or_has_no_folder_is_an_error_that_says_what_to_do(
    tmp_path: Path, journal: Path
) -> None:
    path = str(tmp_path / ("ä" * MAX_IPC_PATH_BYTES))
    with pytest.raises(
        EndpointError, match=rf"has \d+ bytes and the system allows {MAX_IPC_PATH_BYTES}: put it into a folder"
    ):
        Hub(f"ipc://{path}", HubOptions(), journal)
    with pytest.raises(EndpointError, match=r"No such file or directory\. Choose a folder that exists"):
        Hub(f"ipc://{tmp_path}/no/hub", HubOptions(), journal)


@pytest.mark.parametrize("address", ["0.0.0.0", "*", "192.168.1.5", "[::]", "eth0", "example.org"])
def test_an_address_that_others_can_reach_is_refused_without_keys(address: str, journal: Path) -> None:
    with pytest.raises(EndpointError, match=r"keys are required there. Make them with `safeladder keys DIR`"):
        Hub(f"tcp://{address}:0", HubOptions(), journal)


# --------------------------------------------------------------------------------------------------------------- keys


@pytest.fixture
def key_folder(tmp_path: Path) -> Path:
    keys.create(tmp_path / "keys", ["generator/0", "source/0"])
    return tmp_path / "keys"


def test_a_worker_with_its_key_works_and_its_key_binds_its_name(key_folder: Path, journal: Path) -> None:
    with serving("tcp://127.0.0.1:*", journal, keys.load_hub(key_folder)) as hub:
        own = {"keys": keys.load_worker(key_folder, "generator/0")}
        with joined(hub.endpoint, "source/0", keys=keys.load_worker(key_folder, "source/0")) as (source, _):
            with joined(hub.endpoint, "generator/0", "generator", **own) as (worker, inbox):
                assert settled(source.submit([task("w0")])) == "accepted"
                assert settled(worker.done(inbox.lease().lease, [onward(inbox.lease())])) == "accepted"
            with pytest.raises(LinkError, match="the key of 'generator/0' cannot say hello as 'source/1'"):
                Link(hub.endpoint, "source/1", **own).start(DEADLINE_S)
        assert hub.core.counters["rejected_stolen_name"] == 1


@pytest.mark.parametrize("case", ["unknown key", "no key", "wrong hub key"])
def test_a_worker_that_the_hub_cannot_trust_or_that_cannot_trust_the_hub_learns_why(
    case: str, key_folder: Path, journal: Path, tmp_path: Path
) -> None:
    good = keys.load_worker(key_folder, "generator/0")
    public, secret = zmq.curve_keypair()
    offered, why = {
        "unknown key": (keys.WorkerKeys(public, secret, good.hub_public), "the hub does not know this key"),
        "no key": (None, "the handshake failed|does not speak ZeroMQ with these keys"),
        "wrong hub key": (keys.WorkerKeys(good.public, good.secret, public), "the handshake failed"),
    }[case]
    with serving("tcp://127.0.0.1:*", journal, keys.load_hub(key_folder)) as hub:
        with pytest.raises(LinkError, match=why):
            Link(hub.endpoint, "generator/0", keys=offered).start(1.0)
        with joined(hub.endpoint, "generator/0", keys=good):
            assert not hub.core.counters


def test_key_files_that_others_can_read_are_missing_or_broken_are_refused_with_what_to_do(key_folder: Path) -> None:
    assert {oct(path.stat().st_mode & 0o777) for path in key_folder.iterdir()} == {"0o600"}
    for name, load in {
        "hub.key": lambda: keys.load_hub(key_folder),
        "source-0.key": lambda: keys.load_worker(key_folder, "source/0"),
    }.items():
        (key_folder / name).chmod(0o644)
        with pytest.raises(keys.KeyFileError, match=rf"{name} can be read by others \(mode 0644\); run `chmod 600"):
            load()
        (key_folder / name).chmod(0o600)
        load()
    with pytest.raises(keys.KeyFileError, match=r"no key file .*`safeladder keys"):
        keys.load_worker(key_folder, "source/9")
    with pytest.raises(keys.KeyFileError, match="exists; remove it first"):
        keys.create(key_folder, ["source/0"])
    (key_folder / "hub.key").write_text("{}x")
    with pytest.raises(keys.KeyFileError, match="is not a key file"):
        keys.load_hub(key_folder)


# ------------------------------------------------------------------------------------------------------- hostile peers


@contextlib.contextmanager
def stranger(endpoint: str) -> Iterator[zmq.Socket[Any]]:
    """A raw DEALER without any of our code."""
    context: zmq.Context[Any] = zmq.Context()
    dealer: zmq.Socket[Any] = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.LINGER, 0)
    dealer.setsockopt(zmq.RCVTIMEO, int(DEADLINE_S * 1000))
    dealer.setsockopt(zmq.SNDTIMEO, int(DEADLINE_S * 1000))
    dealer.connect(endpoint)
    try:
        yield dealer
    finally:
        dealer.close()
        context.term()


def still_serves(endpoint: str, name: str) -> None:
    with joined(endpoint, f"source/{name}") as (source, _), joined(endpoint, f"worker/{name}", name) as (worker, inbox):
        assert settled(source.submit([task(f"w-{name}", route=[name])])) == "accepted"
        assert settled(worker.done(inbox.lease().lease)) == "accepted"


def test_a_peer_of_another_schema_is_refused_by_name(endpoint: str, journal: Path) -> None:
    with serving(endpoint, journal) as hub, stranger(endpoint) as dealer:
        dealer.send_multipart(codec.encode(m.Hello("old/0", "b", ["q"], 1), "old/0", schema="0:ancient"))
        body = codec.decode_from_hub(dealer.recv_multipart())[1]
        assert isinstance(body, m.Refused)
        assert "old/0 speaks schema '0:ancient'" in body.reason
        assert m.SCHEMA in body.reason
        assert hub.core.counters == {"rejected_schema": 1}


def test_a_link_whose_hub_speaks_another_schema_stops_at_once(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    context: zmq.Context[Any] = zmq.Context()
    router: zmq.Socket[Any] = context.socket(zmq.ROUTER)
    router.bind(endpoint)
    router.setsockopt(zmq.RCVTIMEO, int(DEADLINE_S * 1000))

    def answer() -> None:
        peer = router.recv_multipart()[0]
        router.send_multipart([peer, *codec.encode(m.Refused("no"), "hub", schema="7:newer")])

    thread = threading.Thread(target=answer)
    thread.start()
    link = Link(endpoint, "generator/0")
    with pytest.raises(LinkError, match=r"the hub refused generator/0: hub speaks schema '7:newer', this side"):
        link.start(DEADLINE_S)
    with pytest.raises(LinkError, match="refused"):
        link.submit([task("w0")]).result(DEADLINE_S)
    thread.join(DEADLINE_S)
    router.close(linger=0)
    context.term()


def test_cut_frames_and_ten_thousand_random_messages_are_counted_and_answered_while_a_worker_is_served(
    endpoint: str, journal: Path
) -> None:
    source = random.Random(7)
    honest = [bytes(part) for part in codec.encode(m.Submit("r", [task("x").work]), "s", task("x").frames)]
    with serving(endpoint, journal, durability="memory") as hub, stranger(endpoint) as dealer:
        sent = 0
        for index, part in enumerate(honest[:2]):
            for length in range(0, len(part), 7):
                dealer.send_multipart([*honest[:index], part[:length], *honest[index + 1 :]])
                sent += 1
        for number in range(10_000):
            parts = [source.randbytes(source.randrange(60)) for _ in range(source.randrange(1, 5))]
            if number % 3 == 0:
                parts[0] = honest[0]
            dealer.send_multipart(parts)
            sent += 1
            if number % 100 == 0:  # reads some of its answers, as an honest fool would
                while dealer.poll(0):
                    dealer.recv_multipart(zmq.NOBLOCK)
            if number == 5_000:
                still_serves(endpoint, "meanwhile")
        still_serves(endpoint, "afterwards")
        with joined(endpoint, "judge") as (judge, _):
            end, rejected = time.monotonic() + DEADLINE_S, 0
            while rejected < sent and time.monotonic() < end:  # the last ones are still on their way
                counters = judge.query("status").result(DEADLINE_S)["counters"]
                rejected = counters["rejected_malformed"] + counters.get("rejected_schema", 0)
        assert rejected == sent
        assert not hub.core.board.items


def shake_hands(raw: socket.socket) -> None:
    """ZMTP 3.0 by hand, as a DEALER without security."""
    raw.sendall(b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03\x00NULL".ljust(64, b"\x00"))
    greeting = b""
    while len(greeting) < 64:  # a socket with a timeout hands over what has come so far, even under MSG_WAITALL
        greeting += hear(raw, 64 - len(greeting))
    ready = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
    raw.sendall(b"\x04" + bytes([len(ready)]) + ready)
    hear_word(raw, b"READY")


def hear(raw: socket.socket, at_most: int) -> bytes:
    piece = raw.recv(at_most)
    assert piece, "the hub hung up"
    return piece


def hear_word(raw: socket.socket, word: bytes) -> None:
    heard = b""
    while word not in heard:
        heard += hear(raw, 4096)


def test_bytes_that_are_not_zeromq_and_a_frame_of_2_gb_harm_nothing(journal: Path) -> None:
    attacks = {
        "http": b"GET / HTTP/1.1\r\nHost: hub\r\n\r\n",
        "noise": random.Random(3).randbytes(4096),
        "two-gb": b"\x02" + (2**31).to_bytes(8, "big") + b"x" * 4096,
    }
    with serving("tcp://127.0.0.1:*", journal) as hub:
        host, port = hub.endpoint.removeprefix("tcp://").split(":")
        before = peak_mb()
        for name, attack in attacks.items():
            with socket.create_connection((host, int(port)), DEADLINE_S) as raw, contextlib.suppress(ConnectionError):
                raw.settimeout(DEADLINE_S)
                if name == "two-gb":
                    shake_hands(raw)
                raw.sendall(attack)
                if name != "two-gb":
                    raw.shutdown(socket.SHUT_WR)
                while raw.recv(4096):  # the greeting, and then the hub hangs up
                    pass
            still_serves(hub.endpoint, name)
            # ZeroMQ reads what has no greeting as its oldest version, so that a few bytes of noise may reach the codec
            assert hub.core.counters.get("rejected_malformed", 0) <= len(attack)
        assert peak_mb() - before < 500
        rejected = hub.core.counters.get("rejected_malformed", 0)
        with socket.create_connection((host, int(port)), DEADLINE_S) as raw:  # it was the length, not the handshake
            raw.settimeout(DEADLINE_S)
            shake_hands(raw)
            raw.sendall(b"\x00\x01x")
            hear_word(raw, b"problem")
        assert hub.core.counters["rejected_malformed"] == rejected + 1


def peak_mb() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ----------------------------------------------------------------------------------------------------- a busy interpreter


def test_a_busy_python_loop_does_not_make_the_hub_lose_the_worker(endpoint: str, journal: Path) -> None:
    """The hub is a process of its own, so that only the worker's interpreter is busy."""
    program = HUB.replace("silence_s=5.0", "silence_s=1.0").replace("lease_s=5.0", "lease_s=1.5")
    process = subprocess.Popen([sys.executable, "-c", program, endpoint, str(journal)], stdout=subprocess.DEVNULL)
    try:
        with joined(endpoint, "generator/0", "generator") as (worker, inbox):
            worker.submit([task("w0")]).result(DEADLINE_S)
            lease = inbox.lease()
            end, turns = time.monotonic() + 3.0, 0
            while time.monotonic() < end:
                turns += sum(range(1000))
            assert settled(worker.done(lease.lease, [onward(lease)])) == "accepted"
            assert not [event for event in inbox.events if isinstance(event, links.Revoked)]
            status = worker.query("status").result(DEADLINE_S)
            assert status["counters"]["leased"] == 1
    finally:
        process.kill()
        process.wait(DEADLINE_S)


def test_beats_tell_the_hub_of_the_roles_progress(endpoint: str, journal: Path) -> None:
    with serving(endpoint, journal) as hub:
        seen = threading.Event()
        beat = hub.core._beat

        def watch(worker: Any, body: m.Beat, now: float) -> None:
            beat(worker, body, now)
            if worker.metrics == {"rate": 2.0}:
                seen.set()

        hub.core._beat = watch  # type: ignore[method-assign]
        with joined(endpoint, "generator/0", vitals=lambda: (41, 2.5, {"rate": 2.0})) as (link, _):
            assert seen.wait(DEADLINE_S)
            worker = link.query("workers").result(DEADLINE_S)["generator/0"]
            assert (worker["busy_s"], worker["metrics"], worker["pid"]) == (2.5, {"rate": 2.0}, os.getpid())
