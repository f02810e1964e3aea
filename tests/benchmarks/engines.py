"""Tokens a second of the embedded engine beside transformers' own two ways, vLLM and SGLang: same model, prompts, lengths.

    python tests/benchmarks/engines.py [--markdown docs/engines-speed.md] [--engines embedded,generate] [--model embedded]

Every side runs in a process of its own (`--engine NAME`, one JSON line out), one after the other, with the malloc settings
that the launcher gives its workers. Each prompt has 45 tokens and no two begin alike, so no prefix cache helps anybody; each
sample gets exactly 64 tokens at temperature 1 with the log-probability of each, from a copy of the model folder that
names no end-of-sequence token. A number is the median of the rounds, all of which stand in the JSON lines.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from safeladder.launch.processes import MALLOC

ROOT: Final = Path(__file__).resolve().parents[2]
CONCURRENCIES: Final = (1, 8, 16, 32)
PROMPT_TOKENS, NEW_TOKENS = 45, 64
SIDE_DEADLINE_S: Final = 900
SIDES: Final = {  # name: (heading, folder of its environment; None: this one)
    "embedded": ("embedded engine", None),
    "generate": ("transformers `generate`", None),
    "continuous": ("transformers continuous batching", None),
    "vllm": ("vLLM (compiled)", ".venv-vllm"),
    "sglang": ("SGLang", ".venv-sglang"),
}
STORY: Final = (
    "boats left the harbour in the morning with {} crates of fish and {} barrels of oil, and {} of them came back before "
    "the storm. Their owners counted what was left, wrote it into the book of the port, and asked who would pay for it."
)

Round = Callable[[list[list[int]]], int]  # prompts -> new tokens


def prompts(tokenizer: Any, count: int, number: int) -> list[list[int]]:
    """`count` prompts of `PROMPT_TOKENS` tokens that were in no other round and differ from their first tokens on."""
    found = []
    for index in range(count):
        unique = 1000 + 37 * (number * 64 + index)
        text = f"{unique} {STORY.format(unique % 97, unique % 89, unique % 83)}"
        found.append(tokenizer(text, add_special_tokens=False)["input_ids"][:PROMPT_TOKENS])
    assert all(len(ids) == PROMPT_TOKENS for ids in found)
    return found


def endless(folder: Path, home: Path) -> Path:
    """A copy of the model folder (links, but for what names an end-of-sequence token, which goes)."""
    copy = home / "model"
    copy.mkdir()
    for file in folder.iterdir():
        if file.suffix == ".json" and file.name.split(".")[0] in ("config", "generation_config", "tokenizer_config"):
            settings = json.loads(file.read_text())
            for key in ("eos_token_id", "eos_token"):
                settings.pop(key, None)
            if file.name == "config.json":
                settings["eos_token_id"] = None
            (copy / file.name).write_text(json.dumps(settings))
        elif file.name != "special_tokens_map.json":
            (copy / file.name).symlink_to(file.resolve())
    return copy


# -------------------------------------------------------------------------------------------------------- the sides


def measure(sides_round: Round, tokenizer: Any, rounds: int) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {}
    number = 0
    for count in CONCURRENCIES:
        for at in range(rounds + 1):
            number += 1
            begun = time.perf_counter()
            made = sides_round(prompts(tokenizer, count, number))
            seconds = time.perf_counter() - begun
            if made != count * NEW_TOKENS:
                raise RuntimeError(f"{made} tokens from {count} samples, {count * NEW_TOKENS} were to come")
            if at:  # the first is for warming up
                rates.setdefault(str(count), []).append(round(made / seconds, 2))
    return rates


async def _through_our_interface(name: str, folder: Path, rounds: int) -> dict[str, Any]:
    from safeladder.policies.engines.registry import create
    from safeladder.policies.model import load_tokenizer
    from safeladder.protocol.messages import Sampling

    options = {"eager": False} if name == "vllm" else {}
    begun = time.perf_counter()
    known = "transformers" if name == "embedded" else name
    engine = await asyncio.to_thread(create, known, folder, max_sequences=max(CONCURRENCIES), options=options)
    await engine.start()
    start_s = time.perf_counter() - begun
    loop, seed = asyncio.get_running_loop(), iter(range(1 << 20))

    def one_round(batch: list[list[int]]) -> int:
        async def all_of_them() -> int:
            asked = [
                engine.generate(ids, Sampling(max_new_tokens=NEW_TOKENS, temperature=1.0, seed=next(seed)))
                for ids in batch
            ]
            return sum(len(sample.logprobs) for samples in await asyncio.gather(*asked) for sample in samples)

        return asyncio.run_coroutine_threadsafe(all_of_them(), loop).result()

    try:
        rates = await asyncio.to_thread(measure, one_round, load_tokenizer(folder), rounds)
        return {"start_s": start_s, "rates": rates, "statistics": dict(engine.statistics())}
    finally:
        await engine.stop()


def _generate(folder: Path, rounds: int) -> dict[str, Any]:
    import torch

    from safeladder.policies.model import load

    begun = time.perf_counter()
    model, tokenizer = load(folder)
    start_s = time.perf_counter() - begun

    @torch.inference_mode()
    def one_round(batch: list[list[int]]) -> int:
        ids = torch.tensor(batch)  # of one length: no padding
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        sampled = found.sequences[:, PROMPT_TOKENS:]
        logprobs = [
            logits.log_softmax(-1).gather(-1, sampled[:, at : at + 1]) for at, logits in enumerate(found.logits)
        ]
        return int(torch.cat(logprobs, 1).numel())

    return {"start_s": start_s, "rates": measure(one_round, tokenizer, rounds)}


def _continuous(folder: Path, rounds: int) -> dict[str, Any]:
    from transformers import ContinuousBatchingConfig, GenerationConfig

    from safeladder.policies.model import load

    begun = time.perf_counter()
    model, tokenizer = load(folder)
    manager = model.init_continuous_batching(
        generation_config=GenerationConfig(do_sample=True, temperature=1.0, top_k=0, max_new_tokens=NEW_TOKENS),
        continuous_batching_config=ContinuousBatchingConfig(return_logprobs=True, num_blocks=256, max_batch_tokens=512),
    )
    manager.start()
    start_s = time.perf_counter() - begun

    def one_round(batch: list[list[int]]) -> int:
        names = [manager.add_request(ids, max_new_tokens=NEW_TOKENS) for ids in batch]
        waiting, made = set(names), 0
        while waiting:
            found = manager.get_result(timeout=SIDE_DEADLINE_S)
            if found is None:
                raise RuntimeError("continuous batching has stopped")
            if found.is_finished() and found.request_id in waiting:
                waiting.discard(found.request_id)
                made += len(found.logprobs)
        return made

    try:
        return {"start_s": start_s, "rates": measure(one_round, tokenizer, rounds)}
    finally:
        manager.stop(block=True)


def side(name: str, folder: Path, rounds: int) -> dict[str, Any]:
    if name == "generate":
        return _generate(folder, rounds)
    if name == "continuous":
        return _continuous(folder, rounds)
    return asyncio.run(_through_our_interface(name, folder, rounds))


# -------------------------------------------------------------------------------------------------- the whole table


def bandwidth() -> float:
    """Bytes a second that this process's threads read from memory, the median of five sums over 800 MB."""
    import torch

    numbers, seconds = torch.ones(200_000_000), []
    for _ in range(5):
        begun = time.perf_counter()
        numbers.sum()
        seconds.append(time.perf_counter() - begun)
    return numbers.nbytes / statistics.median(seconds)


def run_side(name: str, folder: Path, rounds: int) -> dict[str, Any]:
    """What the child process reports, or why there is nothing."""
    environment = SIDES[name][1]
    python = Path(sys.executable) if environment is None else ROOT / environment / "bin" / "python"
    if not python.exists():
        return {"engine": name, "absent": f"no {environment}"}
    command = [str(python), __file__, "--engine", name, "--model", str(folder), "--rounds", str(rounds)]
    try:
        done = subprocess.run(
            command, env={**os.environ, **MALLOC}, capture_output=True, text=True, timeout=SIDE_DEADLINE_S, check=False
        )
    except subprocess.TimeoutExpired:
        return {"engine": name, "absent": f"not done after {SIDE_DEADLINE_S} s"}
    line = next((line for line in reversed(done.stdout.splitlines()) if line.startswith('{"engine"')), None)
    if line is None:
        return {"engine": name, "absent": f"failed: {(done.stderr.splitlines() or ['no word'])[-1]}"}
    found: dict[str, Any] = json.loads(line)
    return found


def table(results: list[dict[str, Any]], weight_bytes: int, bytes_a_second: float) -> str:
    lines = ["| | " + " | ".join(map(str, CONCURRENCIES)) + " | start |", "|---|" + "---:|" * (len(CONCURRENCIES) + 1)]
    best = dict.fromkeys(CONCURRENCIES, 0.0)
    for result in results:
        heading = SIDES[result["engine"]][0]
        if "absent" in result:
            lines.append(f"| {heading} | absent: {result['absent']} |" + " |" * len(CONCURRENCIES))
            continue
        rates = {count: statistics.median(result["rates"][str(count)]) for count in CONCURRENCIES}
        best = {count: max(best[count], rate) for count, rate in rates.items()}
        numbers = " | ".join(f"{rates[count]:.1f}" for count in CONCURRENCIES)
        lines.append(f"| {heading} | {numbers} | {result['start_s']:.0f} s |")
    limits = {count: count * bytes_a_second / weight_bytes for count in CONCURRENCIES}
    lines.append("| memory-bandwidth limit | " + " | ".join(f"{limits[count]:.0f}" for count in CONCURRENCIES) + " | |")
    shares = " | ".join(f"{best[count] / limits[count]:.0%}" for count in CONCURRENCIES)
    lines.append(f"| best, as a share of it | {shares} | |")
    return "\n".join(lines)


def page(text: str, weight_bytes: int, bytes_a_second: float, threads: int) -> str:
    return f"""# Engines: tokens a second

Measured by `python tests/benchmarks/engines.py --markdown docs/engines-speed.md`: new tokens a second by the number of
sequences that decode at once, SmolLM2-135M in float32, prompts of {PROMPT_TOKENS} tokens, {NEW_TOKENS} new tokens each
(forced), temperature 1, with the log-probability of every sampled token; {threads} threads. Prefill is inside. Every side
has a process of its own and the same malloc settings; a number is the median of the rounds.

{text}

The limit: a decode step reads all weights ({weight_bytes / 1e6:.0f} MB) once, and memory gave {bytes_a_second / 1e9:.1f} GB/s
to a plain sum in the same run. It leaves out keys, values, activations and arithmetic, and prefill: nobody can reach it,
and the more sequences decode at once the less memory is what holds them up.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=SIDES, help="be this side's process")
    parser.add_argument("--engines", default=",".join(SIDES), help="sides to compare, separated by commas")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    if options.engine:
        found = {"engine": options.engine, **side(options.engine, Path(options.model), options.rounds)}
        sys.stdout.write(json.dumps(found) + "\n")
        return
    import torch

    from safeladder.policies.model import resolve

    folder = resolve(options.model)
    weight_bytes, speed = (folder / "model.safetensors").stat().st_size, bandwidth()
    with tempfile.TemporaryDirectory() as home:
        copy = endless(folder, Path(home))
        results = []
        for name in options.engines.split(","):
            results.append(run_side(name, copy, options.rounds))
            sys.stdout.write(json.dumps(results[-1]) + "\n")
            sys.stdout.flush()
    text = table(results, weight_bytes, speed)
    sys.stdout.write(text + "\n")
    if options.markdown:
        options.markdown.write_text(page(text, weight_bytes, speed, torch.get_num_threads()))


if __name__ == "__main__":
    main()
