"""The simulated engine: lengths of the distribution it names, the same again for the same seeds, costs of its model."""

from __future__ import annotations

import asyncio
import math
import statistics
from pathlib import Path

from safeladder.policies.engines.registry import create
from safeladder.protocol.messages import Sampling

OPTIONS = {
    "median_tokens": 40.0,
    "sigma": 0.5,
    "scale": 0.0,
    "prefill_token_s": 0.5,
    "step_s": 2.0,
    "step_sequence_s": 0.25,
}


def lengths(count: int) -> tuple[list[int], dict[str, float]]:
    async def use():
        engine = create("simulated", Path("nowhere"), max_sequences=64, max_tokens=200_000, options=OPTIONS)
        await engine.start()
        async with asyncio.timeout(60):
            asked = [Sampling(samples=8, max_new_tokens=1000, seed=n) for n in range(count)]
            found = await asyncio.gather(*(engine.generate([1, 2, 3], sampling) for sampling in asked))
        result = [len(sample.token_ids) for samples in found for sample in samples], dict(engine.statistics())
        await engine.stop()
        return result

    return asyncio.run(use())


def test_lengths_are_lognormal_and_repeat_themselves():
    found, _ = lengths(40)
    assert found == lengths(40)[0]
    logarithms = [math.log(length) for length in found]
    # Five standard errors of 320 draws; rounding up adds half a token at most.
    assert abs(statistics.mean(logarithms) - math.log(40)) < 5 * 0.5 / math.sqrt(320) + 0.02
    assert abs(statistics.stdev(logarithms) - 0.5) < 5 * 0.5 / math.sqrt(640)


def test_modelled_seconds_are_the_sum_of_their_parts():
    found, counts = lengths(2)
    assert counts["generated_tokens"] == sum(found)
    assert counts["busy_s"] == counts["prompt_tokens"] * 0.5 + counts["steps"] * 2.0 + counts["generated_tokens"] * 0.25
