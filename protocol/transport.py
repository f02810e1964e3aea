"""The worker's transport thread: the one place in a process where a socket lives.

Role code calls `Link` from any thread and gets futures; events come back through one callback, called on the transport
thread, which must be quick. Beats go out from this thread, so Python work in the role's code does not delay them (C code that
keeps the GIL for seconds does; torch, tokenizers and numpy release it).

If the hub dies, the thread goes on: it reconnects, says hello again and repeats what was not settled. If the role's code dies, the
process exits and the hub drops its leases.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import socket as system_socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal

import structlog
import zmq
from zmq.utils.monitor import recv_monitor_message

from safeladder.protocol import codec, sockets
from safeladder.protocol import link as links
from safeladder.protocol import messages as m
from safeladder.protocol.keys import WorkerKeys

Settlement = concurrent.futures.Future[dict[str, Any]]
Answered = concurrent.futures.Future[codec.Parcel]
Handler = Callable[[links.Event], None]
Vitals = tuple[int, float, dict[str, float]]  # progress counter, seconds busy without progress, metrics
TICK_MS = 50
_PROBLEMS = {
    int(zmq.EVENT_HANDSHAKE_FAILED_AUTH): "the hub does not know this key",
    int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL): "the peer there does not speak ZeroMQ with these keys",
    int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL): "the handshake failed (wrong hub key, or keys on one side only)",
    int(zmq.EVENT_CLOSED): "nobody answers there",  # and not EVENT_CONNECT_RETRIED: that follows a failed handshake too
}


class LinkError(RuntimeError):
    """The hub cannot be reached, refused us, or did not settle a request in time."""


class LinkRefused(LinkError):
    """The hub will not have this worker (its schema, its name or its key); trying again would not help."""


class CallError(LinkError):
    """A call ended without an answer; says at which queue and why."""


class Link:
    """A worker's connection to the hub, safe to use from any thread.

    `on_event` and `vitals` (what the next beat says of the role's code) are called on the transport thread.

    `start` raises LinkError when no welcome comes within its deadline; everything later is repeated until it is settled. A future
    that cannot be settled any more, because the link was closed or the hub refuses us for good, fails with LinkError.
    """

    def __init__(
        self,
        endpoint: str,
        name: str,
        queues: Sequence[str] = (),
        credit: int = 0,
        on_event: Handler | None = None,
        keys: WorkerKeys | None = None,
        role: str = "",
        collects: bool = False,
        vitals: Callable[[], Vitals] | None = None,
    ) -> None:
        self.name, self.endpoint = name, endpoint
        self.boot = uuid.uuid4().hex[:12]
        self.state: dict[str, dict[str, Any]] = {}
        self.wire_s = 0.0  # time spent on encoding, decoding and socket calls
        self.sent_bytes = self.received_bytes = 0
        hello = m.Hello(
            name, self.boot, list(queues), credit, role, os.getpid(), system_socket.gethostname(), collects=collects
        )
        self._core = links.LinkCore(hello)
        self._keys = keys
        self._on_event = on_event or (lambda event: None)
        self._vitals = vitals
        self._log = structlog.get_logger("link")
        self._posts: deque[Callable[[float], None]] = deque()
        self._settlements: dict[str, Settlement] = {}
        self._calls: dict[str, Answered] = {}
        self._unsettled: set[Settlement | Answered] = set()  # all futures that callers may be waiting for
        self._ended: str | None = None  # why nothing can be asked any more
        self._lock = threading.Lock()  # guards the two above
        self._welcome: concurrent.futures.Future[links.Welcomed] = concurrent.futures.Future()
        self._handshake_problem = "no answer"
        self._stop = threading.Event()
        self._context = zmq.Context()
        self._wake_lock = threading.Lock()
        self._wake_in, self._wake_out = sockets.pair(self._context, f"wake-{self.boot}")
        self._thread = threading.Thread(target=self._run, name=f"transport-{name}", daemon=True)

    # ------------------------------------------------------------------------------------------------------- life

    def start(self, deadline_s: float = 30.0) -> links.Welcomed:
        """Connects and says hello. Raises LinkError when refused or after `deadline_s`, with what went wrong; nothing is left then."""
        self._thread.start()
        try:
            return self._welcome.result(deadline_s)
        except LinkError:
            self.close()
            raise
        except concurrent.futures.TimeoutError:
            self.close()
            raise LinkError(
                f"{self.name} got no welcome from {self.endpoint} in {deadline_s} s: {self._handshake_problem}"
            ) from None

    def close(self, reason: str = "", deadline_s: float = 5.0) -> None:
        """Waits until what was asked for is settled (at most `deadline_s`), says good-bye and ends the thread."""
        end = time.monotonic() + deadline_s
        inside = threading.current_thread() is self._thread
        if reason:
            if not inside:
                with self._lock:
                    waiting: list[concurrent.futures.Future[Any]] = list(self._unsettled)
                concurrent.futures.wait(waiting, timeout=max(0.0, end - time.monotonic()))
            self._post(lambda now: self._core.leave(reason))
        self._stop.set()
        self._wake()
        if self._thread.ident is None:
            self._close_pipe()  # never started: the thread will not do it
        elif self._thread.is_alive() and not inside:
            self._thread.join(deadline_s)
        self._abandon(f"the link of {self.name} was closed")

    # ------------------------------------------------------------------------------------------------------ requests

    def submit(self, parcels: Sequence[codec.Parcel]) -> Settlement:
        """New works; settled once they are in the hub's journal."""
        return self._ask(lambda now: self._core.submit(parcels, now))

    def done(self, lease: int, outputs: Sequence[codec.Parcel] = (), ended: str | None = None) -> Settlement:
        """Closes a lease and hands on its outputs."""
        return self._ask(lambda now: self._core.done(lease, outputs, now, ended))

    def fail(
        self,
        lease: int,
        error: str,
        retry: bool = True,
        restart: bool = False,
        returned: bool = False,
        partial: codec.Parcel | None = None,
    ) -> Settlement:
        """Gives a lease back (see `messages.Fail`)."""
        return self._ask(lambda now: self._core.fail(lease, error, now, retry, restart, returned, partial))

    def publish(self, topic: str, value: dict[str, Any]) -> Settlement:
        """Sets a topic's latest value."""
        return self._ask(lambda now: self._core.publish(topic, value, now))

    def query(self, what: Literal["status", "dead", "workers"]) -> Settlement:
        return self._ask(lambda now: self._core.query(what, now))

    def command(self, what: Literal["requeue", "exited", "close", "stop"], argument: str | None = None) -> Settlement:
        return self._ask(lambda now: self._core.command(what, argument, now))

    def call(self, parcel: codec.Parcel, deadline_s: float) -> Answered:
        """Sends a work whose last output comes back. The future fails with CallError, at the latest at the deadline."""
        future: Answered = concurrent.futures.Future()

        def post(now: float) -> None:
            try:
                self._calls[self._core.call(parcel, now, deadline_s)] = future
            except codec.WireError as error:
                _settle(future, LinkError(f"{self.name} cannot send this: {error}"))

        self._expect(future, post)
        return future

    def set_credit(self, credit: int) -> None:
        self._post(lambda now: self._core.set_credit(credit))

    # ---------------------------------------------------------------------------------------------- the transport thread

    def _ask(self, request: Callable[[float], str]) -> Settlement:
        future: Settlement = concurrent.futures.Future()

        def post(now: float) -> None:
            try:
                self._settlements[request(now)] = future
            except codec.WireError as error:
                _settle(future, LinkError(f"{self.name} cannot send this: {error}"))

        self._expect(future, post)
        return future

    def _expect(self, future: Settlement | Answered, post: Callable[[float], None]) -> None:
        with self._lock:
            if self._ended is None:
                self._unsettled.add(future)
            else:
                future.set_exception(LinkError(self._ended))
                return
        future.add_done_callback(self._unsettled.discard)
        self._post(post)

    def _abandon(self, why: str) -> None:
        """Nothing will be settled any more: whoever waits is told so, and whoever asks from now on too."""
        with self._lock:
            self._ended = self._ended or why
            left = list(self._unsettled)
        for future in left:
            _settle(future, LinkError(why))

    def _post(self, post: Callable[[float], None]) -> None:
        self._posts.append(post)
        self._wake()

    def _wake(self) -> None:
        with self._wake_lock:
            if not self._wake_in.closed:
                with contextlib.suppress(zmq.Again):  # enough wake-ups are on their way
                    self._wake_in.send(b"", zmq.NOBLOCK)

    def _run(self) -> None:
        identity = f"{self.name}|{self.boot}".encode()
        socket = sockets.connect_worker(self._context, self.endpoint, identity, self._keys)
        monitor = socket.get_monitor_socket()
        poller = zmq.Poller()
        for source in (socket, monitor, self._wake_out):
            poller.register(source, zmq.POLLIN)
        self._core.start(time.monotonic())
        self._carry_out(socket)
        try:
            while not self._stop.is_set() or self._posts:
                ready = dict(poller.poll(TICK_MS))
                begun = time.perf_counter()
                if self._wake_out in ready:
                    while self._wake_out.poll(0):
                        self._wake_out.recv()
                if monitor in ready:
                    self._watch(monitor, time.monotonic())
                now = time.monotonic()
                while self._posts:
                    self._posts.popleft()(now)
                if socket in ready:
                    self._receive(socket, now)
                if self._vitals:
                    self._core.progress, self._core.busy_s, self._core.metrics = self._vitals()
                self._core.tick(now)
                worked = self._carry_out(socket)
                if worked or socket in ready:
                    self.wire_s += time.perf_counter() - begun
        finally:
            socket.disable_monitor()
            monitor.close(linger=0)  # else the context waits for it for ever
            socket.close(linger=1000)
            self._close_pipe()
            self._abandon(f"the link of {self.name} was closed")

    def _close_pipe(self) -> None:
        with self._wake_lock:
            self._wake_in.close()
        self._wake_out.close()
        self._context.term()

    def _receive(self, socket: zmq.Socket[Any], now: float) -> None:
        for _ in range(64):
            try:
                parts = [frame.buffer for frame in socket.recv_multipart(zmq.NOBLOCK, copy=False)]
            except zmq.Again:
                return
            self.received_bytes += sum(len(part) for part in parts)
            try:
                self._core.receive(parts, now)
            except codec.WireError as error:
                self._log.warning("message.rejected", reason=str(error))

    def _carry_out(self, socket: zmq.Socket[Any]) -> bool:
        effects = self._core.collect()
        for parts in effects.sends:
            try:
                socket.send_multipart(parts, zmq.NOBLOCK, copy=False)
                self.sent_bytes += sum(len(part) for part in parts)
            except zmq.Again:
                self._core.not_sent(time.monotonic())  # not connected yet; repetitions come later by themselves
                break
        for event in effects.events:
            self._handle(event)
        return bool(effects.sends)

    def _handle(self, event: links.Event) -> None:
        match event:
            case links.Settled():
                if (settlement := self._settlements.pop(event.request, None)) is not None:
                    _settle(settlement, event.value)
                return
            case links.Replied():
                if (call := self._calls.pop(event.call, None)) is not None:
                    _settle(call, event.parcel if event.parcel is not None else CallError(event.error or "no answer"))
                return
            case links.Welcomed():
                self.state.update(event.state)
                self._log.info("hub.joined", hub_boot=event.hub_boot)
                if not self._welcome.done():
                    self._welcome.set_result(event)
            case links.Refused():
                self._log.error("hub.refused", reason=event.reason)
                problem = f"the hub refused {self.name}: {event.reason}"
                if not self._welcome.done():
                    self._welcome.set_exception(LinkError(problem))
                self._abandon(problem)
            case links.Noticed():
                self.state[event.topic] = event.value
            case links.Silent():
                self._log.warning("hub.silent", seconds=round(event.seconds, 1))
            case links.Complained():
                self._handshake_problem = event.reason
                self._log.warning("hub.complained", reason=event.reason)
            case links.Leased() | links.Revoked():
                pass
        self._on_event(event)

    def _watch(self, monitor: zmq.Socket[Any], now: float) -> None:
        while monitor.poll(0):
            event = recv_monitor_message(monitor)["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._core.connected(now)  # at once, and not with the next beat
            problem = _PROBLEMS.get(int(event))
            if problem and problem != self._handshake_problem:
                self._handshake_problem = problem
                self._log.warning("connection.failed", endpoint=self.endpoint, reason=problem)


def _settle(future: concurrent.futures.Future[Any], outcome: Any) -> None:
    """Ends a future with a value or an error. The first end stands: its caller may have cancelled it in this moment."""
    with contextlib.suppress(concurrent.futures.InvalidStateError):
        if isinstance(outcome, LinkError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
