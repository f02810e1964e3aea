"""One run from a configuration to its summary: its folder, its lock, its processes, its end."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import msgspec

from safeladder.launch import logs, summary
from safeladder.launch.config import Config, ConfigError, load, save_resolved
from safeladder.launch.export.feed import Feed, live_sinks
from safeladder.launch.guardian import Guardian
from safeladder.launch.monitor import Monitor
from safeladder.launch.prefork import Prefork
from safeladder.launch.processes import defaults, forks, plan
from safeladder.launch.progress import StepProgress
from safeladder.launch.readers import is_path
from safeladder.launch.rundir import RunDirectory, RunInfo
from safeladder.launch.supervisor import Outcome, Supervisor
from safeladder.launch.waits import Layout
from safeladder.launch.watch import Watch
from safeladder.protocol.keys import ensure_secret
from safeladder.protocol.messages import SCHEMA, json_schema

RESUMABLE = ("learner.steps",)  # what may change in a run that goes on


def create(config: Config) -> RunDirectory:
    """Makes the folder of a new run, with its resolved configuration. Raises ConfigError if there is one already."""
    parent = Path(config.run.directory).expanduser()
    config.run.name = config.run.name or datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    run = RunDirectory(parent / config.run.name)
    if run.info_file.exists() or run.config.exists():
        raise ConfigError(f"{run.path} is a run already; go on with `--resume {run.path}` or choose another run.name")
    try:
        (run.path / "logs").mkdir(parents=True, exist_ok=True)
        make_paths_absolute(config)
        save_resolved(config, run.config)
    except OSError as error:
        raise ConfigError(f"{run.path}: cannot write the run's folder: {error.strerror}") from None
    _point_latest(run)
    return run


def reopen(path: Path, overrides: Sequence[str] = ()) -> tuple[RunDirectory, Config]:
    """An earlier run's folder and configuration, to go on from its newest checkpoint."""
    run = RunDirectory(path)
    if not run.config.exists():
        raise ConfigError(f"{path} is no run directory: it has no config.yaml")
    for override in overrides:
        if override.partition("=")[0] not in RESUMABLE:
            raise ConfigError(
                f"{override!r}: a run goes on with what it began with; only {', '.join(RESUMABLE)} may change"
            )
    config = load(run.config, overrides)
    _point_latest(run)
    return run, config


@contextmanager
def forking(config: Config) -> Iterator[Prefork | None]:
    """What forks the processes of such a run, while the context lasts; None where it would take as long as it saves."""
    if sum(pool.replicas for pool in config.pools.values() if forks(pool)) < 2:
        yield None
        return
    prefork = Prefork({**os.environ, **defaults(config, threads=1)})
    try:
        yield prefork
    finally:
        prefork.close()


def launch(config: Config, run: RunDirectory, stream: TextIO, prefork: Prefork | None = None) -> Outcome:
    """Runs it to its end and writes its summary. prefork: see `forking`. Raises ConfigError if another launcher has this run."""
    with locked(run):
        resumed = run.info_file.exists()
        save_resolved(config, run.config)
        log = logs.configure(run.path.name, "launcher", 0, run.log("launcher", 0))
        logs.limit(config.logs.max_bytes, config.logs.keep)
        logs.hide(ensure_secret(run.weights_key))
        endpoint, folder = _endpoint(config)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        run.write_info(RunInfo(endpoint, os.getpid(), started, SCHEMA))
        (run.path / "schema.json").write_bytes(msgspec.json.format(msgspec.json.encode(json_schema())))
        log.info("run.started", directory=str(run.path), endpoint=endpoint, resumed=resumed)
        sinks = live_sinks(config.watch, run)
        begun = time.monotonic()
        guardian = Guardian()
        if folder:
            guardian.remove(folder)
        progress = StepProgress(run.path / "logs", config.learner.steps, stream, from_end=resumed)
        monitor = Monitor(run.path / "logs", Layout.of(config), from_end=resumed)
        feed = Feed(run.path / "logs", sinks, from_end=resumed)
        watch = Watch(config, run, guardian)
        supervisor = Supervisor(
            plan(config, run), guardian, watch.on_exit, watch.stalled, progress.notice, prefork=prefork
        )
        try:
            outcome = supervisor.run()
        finally:
            watch.close()
            progress.close()
            monitor.close()
            feed.close()
            guardian.close()
        summary.write(run, outcome, time.monotonic() - begun)
        return outcome


def make_paths_absolute(config: Config) -> None:
    """What the file gives relative to the working folder stays the same when the run is resumed from another one."""

    def absolute(path: str) -> str:
        return str(Path(path).expanduser().absolute())

    config.data.tasks = [absolute(task) if is_path(task) else task for task in config.data.tasks]
    config.policy.cache = config.policy.cache and absolute(config.policy.cache)
    config.hub.keys = config.hub.keys and absolute(config.hub.keys)
    if config.weights.home != "auto":
        config.weights.home = absolute(config.weights.home)
    if Path(config.policy.model).expanduser().is_dir():
        config.policy.model = absolute(config.policy.model)


def _endpoint(config: Config) -> tuple[str, str | None]:
    """Where the hub binds, and the folder to remove in the end. An ipc path is 107 bytes at most: not in the run's."""
    if config.hub.bind != "ipc":
        return config.hub.bind, None
    folder = tempfile.mkdtemp(prefix="safeladder-")  # mode 0700: nobody else can connect
    return f"ipc://{folder}/hub", folder


@contextmanager
def locked(run: RunDirectory) -> Iterator[None]:
    """Holds the run's lock; the kernel lets it go when this process ends, however it ends."""
    file = os.open(run.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(file, 32).decode().strip() or "unknown"
            raise ConfigError(
                f"{run.path} is being run by another launcher (pid {holder}); stop that one first"
            ) from None
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(file)


def _point_latest(run: RunDirectory) -> None:
    """`latest` beside the run leads to it; replaced in one step."""
    link, fresh = run.path.parent / "latest", run.path.parent / f".latest-{os.getpid()}"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(run.path.name)
    fresh.replace(link)
