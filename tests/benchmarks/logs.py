"""How long a big log takes to open, and in how much memory: `safeladder top --once` and `safeladder report` over a log made here.

    python tests/benchmarks/logs.py [--lines 2000000] [--folder DIR]

The log has the mix of a real run with three verifiers' pools, lines of the same fields and size: for each optimizer step (5.5 s) four
groups of four, each generated, judged in two pools and trained; nine lines of hops, three of the hub's state, and those of the weights.
Three generators, six roles.

Each command runs in a process of its own; time is of the whole process, on the clock and on the processor (they differ where others
use the machine). Memory is the largest sum, over the command's processes, of their proportional set sizes, looked at each 50 ms.
A second run over the same folder uses the log that is there.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import msgspec
import psutil

GROUPS, SAMPLES, GENERATORS = 4, 4, 3
HOPS, STATES = 9, 3  # lines a step
PER_STEP = GROUPS * 4 + HOPS + STATES + 2 * GENERATORS + 3.25  # lines
ROUTE = ("generator", "rules", "safety", "reference", "learner")
RULES = ("format", "language", "repetition", "length", "boxed", "choice", "match")
CONFIG = """run: {name: big}
recipe:
  families:
    safety: {route: [generator, rules, safety, reference, learner]}
"""
START = 1_790_000_000.0
STEP_S = 5.5


class Log:
    """One process's file."""

    def __init__(self, folder: Path, role: str, replica: int = 0) -> None:
        self._file: TextIO = (folder / f"{role}-{replica}.jsonl").open("w")
        self._head = f'"run":"big","role":"{role}","replica":{replica},"boot":"5720cfc1fab4","pid":8575,"seq":'
        self._sequence = 0

    def write(self, at: float, event: str, **fields: Any) -> None:
        moment = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        rest = msgspec.json.encode(fields).decode()[1:]
        start = f'{{"ts":"{moment}","mono_ns":{int(at * 1e9)},"level":"info","event":"{event}",'
        self._file.write(f"{start}{self._head}{self._sequence},{rest}\n")
        self._sequence += 1


def step_fields(step: int, chance: random.Random) -> dict[str, Any]:
    """What `step.completed` says, with a reward that rises and noise on everything."""
    noise = chance.random
    figures = "policy_loss kl entropy grad_norm clip_fraction behaviour_kl mismatch log_ratio_max above below truncated masked"
    others = "perplexity_ratio chi2_token chi2_sequence selection_bias reward_std truncated_ratio loss wait_s"
    return {
        "steps": 10**6,
        "version": step,
        "published": step + 1,
        "publish_s": 0.5,
        "step_s": 5 + noise(),
        "tokens_per_s": 20 + noise(),
        "staleness": [1] * GROUPS,
        "staleness_max": 1,
        "dropped": {},
        "uninformative": 0,
        "reward_mean": 2 * step / (step + 1000) + noise(),
        "unsafe_rate": noise() / 5,
        "families": {"safety": noise(), "normal": noise()},
        "channels": {name: noise() for name in (*RULES, "safety")},
        "samples": GROUPS * SAMPLES,
        "unjudged_groups": 0,
        "unjudged_samples": 0,
        "step": step + 1,
        "ess": 1 - noise() / 10,
        "learning_rate": 3e-5,
        "filtered": {},
        "age_mean": 1.0,
        "age_max": 1,
        "groups": GROUPS,
        "sequences": GROUPS * SAMPLES,
        "valid_sequences": GROUPS * SAMPLES,
        "zero_spread_groups": 0,
        "tokens": 700,
        "packs": 2,
        "trained_tokens": 700,
        "prompt_tokens": 583,
        "updates": 1,
        "constraints": {"unsafe": {"multiplier": noise(), "cost": noise(), "limit": 0.1, "margin": noise() - 0.5}},
        "engine_drift": None,
        "seconds": {"advantages": 0.007, "forward": 10.06, "loss": 0.01, "backward": 20.2, "total": 30.6},
        **{name: noise() for name in f"{figures} {others}".split()},
    }


def hops(identity: str, sequence: int, at: float) -> list[dict[str, Any]]:
    """The life of a work from its admission to its end."""
    rows: list[dict[str, Any]] = [
        {"do": "accepted", "id": identity, "at": round(at, 3), "queue": ROUTE[0], "sequence": sequence}
    ]
    for place, queue in enumerate(ROUTE):
        holder = f"{queue}/{sequence % GENERATORS if queue == 'generator' else 0}"
        rows.append({"do": "leased", "id": identity, "at": round(at, 3), "queue": queue, "to": holder, "wait_s": 0.012})
        service = 4.218 if place == 0 else 0.031
        at += service
        left = {"do": "moved", "id": identity, "at": round(at, 3), "by": holder, "service_s": service}
        rows.append({**left, "queue": ROUTE[place + 1]} if place + 1 < len(ROUTE) else {**left, "do": "finished"})
    return rows


def state(step: int, chance: random.Random) -> dict[str, Any]:
    """What `hub.status` says."""
    generators = [f"generator/{replica}" for replica in range(GENERATORS)]
    workers = {}
    for name in (
        "feeder/0",
        "reference/0",
        "rules/0",
        "searcher/0",
        "safety/0",
        "launcher/0",
        "learner/0",
        *generators,
    ):
        metrics = {"rss_bytes": 55181312.0, "cache_hits": 0.0, "cache_misses": 448.0, "failed_verdicts": 0.0}
        workers[name] = {
            "queues": [name.partition("/")[0]],
            "credit": 4,
            "leases": chance.randrange(5),
            "heard_s": 0.46,
            "progress_s": 0.46,
            "busy_s": round(chance.random(), 3),
            "pid": 2152,
            "metrics": {**metrics, **({f"figure_{k}": 1.25 * k for k in range(14)} if "gen" in name else {})},
        }
    oldest = [
        {"id": f"{step:08d}-embedded-normal-en-0{place}", "queue": "generator", "holder": "generator/0", "seconds": 0.9}
        for place in range(3)
    ]
    counters = {"accepted": 4 * step, "leased": 20 * step, "done": 20 * step}
    waiting = {queue: chance.randrange(6) for queue in ROUTE}
    told = {"hub_boot": 1, "waiting": waiting, "leased": 20, "dead": 0, "finished": 4 * step, "counters": counters}
    return {**told, "workers": workers, "oldest": oldest, "rss_bytes": 55369728}


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
    roles = {name: Log(logs, name) for name in ("hub", "feeder", "rules", "safety", "reference", "learner")}
    generators = [Log(logs, "generator", replica) for replica in range(GENERATORS)]
    for log in (*roles.values(), *generators):
        log.write(START, "process.started", actor="an.actor:Actor")
        log.write(START, "actor.ready", queues=["queue"], credit=4)
    for step in range(int(lines / PER_STEP)):
        make_step(step, roles, generators, chance)


def make_step(step: int, roles: dict[str, Log], generators: list[Log], chance: random.Random) -> None:
    at, learner = START + STEP_S * step, roles["learner"]
    roles["feeder"].write(at, "groups.admitted", count=GROUPS, cursor=step * GROUPS, min_version=step, end=False)
    rows: list[dict[str, Any]] = []
    for place in range(GROUPS):
        sequence, then = step * GROUPS + place, at + place
        identity = f"{sequence:08d}-embedded-harmful-en-{place:02d}"
        rows += hops(identity, sequence, then)
        lengths = [chance.randrange(20, 60) for _ in range(SAMPLES)]
        generators[place % GENERATORS].write(
            then, "group.generated", seconds=round(3 + 4 * chance.random(), 3), lengths=lengths,
            finishes=["stop"] * SAMPLES, id=identity, tokens=sum(lengths), kept=0, versions=[step, step],
        )  # fmt: skip
        ones, labels = [1.0] * SAMPLES, ["not exactly one thought"] * SAMPLES
        told = {name: {"scores": ones, "labels": labels, "versions": ["1"]} for name in RULES[:4]}
        told |= {name: {"statuses": ["abstain"] * SAMPLES, "versions": ["2"]} for name in RULES[4:]}
        roles["rules"].write(then, "group.judged", id=identity, verdicts=told)
        scores = [round(chance.random(), 5) for _ in range(SAMPLES)]
        judged = {"safety": {"scores": scores, "labels": ["Safe"] * SAMPLES, "versions": ["1"]}}
        roles["safety"].write(then, "group.judged", id=identity, verdicts=judged)
        learner.write(
            at + 5.3, "group.trained", id=identity, step=step + 1, published=step + 1, staleness=1, rewards=scores,
            channels=dict.fromkeys((*RULES, "safety"), scores), advantages=scores, corrections=ones,
            loss_weights=scores,
        )  # fmt: skip
    rows.sort(key=lambda row: float(row["at"]))
    each = -(-len(rows) // HOPS)
    for place in range(HOPS):
        part = rows[place * each : (place + 1) * each]
        roles["hub"].write(at + place * 0.5, "work.hops", rows=part)
    for place in range(STATES):
        roles["hub"].write(at + 2 * place, "hub.status", **state(step, chance))
    for generator in generators:
        generator.write(at + 4.2, "weights.loaded", version=step, cache="keep", running=0)
        mean = {"mean": 1.6e-05, "worst": 3.2e-05, "tolerance": 0.002}
        generator.write(at + 4.3, "weights.attested", version=step, passed=True, tokens=43, **mean)
    size = {"bytes": 538090376, "full_bytes": 538060032}
    learner.write(at + 5.3, "weights.published", version=step + 1, base=None, **size, seconds=0.779)
    learner.write(at + 5.4, "step.completed", **step_fields(step, chance))
    if step % 4 == 0:
        path = f"/runs/big/checkpoints/step-{step:08d}"
        learner.write(at + 5.5, "checkpoint.committed", path=path, step=step, version=step, settled=4, seconds=0.1)


def measured(*arguments: str) -> tuple[float, float, float]:
    """(wall seconds, processor seconds, peak memory in MB) of a subcommand and all its processes."""
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "safeladder.launch.cli", *arguments], stdout=subprocess.DEVNULL)
    peak, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            try:
                mine = [psutil.Process(process.pid)]
                mine += mine[0].children(recursive=True)
                peak[0] = max(peak[0], sum(one.memory_full_info().pss for one in mine))
            except psutil.NoSuchProcess:
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)  # of its children too: they have been waited for
    seconds = time.perf_counter() - begun
    ended.set()
    watcher.join()
    if status:
        raise SystemExit(f"safeladder {' '.join(arguments)} failed with {os.waitstatus_to_exitcode(status)}")
    return seconds, usage.ru_utime + usage.ru_stime, peak[0] / 1e6


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
        for path in files:
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
