"""How far an engine's log-probabilities are from the learner's, token by token: `mismatch.py --engine vllm`.

One engine a process, in the environment that has it; the learner's side is the same forward pass that training uses
(`completion_logprobs`), over the very tokens that the engine sampled. One line of JSON goes to standard output, or a row is
put into the table of the page named by `--markdown`.

The ratio is what the learner's importance weights see before any training: exp(learner - engine). Without a mismatch
it is 1 for every token.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import time
from pathlib import Path
from typing import Any

import torch

from safeladder.policies import model as models
from safeladder.policies.engines.registry import create
from safeladder.policies.scoring import completion_logprobs
from safeladder.protocol.messages import Sampling

PROMPTS = (
    "What is the capital of France?",
    "Write three sentences about the sea.",
    "How can I learn to cook?",
    "What is 17 + 25? Explain each step.",
    "Tell me a story about a dog that could read.",
    "Why is the sky blue?",
    "Give me advice for a job interview.",
    "List five animals that live in forests.",
)
EDGES = (0.9, 1.1)
BEGIN, END = "<!-- mismatch -->", "<!-- /mismatch -->"


async def sampled(arguments: argparse.Namespace, path: Path) -> list[tuple[list[int], Any]]:
    """(prompt_ids, sequence) of every sample that the engine made."""
    tokenizer = models.load_tokenizer(path)
    engine = create(arguments.engine, path, max_sequences=16, max_tokens=16_384)
    await engine.start()
    try:
        prompts = [models.encode_prompt(tokenizer, text) for text in PROMPTS]
        wanted = [
            Sampling(samples=2, max_new_tokens=arguments.tokens, temperature=arguments.temperature, seed=index)
            for index in range(len(prompts))
        ]
        groups = await asyncio.gather(*map(engine.generate, prompts, wanted))
    finally:
        await engine.stop()
    return [(prompt, sequence) for prompt, group in zip(prompts, groups, strict=True) for sequence in group]


def differences(path: Path, samples: list[tuple[list[int], Any]], temperature: float) -> torch.Tensor:
    """Engine minus learner, in nats, of every token."""
    model, _ = models.load(path)
    pairs = [(prompt, sequence.token_ids) for prompt, sequence in samples]
    with torch.no_grad():
        learner = torch.cat(completion_logprobs(model, pairs, temperature)).double()
    return torch.tensor([value for _, sequence in samples for value in sequence.logprobs]).double() - learner


def figures(name: str, difference: torch.Tensor, seconds: float) -> dict[str, Any]:
    """Moments and tails of the differences; p99 and maximum are of their absolute values."""
    size = difference.abs()
    ratio = (-difference).exp()
    return {
        "engine": name,
        "tokens": difference.numel(),
        "mean": difference.mean().item(),
        "std": difference.std().item(),
        "p99": size.quantile(0.99).item(),
        "max": size.max().item(),
        "outside": ((ratio < EDGES[0]) | (ratio > EDGES[1])).double().mean().item(),
        "seconds": round(seconds, 1),
    }


def put_row(page: Path, row: dict[str, Any]) -> None:
    """Puts the row into the page's table between the two marks, in place of the same engine's old one."""
    before, begin, rest = page.read_text().partition(BEGIN)
    table, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{page} has no {BEGIN} ... {END}")
    lines = [line for line in table.splitlines() if line.startswith("|")]
    head, rows = lines[:2], [line for line in lines[2:] if not line.startswith(f"| {row['engine']} |")]
    if not all(math.isfinite(row[key]) for key in ("mean", "std", "p99", "max")):
        raise SystemExit(f"a figure is not finite: {row}")
    shown = "{engine} | {tokens} | {mean:+.1e} | {std:.1e} | {p99:.1e} | {max:.1e} | {outside:.4f}".format(**row)
    page.write_text("\n".join([before + begin, *head, *rows, f"| {shown} |", end + after]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", required=True, help="a name of policies/engines/registry.py")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--tokens", type=int, default=48, help="new tokens of a sample, at most")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--markdown", type=Path, help="a page with the table")
    arguments = parser.parse_args()
    begun = time.perf_counter()
    path = models.resolve(arguments.model)
    samples = asyncio.run(sampled(arguments, path))
    row = figures(arguments.engine, differences(path, samples, arguments.temperature), time.perf_counter() - begun)
    print(json.dumps(row))
    if arguments.markdown is not None:
        put_row(arguments.markdown, row)


if __name__ == "__main__":
    main()
