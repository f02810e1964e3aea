"""What the embedded engine promises: the same tokens whatever is in the batch, true probabilities, swaps, no hangs."""

from __future__ import annotations

import asyncio
import math
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safeladder.policies import model as models
from safeladder.policies import weights
from safeladder.policies.engines.base import EngineError
from safeladder.policies.engines.registry import create
from safeladder.policies.engines.requests import Request
from safeladder.policies.engines.stepper import Stepper
from safeladder.policies.engines.transformers_engine import TransformersEngine
from safeladder.policies.model import encode_prompt
from safeladder.policies.scoring import completion_logprobs
from safeladder.policies.weights import WeightsError
from safeladder.protocol.messages import Sampling

DEADLINE_S = 240
PROMPTS = ["hello", "what is 1 + 1?", "a", "the end of the story is not the beginning of another one"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return models.resolve("tiny", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def tiny(folder):
    return models.load(folder)


def with_engine(tiny: Any, use: Callable[[TransformersEngine], Awaitable[Any]], **limits: int) -> Any:
    async def main() -> Any:
        engine = TransformersEngine(*tiny, **limits)
        await engine.start()
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await use(engine)
        finally:
            await engine.stop()

    return asyncio.run(main())


def prompt(tokenizer: Any, text: str) -> list[int]:
    return encode_prompt(tokenizer, text)


async def until(condition: Callable[[], bool]) -> None:
    """Lets the loop run until the stepping thread has brought `condition` about; the caller's deadline bounds it."""
    while not condition():
        await asyncio.sleep(0.001)


# ------------------------------------------------------------------------------------------------------- generation


def test_logprobs_are_the_learners_own(tiny):
    model, tokenizer = tiny
    sampling = Sampling(samples=3, max_new_tokens=20, temperature=0.8, seed=5)
    requests = [prompt(tokenizer, text) for text in PROMPTS]

    async def use(engine):
        return await asyncio.gather(*(engine.generate(ids, sampling) for ids in requests))

    for ids, samples in zip(requests, with_engine(tiny, use, max_sequences=8), strict=True):
        with torch.no_grad():
            scores = completion_logprobs(model, [(ids, sample.token_ids) for sample in samples], temperature=0.8)
        for sample, score in zip(samples, scores, strict=True):
            torch.testing.assert_close(torch.tensor(sample.logprobs), score, atol=1e-4, rtol=0)
            assert sample.versions == [0] * len(sample.token_ids)


@pytest.mark.parametrize("length", [1, 30])
def test_labels_are_scored_from_one_pass_over_their_prompt_and_long_completions_are_scored_too(tiny, length):
    model, tokenizer = tiny
    ids = prompt(tokenizer, PROMPTS[-1])[:length]
    labels = [[20], [20, 31, 45, 9], [7, 8], list(range(10, 50))]

    async def use(engine):
        found = await asyncio.gather(*(engine.score(ids, label) for label in labels))
        return found, engine.statistics()["prefix_tokens"]

    found, kept = with_engine(tiny, use)
    assert kept == length - 1
    with torch.no_grad():
        want = completion_logprobs(model, [(ids, label) for label in labels])
    for score, expected in zip(found, want, strict=True):
        torch.testing.assert_close(torch.tensor(score), expected, atol=1e-4, rtol=0)


def test_greedy_tokens_equal_those_of_transformers_generate(tiny):
    model, tokenizer = tiny
    ids = prompt(tokenizer, "count")
    want = model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)[0, len(ids) :].tolist()

    async def use(engine):
        other = asyncio.create_task(engine.generate(ids[:4], Sampling(samples=3, max_new_tokens=40)))
        result = await engine.generate(ids, Sampling(max_new_tokens=24, temperature=0.0))
        await other
        return result

    assert with_engine(tiny, use)[0].token_ids == want


@settings(max_examples=12, deadline=None)
@given(
    order=st.permutations(range(4)),
    samples=st.lists(st.integers(1, 3), min_size=4, max_size=4),
    lengths=st.lists(st.integers(1, 12), min_size=4, max_size=4),
    rows=st.integers(3, 12),
)
def test_tokens_do_not_depend_on_what_else_is_in_the_batch(folder, order, samples, lengths, rows):
    """In float64, where rounding by batch shape is far below what could change a draw."""
    model, tokenizer = models.load(folder)
    model = model.double()

    def requests():
        return [
            Request(
                str(i),
                prompt(tokenizer, PROMPTS[i]),
                Sampling(samples=samples[i], max_new_tokens=lengths[i], seed=i),
                "training",
            )
            for i in range(4)
        ]

    def finish(stepper, wanted):
        for request in wanted:
            stepper.submit(request)
        while not stepper.idle:
            stepper.step()
        return {
            r.name: [(s.token_ids, [round(x, 9) for x in s.logprobs], s.finish) for s in r.sequences] for r in wanted
        }

    together = finish(Stepper(model, tokenizer, max_sequences=rows, max_tokens=4096), [requests()[i] for i in order])
    for request in requests():
        alone = finish(Stepper(model, tokenizer, max_sequences=3, max_tokens=4096), [request])
        assert alone[request.name] == together[request.name]


ALONE = """
import asyncio, sys
from pathlib import Path
from safeladder.policies import model as models
from safeladder.policies.engines.registry import create
from safeladder.protocol.messages import Sampling
async def main():
    engine = create("transformers", Path(sys.argv[1]), max_sequences=4)
    await engine.start()
    ids = models.encode_prompt(models.load_tokenizer(Path(sys.argv[1])), "hello")
    others = [engine.generate(ids[:n], Sampling(samples=4, max_new_tokens=9, seed=n)) for n in (3, 5)]
    async with asyncio.timeout(60):
        found = await asyncio.gather(engine.generate(ids, Sampling(samples=4, max_new_tokens=30, seed=11)), *others)
    sys.stdout.write("RESULT " + repr([(s.token_ids, s.logprobs) for s in found[0]]) + "\\n")
    await engine.stop()
asyncio.run(main())
"""


def test_a_group_that_decodes_alone_is_bit_for_bit_the_same_in_another_process(tiny, folder):
    """max_sequences = samples: two other groups wait their turn there, none does here."""
    ids = prompt(tiny[1], "hello")
    here = with_engine(
        tiny, lambda engine: engine.generate(ids, Sampling(samples=4, max_new_tokens=30, seed=11)), max_sequences=4
    )
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    there = subprocess.run(
        [sys.executable, "-c", ALONE, str(folder)],
        capture_output=True, text=True, timeout=DEADLINE_S, env={**os.environ, **threads},
    )  # fmt: skip
    assert there.returncode == 0, there.stderr
    assert there.stdout.split("RESULT ")[1].splitlines()[0] == repr([(s.token_ids, s.logprobs) for s in here])


def test_samples_of_one_prompt_share_one_prefill(tiny):
    ids = prompt(tiny[1], "hello")

    async def use(engine):
        await engine.generate(ids, Sampling(samples=8, max_new_tokens=3))
        return engine.statistics()

    statistics = with_engine(tiny, use)
    assert statistics["prompt_tokens"] == len(ids)
    assert statistics["peak_rows"] == 8


# ------------------------------------------------------------------------------------------------------- endings


def test_every_sample_ends_by_stop_token_or_by_length(tiny):
    _, tokenizer = tiny
    ids = prompt(tokenizer, "hello")
    samples = with_engine(tiny, lambda e: e.generate(ids, Sampling(samples=16, max_new_tokens=120, seed=2)))
    finishes = {sample.finish for sample in samples}
    assert finishes == {"stop", "length"}, "the seed shows both"
    for sample in samples:
        ended = sample.token_ids[-1] == tokenizer.eos_token_id
        assert (sample.finish == "stop") == ended
        assert tokenizer.eos_token_id not in sample.token_ids[:-1]
        assert ended or len(sample.token_ids) == 120


def test_a_stop_string_ends_a_sample_at_the_token_that_completes_it(tiny):
    _, tokenizer = tiny
    ids = prompt(tokenizer, "hello")
    free = with_engine(tiny, lambda e: e.generate(ids, Sampling(max_new_tokens=60, seed=4)))[0]
    text = tokenizer.decode(free.token_ids)
    stop = text[len(text) // 2 : len(text) // 2 + 4]
    cut = with_engine(tiny, lambda e: e.generate(ids, Sampling(max_new_tokens=60, seed=4, stop=["§§", stop])))[0]
    assert cut.finish == "stop"
    assert cut.token_ids == free.token_ids[: len(cut.token_ids)]
    assert stop in tokenizer.decode(cut.token_ids)
    assert stop not in tokenizer.decode(cut.token_ids[:-1])


@pytest.mark.parametrize(
    ("ids", "sampling", "reason"),
    [
        ([], Sampling(), "prompt is empty"),
        ([5, 100_000], Sampling(), "outside"),
        ([-1], Sampling(), "outside"),
        ([5] * 2000, Sampling(max_new_tokens=100), "context of 2048"),
        ([5], Sampling(samples=5), "max_sequences = 4"),
        ([5] * 600, Sampling(samples=4, max_new_tokens=500), "max_tokens = 4096"),
    ],
)
def test_a_request_that_could_never_be_served_is_refused_and_the_engine_goes_on(tiny, ids, sampling, reason):
    async def use(engine):
        with pytest.raises(ValueError, match=reason):
            await engine.generate(ids, sampling)
        return await engine.generate([5], Sampling(max_new_tokens=2))

    assert len(with_engine(tiny, use, max_sequences=4, max_tokens=4096)) == 1


# ------------------------------------------------------------------------------------------------------- scheduling


def test_lanes_go_before_each_other_and_a_large_request_is_not_overtaken(tiny):
    stepper = Stepper(*tiny, max_sequences=4, max_tokens=4096)
    finished = []

    def request(name, lane, samples):
        return Request(name, [5, 6, 7], Sampling(samples=samples, max_new_tokens=4, top_k=1), lane)

    stepper.submit(request("running", "training", 3))
    stepper.step()
    for name, lane, samples in [
        ("large", "training", 4),
        ("small", "training", 1),
        ("evaluation", "evaluation", 4),
        ("user", "interactive", 1),
    ]:
        stepper.submit(request(name, lane, samples))
    while not stepper.idle:
        finished += [found.name for found in stepper.step()]
    assert finished == ["running", "user", "evaluation", "large", "small"]


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 4), st.integers(1, 12)), min_size=1, max_size=8), st.data()
)
def test_the_batch_never_exceeds_its_rows_or_its_cache(folder, plans, data):
    stepper = Stepper(*models.load(folder), max_sequences=5, max_tokens=150)
    waiting = [
        Request(str(i), [5] * length, Sampling(samples=samples, max_new_tokens=new, seed=i), "training")
        for i, (length, samples, new) in enumerate(plans)
        if samples * (length + new) <= 150
    ]
    done = 0
    expected = len(waiting)
    while waiting or not stepper.idle:
        if waiting and (stepper.idle or data.draw(st.booleans())):
            stepper.submit(waiting.pop())
        done += len(stepper.step())
        assert len(stepper.rows) <= 5
        assert len(stepper.rows) * stepper.decoder.columns <= 150
        if stepper.rows:
            assert stepper.decoder.columns == max(row.cached for row in stepper.rows), "no column is padding everywhere"
    assert done == expected


# ------------------------------------------------------------------------------------------------------- abort


def test_an_aborted_request_returns_what_it_had_and_the_others_finish(tiny):
    ids = prompt(tiny[1], "hello")

    async def use(engine):
        long = asyncio.create_task(
            engine.generate(ids, Sampling(samples=2, max_new_tokens=1900, seed=1, temperature=3.0), request="long")
        )
        other = asyncio.create_task(engine.generate(ids, Sampling(max_new_tokens=20, seed=2)))
        queued = asyncio.create_task(engine.generate(ids, Sampling(samples=2, max_new_tokens=5), request="queued"))
        await until(lambda: engine.statistics()["generated_tokens"] > 6)
        engine.abort("queued")
        engine.abort("long")
        engine.abort("unknown")
        return await long, await other, await queued

    long, other, queued = with_engine(tiny, use, max_sequences=3)
    assert any(sample.finish == "abort" and 0 < len(sample.token_ids) < 1900 for sample in long)
    assert all(len(s.token_ids) == len(s.logprobs) == len(s.versions) for s in long)
    assert [(sample.finish, sample.token_ids) for sample in queued] == [("abort", [])] * 2
    assert other[0].finish in ("stop", "length")


def test_a_cancelled_call_leaves_the_batch(tiny):
    async def use(engine):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await engine.generate([5], Sampling(samples=4, max_new_tokens=2000, seed=1, temperature=5.0))
        await until(lambda: engine.statistics()["running"] == 0)
        return await engine.generate([5], Sampling(samples=4, max_new_tokens=3))

    assert len(with_engine(tiny, use, max_sequences=4)) == 4


# ------------------------------------------------------------------------------------------------------- weights


def changed(folder: Any, amount: float) -> Any:
    model, _ = models.load(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + amount)
    return model


def test_a_swap_in_flight_keeps_the_rows_and_every_token_knows_its_version(tiny, folder, tmp_path):
    weights.publish(changed(folder, 0.5), tmp_path, 3)
    ids = prompt(tiny[1], "hello")

    async def use(engine):
        running = asyncio.create_task(
            engine.generate(ids, Sampling(samples=4, max_new_tokens=1500, seed=1, temperature=4.0))
        )
        await until(lambda: engine.statistics()["generated_tokens"] > 40)
        await engine.load_weights(weights.folder(tmp_path, 3), 3)
        assert engine.version == 3
        fresh = await engine.generate(ids, Sampling(samples=2, max_new_tokens=10, seed=9))
        return await running, fresh

    running, fresh = with_engine(tiny, use, version=1)
    assert any(set(sample.versions) == {1, 3} for sample in running), "some row lived through the swap"
    for sample in running:
        assert sample.versions == sorted(sample.versions)
        assert len(sample.versions) == len(sample.token_ids)
    with torch.no_grad():
        scores = completion_logprobs(changed(folder, 0.5), [(ids, sample.token_ids) for sample in fresh])
    for sample, score in zip(fresh, scores, strict=True):
        assert set(sample.versions) == {3}
        torch.testing.assert_close(torch.tensor(sample.logprobs), score, atol=1e-4, rtol=0)


def test_refused_weights_leave_the_engine_as_it_was(tiny, folder, tmp_path):
    weights.publish({"other": torch.ones(1)}, tmp_path, 5)
    weights.publish(tiny[0], tmp_path, 6)
    weights.publish(tiny[0], tmp_path, 4)
    torn = weights.folder(tmp_path, 6) / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1])

    async def use(engine):
        before = await engine.generate([5, 6], Sampling(max_new_tokens=8, seed=1))
        for version, error, message in [
            (5, WeightsError, "not this model's weights"),
            (6, WeightsError, "model.safetensors has"),
            (7, WeightsError, "v00000007"),
        ]:
            with pytest.raises(error, match=message):
                await engine.load_weights(weights.folder(tmp_path, version), version)
        await engine.load_weights(weights.folder(tmp_path, 4), 4)
        weights.publish(tiny[0], tmp_path, 2)
        with pytest.raises(EngineError, match="older than 4"):
            await engine.load_weights(weights.folder(tmp_path, 2), 2)
        with pytest.raises(EngineError, match="holds version 4, asked for was 9"):
            await engine.load_weights(weights.folder(tmp_path, 4), 9)
        await engine.load_weights(weights.folder(tmp_path, 4), 4)
        after = await engine.generate([5, 6], Sampling(max_new_tokens=8, seed=1))
        return before[0], after[0]

    before, after = with_engine(tiny, use)
    assert before.token_ids == after.token_ids and before.logprobs == after.logprobs
    assert set(after.versions) == {4}


# ------------------------------------------------------------------------------------------------------- failure


def test_a_failure_of_the_stepping_thread_reaches_everybody(tiny, monkeypatch):
    model, _ = tiny
    reported = []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: reported.append(arguments.exc_value))

    async def use(engine):
        running = asyncio.create_task(engine.generate([5], Sampling(samples=2, max_new_tokens=2000, temperature=5.0)))
        await until(lambda: engine.statistics()["generated_tokens"] > 4)
        with torch.no_grad():
            model.model.norm.weight.fill_(math.nan)
        with pytest.raises(EngineError, match="not finite"):
            await running
        assert "not finite" in str(engine.error)
        with pytest.raises(EngineError, match="takes no work: it failed"):
            await engine.generate([5], Sampling())
        await engine.stop()
        engine._thread.join(DEADLINE_S)
        assert reported == [engine.error], "the error is not swallowed"

    with_engine(tiny, use)


def test_stop_fails_what_is_pending_and_may_be_called_again(tiny):
    async def main():
        engine = TransformersEngine(*tiny)
        await engine.stop()
        with pytest.raises(EngineError, match="not running"):
            await engine.generate([5], Sampling())
        await engine.start()
        pending = asyncio.create_task(engine.generate([5], Sampling(max_new_tokens=2000, temperature=5.0)))
        await until(lambda: engine.statistics()["generated_tokens"] > 1)
        async with asyncio.timeout(DEADLINE_S):
            await engine.stop()
            with pytest.raises(EngineError, match="stopped"):
                await pending
            await engine.stop()
        assert engine.error is None
        with pytest.raises(EngineError, match="started once"):
            await engine.start()

    asyncio.run(main())


def test_an_engine_is_made_by_name(folder):
    engine = create("transformers", folder, version=4, max_sequences=2)
    assert engine.version == 4
    with pytest.raises(EngineError, match=r"no engine 'vlm'; there are .*transformers"):
        create("vlm", folder)


# ------------------------------------------------------------------------------------------------- architectures


@pytest.mark.parametrize("kind", ["qwen2", "gemma3_text", "gpt2"])
def test_other_architectures_decode_padded_rows_with_true_logprobs(kind, tiny):
    """Biases, sliding windows (shorter than the rows), learned positions: none of it is special to the engine."""
    from transformers import AutoConfig, AutoModelForCausalLM

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    small |= {"intermediate_size": 48, "vocab_size": 323, "head_dim": 16, "initializer_range": 0.2}
    if kind == "gpt2":
        small = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 323, "initializer_range": 0.2}
    if kind == "gemma3_text":
        small |= {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **small)).eval()
    stepper = Stepper(model, tiny[1], max_sequences=8, max_tokens=4096)
    requests = [
        Request(str(n), [7] * n, Sampling(samples=2, max_new_tokens=12, seed=n), "training") for n in (3, 14, 8)
    ]
    for request in requests:
        stepper.submit(request)
        stepper.step()
    while not stepper.idle:
        stepper.step()
    for request in requests:
        for sequence in request.sequences:
            with torch.no_grad():
                logits = model(torch.tensor([request.prompt_ids + sequence.token_ids])).logits[0]
            score = logits.float().log_softmax(-1)[len(request.prompt_ids) - 1 : -1]
            want = score.gather(1, torch.tensor(sequence.token_ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(sequence.logprobs), want, atol=1e-4, rtol=0)
