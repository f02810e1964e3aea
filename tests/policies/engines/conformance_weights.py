"""What an engine is held to with a model of any size: its numbers are the model's, and so they stay while the weights change under it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
from served import Served, agree, expected, until

from safeladder.policies import model as models
from safeladder.policies import weights
from safeladder.policies.engines.base import EngineError
from safeladder.policies.weights import WeightsError
from safeladder.protocol.messages import Sampling

LIMITS = {"max_sequences": 8, "max_tokens": 8192}
TEXTS = ["hello", "what is 1 + 1?", "the end of the story is not the beginning of another one", "a"]


class WeightsConformance:
    kind: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return models.resolve("tiny", tmp_path_factory.mktemp("models"))

    @pytest.fixture(scope="class")
    @classmethod
    def lasting(cls, folder: Any, tmp_path_factory: Any) -> Iterator[Served]:
        home = tmp_path_factory.mktemp("publications")
        served = Served(cls.kind, cls.options, folder, home, **LIMITS)
        yield served
        served.close()

    @pytest.fixture
    def served(self, lasting: Served) -> Iterator[Served]:
        yield lasting
        lasting.restore()

    def needs_model(self, served: Served) -> None:
        if not served.engine.capabilities.real:
            pytest.skip("its tokens and log-probabilities are invented")

    # ---------------------------------------------------------------------------------------------------- numbers

    def test_greedy_tokens_are_the_models_own(self, served):
        self.needs_model(served)
        for text in TEXTS[:2]:
            ids = served.ids(text)
            (sample,) = served.run(served.engine.generate(ids, Sampling(max_new_tokens=16, temperature=0.0)))
            likely = expected(served.model, ids, sample.token_ids)
            chosen = likely.gather(1, torch.tensor(sample.token_ids)[:, None])[:, 0]
            assert (likely.amax(1) - chosen < 1e-4).all(), "the most likely token, or one just as likely"
            assert sample.logprobs == [0.0] * len(sample.token_ids)

    def test_logprobs_are_the_learners_within_tolerance(self, served):
        self.needs_model(served)
        prompts = [served.ids(text) for text in TEXTS]

        async def use():
            sampling = Sampling(samples=2, max_new_tokens=20, temperature=0.8, seed=5)
            return await asyncio.gather(*(served.engine.generate(ids, sampling) for ids in prompts))

        for ids, samples in zip(prompts, served.run(use()), strict=True):
            for sample in samples:
                agree(served.model, ids, sample, temperature=0.8)

    def test_scores_are_the_models_own(self, served):
        self.needs_model(served)
        ids, completion = served.ids("hello"), [20, 31, 45, 9]
        for temperature in (1.0, 0.7):
            found = served.run(served.engine.score(ids, completion, temperature))
            want = expected(served.model, ids, completion, temperature).gather(1, torch.tensor(completion)[:, None])
            torch.testing.assert_close(torch.tensor(found), want[:, 0], atol=2e-4, rtol=0)
        for bad in (([], completion, 1.0), (ids, completion, 0.0), (ids, [10**7], 1.0)):
            with pytest.raises(ValueError):
                served.run(served.engine.score(*bad))

    # ------------------------------------------------------------------------------------------------------- swaps

    @pytest.mark.parametrize("policy", ["keep", "recompute"])
    def test_a_swap_in_flight_keeps_the_samples_and_every_token_names_its_weights(self, served, policy):
        if policy not in served.engine.capabilities.swaps:
            pytest.skip(f"it cannot {policy} its cache at a swap")
        ids, old, changed = served.ids("hello"), served.engine.version, served.changed(1)

        async def use():
            sampling = Sampling(samples=3, max_new_tokens=80, temperature=2.0, seed=1)
            before = served.engine.statistics()["generated_tokens"]
            running = asyncio.create_task(served.engine.generate(ids, sampling))
            await until(lambda: served.engine.statistics()["generated_tokens"] > before + 20)
            await served.engine.pause()  # so that the samples cannot end while the weights are on their way
            version = await served.swap(changed, policy)
            assert served.engine.version == version
            await served.engine.resume()
            return version, await running

        version, samples = served.run(use())
        assert any(set(sample.versions) == {old, version} for sample in samples), "some sample lived through the swap"
        for sample in samples:
            assert sample.versions == sorted(sample.versions)
            assert len(sample.versions) == len(sample.token_ids) == len(sample.logprobs)
            if not served.engine.capabilities.real or version not in sample.versions:
                continue
            at = sample.versions.index(version)
            agree(served.model, ids, _cut(sample, at), temperature=2.0)
            if policy == "recompute":
                agree(changed, ids, sample, temperature=2.0, start=at)

    def test_no_new_request_begins_with_what_older_weights_computed(self, served):
        self.needs_model(served)
        ids = (served.ids("the same prompt before and after") * 40)[
            : 2 * (served.engine.capabilities.prefix_tokens or 8) + 9
        ]
        changed = served.changed(1)

        async def use():
            await served.engine.generate(ids, Sampling(samples=2, max_new_tokens=5, seed=1))
            running = asyncio.create_task(
                served.engine.generate(ids, Sampling(max_new_tokens=300, temperature=2.0, seed=2))
            )
            await until(lambda: served.engine.statistics()["running"] > 0 or running.done())
            await served.swap(changed)
            found = await served.engine.generate(ids, Sampling(samples=2, max_new_tokens=8, seed=3))
            await running
            return found + await served.engine.generate(ids, Sampling(max_new_tokens=8, seed=4))

        for sample in served.run(use()):
            agree(changed, ids, sample)

    def test_swaps_under_load_lose_nothing(self, served):
        models = [served.changed(1), served.changed(2)]

        async def use():
            sampling = [Sampling(samples=2, max_new_tokens=30, temperature=2.0, seed=n) for n in range(8)]
            tasks = [asyncio.create_task(served.engine.generate([20 + n, 21], s)) for n, s in enumerate(sampling)]
            before = served.engine.statistics()["swaps"]
            for model in models:
                await served.swap(model)
            found = await asyncio.gather(*tasks)
            assert served.engine.statistics()["swaps"] == before + 2
            return found

        for samples in served.run(use()):
            assert len(samples) == 2
            for sample in samples:
                assert sample.finish in ("stop", "length")
                assert len(sample.token_ids) == 30 or sample.finish == "stop"
                assert all(one <= other for one, other in pairwise(sample.versions))

    def test_weights_can_change_while_the_engine_is_paused(self, served):
        async def use():
            await served.engine.pause()
            version = await served.swap(served.changed(3))
            await served.engine.resume()
            (sample,) = await served.engine.generate([20], Sampling(max_new_tokens=3, seed=1))
            assert set(sample.versions) == {version}

        served.run(use())

    def test_refused_weights_leave_the_engine_as_it_was(self, served, tmp_path):
        foreign, torn, old = served.version + 1, served.version + 2, served.version
        weights.publish({"other": torch.ones(1)}, tmp_path, foreign)
        weights.publish(served.model, tmp_path, torn)
        file = weights.folder(tmp_path, torn) / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
        request = [20, 21], Sampling(max_new_tokens=8, temperature=0.0)

        async def use():
            before = await served.engine.generate(*request)
            for version in (foreign, torn, torn + 1):
                with pytest.raises(WeightsError):
                    await served.engine.load_weights(weights.folder(tmp_path, version), version)
            if old > 0:
                weights.publish(served.model, tmp_path, old - 1)
                with pytest.raises(EngineError):
                    await served.engine.load_weights(weights.folder(tmp_path, old - 1), old - 1)
            await served.engine.load_weights(weights.folder(tmp_path, old), old)  # which it has: nothing happens
            assert served.engine.version == old
            return before, await served.engine.generate(*request)

        before, after = served.run(use())
        assert before[0].token_ids == after[0].token_ids
        assert set(after[0].versions) == {old}


def _cut(sample, end):
    return type(sample)(sample.token_ids[:end], sample.logprobs[:end], sample.versions[:end], sample.finish)
