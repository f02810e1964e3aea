"""Files in pieces: all of it and only that, through interruptions, restarts and hostile peers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from safeladder.protocol import chunk_shell, chunks, keys
from safeladder.protocol.chunks import Ask, ChunkError, Denied, Piece, Pull
from safeladder.protocol.sockets import EndpointError

NAME = "v00000007/model.safetensors"
LIMIT = 2**30


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root" / "v00000007"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(os.urandom(9 * 2**20 + 17))
    (folder / "manifest.json").write_bytes(b"{}")
    return tmp_path / "root"


# --------------------------------------------------------------------------------------------------------- sans-io


@settings(max_examples=60, deadline=None)
@given(data=st.data(), size=st.integers(0, 70), start=st.integers(0, 70))
def test_whatever_is_lost_late_or_doubled_the_file_comes_whole_and_in_order(data, size, start, tmp_path_factory):
    """A network that drops, holds back and repeats answers at will, until it has misbehaved often enough."""
    content, start = bytes(range(size)), min(start, size)
    pull, got, now = Pull(NAME, start, 100, credit=3, piece=8), bytearray(), 0.0
    held: list[list[bytes]] = []
    for turn in range(400):
        for message in pull.wanted(now):
            ask = msgspec.msgpack.decode(message, type=Ask)
            piece = Piece(ask.ticket, ask.offset, size)
            held.append([msgspec.msgpack.encode(piece), content[ask.offset : ask.offset + ask.length]])
        assert len(pull._open) + len(pull._early) <= 3, "never more in flight than the credit"
        fate = data.draw(st.sampled_from(["drop", "double", "deliver"])) if turn < 12 else "deliver"
        if held:
            answer = held.pop(data.draw(st.integers(0, len(held) - 1)) if turn < 12 else 0)
            for _ in range({"drop": 0, "deliver": 1, "double": 2}[fate]):
                for piece_bytes in pull.receive(answer):
                    got += piece_bytes
        if pull.done:
            break
        now += 0.0 if held else chunks.RESEND_S
    assert pull.done and bytes(got) == content[start:]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([b"\xff\xff"], "cannot be read"),
        ([msgspec.msgpack.encode(Denied(1, "gone"))], "denied: gone"),
        ([msgspec.msgpack.encode(Piece(1, 0, 101)), b"x" * 8], "101 bytes, 100 may be"),
        ([msgspec.msgpack.encode(Piece(1, 0, 20)), b"x" * 7], "7 bytes came for offset 0"),
        ([msgspec.msgpack.encode(Piece(1, 8, 20)), b"x" * 8], "8 bytes came for offset 8"),
    ],
)
def test_an_answer_that_cannot_be_is_refused(answer, message):
    pull = Pull(NAME, 0, 100, piece=8)
    pull.wanted(0.0)
    with pytest.raises(ChunkError, match=message):
        pull.receive(answer)


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "v00000007/../../secret",
        "/etc/passwd",
        "v00000007/weights.key",
        "v00000007",
        "v00000007/",
        "link/x",
    ],
)
def test_nothing_but_files_of_publications_is_served(root, name):
    (root.parent / "secret").write_bytes(b"secret")
    (reply,) = chunks.answer(root, msgspec.msgpack.encode(Ask(1, name, 0, 10)))
    assert isinstance(msgspec.msgpack.decode(reply, type=Piece | Denied), Denied)


def test_links_out_of_the_folder_and_things_that_are_no_files_are_denied(root):
    secret = root.parent / "secret"
    secret.write_bytes(b"secret")
    (root / "v00000007" / "delta.safetensors").symlink_to(secret)
    (root / "v00000008").symlink_to(root / "v00000007")
    (root / "v00000009").mkdir()
    os.mkfifo(root / "v00000009" / "manifest.json")
    for name in ("v00000007/delta.safetensors", "v00000008/manifest.json", "v00000009/manifest.json"):
        (reply,) = chunks.answer(root, msgspec.msgpack.encode(Ask(1, name, 0, 10)))
        assert isinstance(msgspec.msgpack.decode(reply, type=Piece | Denied), Denied), name


@given(message=st.binary(max_size=200))
def test_any_bytes_are_answered_or_passed_over(message, tmp_path_factory):
    assert len(chunks.answer(Path("/nowhere"), message)) <= 2


# --------------------------------------------------------------------------------------------------------- sockets


def test_a_file_comes_over_a_socket_and_a_partial_one_is_gone_on_with(root, tmp_path):
    whole = (root / NAME).read_bytes()
    server = chunk_shell.ChunkServer("tcp://127.0.0.1:*", root)
    try:
        (tmp_path / "file").write_bytes(whole[:5_000_001])
        came = chunk_shell.pull(server.endpoint, NAME, tmp_path / "file", LIMIT, silence_s=10)
        assert (came, (tmp_path / "file").read_bytes() == whole) == (len(whole) - 5_000_001, True)
        assert chunk_shell.pull(server.endpoint, NAME, tmp_path / "file", LIMIT, silence_s=10) == 0
        with pytest.raises(ChunkError, match="9,437,201 bytes, 1,000 may be"):
            chunk_shell.pull(server.endpoint, NAME, tmp_path / "other", 1000, silence_s=10)
    finally:
        server.close()


SERVER = """
import sys, threading
from pathlib import Path
from safeladder.protocol.chunk_shell import ChunkServer
server = ChunkServer(sys.argv[1], Path(sys.argv[2]))
print(server.endpoint, flush=True)
sys.stdin.read()
"""


def serving_process(endpoint: str, root: Path) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-c", SERVER, endpoint, str(root)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_a_transfer_survives_the_death_of_its_server(root, tmp_path):
    """The server is stopped after it was seen to send, killed, and another started on its address while the client waits."""
    (root / NAME).write_bytes(os.urandom(64 * 2**20))
    file, failed = tmp_path / "file", []
    process, endpoint = serving_process("tcp://127.0.0.1:*", root)

    def run() -> None:
        try:
            chunk_shell.pull(endpoint, NAME, file, LIMIT, silence_s=30)
        except ChunkError as error:
            failed.append(error)

    client = threading.Thread(target=run)
    client.start()
    while not (file.exists() and file.stat().st_size):
        assert client.is_alive() or file.stat().st_size
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    successor, _ = serving_process(endpoint, root)
    try:
        client.join(60)
        assert not client.is_alive() and failed == []
        assert file.read_bytes() == (root / NAME).read_bytes()
    finally:
        successor.kill()
        successor.wait(10)


def test_a_server_that_is_gone_is_an_error_within_the_silence(root, tmp_path):
    with pytest.raises(ChunkError, match="nothing came from"):
        chunk_shell.pull("tcp://127.0.0.1:1", NAME, tmp_path / "file", LIMIT, silence_s=0.3)


def test_nothing_is_served_in_the_clear_off_this_machine(root):
    with pytest.raises(EndpointError, match="keys are required"):
        chunk_shell.ChunkServer("tcp://0.0.0.0:*", root)


def test_with_keys_only_workers_of_the_run_are_served(root, tmp_path):
    keys.create(tmp_path / "ours", ["learner/0", "generator/0"])
    keys.create(tmp_path / "theirs", ["generator/0"])
    server = chunk_shell.ChunkServer("tcp://127.0.0.1:*", root, keys.load_server(tmp_path / "ours", "learner/0"))
    try:
        assert server.public_key is not None
        for folder, served in (("ours", True), ("theirs", False)):
            pair = keys.load_worker(tmp_path / folder, "generator/0")
            own = keys.WorkerKeys(pair.public, pair.secret, server.public_key.encode())
            file = tmp_path / f"{folder}.file"
            if served:
                assert chunk_shell.pull(server.endpoint, NAME, file, LIMIT, own, 10) == (root / NAME).stat().st_size
            else:
                with pytest.raises(ChunkError, match="nothing came"):
                    chunk_shell.pull(server.endpoint, NAME, file, LIMIT, own, 0.5)
    finally:
        server.close()


def test_a_hostile_peer_does_not_stop_the_server(root, tmp_path):
    server = chunk_shell.ChunkServer("tcp://127.0.0.1:*", root)
    context = zmq.Context()
    peer = context.socket(zmq.DEALER)
    try:
        peer.connect(server.endpoint)
        for frames in ([b""], [b"\xc1"], [os.urandom(300)], [b"a", b"b"], [msgspec.msgpack.encode({"type": "ask"})]):
            peer.send_multipart(frames)
        for number in range(200):  # asks and never reads
            peer.send(msgspec.msgpack.encode(Ask(number, NAME, 0, chunks.MAX_PIECE_BYTES)))
        assert chunk_shell.pull(server.endpoint, "v00000007/manifest.json", tmp_path / "file", LIMIT, silence_s=20) == 2
    finally:
        peer.close(linger=0)
        context.term()
        server.close()
