"""Tokens a second of the embedded engine beside transformers' own two ways, vLLM and SGLang: same model, prompts, lengths.

    python tests/benchmarks/engines.py [--markdown docs/engines-speed.md] [--engines embedded,generate] [--model embedded]

Every side is a process of its own (`--engine NAME`), with the malloc settings that the launcher gives its workers. They take
turns: each round of each concurrency goes through all sides before the next one begins, and whoever has no turn is stopped
(SIGSTOP), so that what else the machine does meets all of them alike. Each prompt has 45 tokens and no two begin alike, so no
prefix cache helps anybody; each sample gets exactly 32 tokens at temperature 1 with the log-probability of each, from a copy
of the model folder that names no end-of-sequence token. A number is the best of the rounds, the one that was disturbed least;
all of them stand in the JSON lines.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import psutil

from safeladder.launch.processes import MALLOC

ROOT: Final = Path(__file__).resolve().parents[2]
CONCURRENCIES: Final = (1, 8, 16, 32)
PROMPT_TOKENS, NEW_TOKENS = 45, 32
START_S: Final = 600
ROUND_S: Final = 300
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

SETTINGS: Final = {"sglang": {"PYTHONPATH": str(ROOT / "tests/policies/engines/sglang_cpu")}}

SAYS: Final = "benchmark says "  # before a line that is no engine's own
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


def serve(sides_round: Round, tokenizer: Any, start_s: float) -> None:
    """Says that it is ready, then runs one round for every line of input ("CONCURRENCY NUMBER"), and says how long it took."""
    _say({"start_s": start_s})
    for line in sys.stdin:
        count, number = map(int, line.split())
        batch = prompts(tokenizer, count, number)
        begun = time.perf_counter()
        made = sides_round(batch)
        seconds = time.perf_counter() - begun
        if made != count * NEW_TOKENS:
            raise RuntimeError(f"{made} tokens from {count} samples, {count * NEW_TOKENS} were to come")
        _say({"rate": made / seconds})


def _say(what: dict[str, float]) -> None:
    sys.stdout.write(f"\n{SAYS}{json.dumps(what)}\n")
    sys.stdout.flush()


async def _through_our_interface(name: str, folder: Path) -> None:
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
        await asyncio.to_thread(serve, one_round, load_tokenizer(folder), start_s)
    finally:
        await engine.stop()


def _generate(folder: Path) -> None:
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

    serve(one_round, tokenizer, start_s)


def _continuous(folder: Path) -> None:
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
            found = manager.get_result(timeout=ROUND_S)
            if found is None:
                raise RuntimeError("continuous batching has stopped")
            if found.is_finished() and found.request_id in waiting:
                waiting.discard(found.request_id)
                made += len(found.logprobs)
        return made

    try:
        serve(one_round, tokenizer, start_s)
    finally:
        manager.stop(block=True)


def side(name: str, folder: Path) -> None:
    if name == "generate":
        _generate(folder)
    elif name == "continuous":
        _continuous(folder)
    else:
        asyncio.run(_through_our_interface(name, folder))


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


class Side:
    """A side's process. Its waits have deadlines; one that fails is absent from there on, with its last word as the reason."""

    def __init__(self, name: str, model: Path) -> None:
        self.name, self.start_s, self.absent = name, 0.0, ""
        self.rates: dict[int, list[float]] = {count: [] for count in CONCURRENCIES}
        environment = SIDES[name][1]
        python = Path(sys.executable) if environment is None else ROOT / environment / "bin" / "python"
        if not python.exists():
            self.absent = f"no {environment}"
            return
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the process
        self._process = subprocess.Popen(
            [str(python), __file__, "--engine", name, "--model", str(model)],
            env={**os.environ, **MALLOC, **SETTINGS.get(name, {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._said: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()
        if found := self._next(START_S):
            self.start_s = found["start_s"]
            self._all("suspend")

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(SAYS):
                self._said.put(line.removeprefix(SAYS))
        self._said.put(None)

    def _next(self, seconds: float) -> dict[str, float] | None:
        try:
            line = self._said.get(timeout=seconds)
        except queue.Empty:
            line = None
        if line is not None:
            found: dict[str, float] = json.loads(line)
            return found
        self._errors.seek(0)
        self.absent = f"failed: {(self._errors.read().splitlines() or ['no word'])[-1]}"
        self.close()
        return None

    def _all(self, act: str) -> None:
        for process in [psutil.Process(self._process.pid), *psutil.Process(self._process.pid).children(recursive=True)]:
            getattr(process, act)()

    def turn(self, count: int, number: int) -> float | None:
        """Tokens a second of one round; None where there is no such side."""
        if self.absent:
            return None
        assert self._process.stdin is not None
        self._all("resume")
        self._process.stdin.write(f"{count} {number}\n")
        self._process.stdin.flush()
        if (found := self._next(ROUND_S)) is None:
            return None
        self._all("suspend")
        return found["rate"]

    def close(self) -> None:
        if self._process.poll() is None:
            family = [psutil.Process(self._process.pid), *psutil.Process(self._process.pid).children(recursive=True)]
            for process in family:
                process.kill()
            psutil.wait_procs(family, timeout=10)


def measure(sides: Sequence[Side], rounds: int) -> None:
    numbers = itertools.count()
    for count in CONCURRENCIES:
        for at in range(rounds + 1):
            number = next(numbers)
            for each in sides:
                rate = each.turn(count, number)
                if at and rate is not None:  # the first is for warming up
                    each.rates[count].append(round(rate, 2))
        sys.stdout.write(json.dumps({each.name: {count: each.rates[count]} for each in sides}) + "\n")
        sys.stdout.flush()


def table(sides: Sequence[Side], weight_bytes: int, bytes_a_second: float) -> str:
    lines = ["| | " + " | ".join(map(str, CONCURRENCIES)) + " | start |", "|---|" + "---:|" * (len(CONCURRENCIES) + 1)]
    best = dict.fromkeys(CONCURRENCIES, 0.0)
    for each in sides:
        heading = SIDES[each.name][0]
        if each.absent:
            lines.append(f"| {heading} | absent: {each.absent} |" + " |" * len(CONCURRENCIES))
            continue
        rates = {count: max(each.rates[count]) for count in CONCURRENCIES}
        best = {count: max(best[count], rate) for count, rate in rates.items()}
        numbers = " | ".join(f"{rates[count]:.1f}" for count in CONCURRENCIES)
        lines.append(f"| {heading} | {numbers} | {each.start_s:.0f} s |")
    limits = {count: count * bytes_a_second / weight_bytes for count in CONCURRENCIES}
    lines.append("| memory-bandwidth limit | " + " | ".join(f"{limits[count]:.0f}" for count in CONCURRENCIES) + " | |")
    shares = " | ".join(f"{best[count] / limits[count]:.0%}" for count in CONCURRENCIES)
    lines.append(f"| best, as a share of it | {shares} | |")
    return "\n".join(lines)


def page(text: str, weight_bytes: int, bytes_a_second: float, threads: int, rounds: int) -> str:
    return f"""# Engines: tokens a second

Measured by `python tests/benchmarks/engines.py --markdown docs/engines-speed.md`: new tokens a second by the number of
sequences that decode at once, SmolLM2-135M in float32, prompts of {PROMPT_TOKENS} tokens, {NEW_TOKENS} new tokens each
(forced), temperature 1, with the log-probability of every sampled token; {threads} threads. Prefill is inside. The sides
take turns, round by round, the others being stopped meanwhile; a number is the best of {rounds} rounds.

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
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    if options.engine:
        side(options.engine, Path(options.model))
        return
    import torch

    from safeladder.policies.model import resolve

    folder = resolve(options.model)
    weight_bytes, speed = (folder / "model.safetensors").stat().st_size, bandwidth()
    with tempfile.TemporaryDirectory() as home:
        copy = endless(folder, Path(home))
        sides = [Side(name, copy) for name in options.engines.split(",")]
        try:
            measure(sides, options.rounds)
        finally:
            for each in sides:
                if not each.absent:
                    each.close()
    text = table(sides, weight_bytes, speed)
    sys.stdout.write(text + "\n")
    if options.markdown:
        options.markdown.write_text(page(text, weight_bytes, speed, torch.get_num_threads(), options.rounds))


if __name__ == "__main__":
    main()
