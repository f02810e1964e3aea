"""What logs, the launcher's watch over them and the record cost a step: the table of docs/monitor.md.

    python tests/benchmarks/overhead.py --model tiny --steps 600 --block 2
    python tests/benchmarks/overhead.py --model tiny --steps 400 --block 2 sampling.max_new_tokens=256 learner.batch=4
    python tests/benchmarks/overhead.py --model embedded --steps 14 --block 1

One run of real processes, in which logging and recording are on in half of the blocks of steps and off in the other half. Said are the
mean difference of two neighbouring blocks, with a bootstrap interval over the pairs; and, as the clock of a machine that
others use is a coarse measure, the processor time of the blocks that are on that went into log calls, writing, watching and recording.
"""

from __future__ import annotations

import argparse
import atexit
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean

HERE = Path(__file__).parent
SWITCHED = HERE / "switched"
TINY = HERE.parent / "tiny.yaml"
WARM_BLOCKS = 2  # left out: caches, and processes that are still starting
RESAMPLES = 10_000
SHORT = (
    "policy.shots=[]",
    "sampling.max_new_tokens=24",
    "learner.batch=2",
    "pools.searcher.replicas=0",
)  # for two cores
PROBED = ("calls_s", "writing_s", "lines")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", choices=("tiny", "embedded"), default="tiny")
    arguments.add_argument("--steps", type=int, default=400)
    arguments.add_argument("--block", type=int, default=4)
    arguments.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="of the run, beyond the model's")
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        switch = Path(folder) / "switch"
        switch.write_bytes(b"\1")
        os.environ["SWITCH"] = str(switch)
        os.environ["PYTHONPATH"] = f"{SWITCHED}:{os.environ.get('PYTHONPATH', '')}"
        sys.path.insert(0, str(SWITCHED))
        watching_s = launch(chosen.model, Path(folder), chosen.steps, chosen.block, chosen.settings)
        steps = [line.split() for line in switch.with_name("switch.steps").read_text().splitlines()]
        times = [(state == "1", float(seconds)) for _, state, seconds in steps]
        compare(times, chosen.block)
        account(switch, Path(folder) / "run", times, watching_s)


def launch(model: str, folder: Path, steps: int, block: int, settings: list[str]) -> float:
    """Makes the run, with this process as its launcher. Returns the processor time of the watch over the logs."""
    import switched_logging  # this process is switched too

    from safeladder.launch import run as runs
    from safeladder.launch.config import load
    from safeladder.launch.monitor import Monitor

    looks: list[float] = []
    look = Monitor._look

    def counted(self: Monitor) -> None:
        begun = time.thread_time()
        look(self)
        looks.append(time.thread_time() - begun)

    Monitor._look = counted  # type: ignore[method-assign]
    config = load(
        TINY if model == "tiny" else "embedded",
        [
            *([] if model == "tiny" else SHORT),
            f"run.directory={folder}",
            "run.name=run",
            "run.record=true",
            f"learner.steps={steps}",
            "learner.learning_rate=1e-9",  # the same policy in all blocks, so that its answers do not become longer or shorter
            "learner.checkpoint_every=1000000",  # a checkpoint would stand in one block and not in the other
            "pools.learner.credit=100000",
            "pools.learner.actor='switching_learner:SwitchingLearner'",
            f"pools.learner.options={{block: {block}}}",
            *settings,
        ],
    )
    with runs.forking(config) as prefork:
        outcome = runs.launch(config, runs.create(config), sys.stderr, prefork)
    assert outcome.code in (0, 130), outcome.reason  # or interrupted: what was made is reported
    switched_logging.report()
    atexit.unregister(switched_logging.report)
    return sum(looks)


def compare(times: list[tuple[bool, float]], block: int) -> None:
    """The difference by pairs of blocks."""
    blocks = [times[at : at + block] for at in range(0, len(times) - block + 1, block)][WARM_BLOCKS:]
    pairs = []
    for one, other in zip(blocks[::2], blocks[1::2], strict=False):
        found = {part[0][0]: fmean(seconds for _, seconds in part) for part in (one, other)}
        if len(found) == 2:
            pairs.append((found[True], found[False]))
    draw = random.Random(1)
    ratio = fmean(on for on, _ in pairs) / fmean(off for _, off in pairs) - 1
    resampled = sorted(_ratio(draw.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    low, high = resampled[RESAMPLES // 40], resampled[-RESAMPLES // 40]
    on, off = (fmean(column) for column in zip(*pairs, strict=True))
    print(f"{len(pairs)} pairs of blocks of {block} steps: on {on:.3f} s a step, off {off:.3f} s")
    print(f"difference {ratio:+.2%}, 95 % interval {low:+.2%} to {high:+.2%}")


def _ratio(pairs: list[tuple[float, float]]) -> float:
    return fmean(on for on, _ in pairs) / fmean(off for _, off in pairs) - 1


def account(switch: Path, run: Path, times: list[tuple[bool, float]], watching_s: float) -> None:
    """Processor time in all processes together, over the time of the steps that were on; and bytes a sample."""
    spent = dict.fromkeys(PROBED, 0.0)
    for path in switch.parent.glob("switch.[0-9]*"):
        for name, value in zip(PROBED, path.read_text().split(), strict=True):
            spent[name] += float(value)
    recording_s = float(switch.with_name("switch.recording").read_text())
    on_s = sum(seconds for on, seconds in times if on)
    shares = {
        "calls": spent["calls_s"],
        "writing": spent["writing_s"],
        "watching": watching_s,
        "recording": recording_s,
    }
    said = ", ".join(f"{name} {seconds / on_s:.2%}" for name, seconds in shares.items())
    print(
        f"processor time over the {on_s:.0f} s of steps that were on: {said}; together {sum(shares.values()) / on_s:.2%}"
    )
    steps = sum(on for on, _ in times)
    from safeladder.launch.config import load_resolved

    config = load_resolved(run / "config.yaml")
    samples = steps * config.learner.batch * config.sampling.samples
    lines = [line for path in (run / "logs").glob("*.jsonl*") for line in path.read_bytes().splitlines(keepends=True)]
    size, status = sum(map(len, lines)), sum(len(line) for line in lines if b'"hub.status"' in line)
    record = (run / "learner" / "record").stat().st_size
    print(
        f"{len(lines)} lines, {(size - status) / samples:.0f} bytes a sample, {status / on_s:.0f} bytes a second of the hub's state; "
        f"record {record / samples:.0f} bytes a sample"
    )


if __name__ == "__main__":
    main()
