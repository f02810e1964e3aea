"""The common promises of engines, checked on one that runs already: starting a large engine takes long, so all checks share
one. Each is `async def check(case)`; they run in the order of `CHECKS`, the last of which kills the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from safeladder.policies import model as models
from safeladder.policies import weights
from safeladder.policies.engines.base import Engine, EngineError, GeneratedSequence
from safeladder.policies.engines.sampling import truncate
from safeladder.policies.scoring import completion_logprobs
from safeladder.policies.weights import WeightsError
from safeladder.protocol.messages import Sampling

DEADLINE_S = 200
TOLERANCE = 1e-4  # nats, float32
LONG = Sampling(
    samples=2, max_new_tokens=600, temperature=2.0, seed=3
)  # as hot as all engines go, so as not to end early
TRACKER = "resource_tracker"  # one for each Python process that shares memory; it goes with its parent


@dataclass
class Case:
    """An engine at work, with room for four samples at a time, and the learner's side of it, which follows every swap."""

    engine: Engine
    folder: Path
    place: Path
    long: Sampling = LONG
    text: str = "What is the capital of France? Tell me a story about it, please, and do not leave anything out."
    model: Any = field(init=False)
    prompt: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.model, self.tokenizer = models.load(self.folder)
        self.prompt = models.encode_prompt(self.tokenizer, self.text)

    def difference(self, prompt: list[int], sample: GeneratedSequence, temperature: float = 1.0) -> float:
        """The greatest distance between the engine's log-probabilities and the learner's, in nats."""
        with torch.no_grad():
            want = completion_logprobs(self.model, [(prompt, sample.token_ids)], temperature)[0]
        return float((torch.tensor(sample.logprobs) - want).abs().max())

    def publish(self, version: int) -> Path:
        """New weights, two per cent away from the old ones."""
        torch.manual_seed(version)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.mul_(1 + 0.02 * torch.randn_like(parameter))
        weights.publish(self.model, self.place, version)
        return weights.folder(self.place, version)

    async def begun(self, sampling: Sampling | None = None, **options: Any) -> asyncio.Task[list[GeneratedSequence]]:
        """A request under way: some of its tokens are there."""
        made = self.engine.statistics()["generated_tokens"]
        task = asyncio.create_task(self.engine.generate(self.prompt, sampling or self.long, **options))
        await until(lambda: task.done() or self.engine.statistics()["generated_tokens"] > made + 6)
        return task


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.02)


async def greedy_tokens_are_the_models_own(case: Case) -> None:
    sample = (await case.engine.generate(case.prompt, Sampling(max_new_tokens=16, temperature=0)))[0]
    ids = list(case.prompt)
    with torch.no_grad():
        for token in sample.token_ids:
            logits = case.model(torch.tensor([ids])).logits[0, -1]
            assert logits.max() - logits[token] < TOLERANCE, "the most likely token, or one just as likely"
            ids.append(token)
    assert sample.logprobs == [0.0] * len(sample.token_ids)


async def logprobs_and_scores_are_the_learners(case: Case) -> None:
    for temperature in (0.7, 1.0):
        sampling = Sampling(samples=2, max_new_tokens=12, seed=3, temperature=temperature)
        for sample in await case.engine.generate(case.prompt, sampling):
            assert case.difference(case.prompt, sample, temperature) < TOLERANCE
            assert set(sample.versions) == {case.engine.version}
            scores = await case.engine.score(case.prompt, sample.token_ids, temperature)
            assert max(abs(a - b) for a, b in zip(scores, sample.logprobs, strict=True)) < TOLERANCE


async def truncated_sampling_stays_within_and_says_its_probability(case: Case) -> None:
    for options in ({"top_k": 4}, {"top_p": 0.5}, {"min_p": 0.2}, {"top_k": 8, "temperature": 1.4}):
        sampling = Sampling(samples=2, max_new_tokens=8, seed=5, **options)
        for sample in await case.engine.generate(case.prompt, sampling):
            with torch.no_grad():
                logits = case.model(torch.tensor([case.prompt + sample.token_ids])).logits[0]
            rows = (logits[len(case.prompt) - 1 : -1].double() / sampling.temperature).softmax(-1)
            masses = truncate(rows, sampling.top_k, sampling.top_p, sampling.min_p)
            chosen = masses.gather(1, torch.tensor(sample.token_ids)[:, None])[:, 0]
            assert bool((chosen > 0).all()), options
            want = (chosen / masses.sum(-1)).log()
            if case.engine.capabilities.exact_logprobs:
                assert float((torch.tensor(sample.logprobs) - want).abs().max()) < TOLERANCE, options


async def a_stop_string_ends_a_sample_at_the_token_that_completes_it(case: Case) -> None:
    free = (await case.engine.generate(case.prompt, Sampling(max_new_tokens=40, temperature=0)))[0]
    text = case.tokenizer.decode(free.token_ids)
    stop = text[len(text) // 2 : len(text) // 2 + 4]
    cut = (await case.engine.generate(case.prompt, Sampling(max_new_tokens=40, temperature=0, stop=["§§", stop])))[0]
    assert cut.finish == "stop" and cut.token_ids == free.token_ids[: len(cut.token_ids)]
    assert stop in case.tokenizer.decode(cut.token_ids) and stop not in case.tokenizer.decode(cut.token_ids[:-1])


async def samples_end_by_stop_token_or_length_and_a_seed_repeats_them(case: Case) -> None:
    sampling = Sampling(samples=4, max_new_tokens=60, seed=2, temperature=2.0)
    first = await case.engine.generate(case.prompt, sampling)
    assert len({tuple(sample.token_ids) for sample in first}) > 1
    for sample in first:
        ended = sample.token_ids[-1] == case.tokenizer.eos_token_id
        assert sample.finish == ("stop" if ended else "length") and (ended or len(sample.token_ids) == 60)
        assert case.tokenizer.eos_token_id not in sample.token_ids[:-1]
    if case.engine.capabilities.seeded:
        again = await case.engine.generate(case.prompt, sampling)
        assert [sample.token_ids for sample in again] == [sample.token_ids for sample in first]


async def a_stream_brings_tokens_as_they_are_made(case: Case) -> None:
    chunks = [chunk async for chunk in case.engine.stream(case.prompt, LONG)]
    assert len(chunks) > 20
    for sample in range(2):
        own = [chunk for chunk in chunks if chunk.sample == sample]
        assert [chunk.finish for chunk in own[:-1]] == [None] * (len(own) - 1) and own[-1].finish is not None


async def an_aborted_request_returns_what_it_had_and_the_others_finish(case: Case) -> None:
    long = await case.begun(request="long")
    other = asyncio.create_task(case.engine.generate(case.prompt, Sampling(max_new_tokens=10, seed=2)))
    case.engine.abort("unknown")
    case.engine.abort("long")
    samples = await long
    assert any(sample.finish == "abort" and 0 < len(sample.token_ids) < 600 for sample in samples)
    assert all(len(s.token_ids) == len(s.logprobs) == len(s.versions) for s in samples)
    assert (await other)[0].finish in ("stop", "length")


async def a_cancelled_request_leaves_the_engine(case: Case) -> None:
    task = await case.begun()
    task.cancel()
    await asyncio.wait({task})
    await until(lambda: case.engine.statistics()["running"] == 0)
    await case.engine.generate(case.prompt, Sampling(samples=4, max_new_tokens=2))


async def what_can_never_be_served_is_refused(case: Case) -> None:
    refused = [([], Sampling()), ([5, 10**6], Sampling()), ([-1], Sampling()), ([5] * 9000, Sampling())]
    for ids, sampling in [*refused, ([5], Sampling(samples=5))]:
        with pytest.raises(ValueError, match="refused"):
            await case.engine.generate(ids, sampling)


async def another_engines_partial_sample_is_continued_from_the_cached_prefix(case: Case) -> None:
    whole = (await case.engine.generate(case.prompt, Sampling(max_new_tokens=24, temperature=0)))[0]
    part = GeneratedSequence(whole.token_ids[:10], whole.logprobs[:10], whole.versions[:10])
    cached = case.engine.statistics()["cached_prompt_tokens"]
    again = (await case.engine.generate(case.prompt, Sampling(max_new_tokens=24, temperature=0), begun=[part]))[0]
    assert (again.token_ids, again.finish) == (whole.token_ids, whole.finish)
    done = GeneratedSequence([5], [0.0], [0], "stop")
    assert await case.engine.generate(case.prompt, Sampling(), begun=[done]) == [done]
    if case.engine.capabilities.prefix_tokens is not None:
        assert case.engine.statistics()["cached_prompt_tokens"] >= cached + 30


async def paused_it_stands_still_and_then_goes_on(case: Case) -> None:
    running = await case.begun(Sampling(samples=2, max_new_tokens=60, temperature=2.0, seed=4))
    await case.engine.pause()
    fresh = asyncio.create_task(case.engine.generate(case.prompt, Sampling(max_new_tokens=3, seed=1)))
    await asyncio.sleep(0.3)  # what was under way arrives; a promise about nothing happening has no event to wait for
    made = case.engine.statistics()["generated_tokens"]
    await case.engine.health()
    assert not fresh.done() and case.engine.statistics()["generated_tokens"] == made
    await case.engine.resume()
    assert len((await fresh)[0].token_ids) > 0
    assert all(sample.finish in ("stop", "length") for sample in await running)


async def lanes_go_before_each_other(case: Case) -> None:
    order: list[str] = []

    async def one(name: str, **options: Any) -> None:
        await case.engine.generate(case.prompt, Sampling(samples=4, max_new_tokens=8, temperature=2.0), **options)
        order.append(name)

    await case.engine.pause()
    names = {"late": {"priority": 1}, "soon": {"priority": 0}, "user": {"lane": "interactive"}}
    tasks = [asyncio.create_task(one(name, **options)) for name, options in names.items()]
    await until(lambda: case.engine.statistics()["waiting"] >= 12 or case.engine.statistics()["waiting"] == 3)
    await asyncio.sleep(0.3)  # for the engine's own queue to have them all
    await case.engine.resume()
    await asyncio.gather(*tasks)
    assert order == ["user", "soon", "late"]


async def swap(case: Case, policy: str) -> None:
    before, version = case.engine.version, case.engine.version + 1
    if policy not in case.engine.capabilities.swaps:
        pytest.skip(f"this engine has {case.engine.capabilities.swaps} only")
    path = case.publish(version)
    running = await case.begun()
    await case.engine.load_weights(path, version, policy)
    # The same prompt: a cached prefix of the old weights would show in these.
    for sample in await case.engine.generate(case.prompt, Sampling(samples=2, max_new_tokens=8, seed=9)):
        assert set(sample.versions) == {version}
        assert case.difference(case.prompt, sample) < TOLERANCE
    samples = await running
    assert all(s.versions == sorted(s.versions) and set(s.versions) <= {before, version} for s in samples)
    assert any(len(set(sample.versions)) == 2 for sample in samples), "some sample lived through the swap"
    if policy == "recompute":  # all that came after is what the new weights make of prompt and old tokens
        for sample in samples:
            kept = sample.versions.count(before)
            after = GeneratedSequence(sample.token_ids[kept:], sample.logprobs[kept:])
            if after.token_ids:
                assert case.difference(case.prompt + sample.token_ids[:kept], after, 2.0) < TOLERANCE


async def a_swap_under_load_keeps_the_cache_of_running_samples(case: Case) -> None:
    await swap(case, "keep")


async def a_swap_under_load_recomputes_the_cache_of_running_samples(case: Case) -> None:
    await swap(case, "recompute")


async def refused_weights_leave_the_engine_as_it_was(case: Case) -> None:
    now, place = case.engine.version, case.place / "refused"
    weights.publish({"other": torch.ones(1)}, place, now + 10)
    weights.publish(case.model, place, now + 11)
    weights.publish(case.model, place, now - 1)
    torn = weights.folder(place, now + 11) / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1])
    for version, error in [
        (now + 10, WeightsError),
        (now + 11, WeightsError),
        (now + 12, WeightsError),
        (now - 1, EngineError),
    ]:
        with pytest.raises(error):
            await case.engine.load_weights(weights.folder(place, version), version)
    assert case.engine.version == now
    sample = (await case.engine.generate(case.prompt, Sampling(max_new_tokens=8, seed=1)))[0]
    assert case.difference(case.prompt, sample) < TOLERANCE and set(sample.versions) == {now}


async def it_is_healthy_and_counts(case: Case) -> None:
    await case.engine.health()
    counted = case.engine.statistics()
    for name in ("requests", "generated_tokens", "prompt_tokens", "cache_capacity"):
        assert counted[name] > 0, name
    assert counted["version"] == case.engine.version
    assert {"cached_prompt_tokens", "running", "waiting", "cache_tokens", "swaps", "swap_s"} <= counted.keys()


def own_processes() -> list[psutil.Process]:
    """The processes that this one has started and that count as an engine's."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if child.status() != psutil.STATUS_ZOMBIE and TRACKER not in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


async def killed_it_fails_whoever_waits_and_leaves_nothing_behind(case: Case) -> None:
    if not own_processes():
        pytest.skip("this engine has no process of its own to kill")
    running = await case.begun()
    for child in own_processes():
        child.kill()
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(EngineError):
            await running
        await until(lambda: case.engine.error is not None)
        with pytest.raises(EngineError, match="failed"):
            await case.engine.generate([5], Sampling())
        with pytest.raises(EngineError):
            await case.engine.health()
        await case.engine.stop()
    await until(lambda: not own_processes())


Check = Callable[[Case], Awaitable[None]]
REAL: list[Check] = [  # those that need the real model, too
    greedy_tokens_are_the_models_own,
    logprobs_and_scores_are_the_learners,
    a_swap_under_load_keeps_the_cache_of_running_samples,
    a_swap_under_load_recomputes_the_cache_of_running_samples,
]
CHECKS: list[Check] = [
    *REAL,
    truncated_sampling_stays_within_and_says_its_probability,
    a_stop_string_ends_a_sample_at_the_token_that_completes_it,
    samples_end_by_stop_token_or_length_and_a_seed_repeats_them,
    a_stream_brings_tokens_as_they_are_made,
    an_aborted_request_returns_what_it_had_and_the_others_finish,
    a_cancelled_request_leaves_the_engine,
    what_can_never_be_served_is_refused,
    another_engines_partial_sample_is_continued_from_the_cached_prefix,
    paused_it_stands_still_and_then_goes_on,
    lanes_go_before_each_other,
    refused_weights_leave_the_engine_as_it_was,
    it_is_healthy_and_counts,
    killed_it_fails_whoever_waits_and_leaves_nothing_behind,
]
