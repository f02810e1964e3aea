"""Where the learner's step spends its time, by kind of work.

    python tests/benchmarks/learner_profile.py [MODEL] [--groups N] [--lengths ragged|equal] [--token-budget N] [--top N]

torch's profiler on one step of `LearnerStep.train` after four others. Operations are sorted into kinds by their name and by whether
a vocabulary is among the sizes of their inputs. The profiler itself costs some percent, which land on the small operations.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from typing import Any

import torch
from learner_cases import Case, step_flops
from learner_processes import MALLOC
from learner_sides import Side, load_model, safeladder_groups, shape_of, step_options
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

PRODUCTS = {"aten::mm", "aten::addmm", "aten::addmm_", "aten::_addmm_activation"}
ATTENTION = {"aten::bmm", "aten::baddbmm", "aten::baddbmm_", "aten::_softmax", "aten::_softmax_backward_data"}
OPTIMIZER = {"aten::_fused_adamw_", "aten::linalg_vector_norm"}


def kind_of(name: str, sizes: list[Any], vocabulary: int, hidden: int) -> str:
    """The kind of work that an operation belongs to. sizes: of its inputs."""
    shapes = [tuple(size) for size in sizes if isinstance(size, (list, tuple)) and size]
    wide = any(vocabulary in shape for shape in shapes)
    if name in PRODUCTS:
        return "head: matrix products" if wide else "body: matrix products"
    if "attention" in name or name in ATTENTION:
        return "attention"
    if name in OPTIMIZER or "_foreach" in name or name.startswith("Optimizer"):
        return "optimizer and clipping"
    if shapes and shapes[0] in {(vocabulary, hidden), (vocabulary * hidden,)}:
        return "head's and embedding's gradient buffers"
    if wide:
        return "log-softmax over the vocabulary"
    if name in {"aten::fill_", "aten::zero_"}:
        return "zeroing other buffers"
    return "norms, rotary, activations, copies" if name.startswith("aten::") else "Python and dispatch"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("model", nargs="?", default="embedded")
    parser.add_argument("--groups", type=int, default=2)
    parser.add_argument("--lengths", default="ragged", choices=["ragged", "equal"])
    parser.add_argument("--token-budget", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--top", type=int, default=3, help="operations named for each kind")
    arguments = parser.parse_args()
    if not all(os.environ.get(name) == value for name, value in MALLOC.items()):  # glibc reads them once, at the start
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **MALLOC})

    torch.set_num_threads(arguments.threads)
    batch = Case(arguments.model, arguments.lengths, arguments.groups, 1).batches()[0]
    side = Side("safeladder", arguments.model, "cpu", "float32", arguments.threads, [batch], 0, arguments.token_budget)
    model, _ = load_model(side.model, side.device)
    from safeladder.policies.step import LearnerStep

    learner = LearnerStep(model, step_options(side))
    groups = safeladder_groups(model, batch, side.dtype)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        report = learner.train(groups)
        seconds.append(time.perf_counter() - start)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as record:
        start = time.perf_counter()
        learner.train(groups)
        whole = time.perf_counter() - start

    kinds: Counter[str] = Counter()
    operations: dict[str, Counter[str]] = {}
    vocabulary, hidden = model.config.vocab_size, model.config.hidden_size
    for event in record.key_averages(group_by_input_shape=True):
        kind = kind_of(event.key, event.input_shapes, vocabulary, hidden)
        spent = event.self_cpu_time_total / 1e6
        kinds[kind] += spent
        shapes = "x".join(str(list(size)) for size in event.input_shapes[:2] if size)
        operations.setdefault(kind, Counter())[f"{event.key.removeprefix('aten::')} {shapes}"] += spent
    kinds["Python and dispatch"] += max(0.0, whole - sum(kinds.values()))

    table = Table("kind", "s", "share", "most of it", title=f"one step of {arguments.model}, profiled: {whole:.2f} s")
    for kind, spent in kinds.most_common():
        most = ", ".join(f"{name} {s:.3f}" for name, s in operations.get(kind, Counter()).most_common(arguments.top))
        table.add_row(kind, f"{spent:.3f}", f"{100 * spent / whole:.1f} %", most)
    console = Console(width=180)
    console.print(table)
    best = min(seconds)
    console.print(
        f"without the profiler {best:.3f} s: {batch.tokens / best:,.1f} tokens/s, {step_flops(shape_of(model), batch) / best / 1e9:,.0f} "
        f"useful GFLOP/s; {report.packs} packs; phases of the last step "
        + ", ".join(f"{name} {s:.3f} s" for name, s in report.seconds.items())
    )


if __name__ == "__main__":
    main()
