"""Which processes a run consists of: from the pools of a `Config` to command lines, environments and an order."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from safeladder.launch.config import Config, Pool
from safeladder.launch.rundir import RunDirectory
from safeladder.launch.sections import Restart

HUB = "hub"
EMBEDDED_MODELS = ("embedded", "tiny")

# glibc gives freed memory back at once, and a model's forward pass asks for it again: measured 13 to 18 % of a step
MALLOC = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "2147483647",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
}


@dataclass(frozen=True)
class Process:
    """One process to keep alive.

    name: pool/replica. server: it ends only when asked, so that an orderly end unasked is a failure. final: its orderly
    end ends the run (the learner). stage: processes are stopped by ascending stage, the source first, the hub last.
    """

    name: str
    command: list[str]
    environment: dict[str, str]
    output: Path
    restart: Restart = field(default_factory=Restart)
    stage: int = 0
    server: bool = True
    final: bool = False
    forks: bool = False

    @property
    def pool(self) -> str:
        return self.name.partition("/")[0]

    @property
    def replica(self) -> int:
        return int(self.name.partition("/")[2] or 0)


def plan(config: Config, run: RunDirectory) -> list[Process]:
    """Every process of the run, in the order of starting: the hub, then the pools as the file has them."""
    command = [sys.executable, "-m", "safeladder.actors.hub", "--run", str(run.path)]
    environment = {**os.environ, **defaults(config, threads=1)}
    hub = Process(f"{HUB}/0", command, environment, run.output(HUB, 0), config.hub.restart, stage=_LAST)
    return [hub] + [
        _process(config, run, name, pool, replica)
        for name, pool in config.pools.items()
        for replica in range(pool.replicas)
    ]


def worker_names(config: Config) -> list[str]:
    """The name with which each worker, the launcher and a client say hello: what a key is made for."""
    workers = [f"{name}/{replica}" for name, pool in config.pools.items() for replica in range(pool.replicas)]
    return [*workers, "launcher/0", "client/0"]


# The source stops first, so that nothing new is begun; then all who work on what there is, the learner, and the hub.
_SOURCE, _WORKERS, _LEARNER, _LAST = range(4)


def _process(config: Config, run: RunDirectory, name: str, pool: Pool, replica: int) -> Process:
    routes = [family.route for family in config.recipe.families.values() if family.route]
    queues = set(pool.queues)
    final = any(route[-1] in queues for route in routes)
    source = name == "feeder" or (pool.actor or "").endswith(":Feeder")
    on_route = any(queues & set(route) for route in routes)
    environment = {**os.environ, **defaults(config, pool.threads), **pool.env}
    if pool.command is not None:
        command = list(pool.command)
        environment |= _introduction(config, run, f"{name}/{replica}", pool)
    else:
        interpreter = pool.python or sys.executable
        command = [interpreter, "-m", "safeladder.actors.process", "--run", str(run.path), "--pool", name]
        command += ["--replica", str(replica)]
    return Process(
        f"{name}/{replica}",
        command,
        environment,
        run.output(name, replica),
        pool.restart,
        _SOURCE if source else _LEARNER if final else _WORKERS,
        server=pool.command is None or on_route,
        final=final,
        forks=forks(pool),
    )


def forks(pool: Pool) -> bool:
    """Whether a pool's processes may be forked from one that has its imports done (`prefork.py`)."""
    return pool.command is None and pool.python is None and not pool.env and pool.device == "cpu"


def defaults(config: Config, threads: int) -> dict[str, str]:
    """Environment of every process; a pool's own `env` goes before it."""
    variables = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # waiting threads must not take the cores of the other processes
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # bars of libraries would hide the last words of a process that failed
        "PYTHONUNBUFFERED": "1",
        **MALLOC,
    }
    model = config.policy.model
    if model in EMBEDDED_MODELS or Path(model).expanduser().exists():
        variables["HF_HUB_OFFLINE"] = "1"
    return variables


def _introduction(config: Config, run: RunDirectory, name: str, pool: Pool) -> dict[str, str]:
    """What an actor in another language needs to join: where, as whom, for what."""
    variables = {
        "SAFELADDER_ENDPOINT": run.endpoint,
        "SAFELADDER_NAME": name,
        "SAFELADDER_QUEUES": ",".join(pool.queues),
        "SAFELADDER_CREDIT": str(pool.credit),
        "SAFELADDER_SCHEMA_FILE": str(run.path / "schema.json"),
        "SAFELADDER_RUN": str(run.path),
    }
    if config.hub.keys is not None:
        variables["SAFELADDER_KEY_FILE"] = str(Path(config.hub.keys) / f"{name.replace('/', '-')}.key")
    return variables
