"""Many streaming clients at once against a served model: errors, mixed streams, time to the first token, tokens a second.

    python tests/benchmarks/gateway.py [--model embedded] [--clients 64] [--tokens 48] [--markdown FILE]

Every client streams an answer to a question of its own; afterwards each is asked again alone and whole, with the same seed: a stream
that holds anything else than that is counted as mixed. The temperature is low: at 1 a token of probability 1e-7 is drawn now and then,
and which of its neighbours it is hangs on how sums of another batch are rounded. The generator is that of tests/tiny.yaml
with more rows.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import openai

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "gateway")]
from gateways import serving  # noqa: E402


@dataclass
class Stream:
    text: str = ""
    tokens: int = 0
    first_s: float = 0.0
    seconds: float = 0.0
    error: str = ""


def question(number: int, tokens: int) -> dict[str, object]:
    messages = [{"role": "user", "content": f"Tell me something about the number {number}."}]
    return {"model": "policy", "messages": messages, "seed": number, "max_tokens": tokens, "temperature": 0.3}


async def stream(client: openai.AsyncOpenAI, number: int, tokens: int) -> Stream:
    found, begun = Stream(), time.perf_counter()
    try:
        usage = {"include_usage": True}
        chunks = await client.chat.completions.create(**question(number, tokens), stream=True, stream_options=usage)  # type: ignore[call-overload]
        async for chunk in chunks:
            text = "".join(choice.delta.content or "" for choice in chunk.choices)
            if text and not found.first_s:
                found.first_s = time.perf_counter() - begun
            found.text += text
            found.tokens = chunk.usage.completion_tokens if chunk.usage else found.tokens
    except openai.OpenAIError as error:
        found.error = f"{type(error).__name__}: {error}"
    found.seconds = time.perf_counter() - begun
    return found


async def measure(address: str, clients: int, tokens: int) -> tuple[list[Stream], float, int]:
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=600) as client:
        await stream(client, 0, 4)  # the first request warms the engine up
        begun = time.perf_counter()
        streams = await asyncio.gather(*(stream(client, number, tokens) for number in range(clients)))
        seconds = time.perf_counter() - begun
        mixed = 0
        for number, found in enumerate(streams):
            whole = await client.chat.completions.create(**question(number, tokens))  # type: ignore[call-overload]
            mixed += whole.choices[0].message.content != found.text
    return list(streams), seconds, mixed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--markdown", type=Path)
    chosen = parser.parse_args()
    rows = {"max_sequences": 64, "max_tokens": 16384}
    options = {"concurrent_requests": chosen.clients}
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), options, chosen.model, rows) as up:
        streams, seconds, mixed = asyncio.run(measure(up.address(), chosen.clients, chosen.tokens))
    errors = [found.error for found in streams if found.error]
    firsts = sorted(found.first_s for found in streams)
    table = [
        "| model | clients | errors | mixed streams | tokens | tokens/s | first token, median | first token, slowest | longest stream |",
        "|---|---|---|---|---|---|---|---|---|",
        f"| {chosen.model} | {chosen.clients} | {len(errors)} | {mixed} | {sum(found.tokens for found in streams)} | "
        f"{sum(found.tokens for found in streams) / seconds:.0f} | {statistics.median(firsts):.2f} s | {firsts[-1]:.2f} s | "
        f"{max(found.seconds for found in streams):.1f} s |",
    ]
    print("\n".join([*table, *sorted(set(errors))]))
    if chosen.markdown:
        chosen.markdown.write_text("\n".join(table) + "\n", encoding="utf-8")
    return 1 if errors or mixed else 0


if __name__ == "__main__":
    sys.exit(main())
