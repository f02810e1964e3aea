"""A finished run served again for questions: hub, generators with its newest checkpoint, verifiers, the retriever; no training."""

from __future__ import annotations

import copy
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safeladder.actors.deliberation import DeliberationOptions
from safeladder.launch.child import Child
from safeladder.launch.config import Config, ConfigError, Pool, load_resolved, save_resolved
from safeladder.launch.processes import Process
from safeladder.launch.rundir import RunDirectory
from safeladder.launch.sections import Recipe

START_S = 180.0


def serving(run: RunDirectory, into: Path, gateway: Pool | None = None) -> Config:
    """The configuration that answers questions with what `run` has learned, through `gateway` where one is given.

    Raises ConfigError where it has no checkpoint."""
    checkpoints = sorted(run.checkpoints.glob("step-*"))
    if not checkpoints:
        raise ConfigError(f"{run.path} has no checkpoint to answer with")
    config = copy.deepcopy(load_resolved(run.config))
    asks = gateway or config.pools.get("searcher")
    if asks is None:
        raise ConfigError(f"{run.config} names no pool `searcher`, which says how questions are answered")
    defaults = DeliberationOptions()
    needed = {asks.options.get("generator", defaults.generator), *asks.options.get("judges", defaults.judges)}
    if gateway is None:  # whose clients cannot ask for `deliberate`
        needed.add(asks.options.get("retriever", defaults.retriever))
    # who asks searches by itself, with the searcher's options: what is needed is that which draws, judges and looks things up
    config.pools = {name: pool for name, pool in config.pools.items() if needed & {name, *pool.queues}}
    config.pools |= {"gateway": gateway} if gateway is not None else {}
    config.recipe = Recipe()
    config.policy.model = str(checkpoints[-1])
    config.hub.bind, config.hub.durability, config.hub.keys = "ipc", "memory", None
    config.run.directory, config.run.name = str(into), "serving"
    return config


@contextmanager
def served(run: RunDirectory, gateway: Pool | None = None) -> Iterator[RunDirectory]:
    """Serves `run` while the context lasts. Raises ConfigError with the launcher's last words when it does not come up."""
    with tempfile.TemporaryDirectory(prefix="safeladder-serve-") as temporary:
        config = serving(run, Path(temporary), gateway)
        file = Path(temporary) / "cluster.yaml"
        save_resolved(config, file)
        command = [sys.executable, "-m", "safeladder.launch.serve", str(file)]
        child = Child(Process("launcher/0", command, dict(os.environ), Path(temporary) / "launcher.out"))
        try:
            yield _up(RunDirectory(Path(temporary) / "serving"), child, set(config.pools))
        finally:
            _end(child)


def _up(serving_run: RunDirectory, child: Child, pools: set[str]) -> RunDirectory:
    """Waits until every pool has said that it is ready."""
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if child.ended():
            break
        ready = {
            log.name.rpartition("-")[0]
            for log in serving_run.path.glob("logs/*.jsonl")
            if b'"event":"actor.ready"' in log.read_bytes()
        }
        if pools <= ready:
            return serving_run
        time.sleep(0.1)
    output = child.process.output.read_text("utf-8", "replace").strip().splitlines()
    raise ConfigError(f"the run could not be served within {START_S:.0f} s: {output[-1] if output else 'no output'}")


def _end(child: Child) -> None:
    child.signal(signal.SIGTERM)
    end = time.monotonic() + 30.0
    while not child.ended() and time.monotonic() < end:
        time.sleep(0.05)
    if not child.ended():
        child.kill_group()
        while not child.ended():
            time.sleep(0.05)
    child.reap()


def main() -> int:
    """The launcher of a serving: runs until SIGTERM, or until whoever started it dies."""
    from safeladder.launch import run as runs
    from safeladder.launch.config import load

    config = load(sys.argv[1])
    with runs.forking(config) as prefork:
        return runs.launch(config, runs.create(config), sys.stdout, prefork).code


if __name__ == "__main__":
    sys.exit(main())
