"""Entry of the hub's process: `python -m safeladder.actors.hub --run DIR`. What it does stands in `protocol/hub_shell.py`."""

from __future__ import annotations

import argparse
import faulthandler
import signal
import sys
import threading
from pathlib import Path

from safeladder.launch import logs
from safeladder.launch.config import Config, ConfigError, load_resolved
from safeladder.launch.rundir import RunDirectory
from safeladder.protocol.hub import HubOptions
from safeladder.protocol.hub_shell import Hub
from safeladder.protocol.journal import JournalError
from safeladder.protocol.keys import KeyFileError, load_hub
from safeladder.protocol.sockets import EndpointError

EXIT_CONFIGURATION = 78


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--run", type=Path, required=True)
    run = RunDirectory(arguments.parse_args().run)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    log = logs.configure(run.path.name, "hub", 0, run.log("hub", 0))
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    log.info("process.started", actor="hub")
    try:
        config = load_resolved(run.config)
        logs.limit(config.logs.max_bytes, config.logs.keep)
        keys = load_hub(Path(config.hub.keys)) if config.hub.keys else None
        logs.hide(*([keys.secret] if keys else []))
        hub = Hub(run.endpoint, options(config, run.path.name), run.journal, keys, sync=config.hub.fsync)
    except (ConfigError, EndpointError, JournalError, KeyFileError) as error:
        log.error("process.failed", error=str(error), kind=type(error).__name__)
        print(error, file=sys.stderr)
        return EXIT_CONFIGURATION
    hub.serve(stop)
    log.info("process.finished", wire_s=round(hub.wire_s, 4), rounds=hub.rounds, counters=hub.core.counters)
    return 0


def options(config: Config, run: str) -> HubOptions:
    """The hub's own options out of the run's configuration."""
    hub = config.hub
    return HubOptions(
        run=run,
        durability=hub.durability,  # type: ignore[arg-type]
        beat_s=hub.beat_s,
        silence_s=hub.silence_s,
        lease_s=hub.lease_s,
        adopt_grace_s=hub.adopt_grace_s,
        max_attempts=hub.max_attempts,
        max_depth=hub.max_depth,
    )


if __name__ == "__main__":
    sys.exit(main())
