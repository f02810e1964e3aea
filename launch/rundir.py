"""The run directory: where each file of a run stands.

config.yaml          the resolved configuration             run.json            endpoint, launcher's pid, schema
logs/ROLE-I.jsonl    structured log of a process            logs/ROLE-I.out     its stdout and stderr
hub/journal          what the hub has accepted              learner/ledger.jsonl, learner/versions, learner/record
checkpoints/         committed states of the learner        weights/            publications, where no shared memory
feeder/curriculum.json  what was planned (data.curriculum)
summary.json         what the run came to                   lock                held by the running launcher
images/              images of the records, by hash
guests/              images of the gateways' clients, while they are shown
weights.key          secret that signs the publications, mode 0600
"""

from __future__ import annotations

import fcntl
from pathlib import Path

import msgspec
from msgspec import Struct

from safeladder.launch.config import ConfigError


class RunInfo(Struct):
    """What a process or a client needs to join a run."""

    endpoint: str
    pid: int
    started: str
    schema: str


class RunDirectory:
    """Paths of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def info_file(self) -> Path:
        return self.path / "run.json"

    @property
    def journal(self) -> Path:
        return self.path / "hub" / "journal"

    @property
    def ledger(self) -> Path:
        return self.path / "learner" / "ledger.jsonl"

    @property
    def versions(self) -> Path:
        return self.path / "learner" / "versions"

    @property
    def curriculum(self) -> Path:
        return self.path / "feeder" / "curriculum.json"

    @property
    def record(self) -> Path:
        return self.path / "learner" / "record"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def weights(self) -> Path:
        return self.path / "weights"

    @property
    def images(self) -> Path:
        return self.path / "images"

    @property
    def guests(self) -> Path:
        return self.path / "guests"

    @property
    def weights_key(self) -> Path:
        return self.path / "weights.key"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    def log(self, role: str, replica: int) -> Path:
        return self.path / "logs" / f"{role}-{replica}.jsonl"

    def output(self, role: str, replica: int) -> Path:
        return self.path / "logs" / f"{role}-{replica}.out"

    def info(self) -> RunInfo:
        """Raises ConfigError when there is no such run."""
        try:
            return msgspec.json.decode(self.info_file.read_bytes(), type=RunInfo)
        except FileNotFoundError:
            raise ConfigError(f"{self.path} is no run directory: it has no run.json") from None
        except msgspec.DecodeError as error:
            raise ConfigError(f"{self.info_file} is damaged: {error}") from None

    def write_info(self, info: RunInfo) -> None:
        self.info_file.write_bytes(msgspec.json.format(msgspec.json.encode(info)) + b"\n")

    @property
    def endpoint(self) -> str:
        return self.info().endpoint


def is_live(run: RunDirectory) -> bool:
    """Whether a launcher holds the run's lock."""
    run.info()  # refuses what is no run
    with run.lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
