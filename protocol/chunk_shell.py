"""The sockets of `chunks`: a server's thread, and a client that pulls a file in the thread that calls it.

`ChunkServer` runs in the process whose files they are. It blocks on nothing but its socket; a client that asks and does not read is
sent at most `chunks.CREDIT` pieces ahead and then nothing. `pull` blocks its caller until the file is here; it fails after
`silence_s` without a byte, however long the whole takes. If either side dies, the other is none the worse.
"""

from __future__ import annotations

import os
import re
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import structlog
import zmq

from safeladder.protocol import chunks, sockets
from safeladder.protocol.allow_list import AllowList
from safeladder.protocol.keys import HubKeys, WorkerKeys

TICK_MS = 100


class ChunkServer:
    """Serves the files below `root` whose names are as `served` says, from a thread of its own, until `close`.

    Raises EndpointError when it cannot bind; off this machine keys are required.
    """

    def __init__(
        self,
        endpoint: str,
        root: Path,
        keys: HubKeys | None = None,
        served: re.Pattern[str] = chunks.PUBLICATION,
        what: str = "the server of weights",
    ) -> None:
        self.sent_bytes = 0
        self._root, self._served = root, served
        self._log = structlog.get_logger("chunks")
        self._context: zmq.Context[Any] = zmq.Context()
        self._authenticator = AllowList(self._context, keys.allowed) if keys else None
        if self._authenticator:
            self._authenticator.start()
        try:
            self._socket = sockets.bind_hub(self._context, endpoint, keys, what, depth=chunks.CREDIT)
        except sockets.EndpointError:
            self._end()
            raise
        self.endpoint: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.public_key = keys.public.decode() if keys else None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="chunks", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread, within a tick. A second call does nothing."""
        self._stop.set()
        self._thread.join()

    def _serve(self) -> None:
        try:
            while not self._stop.is_set():
                if self._socket.poll(TICK_MS):
                    self._answer(*self._socket.recv_multipart(copy=False))
        finally:
            self._socket.close(linger=0)
            self._end()

    def _answer(self, peer: zmq.Frame, *frames: zmq.Frame) -> None:
        if len(frames) != 1:
            return
        reply = chunks.answer(self._root, frames[0].buffer, self._served)
        if not reply:
            self._log.warning("message.rejected", reason="no ask", peer=peer.bytes.hex()[:64])
            return
        try:
            self._socket.send_multipart([peer.bytes, *reply], zmq.NOBLOCK, copy=False)
        except zmq.ZMQError as error:  # gone, or not reading: it asks again
            self._log.debug("message.undeliverable", error=error.strerror)
        else:
            self.sent_bytes += len(reply[-1])

    def _end(self) -> None:
        if self._authenticator:
            self._authenticator.stop()
        self._context.term()


def pull(
    endpoint: str,
    name: str,
    file: Path,
    limit: int,
    keys: WorkerKeys | None = None,
    silence_s: float = 30.0,
    stop: threading.Event | None = None,
) -> int:
    """Appends to `file` what it lacks of the served file `name`, of `limit` bytes at most; returns the bytes that came.

    On an error what has come stays, and the next call goes on there. Raises ChunkError, also when `stop` is set meanwhile;
    OSError from the disk.
    """
    with file.open("ab") as out:
        return _pulled(endpoint, chunks.Pull(name, out.tell(), limit), out.fileno(), keys, silence_s, stop)


def _pulled(
    endpoint: str,
    pull: chunks.Pull,
    out: int,
    keys: WorkerKeys | None,
    silence_s: float,
    stop: threading.Event | None,
) -> int:
    begun, heard = pull.offset, time.monotonic()
    with zmq.Context() as context:
        socket = sockets.connect_worker(context, endpoint, f"pull-{uuid.uuid4().hex[:12]}".encode(), keys)
        try:
            while not pull.done:
                now = time.monotonic()
                if now - heard > silence_s:
                    raise chunks.ChunkError(
                        f"{pull.name}: nothing came from {endpoint} for {silence_s:.0f} s, at byte {pull.offset:,}"
                    )
                if stop is not None and stop.is_set():
                    raise chunks.ChunkError(f"{pull.name}: stopped at byte {pull.offset:,}")
                if socket.poll(0, zmq.POLLOUT):  # not before there is a connection: nothing queues for an absent server
                    for ask in pull.wanted(now):
                        socket.send(ask)
                if socket.poll(TICK_MS):
                    frames = [frame.buffer for frame in socket.recv_multipart(copy=False)]
                    for piece in pull.receive(frames):
                        _write(out, piece)
                        heard = time.monotonic()
        finally:
            socket.close(linger=0)
    return pull.offset - begun


def _write(out: int, piece: bytes) -> None:
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(out, rest) :]
