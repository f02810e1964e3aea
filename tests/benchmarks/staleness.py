"""How old may samples be? Five rules on samples of age 0, 1, 2, 4, 8 and without a bound, three seeds each.

    python tests/benchmarks/staleness.py [--jobs 2] [--report]

The policy and its task are those of `sorting.py`; it is trained by the learner's own step (`policies/step.py`), two passes over each
batch. At each of 80 steps 64 answers are sampled with the weights of that moment and trained on `eta` steps later. Without a bound
nothing paces the generator: it writes two batches while the learner trains one, they are trained in order, and the batch of step t
comes from the weights of step t / 2. A run takes about 20 seconds on one core; each finished run is one line of JSON under `.cache/`,
so an interrupted experiment goes on where it stopped, and one whose settings changed starts anew. When all are there, or with
`--report`, the table in docs/staleness.md and the plot beside it are made from them.
"""

from __future__ import annotations

import argparse
import time
from collections import deque
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import resumable
import sorting
import torch

from safeladder.policies.step import LearnerStep, StepError, StepOptions

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS, COUNTED = 80, 20  # the last COUNTED steps are what a run is judged by
PROMPTS, EACH = 8, 8
WARM_STEPS = 300
FINAL_PROMPTS = 4000
LEARNING_RATE = 1e-4
UNBOUNDED = -1
ETAS, SEEDS = (0, 1, 2, 4, 8, UNBOUNDED), (0, 1, 2)
Rule = dict[str, dict[str, Any]]
RULES: dict[str, Rule] = {
    "naive PPO": {"objective": {"clipped": {}}, "correction": {"off": {}}},
    "decoupled PPO": {"objective": {"clipped": {}}, "correction": {"token_truncate": {"cap": 100.0}}},
    "TIS": {"objective": {"clipped": {}}, "correction": {"token_truncate": {"cap": 2.0}}},
    "CISPO": {"objective": {"cispo": {}}, "correction": {"token_truncate": {"cap": 2.0}}},
    "CISPO, cap 1.2": {"objective": {"cispo": {"high": 0.2}}, "correction": {"token_truncate": {"cap": 2.0}}},
    "CPGD": {"objective": {"cpgd": {}}, "correction": {"token_truncate": {"cap": 2.0}}},
}


def options(rule: Rule) -> StepOptions:
    return StepOptions(
        learning_rate=LEARNING_RATE, epochs=2, proximal="recompute", reference_kl=0.0, token_budget=1024, **rule
    )


def settings(rule: Rule) -> dict[str, Any]:
    """Everything that decides a run beside eta and seed."""
    sizes = {"steps": STEPS, "prompts": PROMPTS, "each": EACH, "warm_steps": WARM_STEPS, "in_order": sorting.IN_ORDER}
    return {**sizes, "step": asdict(options(rule))}


def run(name: str, eta: int, seed: int, warm: Path) -> dict[str, Any]:
    """Trains one policy; the reward is of the answers as sampled, by the weights of that step."""
    torch.set_num_threads(1)
    started = time.process_time()
    policy = sorting.warm_start(warm, WARM_STEPS)
    learner = LearnerStep(policy, options(RULES[name]))
    random, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    batches = 2 if eta == UNBOUNDED else 1  # that the generator writes while the learner trains one
    queue = deque(sorting.groups(policy, PROMPTS, EACH, 0, random, generator) for _ in range(max(0, eta)))
    curves: dict[str, list[float]] = {"reward": [], "age": [], "ess": []}
    broke: str | None = None
    for step in range(STEPS):
        made = [sorting.groups(policy, PROMPTS, EACH, step, random, generator) for _ in range(batches)]
        queue.extend(made)
        curves["reward"].append(float(np.mean([group.rewards.mean() for batch in made for group in batch])))
        try:
            report = learner.train(queue.popleft(), version=step)
        except StepError as error:  # a policy that has broken: the run counts with what it had come to
            broke = str(error)
            break
        curves["age"].append(report.age_mean)
        curves["ess"].append(report.off_policy.ess)
    return {
        "name": name,
        "eta": eta,
        "seed": seed,
        "settings": settings(RULES[name]),
        "curves": {key: [round(value, 5) for value in curve] for key, curve in curves.items()},
        "broke": broke,
        "final": sorting.measure(policy, FINAL_PROMPTS, seed=10_000),
        "cpu_s": round(time.process_time() - started, 1),
    }


def finished(results: Path) -> dict[resumable.Key, resumable.Record]:
    """Runs that are there, with today's settings, by (rule, eta, seed)."""
    return resumable.finished(
        results, ("name", "eta", "seed"), lambda name: settings(RULES[name]) if name in RULES else None
    )


def said(record: resumable.Record) -> str:
    figures = f"{record['final']:.3f} in {record['cpu_s']} s{' (broke)' if record['broke'] else ''}"
    return f"{record['name']}, eta {record['eta']}, seed {record['seed']}: {figures}"


def execute(results: Path, jobs: int) -> None:
    """Makes the runs that are missing, and appends each when it is done."""
    there = finished(results)
    warm = results.with_name(f"warm-start-{WARM_STEPS}-{sorting.IN_ORDER}.safetensors")
    missing = {(n, e, s): (n, e, s, warm) for s in SEEDS for e in ETAS for n in RULES if (n, e, s) not in there}
    print(f"{len(there)} runs are there, {len(missing)} to go", flush=True)
    print(f"before reinforcement: {sorting.measure(sorting.warm_start(warm, WARM_STEPS), FINAL_PROMPTS, 10_000):.3f}")
    resumable.execute(results, run, missing, jobs, said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=REPOSITORY / ".cache" / "staleness" / "runs.jsonl")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one core each")
    parser.add_argument("--report", action="store_true", help="only write table and plot from the runs that are there")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    chosen.results.parent.mkdir(parents=True, exist_ok=True)
    if not chosen.report:
        execute(chosen.results, chosen.jobs)
    from staleness_report import write  # matplotlib is only needed here

    write(list(finished(chosen.results).values()), REPOSITORY / "docs")


if __name__ == "__main__":
    main()
