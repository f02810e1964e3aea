"""How long a big log takes to open, and in how much memory: `safeladder top --once` and `safeladder report` over a log made here.

    python tests/benchmarks/logs.py [--lines 2000000] [--folder DIR]

The log has the mix of a real run (for each optimizer step four groups, two weight loads, one admission, a checkpoint every fourth
step) and lines of the same fields and size; three generators and four roles.

Each command runs in a process of its own; time is of the whole process, on the clock and on the processor (they differ where others
use the machine), memory its peak resident set. A second run over the same folder uses the log that is there.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

GROUPS = 4
PER_STEP = GROUPS + 2 + 1 + 1.25  # lines
CONFIG = """run: {name: big}
recipe:
  families:
    safety: {route: [generator, rules, safety, reference, learner]}
"""
START = 1_790_000_000.0


class Log:
    """One process's file."""

    def __init__(self, folder: Path, role: str, replica: int) -> None:
        self._file: TextIO = (folder / f"{role}-{replica}.jsonl").open("w")
        self._role, self._replica, self._sequence = role, replica, 0

    def write(self, at: float, event: str, **fields: Any) -> None:
        moment = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        head = {
            "ts": moment,
            "mono_ns": int(at * 1e9),
            "level": "info",
            "event": event,
            "run": "big",
            "role": self._role,
        }
        identity = {"replica": self._replica, "boot": "5720cfc1fab4", "pid": 8575, "seq": self._sequence}
        self._file.write(json.dumps({**head, **identity, **fields}, separators=(",", ":")) + "\n")
        self._sequence += 1


def step_fields(step: int, chance: random.Random) -> dict[str, Any]:
    """What `step.completed` says, with a reward that rises and noise on everything."""
    noise = chance.random
    figures = (
        "policy_loss",
        "kl",
        "entropy",
        "grad_norm",
        "clip_fraction",
        "behaviour_kl",
        "mismatch",
        "log_ratio_max",
    )
    shares = (
        "above",
        "below",
        "truncated",
        "masked",
        "perplexity_ratio",
        "chi2_token",
        "chi2_sequence",
        "selection_bias",
    )
    return {
        "steps": 10**6,
        "version": step,
        "published": step + 1,
        "wait_s": noise(),
        "publish_s": 0.5,
        "step_s": 5 + noise(),
        "tokens_per_s": 20 + noise(),
        "staleness": [1] * GROUPS,
        "staleness_max": 1,
        "dropped": {},
        "uninformative": 0,
        "reward_mean": 2 * step / (step + 1000) + noise(),
        "reward_std": noise(),
        "unsafe_rate": noise() / 5,
        "families": {"safety": noise(), "normal": noise()},
        "samples": 16,
        "truncated_ratio": noise(),
        "step": step + 1,
        "channels": {name: noise() for name in ("boxed", "choice", "format", "language", "safety")},
        "loss": noise(),
        "ess": 1 - noise() / 10,
        "learning_rate": 3e-5,
        "filtered": {},
        "age_mean": 1.0,
        "age_max": 1,
        "groups": GROUPS,
        "sequences": 16,
        "valid_sequences": 16,
        "zero_spread_groups": 0,
        "tokens": 700,
        "packs": 2,
        "trained_tokens": 700,
        "prompt_tokens": 583,
        "updates": 1,
        "constraints": {"unsafe": {"multiplier": noise(), "cost": noise(), "limit": 0.1, "margin": noise() - 0.5}},
        "seconds": {"advantages": 0.007, "forward": 10.06, "loss": 0.01, "backward": 20.2, "total": 30.6},
        **{name: noise() for name in figures + shares},
    }


def make(run: Path, lines: int) -> None:
    """A run directory whose logs have about `lines` lines."""
    logs = run / "logs"
    logs.mkdir(parents=True)
    (run / "config.yaml").write_text(CONFIG)
    (run / "run.json").write_text(
        '{"endpoint": "ipc://none", "pid": 0, "started": "2026-01-01T00:00:00+00:00", "schema": "1:0"}'
    )
    (run / "lock").touch()
    chance = random.Random(7)
    generators = [Log(logs, "generator", replica) for replica in range(3)]
    learner, feeder = Log(logs, "learner", 0), Log(logs, "feeder", 0)
    for log in (*generators, learner, feeder):
        log.write(START, "process.started", actor="an.actor:Actor")
        log.write(START, "actor.ready", queues=["queue"], credit=4)
    for step in range(int(lines / PER_STEP)):
        at = START + 5.5 * step
        feeder.write(at, "groups.admitted", count=GROUPS, cursor=step * GROUPS, min_version=step, end=False)
        for place in range(GROUPS):
            seconds = round(3 + 4 * chance.random(), 3)
            generators[place % 3].write(
                at + place, "group.generated", id=f"{step:08d}-embedded-harmful-en-{place:02d}", tokens=chance.randrange(60, 200),
                seconds=seconds, versions=[step, step],
            )  # fmt: skip
        for generator in generators[:2]:
            generator.write(at + 4.2, "weights.loaded", version=step, seconds=0.3)
        learner.write(at + 5.4, "step.completed", **step_fields(step, chance))
        if step % 4 == 0:
            path = f"/runs/big/checkpoints/step-{step:08d}"
            learner.write(at + 5.5, "checkpoint.committed", path=path, step=step, version=step, settled=4, seconds=0.1)


def measured(*arguments: str) -> tuple[float, float, float]:
    """(wall seconds, processor seconds, peak memory in MB) of a subcommand."""
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "safeladder.launch.cli", *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"safeladder {' '.join(arguments)} failed with {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - begun, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=2_000_000)
    parser.add_argument("--folder", type=Path, help="keep the log here")
    parser.add_argument("--make-only", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run = (chosen.folder or Path(temporary)) / "big"
        if not run.exists():
            make(run, chosen.lines)
        if chosen.make_only:
            return
        files = list((run / "logs").iterdir())
        size, count = sum(path.stat().st_size for path in files), 0
        for path in files:  # by line: a child's peak memory begins with that of this process
            with path.open("rb") as file:
                count += sum(1 for _ in file)
        print(f"{count:,} lines, {size / 1e6:.0f} MB")
        for name, arguments in {
            "top --once": ["top", str(run), "--once"],
            "report": ["report", str(run), "--out", str(run.parent / "report.html")],
        }.items():
            seconds, processor, megabytes = measured(*arguments)
            print(f"{name:12} {seconds:6.2f} s {processor:6.2f} processor s {megabytes:6.0f} MB")


if __name__ == "__main__":
    main()
