"""The learner's speed and memory beside TRL's: the training step alone, on the same batches, in one run.

    make benchmark-learner                                              (makes .venv-trl and runs this on the CPU)
    python tests/benchmarks/learner.py --model random-0.5b --device cuda --dtype bfloat16

Both sides (see `learner_sides.py`) live at once, each in a process of its own, and make their steps in turn, so that a disturbance
of the machine hits both. Printed are medians: useful tokens per second (completion tokens, padding not counted), peak
memory, and the share of the machine's matrix-multiply rate, which is measured between the steps with the same number of
threads. A step's operations are counted once for both sides, each prompt once: what is computed twice lowers the share.
TRL gets the micro-batch that is fastest for it, found anew for each case; SafeLadder runs at its default. On a CPU, a step
during which other processes computed is made again, because two programs with a thread for every core slow each other
several times over.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from learner_cases import BATCHES, GROUP, Case
from learner_processes import MALLOC, Measured, Neighbours, Process, environment
from learner_sides import Side
from learner_table import COLUMNS, lowest_cosine, markdown, remarks, rows
from rich.console import Console
from rich.table import Table

SAME = 0.999  # cosine of gradients that differ by rounding alone in float32
MICRO_BATCHES = (2, 4, 8, 16, 32)  # TRL's, as far as they divide the batch


def matmul_rate(device: str, dtype: str) -> float:
    """Floating point operations per second of a square matrix product, the best of several in a row."""
    import torch

    size = 8192 if device == "cuda" else 1536
    left, right = (torch.randn(size, size, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    best = 0.0
    for _ in range(6):
        start = time.perf_counter()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2.0 * size**3 / (time.perf_counter() - start))
    return best


def fastest_micro_batch(side: Side, neighbours: Neighbours, console: Console) -> int:
    """TRL's micro-batch with the shortest step, the best of two steps on the first batch each."""
    whole = sum(len(group) for group in side.batches[0].completions)
    found: dict[int, float] = {}
    for size in (size for size in MICRO_BATCHES if whole % size == 0):
        process = Process(replace(side, micro_batch=size), f"TRL {size}", neighbours)
        found[size] = min(process.step(0), process.step(0))
        process.close()
    console.print("TRL's step by micro-batch: " + ", ".join(f"{size}: {s:.2f} s" for size, s in found.items()))
    return min(found, key=lambda size: found[size])


def compare(case: Case, arguments: argparse.Namespace, console: Console) -> tuple[Measured, Measured, float]:
    """Both sides in turn, and the matrix-multiply rate measured between their steps."""
    console.rule(f"{case.model}, {case.lengths}, {case.groups} groups of {GROUP}")
    neighbours = Neighbours(arguments.patience if arguments.device == "cpu" else 0.0)
    side = Side("trl", case.model, arguments.device, arguments.dtype, arguments.threads, case.batches())
    size = arguments.micro_batch or fastest_micro_batch(side, neighbours, console)
    theirs = Process(replace(side, micro_batch=size), f"TRL {version('trl')}, micro-batch {size}", neighbours)
    ours = Process(replace(side, system="safeladder", token_budget=arguments.token_budget), "SafeLadder", neighbours)
    for process in (ours, theirs):  # a heap that still grows is nobody's steady state
        process.step(0)
        process.result.steps.clear()
        process.result.suffered = 0
    peaks = []
    for turn in range(case.rounds * BATCHES):
        neighbours.wait()
        peaks.append(matmul_rate(arguments.device, arguments.dtype))
        # Whoever goes first changes, so that neither always finds the machine as the other left it.
        for process in (ours, theirs) if turn % 2 else (theirs, ours):
            process.step(turn % BATCHES)
    return ours.close(), theirs.close(), statistics.median(peaks)


def cases(arguments: argparse.Namespace) -> list[Case]:
    models = arguments.model or ["embedded", "tiny"]
    kinds = arguments.lengths or ["ragged", "equal"]
    size = {"tiny": (4, 9), "embedded": (2, 3)}
    found = []
    for model in models:
        groups, rounds = size.get(model, (4, 5))
        found += [Case(model, kind, arguments.groups or groups, arguments.rounds or rounds) for kind in kinds]
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--model", action="append", help="embedded, tiny, random-0.5b or what `resolve` finds; repeatable"
    )
    parser.add_argument("--lengths", action="append", choices=["ragged", "equal"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the computation")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--groups", type=int, help="groups a step")
    parser.add_argument("--rounds", type=int, help="timed steps a batch and side")
    parser.add_argument("--micro-batch", type=int, help="TRL's; without it the fastest is looked for")
    parser.add_argument("--token-budget", type=int, help="SafeLadder's; without it its default")
    parser.add_argument(
        "--patience", type=float, default=1800.0, help="seconds to wait in all, a case, for other processes"
    )
    parser.add_argument("--markdown", type=Path, help="where to write the table")
    return parser.parse_args()


def run() -> None:
    arguments = parse()
    console = Console(width=150)
    table = Table(*COLUMNS, title="the training step: SafeLadder beside TRL")
    lines: list[tuple[str, ...]] = []
    notes: list[str] = []
    threads = {"OMP_NUM_THREADS": str(arguments.threads)}
    with environment({**threads, **MALLOC}):
        import torch

        torch.set_num_threads(arguments.threads)
        for case in cases(arguments):
            ours, theirs, peak = compare(case, arguments, console)
            lines += rows(case, (ours, theirs), peak)
            notes.append(remarks(case, ours, theirs, peak))
            if arguments.dtype == "float32" and lowest_cosine(ours, theirs) < SAME:
                raise SystemExit(f"the two sides do not compute the same step. {notes[-1]}")
            console.print(notes[-1])
    for line in lines:
        table.add_row(*line)
    console.print(table)
    if arguments.markdown:
        arguments.markdown.write_text(markdown(lines, notes, arguments))


if __name__ == "__main__":
    run()
