"""What each part of the ladder does: a run with all of them against runs in which one is changed, three seeds each.

    python tests/benchmarks/ablations.py [--jobs 2] [--minutes 4] [--report]

The policy and its task are those of `thinking.py`; it is trained by the learner's own step (`policies/step.py`), with
`policies/constraints.py` and `policies/lazy_start.py` in its loop. The base has CPGD, the two-step curriculum (the capability
family alone first, then both), CALE in the last part, an adaptive multiplier and fresh samples. At each step 64 completions are sampled
with the weights of that moment and trained on `eta` steps later, in two updates, so that ratios differ from 1 and the objectives
from each other. A run takes about half a minute on one core; each finished run is one line of JSON under `.cache/`, so an
interrupted experiment goes on where it stopped, and one whose settings changed starts anew. `--minutes` begins no run after that
time. When all are there, or with `--report`, the table in docs/ablations.md and the plot beside it are made from them.
"""

from __future__ import annotations

import argparse
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import resumable
import thinking
import torch

from safeladder.policies.constraints import ConstraintOptions, Constraints
from safeladder.policies.lazy_start import LazyStart
from safeladder.policies.step import LearnerStep, StepOptions

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS, CAPABILITY_FIRST, CALE_FROM = 75, 20, 40
LEARNING_RATE = 3e-4
PROMPTS, EACH = 8, 8
WARM_STEPS = 600
FINAL_PROMPTS = 1600
SEEDS = (0, 1, 2)
LIMIT = 0.04  # of the safety family's prompts; two in five are harmful


@dataclass(frozen=True)
class Variant:
    """A run's choices; the defaults are the base."""

    objective: str = "cpgd"
    curriculum: bool = True
    cale: bool = True
    adaptive: bool = True
    eta: int = 0

    def constraint(self) -> ConstraintOptions:
        """Both begin at 1, the usual value of a penalty that nobody has tuned."""
        if self.adaptive:
            return ConstraintOptions(limit=LIMIT, method="lagrangian", init=1.0, rate=1.0, window=128)
        return ConstraintOptions(limit=LIMIT, method="fixed", init=1.0)

    def step(self) -> StepOptions:
        return StepOptions(
            learning_rate=LEARNING_RATE,
            objective={self.objective: {}},
            length_advantage={"cale": {"beta": 0.5}} if self.cale else {},
            reference_kl=0.0,
            minibatches=2,
            token_budget=1024,
        )

    def safety(self, step: int) -> float:
        """Share of the safety family among the prompts of a step."""
        return 0.0 if self.curriculum and step < CAPABILITY_FIRST else 0.5


BASE = "base"
VARIANTS = {
    BASE: Variant(),
    "GRPO (clipped)": Variant(objective="clipped"),
    "one step": Variant(curriculum=False),
    "without CALE": Variant(cale=False),
    "fixed multiplier": Variant(adaptive=False),
    "eta 2": Variant(eta=2),
    "eta 8": Variant(eta=8),
}


def lazy_start() -> LazyStart:
    """CALE waits for the last part and, there, for the qualified rate to be flat."""
    return LazyStart({"qualified": 0.1}, window=12, ramp_steps=6, min_steps=CALE_FROM)


def settings(name: str) -> dict[str, Any] | None:
    """Everything that decides a run beside the seed; None for a name that is no variant."""
    if name not in VARIANTS:
        return None
    variant = VARIANTS[name]
    sizes = {"steps": STEPS, "first": CAPABILITY_FIRST, "cale_from": CALE_FROM, "prompts": PROMPTS, "each": EACH}
    task = {"warm_steps": WARM_STEPS, "careful": thinking.CAREFUL, "fillers": thinking.FILLERS}
    return {
        **sizes,
        **task,
        "variant": asdict(variant),
        "step": asdict(variant.step()),
        "constraint": asdict(variant.constraint()),
    }


def run(name: str, seed: int, warm: Path) -> resumable.Record:
    """Trains one policy. The curves are of the completions as sampled, by the weights of that step."""
    torch.set_num_threads(1)
    started = time.process_time()
    variant = VARIANTS[name]
    policy = thinking.warm_start(warm, WARM_STEPS)
    constraints = Constraints({"unsafe": variant.constraint()})
    lazy = lazy_start() if variant.cale else None
    learner = LearnerStep(policy, variant.step(), constraints=constraints, lazy_start=lazy)
    random, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)

    def sampled(step: int) -> list[thinking.TrainingGroup]:
        return thinking.groups(policy, PROMPTS, EACH, variant.safety(step), step, random, generator)

    queue = deque(sampled(0) for _ in range(variant.eta))
    curves: dict[str, list[float]] = {"qualified": [], "unsafe": [], "thought": [], "multiplier": [], "age": []}
    for step in range(STEPS):
        newest = sampled(step)
        queue.append(newest)
        costs = np.concatenate([group.costs["unsafe"] for group in newest])
        known = costs[np.isfinite(costs)]
        curves["qualified"].append(float(np.mean([group.qualified for group in newest])))
        curves["unsafe"].append(float(known.mean()) if len(known) else 0.0)
        curves["thought"].append(float(np.mean([group.thought_lengths for group in newest])))
        curves["multiplier"].append(constraints.multipliers()["unsafe"])
        curves["age"].append(learner.train(queue.popleft(), version=step).age_mean)
    return {
        "name": name,
        "seed": seed,
        "settings": settings(name),
        "curves": {key: [round(value, 5) for value in curve] for key, curve in curves.items()},
        "final": thinking.measure(policy, FINAL_PROMPTS, seed=10_000),
        "cpu_s": round(time.process_time() - started, 1),
    }


def said(record: resumable.Record) -> str:
    figures = ", ".join(f"{key} {value:.3f}" for key, value in record["final"].items())
    return f"{record['name']}, seed {record['seed']}: {figures} in {record['cpu_s']} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=REPOSITORY / ".cache" / "ablations" / "runs.jsonl")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one core each")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after that time")
    parser.add_argument("--report", action="store_true", help="only write table and plot from the runs that are there")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    chosen.results.parent.mkdir(parents=True, exist_ok=True)
    warm = chosen.results.with_name(f"warm-start-{WARM_STEPS}-{thinking.CAREFUL}-{thinking.FILLERS}.safetensors")
    before = thinking.measure(thinking.warm_start(warm, WARM_STEPS), FINAL_PROMPTS, seed=10_000)
    if not chosen.report:
        there = resumable.finished(chosen.results, ("name", "seed"), settings)
        missing = {(n, s): (n, s, warm) for s in SEEDS for n in VARIANTS if (n, s) not in there}
        print(f"{len(there)} runs are there, {len(missing)} to go; before: {before}", flush=True)
        resumable.execute(chosen.results, run, missing, chosen.jobs, said, chosen.minutes)
    there = resumable.finished(chosen.results, ("name", "seed"), settings)
    if len(there) == len(VARIANTS) * len(SEEDS):
        from ablations_report import write  # matplotlib is only needed here

        write(list(there.values()), dict(before), REPOSITORY / "docs")


if __name__ == "__main__":
    main()
