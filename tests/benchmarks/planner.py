"""The planner against the truth: peak memory of real learner steps and engines on this machine's CPU, beside what the formulas say.

    python tests/benchmarks/planner.py [--markdown docs/planner.md]

Measured is the largest resident memory of this process, less what was resident before: VmHWM of /proc/self/status, which
/proc/self/clear_refs sets back. A model of almost nothing goes first each time, and what the allocator holds is given back. Twice: with
every tensor mapped by itself, which is what the tensors take, and as glibc's malloc is, which keeps what was freed (up to 32 MB a piece).
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from safeladder.launch.architectures import Architecture
from safeladder.launch.planner import Training, generator, learner

MODELS = {
    "22M, wide vocabulary": Architecture(256, 8, 4, 2, 768, 49152, 64),
    "44M, deep": Architecture(512, 12, 8, 2, 1408, 4096, 64),
    "135M, as SmolLM2": Architecture(576, 30, 9, 3, 1536, 49152, 64, tied=True),
}
NOTHING = Architecture(32, 1, 1, 1, 32, 64, 32)
BRANCHES = 4
MAPPED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
BEGIN, END = "<!-- measured -->", "<!-- /measured -->"


def made(arch: Architecture) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=arch.hidden_size,
            num_hidden_layers=arch.num_hidden_layers,
            num_attention_heads=arch.num_attention_heads,
            num_key_value_heads=arch.num_key_value_heads,
            head_dim=arch.head_size,
            intermediate_size=arch.intermediate_size,
            vocab_size=arch.vocab_size,
            tie_word_embeddings=arch.tied,
            max_position_embeddings=4096,
        )
    ).eval()


def steps(arch: Architecture, given: Training) -> None:
    """Two optimizer steps of two full rows each; the second has the moments beside it from the beginning."""
    from safeladder.policies.batch import TrainingGroup
    from safeladder.policies.options import StepOptions
    from safeladder.policies.step import LearnerStep

    prompt = given.prompt or 16
    length = (given.tokens - prompt) // given.branches
    options = StepOptions(token_budget=given.tokens, activation_checkpointing=given.checkpointing, reference_kl=0.0)
    step = LearnerStep(made(arch), options)
    draw = np.random.default_rng(0)
    for _ in range(2):
        groups = []
        for place in range(2):
            completions = [draw.integers(3, arch.vocab_size, length).astype(np.int32) for _ in range(given.branches)]
            groups.append(
                TrainingGroup(
                    id=f"g{place}",
                    prompt_ids=draw.integers(3, arch.vocab_size, prompt).astype(np.int32),
                    completion_ids=completions,
                    behaviour=[np.full(length, -5.0, np.float32) for _ in completions],
                    versions=[np.zeros(length, np.int32) for _ in completions],
                    rewards=np.arange(given.branches, dtype=np.float64),
                    valid=np.ones(given.branches, np.bool_),
                )
            )
        step.train(groups)


class Numbers:
    """A tokenizer for an engine that is only asked for tokens."""

    eos_token_id = None

    def decode(self, token_ids: Any, skip_special_tokens: bool = True) -> str:
        return ""


def decode(arch: Architecture, rows: int, prompt: int, new: int) -> None:
    from safeladder.policies.engines.transformers_engine import TransformersEngine
    from safeladder.protocol.messages import Sampling

    async def run() -> None:
        engine = TransformersEngine(
            made(arch), Numbers(), max_sequences=rows, max_tokens=rows * (prompt + new), prefix_tokens=0
        )
        await engine.start()
        try:
            ids = list(range(3, 3 + prompt)) if arch.vocab_size > prompt + 3 else [3] * prompt
            await engine.generate(ids, Sampling(samples=rows, max_new_tokens=new, temperature=1.0))
        finally:
            await engine.stop()

    asyncio.run(run())


def resident(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return float(line.split()[1]) * 1024


def measure(what: str, name: str) -> tuple[float, float]:
    """(measured, predicted) bytes."""
    small = Training(tokens=64, prompt=16, branches=BRANCHES)
    rows, prompt, new = 16, 64, 192
    arch = MODELS[name]
    if what == "engine":
        decode(NOTHING, 2, 4, 4)
    else:
        steps(NOTHING, small)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    tokens = 512
    given = Training(tokens=tokens, prompt=tokens // 2, branches=BRANCHES, checkpointing=what == "checkpointing")
    if what == "engine":
        decode(arch, rows, prompt, new)
        says = generator(
            arch, engine="transformers", dtype="float32", tokens=rows * (prompt + new), sequences=rows, prompt=prompt
        )
    else:
        steps(arch, given)
        says = learner(arch, given)
    return resident("VmHWM") - before, says.total


def all_of_them(environment: dict[str, str]) -> list[tuple[str, str, float, float]]:
    """(what, model, measured, predicted) of every case, in one process with these variables."""
    command = [sys.executable, __file__, "--all"]
    run = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **environment})
    lines = [line for line in run.stdout.splitlines() if line.startswith("[")]  # the engine logs between them
    return [tuple(json.loads(line)) for line in lines]


def table() -> list[str]:
    lines = [
        "| what | model | predicted MB | measured MB | difference | with malloc's own habits MB | difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for (what, name, exact, says), (*_, usual, _) in zip(all_of_them(MAPPED), all_of_them({}), strict=True):
        figures = f"{exact / 1e6:.0f} | {says / exact - 1:+.0%} | {usual / 1e6:.0f} | {says / usual - 1:+.0%}"
        lines.append(f"| {what} | {name} | {says / 1e6:.0f} | {figures} |")
    return lines


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--all", action="store_true", help="print a JSON line a case, measured as this process is")
    arguments.add_argument("--markdown", type=Path, help="a page whose table between the marks is replaced")
    chosen = arguments.parse_args()
    if chosen.all:
        for what in ("learner", "checkpointing", "engine"):
            for name in MODELS:
                print(json.dumps([what, name, *measure(what, name)]), flush=True)
        return
    lines = "\n".join(table())
    print(lines)
    if chosen.markdown:
        page = chosen.markdown.read_text("utf-8")
        before, _, rest = page.partition(BEGIN)
        chosen.markdown.write_text(f"{before}{BEGIN}\n{lines}\n{END}{rest.partition(END)[2]}", "utf-8")


if __name__ == "__main__":
    main()
