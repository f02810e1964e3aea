"""Every ZeroMQ socket of SafeLadder is made here, with its options fixed in one place.

Values and the measurements behind them: ROUTER never drops silently (`ROUTER_MANDATORY`), a restarted worker gets its name
back (`ROUTER_HANDOVER`), nothing queues for absent peers (`IMMEDIATE`), no exit hangs (`LINGER`), a frame has a bound
(`MAXMSGSIZE`), and half-open handshakes are dropped after seconds.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import os
from pathlib import Path
from typing import Any

import zmq

from safeladder.protocol import messages as m
from safeladder.protocol.keys import HubKeys, WorkerKeys

MAX_IPC_PATH_BYTES = 107
RECONNECT_MS = (100, 2000)  # the first pause and the longest
HIGH_WATER_MARK = 10_000  # messages; works are bounded by credit, the rest is small


class EndpointError(RuntimeError):
    """An endpoint cannot be bound or may not be; says which, why, and what to do."""


def is_local(endpoint: str) -> bool:
    """Whether only this machine can reach the endpoint."""
    scheme, _, address = endpoint.partition("://")
    if scheme in ("ipc", "inproc"):
        return True
    host = address.rsplit(":", 1)[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind_hub(
    context: zmq.Context[Any],
    endpoint: str,
    keys: HubKeys | None,
    what: str = "the hub",
    depth: int = HIGH_WATER_MARK,
) -> zmq.Socket[Any]:
    """The ROUTER of the hub, or of `what` else serves; `depth`: messages that may wait for one peer.

    Raises EndpointError: port in use or no keys off loopback. An ipc path is claimed first (`claim_ipc`).
    """
    if keys is None and not is_local(endpoint):
        raise EndpointError(
            f"{endpoint} can be reached from other machines: keys are required there. "
            "Make them with `safeladder keys DIR` and set hub.keys, or bind to 127.0.0.1 or ipc."
        )
    socket: zmq.Socket[Any] = context.socket(zmq.ROUTER)
    _common(socket)
    socket.setsockopt(zmq.SNDHWM, depth)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
    if keys is not None:
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        socket.close()
        hint = "Is another run using it?" if error.errno == errno.EADDRINUSE else "Check the address."
        raise EndpointError(f"cannot bind {what} to {endpoint}: {error.strerror}. {hint}") from None
    return socket


def connect_worker(
    context: zmq.Context[Any], endpoint: str, identity: bytes, keys: WorkerKeys | None
) -> zmq.Socket[Any]:
    """A worker's DEALER. Connecting never fails at once; silence and refused handshakes show in the link's events."""
    socket: zmq.Socket[Any] = context.socket(zmq.DEALER)
    _common(socket)
    socket.setsockopt(zmq.ROUTING_ID, identity)
    socket.setsockopt(zmq.IMMEDIATE, 1)
    if keys is not None:
        socket.setsockopt(zmq.CURVE_SERVERKEY, keys.hub_public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
    socket.connect(endpoint)
    return socket


def pair(context: zmq.Context[Any], name: str) -> tuple[zmq.Socket[Any], zmq.Socket[Any]]:
    """Two ends of an in-process pipe: one thread wakes another."""
    ends = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    for end in ends:
        end.setsockopt(zmq.LINGER, 0)
    ends[0].bind(f"inproc://{name}")
    ends[1].connect(f"inproc://{name}")
    return ends


def _common(socket: zmq.Socket[Any]) -> None:
    options = {
        zmq.SNDHWM: HIGH_WATER_MARK,
        zmq.RCVHWM: HIGH_WATER_MARK,
        zmq.LINGER: 1000,
        zmq.MAXMSGSIZE: m.MAX_FRAME_BYTES,
        zmq.HANDSHAKE_IVL: 4000,
        zmq.HEARTBEAT_IVL: 2000,
        zmq.HEARTBEAT_TIMEOUT: 10_000,
        zmq.HEARTBEAT_TTL: 10_000,
        zmq.RECONNECT_IVL: RECONNECT_MS[0],
        zmq.RECONNECT_IVL_MAX: RECONNECT_MS[1],
        zmq.TCP_KEEPALIVE: 1,
        zmq.TCP_KEEPALIVE_IDLE: 30,
        zmq.TCP_KEEPALIVE_INTVL: 10,
        zmq.TCP_KEEPALIVE_CNT: 3,
    }
    for option, value in options.items():
        socket.setsockopt(option, value)


def claim_ipc(endpoint: str) -> int | None:
    """Takes an ipc path for this hub: a second bind would silently steal it, so a lock file beside it is locked first.

    Returns the open lock file, to be closed when the socket is closed; None for another kind of endpoint. Raises EndpointError.
    """
    if not endpoint.startswith("ipc://"):
        return None
    path = endpoint.removeprefix("ipc://")
    length = len(os.fsencode(path))
    if length > MAX_IPC_PATH_BYTES:
        raise EndpointError(
            f"the ipc path {path} has {length} bytes and the system allows {MAX_IPC_PATH_BYTES}: put it into a folder with "
            "a shorter name (/tmp, say), or bind to tcp://127.0.0.1:PORT"
        )
    try:
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise EndpointError(
            f"cannot create {path}.lock: {error.strerror}. Choose a folder that exists and is yours"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise EndpointError(f"{path} belongs to another running hub: stop that one, or choose another path") from None
    with contextlib.suppress(FileNotFoundError):
        Path(path).unlink()
    return lock
