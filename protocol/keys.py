"""CurveZMQ keys: who may talk to the hub, and as whom.

A key directory holds `hub.key` and one `NAME.key` a worker (secret, mode 0600), and `workers.json`, the allow-list: public
key to worker name. A worker's directory needs only its own `.key` file, which pins the hub's public key. A key stands for exactly one
name: the hub refuses a hello with another. CURVE authenticates the machines that we start; it does not make a malicious actor
safe.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import zmq


class KeyFileError(RuntimeError):
    """A key file is missing, unreadable or open to others."""


@dataclass(frozen=True, slots=True)
class HubKeys:
    """The hub's key pair (Z85, 40 bytes each) and who is allowed: public key -> worker name."""

    public: bytes
    secret: bytes
    allowed: dict[str, str]


@dataclass(frozen=True, slots=True)
class WorkerKeys:
    """A worker's key pair and the public key of the one hub that it will talk to."""

    public: bytes
    secret: bytes
    hub_public: bytes


def create(directory: Path, names: Iterable[str]) -> list[Path]:
    """Makes a key pair for the hub and for every name. Raises KeyFileError if a file is there already."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    hub_public, hub_secret = zmq.curve_keypair()
    written = [_write(directory / "hub.key", {"public": hub_public.decode(), "secret": hub_secret.decode()})]
    allowed = {}
    for name in names:
        public, secret = zmq.curve_keypair()
        allowed[public.decode()] = name
        content = {"public": public.decode(), "secret": secret.decode(), "hub": hub_public.decode()}
        written.append(_write(worker_file(directory, name), content))
    written.append(_write(directory / "workers.json", allowed))
    return written


def worker_file(directory: Path, name: str) -> Path:
    """Where the key of a worker such as `generator/0` stands."""
    return directory / f"{name.replace('/', '-')}.key"


def load_hub(directory: Path) -> HubKeys:
    pair = _read(directory / "hub.key")
    return HubKeys(pair["public"].encode(), pair["secret"].encode(), _read(directory / "workers.json"))


def load_worker(directory: Path, name: str) -> WorkerKeys:
    pair = _read(worker_file(directory, name))
    return WorkerKeys(pair["public"].encode(), pair["secret"].encode(), pair["hub"].encode())


def load_server(directory: Path, name: str) -> HubKeys:
    """What a worker needs to be served from: its own pair, and whom the run allows. Needs `workers.json` beside its key."""
    pair = _read(worker_file(directory, name))
    return HubKeys(pair["public"].encode(), pair["secret"].encode(), _read(directory / "workers.json"))


def ensure_secret(path: Path) -> bytes:
    """The secret of 32 bytes in the file `path`, made where there is none. Raises KeyFileError."""
    if not path.exists():
        fresh = _write(path.with_name(f".{path.name}-{secrets.token_hex(4)}"), {"secret": secrets.token_hex(32)})
        with contextlib.suppress(FileExistsError):  # another process was faster: its secret stands
            os.link(fresh, path)  # all of it or nothing
        fresh.unlink()
    return load_secret(path)


def load_secret(path: Path) -> bytes:
    """Raises KeyFileError when the file is missing, open to others, or holds no secret."""
    try:
        secret = bytes.fromhex(_read(path).get("secret", ""))
    except ValueError:
        secret = b""
    if len(secret) != 32:
        raise KeyFileError(f"{path} holds no secret of 32 bytes")
    return secret


def _write(path: Path, content: dict[str, str]) -> Path:
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise KeyFileError(f"{path} exists; remove it first if its key is to be replaced") from None
    with os.fdopen(file, "wb") as out:
        out.write(msgspec.json.format(msgspec.json.encode(content)) + b"\n")
    return path


def _read(path: Path) -> dict[str, str]:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            if mode & 0o077:
                raise KeyFileError(f"{path} can be read by others (mode {mode:04o}); run `chmod 600 {path}`")
            return msgspec.json.decode(file.read(), type=dict[str, str])
    except FileNotFoundError:
        raise KeyFileError(f"no key file {path}; `safeladder keys {path.parent}` makes the keys of a run") from None
    except msgspec.DecodeError as error:
        raise KeyFileError(f"{path} is not a key file: {error}") from None
