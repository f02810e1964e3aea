"""Processes that digest the blocks of a big log beside each other (`digest.py`), for as long as one reading takes.

    parent: piece (which file, from where to where) -> stdin of a reader       reader: reads the block itself, digest -> stdout

A message is four bytes of length (little-endian) and msgpack. Digests come back in the order of the pieces. A reader ends with its
parent: its stdin closes. One that fails, or overstays, ends the reading with an error.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Final

import msgspec
from msgspec import Struct

from safeladder.launch.view.digest import Digest, Digester
from safeladder.launch.view.lines import Piece

WORTHWHILE: Final = 64 << 20  # bytes from which starting processes (a third of a second) is
MOST: Final = 4
DEADLINE_S: Final = 60.0  # for a block, which takes a tenth of a second


class ReadersError(RuntimeError):
    """A reader has failed or does not answer."""


class Task(Struct):
    """What to digest. wanted, stride: see `Digester`; bar: see `Digester.digest`."""

    path: str
    begin: int
    end: int
    wanted: list[bytes]
    stride: int
    bar: int


class _Reader:
    """One process, asked by one thread at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "safeladder.launch.view.readers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the parent, which ends this one
        )
        self._decoder = msgspec.msgpack.Decoder(Digest)

    def ask(self, task: Task) -> Digest:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            _send(self._process.stdin, task)
            answer = _receive(self._process.stdout)
        except (BrokenPipeError, EOFError):
            raise ReadersError(f"a process that reads {task.path} has ended before its answer") from None
        if answer is None:
            raise ReadersError(f"a process that reads {task.path} has ended with {self._process.wait(DEADLINE_S)}")
        return self._decoder.decode(answer)

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        """After `kill`, when nobody waits for an answer any more."""
        self._process.communicate()


def digests(pieces: Iterator[Piece], wanted: list[bytes], stride: int, bar: Callable[[], int]) -> Iterator[Digest]:
    """One for each piece, in their order. wanted, stride: see `Digester`. bar: asked when a piece is handed out. Raises ReadersError."""
    readers = [_Reader() for _ in range(min(MOST, len(os.sched_getaffinity(0))))]
    idle: queue.SimpleQueue[_Reader] = queue.SimpleQueue()
    for reader in readers:
        idle.put(reader)

    def ask(piece: Piece, bar: int) -> Digest:
        reader = idle.get_nowait()  # there are as many threads as readers
        try:
            return reader.ask(Task(piece.path, piece.begin, piece.end, wanted, stride, bar))
        finally:
            idle.put(reader)

    pool = ThreadPoolExecutor(len(readers), "readers")
    under_way: deque[Future[Digest]] = deque()
    try:
        for piece in pieces:
            under_way.append(pool.submit(ask, piece, bar()))
            if len(under_way) > 2 * len(readers):
                yield under_way.popleft().result(DEADLINE_S)
        while under_way:
            yield under_way.popleft().result(DEADLINE_S)
    except TimeoutError:
        raise ReadersError(f"a process that reads the logs has not answered for {DEADLINE_S:.0f} s") from None
    finally:
        for reader in readers:
            reader.kill()  # a thread that waits for its answer ends with it
        pool.shutdown(cancel_futures=True)
        for reader in readers:
            reader.close()


def _send(file: IO[bytes], message: Struct) -> None:
    content = msgspec.msgpack.encode(message)
    file.write(len(content).to_bytes(4, "little"))
    file.write(content)
    file.flush()


def _receive(file: IO[bytes]) -> bytes | None:
    """None at the end of the stream. Raises EOFError within a message."""
    head = file.read(4)
    if not head:
        return None
    size = int.from_bytes(head, "little")
    content = file.read(size)
    if len(content) < size:
        raise EOFError
    return content


def main() -> None:
    """What a reader does: answers until its stdin closes."""
    decoder, digester = msgspec.msgpack.Decoder(Task), None
    while (message := _receive(sys.stdin.buffer)) is not None:
        task = decoder.decode(message)
        digester = digester or Digester(task.wanted, task.stride)
        with Path(task.path).open("rb", buffering=0) as file:
            block = os.pread(file.fileno(), task.end - task.begin, task.begin)
        _send(sys.stdout.buffer, digester.digest(block, task.bar))


if __name__ == "__main__":
    main()
