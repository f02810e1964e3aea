"""What search buys: accuracy against tokens for every strategy, and what searching many prompts at once saves.

    python tests/benchmarks/search.py [--markdown docs/search.md] [--prompts 200] [--chapters accuracy throughput]

The task is that of `sorting.py`: five digits are to be written in rising order, by a Llama of 1.3 million parameters that gets 0.39 of
the places right. A step is one digit. The process verifier is a program that knows the answer and errs: on a share of the prefixes,
which the prefix alone decides, it says the opposite. An answer counts when all five digits are right. Every strategy runs at
several sizes on the same prompts over the embedded engine; tokens are all that were sampled, also those that were thrown away.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from disclosure import SEPARATOR
from sorting import DIGITS, prompts, warm_start

from safeladder.policies.engines.transformers_engine import TransformersEngine
from safeladder.policies.search import registry
from safeladder.policies.search.base import Judgement, Limits, Problem, Result
from safeladder.policies.search.batching import BatchedJudge
from safeladder.policies.search.engine_sampler import EngineSampler, StepSampling
from safeladder.policies.search.scoring import Combination
from safeladder.verifiers.measure.intervals import wilson

ERROR = 0.1  # share of the prefixes of which the verifier says the opposite
WARM_STEPS = 300
KNOWLEDGE = Combination({"knowledge": 1.0})
LIMITS = Limits(step_tokens=1, answer_tokens=DIGITS, max_steps=DIGITS)
SIZES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "best-of-n": [("best_of_n", {"n": n}) for n in (1, 2, 4, 8, 16, 32)],
    "weighted best-of-n": [("best_of_n", {"n": n, "choice": "weighted"}) for n in (4, 8, 16, 32)],
    "majority": [("best_of_n", {"n": n, "choice": "majority"}) for n in (4, 8, 16, 32)],
    "greedy": [("greedy", {"candidates": n}) for n in (2, 4, 8, 16)],
    "beam": [("beam", {"width": w, "candidates": 4}) for w in (2, 4, 8)],
    "dvts": [("dvts", {"trees": t, "candidates": 4}) for t in (2, 4, 8)],
    "lookahead": [("lookahead", {"width": w, "candidates": 4, "depth": 1}) for w in (1, 2, 4)],
    "mcts": [("mcts", {"rounds": r, "candidates": 3, "parallel": 2}) for r in (3, 6, 12)],
}
THROUGHPUT: list[
    tuple[str, dict[str, Any]]
] = [  # each small and larger: a search that fills the batch by itself gains less from others
    ("greedy", {"candidates": 2}),
    ("greedy", {"candidates": 4}),
    ("best_of_n", {"n": 2}),
    ("best_of_n", {"n": 4}),
    ("beam", {"width": 2, "candidates": 2}),
    ("beam", {"width": 2, "candidates": 4}),
    ("mcts", {"rounds": 4, "candidates": 2, "parallel": 1}),
    ("mcts", {"rounds": 4, "candidates": 4, "parallel": 2}),
]
TOGETHER = 64


@dataclass(frozen=True)
class Asked:
    token_ids: tuple[int, ...]

    @property
    def answer(self) -> str:
        return "".join(map(str, sorted(self.token_ids[1 : DIGITS + 1])))


class Digits:
    """The task's tokenizer: ids below 10 are digits, all others signs."""

    eos_token_id = None

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return "".join(str(token) if token < 10 else "#" for token in token_ids)


class Verifier:
    """V = 0.9 for a prefix of the right answer, else 0.1; the other way round where it errs."""

    async def judge(self, requests: Sequence[Judgement]) -> list[Mapping[str, float] | None]:
        return [{"knowledge": 0.9 if self._says_right(request) else 0.1} for request in requests]

    def _says_right(self, request: Judgement) -> bool:
        right = request.prompt.answer.startswith(request.text)
        errs = random.Random(f"{request.prompt.token_ids}{request.text}").random() < ERROR
        return right != errs


async def search_all(
    engine: TransformersEngine, asked: Sequence[Asked], name: str, options: Mapping[str, Any], together: bool
) -> tuple[list[Result], float]:
    """One search a prompt, all at once or one after the other; with the seconds that it took."""
    sampler = EngineSampler(engine, Digits(), StepSampling(delimiters=(), temperature=1.0))
    judge = BatchedJudge(Verifier())

    def one(seed: int, prompt: Asked) -> Any:
        return registry.create(name, options).search(
            Problem(prompt, seed), sampler, judge, combination=KNOWLEDGE, limits=LIMITS
        )

    begun = time.perf_counter()
    if together:
        found = list(await asyncio.gather(*(one(seed, prompt) for seed, prompt in enumerate(asked))))
    else:
        found = [await one(seed, prompt) for seed, prompt in enumerate(asked)]
    return found, time.perf_counter() - begun


Accuracy = tuple[str, str, float, float, tuple[float, float]]  # strategy, size, tokens a prompt, share, its interval
Speed = tuple[
    str, str, float, float, bool
]  # strategy, size, prompts/s one by one and together, whether the answers are the same


async def measure_accuracy(engine: TransformersEngine, asked: Sequence[Asked]) -> list[Accuracy]:
    accuracy, count = [], len(asked)
    for label, sizes in SIZES.items():
        for name, options in sizes:
            found, _ = await search_all(engine, asked, name, options, together=True)
            right = sum(result.text == prompt.answer for result, prompt in zip(found, asked, strict=True))
            tokens = sum(result.spent.tokens for result in found) / count
            size = ", ".join(f"{key} {value}" for key, value in options.items() if key != "choice")
            accuracy.append((label, size, tokens, right / count, wilson(right, count)))
            print(f"{label:20} {size:34} {tokens:7.1f} tokens  {right / count:.3f}", flush=True)
    return accuracy


async def measure_throughput(engine: TransformersEngine, asked: Sequence[Asked]) -> list[Speed]:
    speed, count = [], len(asked)
    for name, options in THROUGHPUT:
        await search_all(engine, asked, name, options, together=True)  # the first batch of a size is slow
        beside, quick = await search_all(engine, asked, name, options, together=True)
        alone, slow = await search_all(engine, asked, name, options, together=False)
        same = [a.text for a in beside] == [b.text for b in alone]
        size = ", ".join(f"{key} {value}" for key, value in options.items())
        speed.append((name, size, count / slow, count / quick, same))
        print(
            f"{name:10} {size:38} {count / slow:.1f} prompts/s, {count / quick:.1f} together, same: {same}", flush=True
        )
    return speed


async def measure(count: int, chapters: Sequence[str]) -> tuple[list[Accuracy], list[Speed]]:
    torch.manual_seed(0)
    policy = warm_start(
        Path.home() / ".cache" / "safeladder" / "benchmarks" / f"sorting-{WARM_STEPS}.safetensors", WARM_STEPS
    )
    engine = TransformersEngine(policy, Digits(), max_sequences=1024, max_tokens=65536)
    await engine.start()
    rows = prompts(max(count, TOGETHER), np.random.default_rng(5))
    asked = [Asked(tuple(int(token) for token in row)) for row in rows]
    assert asked[0].token_ids[-1] == SEPARATOR
    try:
        accuracy = await measure_accuracy(engine, asked[:count]) if "accuracy" in chapters else []
        speed = await measure_throughput(engine, asked[:TOGETHER]) if "throughput" in chapters else []
    finally:
        await engine.stop()
    return accuracy, speed


def plot(accuracy: Sequence[Accuracy], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for label in SIZES:
        rows = [row for row in accuracy if row[0] == label]
        spread = [[row[3] - row[4][0] for row in rows], [row[4][1] - row[3] for row in rows]]
        axes.errorbar([row[2] for row in rows], [row[3] for row in rows], spread, marker="o", capsize=2, label=label)
    axes.set(xscale="log", xlabel="tokens sampled for a prompt", ylabel="answers that are right", ylim=(0, 1))
    axes.set_xticks([5, 10, 20, 40, 80, 160], ["5", "10", "20", "40", "80", "160"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", ncols=2)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def accuracy_table(accuracy: Sequence[Accuracy], count: int) -> list[str]:
    return [
        f"| strategy | size | tokens a prompt | right of {count} | 95 % interval |",
        "|---|---|---:|---:|---|",
        *(
            f"| {label} | {size} | {tokens:.1f} | {share:.3f} | {low:.3f} to {high:.3f} |"
            for label, size, tokens, share, (low, high) in accuracy
        ),
        "",
        "![Accuracy against tokens](search/accuracy.png)",
    ]


def speed_table(speed: Sequence[Speed]) -> list[str]:
    return [
        f"| strategy | size | prompts/s one by one | prompts/s, {TOGETHER} together | ratio | same answers |",
        "|---|---|---:|---:|---:|---|",
        *(
            f"| {name} | {size} | {slow:.1f} | {quick:.1f} | {quick / slow:.1f} | {'yes' if same else 'no'} |"
            for name, size, slow, quick, same in speed
        ),
    ]


def write(page: Path, chapter: str, lines: Sequence[str]) -> None:
    begin, end = f"<!-- {chapter}: written by tests/benchmarks/search.py -->", f"<!-- end of {chapter} -->"
    before, _, rest = page.read_text("utf-8").partition(begin)
    text = "\n".join(lines)
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--chapters", nargs="+", choices=("accuracy", "throughput"), default=["accuracy", "throughput"])
    parser.add_argument("--markdown", type=Path)
    chosen = parser.parse_args()
    accuracy, speed = asyncio.run(measure(chosen.prompts, chosen.chapters))
    made = {"accuracy": accuracy_table(accuracy, chosen.prompts), "throughput": speed_table(speed)}
    for chapter in chosen.chapters:
        print("\n".join(made[chapter]))
        if chosen.markdown:
            write(chosen.markdown, chapter, made[chapter])
    if chosen.markdown and accuracy:
        plot(accuracy, chosen.markdown.parent / "search" / "accuracy.png")


if __name__ == "__main__":
    main()
