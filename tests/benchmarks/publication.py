"""Publication from learner to generator, measured: full and delta, float32 and bfloat16, at two learning rates.

    python tests/benchmarks/publication.py [--model tiny] [--rates 1e-6] [--types bfloat16] [--markdown docs/weights.md]

Real optimizer steps (AdamW, real gradients of a fixed text) make the versions. Each is published into shared memory by the code that
the learner runs and taken up by the embedded engine, which decodes one sequence all the while, in another thread of this process.
Beside each row, in the same run, a plain copy of the engine's weights from warm memory into warm memory, and a pull of the same
publication over loopback TCP.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from safeladder.policies import model as models
from safeladder.policies.engines.transformers_engine import TransformersEngine
from safeladder.policies.tensors import distinct
from safeladder.policies.weights import Manifest, Publisher, attestation, folder
from safeladder.policies.weights.publishing import stream_of
from safeladder.protocol.chunk_shell import ChunkServer, pull
from safeladder.protocol.messages import Sampling

KEY = bytes(range(32))
RATES = (1e-6, 1e-5)
TEXT = (
    "Safety and capability can rise together when a model is trained under verification. The river was low in August, and the mill "
    "stood still for three weeks. Seventeen plus twenty-five makes forty-two. 今天的天气很好，我们一起去公园散步。"
)
State = dict[str, torch.Tensor]
BEGIN, END = "<!-- measured by tests/benchmarks/publication.py -->\n", "<!-- end -->"


@dataclass
class Row:
    rate: float
    dtype: str
    kind: str
    manifest: Manifest
    full_bytes: int
    learner_s: float
    first_token_s: float
    pause_s: float
    copy_s: float
    pull_s: float
    exact: bool
    attestation: attestation.Attestation


def trained(path: Path, rate: float, steps: int = 2) -> tuple[State, State, list[attestation.Probe]]:
    """The weights before and after the last of `steps` optimizer steps, and the probe under the latter."""
    model, tokenizer = models.load(path)
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    for step in range(steps):
        before = {name: tensor.clone() for name, tensor in distinct(model).items()} if step == steps - 1 else {}
        rolled = torch.roll(ids, 7 * step, 1)
        model(input_ids=rolled, labels=rolled).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    after = {name: tensor.clone() for name, tensor in distinct(model).items()}
    return before, after, attestation.score(model, attestation.texts(tokenizer))


async def measure(
    path: Path, rate: float, dtype: str, kind: str, states: tuple[State, State], probes: list[attestation.Probe]
) -> Row:
    """Version 1 is in place on both sides; what is timed is the way of version 2."""
    home = Path(tempfile.mkdtemp(prefix="safeladder-publication-", dir="/dev/shm"))
    engine = TransformersEngine.open(path)
    engine.weights_key = KEY
    await engine.start()
    try:
        publisher = Publisher(home, KEY, full_every=10 if kind == "delta" else 1)
        published = models.DTYPES[dtype]
        publisher.publish(stream_of(states[0], published), 1)
        await engine.load_weights(folder(home, 1), 1)
        stalled = engine.statistics()["swap_s"]
        seen = asyncio.Event()
        decoding = asyncio.create_task(decode(engine, seen))
        began = time.perf_counter()
        stream = stream_of(states[1], published)
        manifest = await asyncio.to_thread(publisher.publish, stream, 2, probes=probes)
        learner_s = time.perf_counter() - began
        await engine.load_weights(folder(home, 2), 2)
        await asyncio.wait_for(seen.wait(), 60)
        first_token_s = time.perf_counter() - began - learner_s
        decoding.cancel()
        pause_s = engine.statistics()["swap_s"] - stalled
        scores = [await engine.score(probe.prompt_ids, probe.completion_ids) for probe in probes]
        tolerance = attestation.tolerance("float32", dtype)
        found = attestation.compare(probes, scores, tolerance)
        expected = {name: tensor.to(published) for name, tensor in states[1].items()}
        held = engine._weights._tensors  # what the reader put together
        exact = all(torch.equal(held[n].view(torch.uint8), t.view(torch.uint8)) for n, t in expected.items())
        row = (rate, dtype, kind, manifest, stream.bytes, learner_s, first_token_s, pause_s)
        return Row(*row, copied(states[1]), pulled(home, manifest), exact, found)
    finally:
        await engine.stop()
        shutil.rmtree(home)


async def decode(engine: TransformersEngine, seen: asyncio.Event) -> None:
    """Samples one long sequence and says when a token of version 2 is there."""
    sampling = Sampling(samples=1, max_new_tokens=2000, temperature=1.0, seed=1)
    while True:
        async for chunk in engine.stream([1, 2, 3, 4, 5, 6, 7, 8], sampling):
            if 2 in chunk.versions:
                seen.set()


def copied(tensors: State) -> float:
    """Seconds of a plain copy of all of them, the best of five, both sides warm."""
    targets = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
    times = []
    for _ in range(5):
        began = time.perf_counter()
        for name, tensor in tensors.items():
            targets[name].copy_(tensor)
        times.append(time.perf_counter() - began)
    return min(times)


def pulled(home: Path, manifest: Manifest) -> float:
    """Seconds until the tensors' file is here over loopback TCP, in shared memory too."""
    server = ChunkServer("tcp://127.0.0.1:*", home)
    target = home / "pulled"
    try:
        began = time.perf_counter()
        pull(server.endpoint, f"{folder(home, manifest.version).name}/{manifest.file}", target, manifest.bytes)
        return time.perf_counter() - began
    finally:
        server.close()
        target.unlink(missing_ok=True)


def table(model: str, rows: list[Row]) -> str:
    head = (
        "| rate | published as | kind | bytes | of full | in the learner | to the first token | decode pause | pause in copies "
        "| plain copy | pull, TCP | probe differs by |\n|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n"
    )
    lines = [
        f"| {row.rate:g} | {row.dtype} | {row.kind if row.manifest.base is not None or row.kind == 'full' else 'delta, given up'} "
        f"| {row.manifest.bytes:,} | {row.manifest.bytes / row.full_bytes:.2%} | {row.learner_s:.3f} s "
        f"| {row.first_token_s:.3f} s | {row.pause_s * 1e3:.0f} ms | {row.pause_s / row.copy_s:.2f} | {row.copy_s * 1e3:.0f} ms "
        f"| {row.pull_s * 1e3:.0f} ms | {row.attestation.mean:.1e} |"
        for row in rows
    ]
    threads = torch.get_num_threads()
    return (
        f"`{model}`, {threads} threads of one {platform.machine()} CPU, torch {torch.__version__}; one run each, shared memory, the engine "
        "in float32 decoding one sequence meanwhile. Every row was bit exact. `in the learner` is writing, encoding and hashing; `to the "
        "first token` begins when that ends: verifying, taking up, and the decode step that follows; `decode pause` is the part of it in "
        "which no step ran; `plain copy` is of the engine's weights (float32), which is what a swap has to write at least.\n\n"
        f"{head}" + "\n".join(lines) + "\n"
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", default="embedded")
    arguments.add_argument("--rates", type=float, nargs="+", default=RATES)
    arguments.add_argument("--types", nargs="+", default=["float32", "bfloat16"])
    arguments.add_argument("--markdown", type=Path)
    chosen = arguments.parse_args()
    path = models.resolve(chosen.model)
    rows = []
    for rate in chosen.rates:
        *states, probes = trained(path, rate)
        for dtype in chosen.types:
            for kind in ("full", "delta"):
                row = asyncio.run(measure(path, rate, dtype, kind, (states[0], states[1]), probes))
                if not row.exact:
                    raise SystemExit(f"{rate:g} {dtype} {kind}: the bits are not the published ones")
                rows.append(row)
                print(table(chosen.model, rows).splitlines()[-1], flush=True)
    if chosen.markdown:
        before, rest = chosen.markdown.read_text().split(BEGIN)
        chosen.markdown.write_text(f"{before}{BEGIN}\n{table(chosen.model, rows)}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
