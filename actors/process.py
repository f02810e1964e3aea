"""Entry of every Python role process: `python -m safeladder.actors.process --run DIR --pool NAME --replica I`.

Exit codes: 0 the actor ended in order, 78 its configuration or its data is wrong (a restart would not help), 1 anything else.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import signal
import sys
import traceback
from pathlib import Path

from safeladder.actors.actor import ActorError, Context
from safeladder.actors.runtime import Runtime
from safeladder.launch import logs
from safeladder.launch.config import ConfigError, load_resolved
from safeladder.launch.factory import actor_class, actor_options
from safeladder.launch.rundir import RunDirectory
from safeladder.protocol.keys import KeyFileError, load_secret, load_worker
from safeladder.protocol.transport import Link, LinkError, LinkRefused

EXIT_CONFIGURATION = 78


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--run", type=Path, required=True)
    arguments.add_argument("--pool", required=True)
    arguments.add_argument("--replica", type=int, default=0)
    chosen = arguments.parse_args()
    # a dump of every thread into stderr, which the supervisor keeps, when this process is taken for stuck
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    run = RunDirectory(chosen.run)
    name = f"{chosen.pool}/{chosen.replica}"
    log = logs.configure(run.path.name, chosen.pool, chosen.replica, run.log(chosen.pool, chosen.replica))
    try:
        return asyncio.run(_serve(run, chosen.pool, name, log))
    except (ConfigError, KeyFileError, LinkRefused) as error:
        log.error("process.failed", error=str(error), kind="configuration")
        print(error, file=sys.stderr)
        return EXIT_CONFIGURATION
    except (ActorError, LinkError, TimeoutError) as error:
        log.error("process.failed", error=str(error) or type(error).__name__, kind=type(error).__name__)
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except Exception as error:  # the process boundary: logged whole, and the supervisor decides what follows
        log.error("process.failed", error=str(error), kind=type(error).__name__, trace=traceback.format_exc())
        raise


async def _serve(run: RunDirectory, pool_name: str, name: str, log: logs.Logger) -> int:
    config = load_resolved(run.config)
    logs.limit(config.logs.max_bytes, config.logs.keep)
    pool = config.pools[pool_name]
    kind = actor_class(pool)
    options = actor_options(kind, pool, f"pools.{pool_name}.options")
    keys = load_worker(Path(config.hub.keys), name) if config.hub.keys else None
    logs.hide(*([keys.secret] if keys else []), *([load_secret(run.weights_key)] if run.weights_key.exists() else []))
    runtime = Runtime(kind)
    link = Link(
        run.endpoint,
        name,
        pool.queues or [pool_name],
        on_event=runtime.on_event,
        keys=keys,
        role=kind.role,
        collects=kind.collects,
        vitals=runtime.vitals,
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, runtime.stop)
    log.info("process.started", actor=f"{kind.__module__}:{kind.__qualname__}", link_boot=link.boot)
    try:
        await runtime.run(Context(name, pool, config, run.path, link, log), options)
    finally:
        log.info(
            "process.finished",
            handled=runtime.handled,
            failed=runtime.failed,
            wire_s=round(link.wire_s, 4),
            sent_bytes=link.sent_bytes,
            received_bytes=link.received_bytes,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
