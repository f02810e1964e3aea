"""Reward against cost: a fixed penalty, dual ascent and the PID controller, on fresh and on stale samples.

    python tests/benchmarks/constraints.py [--jobs 2] [--ablations] [--report]

The policy and its task are those of `disclosure.py`; it is trained by the learner's own step (`policies/step.py`) with its default
objective, correction and advantage, and `policies/constraints.py` in its loop. At each of 150 steps 128 answers are sampled
with the weights of that moment and trained on `eta` steps later. A run takes about half a minute on one core; each finished run is
one line of JSON under `.cache/`, so an interrupted experiment goes on where it stopped, and one whose settings changed
starts anew. `--ablations` adds runs that the main grid does not need. When all are there, or with `--report`, the table
in docs/constraints.md and the plot beside it are made from them.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import deque
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import disclosure
import numpy as np
import resumable
import torch
from transformers import LlamaForCausalLM

from safeladder.policies.batch import TrainingGroup
from safeladder.policies.constraints import ConstraintOptions, Constraints
from safeladder.policies.scoring import completion_logprobs
from safeladder.policies.step import LearnerStep, StepOptions

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT = 0.2
STEPS, COUNTED = 150, 50  # the last COUNTED steps are what a run is judged by
PROMPTS, EACH = 16, 8
WARM_STEPS = 250
FINAL_PROMPTS = 4000
ETAS, SEEDS = (0, 4), (0, 1, 2)


@dataclass(frozen=True)
class Variant:
    """What is compared: a constraint and, for ablations, what is otherwise the same for all."""

    constraint: ConstraintOptions
    advantage: str = "grpo"
    reference_kl: float = 0.1


def fixed(penalty: float) -> Variant:
    return Variant(ConstraintOptions(limit=LIMIT, method="fixed", init=penalty, minimum=0.0))


DUAL = ConstraintOptions(limit=LIMIT, method="dual", window=512)
PID = replace(DUAL, method="pid", proportional=1.0, integral=0.15, derivative=1.0, smoothing=0.5, derivative_delay=4)
# With a reward that is not divided by its spread a multiplier of about 0.2 does what 1.3 does otherwise: smaller gains.
PID_SMALL = replace(PID, init=0.2, proportional=0.2, integral=0.01, derivative=0.2)
VARIANTS = {
    "no penalty": fixed(0.0),
    "fixed, 1": fixed(1.0),
    "fixed, 2": fixed(2.0),
    "dual ascent": Variant(DUAL),
    "PID": Variant(PID),
}
ABLATIONS = {
    "dual ascent, no pull to the reference": Variant(DUAL, reference_kl=0.0),
    "PID, no pull to the reference": Variant(PID, reference_kl=0.0),
    "PID, reward not over its spread": Variant(PID_SMALL, advantage="dr_grpo", reference_kl=0.03),
}


# ------------------------------------------------------------------------------------------------------------ one run


def settings(variant: Variant) -> dict[str, Any]:
    """Everything that decides a run beside eta and seed."""
    sizes = {"steps": STEPS, "prompts": PROMPTS, "each": EACH, "warm_steps": WARM_STEPS, "final": FINAL_PROMPTS}
    return {**asdict(variant), **sizes, "step": asdict(step_options(variant))}


def step_options(variant: Variant) -> StepOptions:
    return StepOptions(
        learning_rate=2e-4, advantage={variant.advantage: {}}, reference_kl=variant.reference_kl, token_budget=200
    )


def run(name: str, variant: Variant, eta: int, seed: int, warm: Path) -> dict[str, Any]:
    """Trains one policy; rates are of the answers as sampled, by the weights of that step."""
    torch.set_num_threads(1)
    started = time.process_time()
    policy, reference = (disclosure.warm_start(warm, WARM_STEPS) for _ in range(2))
    constraints = Constraints({"unsafe": variant.constraint})
    learner = LearnerStep(policy, step_options(variant), constraints=constraints)
    random, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)

    def sampled(version: int) -> list[TrainingGroup]:
        made = disclosure.groups(policy, PROMPTS, EACH, version, random, generator)
        return looked_up(reference, made) if variant.reference_kl else made

    queue = deque(sampled(0) for _ in range(eta))
    curves: dict[str, list[float]] = {"reward": [], "cost": [], "multiplier": [], "age": [], "ess": []}
    by_prompt: list[float] = []
    for step in range(STEPS):
        newest = sampled(step)
        queue.append(newest)
        costs = [float(group.costs["unsafe"].mean()) for group in newest]
        curves["reward"].append(float(np.mean([group.rewards.mean() for group in newest])))
        curves["cost"].append(float(np.mean(costs)))
        curves["multiplier"].append(constraints.multipliers()["unsafe"])
        by_prompt += costs if step >= STEPS - COUNTED else []
        report = learner.train(queue.popleft(), version=step)
        curves["age"].append(report.age_mean)
        curves["ess"].append(report.off_policy.ess)
    return {
        "name": name,
        "eta": eta,
        "seed": seed,
        "settings": settings(variant),
        "curves": {key: [round(value, 5) for value in curve] for key, curve in curves.items()},
        # the answers of one prompt are alike, so the prompt is what is counted as independent
        "cost_error": float(np.std(by_prompt, ddof=1) / math.sqrt(len(by_prompt))),
        "estimate": constraints.report()["unsafe"],
        "final": disclosure.measure(policy, FINAL_PROMPTS, seed=10_000),
        "cpu_s": round(time.process_time() - started, 1),
    }


def looked_up(reference: LlamaForCausalLM, made: list[TrainingGroup]) -> list[TrainingGroup]:
    """The groups with the log-probabilities of the policy that training began with."""
    pairs = [(group.prompt_ids.tolist(), tokens.tolist()) for group in made for tokens in group.completion_ids]
    with torch.no_grad():
        found = [logprobs.numpy() for logprobs in completion_logprobs(reference, pairs, token_budget=200)]
    return [replace(group, reference=found[i * EACH : (i + 1) * EACH]) for i, group in enumerate(made)]


# ----------------------------------------------------------------------------------------------------- the experiment


def finished(results: Path, variants: dict[str, Variant]) -> dict[resumable.Key, resumable.Record]:
    """Runs that are there, with today's settings, by (variant, eta, seed)."""
    return resumable.finished(
        results, ("name", "eta", "seed"), lambda name: settings(variants[name]) if name in variants else None
    )


def said(record: resumable.Record) -> str:
    rate = np.mean(record["curves"]["cost"][-COUNTED:])
    return f"{record['name']}, eta {record['eta']}, seed {record['seed']}: unsafe {rate:.3f}"


def execute(results: Path, variants: dict[str, Variant], jobs: int) -> None:
    """Makes the runs that are missing, and appends each when it is done."""
    there = finished(results, variants)
    warm = results.with_name(f"warm-start-{WARM_STEPS}.safetensors")
    cells = [(n, v, e, s) for n, v in variants.items() for e in ETAS for s in SEEDS]
    missing = {(n, e, s): (n, v, e, s, warm) for n, v, e, s in cells if (n, e, s) not in there}
    print(f"{len(there)} runs are there, {len(missing)} to go", flush=True)
    disclosure.warm_start(warm, WARM_STEPS)
    resumable.execute(results, run, missing, jobs, said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=REPOSITORY / ".cache" / "constraints" / "runs.jsonl")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one core each")
    parser.add_argument("--ablations", action="store_true", help="also the runs that show why the settings are these")
    parser.add_argument("--report", action="store_true", help="only write table and plot from the runs that are there")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    variants = {**VARIANTS, **(ABLATIONS if chosen.ablations or chosen.report else {})}
    chosen.results.parent.mkdir(parents=True, exist_ok=True)
    if not chosen.report:
        execute(chosen.results, variants, chosen.jobs)
    from constraints_report import write  # matplotlib is only needed here

    write(list(finished(chosen.results, variants).values()), REPOSITORY / "docs")


if __name__ == "__main__":
    main()
