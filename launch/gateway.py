"""`safeladder serve`: a gateway to a run. A live run gets it beside it, as one more client; a finished one is served again for it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from safeladder.launch import logs
from safeladder.launch.ask import answering, client
from safeladder.launch.config import Config, ConfigError, Pool, load_resolved
from safeladder.launch.rundir import RunDirectory, is_live
from safeladder.launch.serve import served
from safeladder.policies.finding import resolve

GATEWAY: Final = "safeladder.actors.gateway:Gateway"
LOOK_S: Final = 1.0  # between two looks whether the run is still there


def serve(run: RunDirectory, given: dict[str, Any], tell: Callable[[str], None]) -> None:
    """Serves `run` until SIGINT or SIGTERM, or until a live run ends. `given`: options of the gateway that go before those of the
    run's searcher. `tell` is called with the address. Raises ConfigError, LinkError."""
    if is_live(run):
        asyncio.run(_beside(run, given, tell))
        return
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with served(run, pool(load_resolved(run.config), given)) as serving:
        tell(address(serving))
        while not stop.wait(LOOK_S):
            if not is_live(serving):
                raise ConfigError(f"the serving of {run.path} has ended; its logs were in {serving.path / 'logs'}")


def pool(config: Config, given: dict[str, Any]) -> Pool:
    """The gateway that answers as the run's own does, or else as its searcher does. Raises ConfigError where it has neither."""
    if own := config.pools.get("gateway"):
        return Pool(actor=GATEWAY, queues=["gateway"], options={**own.options, **given})
    if searcher := config.pools.get("searcher"):
        return Pool(actor=GATEWAY, queues=["gateway"], options={**answering(searcher), **given})
    raise ConfigError("the run's configuration names no pool `searcher`, which says how questions are answered")


def address(run: RunDirectory) -> str:
    """Where a run's gateway listens, as its log says."""
    lines = run.log("gateway", 0).read_text("utf-8").splitlines()
    said = [event["address"] for event in map(json.loads, lines) if event["event"] == "gateway.listening"]
    return str(said[-1])


async def _beside(run: RunDirectory, given: dict[str, Any], tell: Callable[[str], None]) -> None:
    from safeladder.actors.gateway.actor import Server
    from safeladder.launch.factory import actor_class, actor_options

    config = load_resolved(run.config)
    made = pool(config, given)
    options = actor_options(actor_class(made), made, "gateway")
    log = logs.configure(run.path.name, "serve", 0, run.log("serve", 0))
    folder = await asyncio.to_thread(
        resolve, config.policy.model, Path(config.policy.cache) if config.policy.cache else None
    )
    link = await asyncio.to_thread(client, run, "client")
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    try:
        server = Server(options, config, link, folder, log, run.guests / f"serve-{os.getpid()}")
        tell(server.address)
        watching = asyncio.create_task(_until_ended(run, stopping))
        await server.serve(stopping)
        watching.cancel()
    finally:
        await asyncio.to_thread(link.close, "done")


async def _until_ended(run: RunDirectory, stopping: asyncio.Event) -> None:
    while is_live(run):
        await asyncio.sleep(LOOK_S)
    stopping.set()


def given_options(host: str | None, port: int | None, key_file: Path | None) -> dict[str, Any]:
    """The command line's options as the gateway's."""
    given: dict[str, Any] = {"host": host, "port": port, "keys_file": key_file and str(key_file.absolute())}
    return {name: value for name, value in given.items() if value is not None}
