"""What `learner.py` prints and writes: rows, remarks, and the page for the docs."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version

import numpy as np
from learner_cases import BATCHES, GROUP, MAX_TOKENS, MEAN_TOKENS, PROMPT_TOKENS, Case, step_flops
from learner_processes import Measured
from numpy.typing import NDArray

COLUMNS = (
    "model",
    "lengths",
    "side",
    "tokens/s",
    "least to most",
    "step s",
    "peak MB",
    "above model MB",
    "of peak FLOP/s",
)


def rows(case: Case, measured: Sequence[Measured], peak: float) -> Iterator[tuple[str, ...]]:
    batches = case.batches()
    tokens = [float(batch.tokens) for batch in batches]
    for result in measured:
        low, high = result.extremes(tokens)
        flops = result.rate([step_flops(result.shape, batch) for batch in batches])
        yield (
            case.model,
            case.lengths,
            result.label,
            f"{result.rate(tokens):,.1f}",
            f"{low:,.1f} to {high:,.1f}",
            f"{result.seconds():,.3f}",
            f"{result.memory['peak'] / 1e6:,.0f}",
            f"{result.memory['above_model'] / 1e6:,.0f}",
            f"{100 * flops / peak:.1f} %",
        )


def remarks(case: Case, ours: Measured, theirs: Measured, peak: float) -> str:
    faster = theirs.seconds() / ours.seconds()
    memory = ours.memory["above_model"] / theirs.memory["above_model"]
    prepared = 1000 * statistics.median(theirs.preparation)
    again, suffered = ours.disturbed + theirs.disturbed, ours.suffered + theirs.suffered
    return (
        f"{case.model}, {case.lengths}: SafeLadder makes {faster:.2f} times TRL's tokens/s with {memory:.2f} times its memory "
        f"above the model. Losses of the first step: {ours.first['loss']:.6f} and {theirs.first['loss']:.6f}; lowest cosine of "
        f"{len(ours.first['gradients'])} parameters' gradients: {lowest_cosine(ours, theirs):.6f}, largest relative difference "
        f"{largest_difference(ours, theirs):.1e}. Matrix products reach {peak / 1e9:,.0f} GFLOP/s. {case.groups} groups a step, "
        f"{BATCHES} batches, {case.rounds} steps a batch and side; {again} disturbed steps were made again, {suffered} "
        f"count. TRL's preparation, not counted, takes {prepared:.0f} ms a step."
    )


def lowest_cosine(ours: Measured, theirs: Measured) -> float:
    """Between both sides' gradients of a parameter in the first step, over the parameters that were compared."""
    return min(float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum())) for a, b in _gradients(ours, theirs))


def largest_difference(ours: Measured, theirs: Measured) -> float:
    """Norm of the difference between both sides' gradients of a parameter, over the norm of TRL's; the largest."""
    return max(float(np.sqrt(((a - b) ** 2).sum() / (b**2).sum())) for a, b in _gradients(ours, theirs))


def _gradients(ours: Measured, theirs: Measured) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    pairs = [(gradient, theirs.first["gradients"][name]) for name, gradient in ours.first["gradients"].items()]
    return [(a.astype(np.float64), b.astype(np.float64)) for a, b in pairs]


def markdown(lines: Sequence[tuple[str, ...]], notes: Sequence[str], arguments: argparse.Namespace) -> str:
    import torch

    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    where = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{arguments.threads} CPU threads"
    return "\n".join(
        [
            "# The learner's speed",
            "",
            f"Written by `tests/benchmarks/learner.py` on {time.strftime('%Y-%m-%d')}: {where}, {arguments.dtype}, torch "
            f"{torch.__version__}, transformers {version('transformers')}, TRL {version('trl')}.",
            "",
            f"The training step alone (forward, loss, backward, clipping, AdamW) on given completions: groups of {GROUP} over a "
            f"prompt of {PROMPT_TOKENS} tokens, lengths lognormal with mean {MEAN_TOKENS} and at most {MAX_TOKENS}, or all {MEAN_TOKENS}. "
            "Same batches, same objective (clipped, mean over tokens), no reference, no recomputed activations. Both sides live in "
            "processes of their own and step in turn; a figure is the median of each batch's steps, averaged over the batches. "
            "Tokens are completion tokens without padding. TRL's micro-batch is the fastest of several; SafeLadder runs at its "
            "defaults. The last column is the share of the rate of a large matrix product, measured between the steps, for the "
            "operations that cannot be avoided (each prompt once).",
            "",
            row(COLUMNS),
            row(["---"] * 3 + ["---:"] * (len(COLUMNS) - 3)),
            *map(row, lines),
            "",
            *(f"* {note}" for note in notes),
            "",
        ]
    )
