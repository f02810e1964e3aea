"""The processes of a learner that is sharded: rank 0 is the learner actor, the others are started by it and do as it says.

    python -m safeladder.actors.ranks --run DIR --pool NAME --rank R --world N --meeting URL --device D --timeout S

Inbox and outbox of a rank above 0: nothing but the messages of rank 0 (`training.Training.serve`). What blocks it is rank 0,
for at most the timeout, within which rank 0 speaks even when it has nothing to do. If any rank dies, the connections to it
break, every other rank raises `RanksError` and ends, and the supervisor starts the learner anew.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from safeladder.actors.actor import Context
from safeladder.actors.training import Training
from safeladder.launch import logs
from safeladder.launch.config import load_resolved
from safeladder.launch.rundir import RunDirectory
from safeladder.policies.ranks import Ranks, RanksError


def gather(context: Context, world: int, timeout_s: float) -> Training:
    """Rank 0's part of a learner of `world` processes, the others started and met.

    Raises RanksError when they do not all come within `timeout_s`.
    """
    run = RunDirectory(context.directory)
    device = context.pool.device
    if world == 1:
        return Training(context.config, run, Ranks.alone(device))
    meeting = f"file://{tempfile.mkdtemp(prefix='safeladder-ranks-')}/store"
    pool = context.name.partition("/")[0]
    for rank in range(1, world):
        command = [sys.executable, "-m", "safeladder.actors.ranks", "--run", str(run.path), "--pool", pool]
        command += ["--rank", str(rank), "--world", str(world), "--meeting", meeting]
        command += ["--device", _device(device, rank), "--timeout", str(timeout_s)]
        subprocess.Popen(command)  # in our session, so that the supervisor ends them with us
    return Training(context.config, run, Ranks.join(0, world, meeting, timeout_s, _device(device, 0)))


def _device(first: str, rank: int) -> str:
    kind, _, index = first.partition(":")
    return first if kind == "cpu" else f"{kind}:{int(index or 0) + rank}"


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--run", type=Path, required=True)
    for name in ("--pool", "--meeting", "--device"):
        arguments.add_argument(name, required=True)
    for name in ("--rank", "--world"):
        arguments.add_argument(name, type=int, required=True)
    arguments.add_argument("--timeout", type=float, required=True)
    chosen = arguments.parse_args()
    run = RunDirectory(chosen.run)
    config = load_resolved(run.config)
    name = f"{chosen.pool}-rank"
    log = logs.configure(run.path.name, name, chosen.rank, run.log(name, chosen.rank))
    logs.limit(config.logs.max_bytes, config.logs.keep)
    torch.set_num_threads(config.pools[chosen.pool].threads)
    try:
        ranks = Ranks.join(chosen.rank, chosen.world, chosen.meeting, chosen.timeout, chosen.device)
        log.info("rank.joined", rank=chosen.rank, world=chosen.world)
        Training(config, run, ranks).serve()
    except RanksError as error:
        log.error("process.failed", error=str(error), kind="RanksError")
        os._exit(1)  # the communication's own threads may wait for the lost rank for ever
    log.info("rank.left", rank=chosen.rank)
    return 0


if __name__ == "__main__":
    sys.exit(main())
