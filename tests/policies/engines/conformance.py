"""What every engine must pass. A class of tests over `kind` and `options`; see `test_conformance.py` for how to run it:

    class TestMine(Conformance):
        kind = "my.module:MyEngine"

Imports only safeladder, torch, transformers, psutil and pytest, so that it runs in the environment of any engine. Capabilities
decide what applies; a check that does not is skipped and says why. The model is `tiny`. One engine serves all checks of a
class but that of its end, since some engines take a minute to start. What a large model is held to as well, the numbers and the
swaps, stands in `conformance_weights.py`.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Sequence

import psutil
import pytest
import torch
from conformance_weights import LIMITS, WeightsConformance
from served import agree, both, expected, own_processes, until

from safeladder.policies.engines.base import Engine, EngineError, GeneratedSequence
from safeladder.policies.engines.registry import create
from safeladder.policies.engines.sampling import truncate
from safeladder.protocol.images import Image
from safeladder.protocol.messages import Sampling

COMMON = {
    *("requests", "generated_tokens", "prompt_tokens", "cached_prompt_tokens", "running", "waiting", "cache_tokens"),
    *("cache_capacity", "swaps", "swap_s", "version"),
}
# Chi-square with 3 degrees of freedom exceeds this once in a million tries.
CHI_SQUARE_3 = 30.66


class Conformance(WeightsConformance):
    """All of it."""

    def crash(self, engine: Engine, own: Sequence[psutil.Process]) -> None:
        """Makes the running engine fail. `own`: the processes that it has started; without any, the engine must say how."""
        if not own:
            pytest.skip(f"nobody has said how to make {self.kind} fail")
        for process in own:
            process.kill()

    # ---------------------------------------------------------------------------------------------------- sampling

    @pytest.mark.parametrize("options", [{"top_k": 2}, {"top_p": 0.6}, {"min_p": 0.3}, {"top_k": 5, "top_p": 0.8}])
    def test_truncation_leaves_out_what_it_names_and_the_logprob_says_so(self, served, options):
        self.needs_model(served)
        if "min_p" in options and not served.engine.capabilities.min_p:
            pytest.skip("it has no min-p")
        ids = served.ids("hello")
        samples = served.run(served.engine.generate(ids, Sampling(samples=4, max_new_tokens=12, seed=3, **options)))
        for sample in samples:
            masses = expected(served.model, ids, sample.token_ids).double().exp()
            kept = truncate(masses, **options)
            chosen = torch.tensor(sample.token_ids)[:, None]
            # Where rounding moves the edge of what is kept, the engine may keep one token more or less.
            share = kept.gather(1, chosen)[:, 0] / kept.sum(1)
            clear = share > 0
            assert clear.float().mean() > 0.9
            if served.engine.capabilities.exact_logprobs:
                found = torch.tensor(sample.logprobs).double()
                close = (found - share.log()).abs() < 1e-3
                assert close[clear].float().mean() > 0.9

    def test_samples_follow_the_distribution(self, served):
        """Chi-square over the four tokens that top-k leaves; a false alarm is one in a million, and the seeds are fixed."""
        self.needs_model(served)
        ids, count = served.ids("hello"), 50

        async def use():
            asked = [Sampling(samples=8, max_new_tokens=1, top_k=4, temperature=2.0, seed=n) for n in range(count)]
            return await asyncio.gather(*(served.engine.generate(ids, sampling) for sampling in asked))

        counts = Counter(sample.token_ids[0] for samples in served.run(use()) for sample in samples)
        kept = truncate(expected(served.model, ids, [0], 2.0).double().exp(), top_k=4)[0]
        wanted = (kept / kept.sum() * 8 * count).tolist()
        assert min(wanted[token] for token in counts) > 5
        assert sum((counts[t] - w) ** 2 / w for t, w in enumerate(wanted) if w) < CHI_SQUARE_3

    def test_the_same_seed_gives_the_same_samples_beside_others(self, served):
        if not served.engine.capabilities.seeded:
            pytest.skip("its random numbers depend on what else is in the batch")
        ids = served.ids("hello")
        sampling = Sampling(samples=3, max_new_tokens=12, seed=11)
        alone = served.run(served.engine.generate(ids, sampling))
        beside, _ = served.run(
            both(served.engine.generate(ids, sampling), served.engine.generate(ids[:3], Sampling(samples=4, seed=2)))
        )
        assert [s.token_ids for s in alone] == [s.token_ids for s in beside]
        assert len({tuple(s.token_ids) for s in alone}) == 3, "samples differ from each other"

    def test_a_stop_string_ends_a_sample_at_the_token_that_completes_it(self, served):
        self.needs_model(served)
        ids, decode = served.ids("hello"), served.tokenizer.decode
        (free,) = served.run(served.engine.generate(ids, Sampling(max_new_tokens=30, temperature=0.0)))
        text = decode(free.token_ids)
        stop = text[len(text) // 2 : len(text) // 2 + 3]
        sampling = Sampling(max_new_tokens=30, temperature=0.0, stop=["§§", stop])
        (cut,) = served.run(served.engine.generate(ids, sampling))
        assert cut.finish == "stop"
        assert cut.token_ids == free.token_ids[: len(cut.token_ids)]
        assert stop in decode(cut.token_ids)
        assert stop not in decode(cut.token_ids[:-1])

    # ----------------------------------------------------------------------------------------------------- requests

    def test_streamed_chunks_are_what_generate_returns(self, served):
        ids = served.ids("hello")
        sampling = Sampling(samples=1 if served.engine.capabilities.real else 2, max_new_tokens=15, temperature=0.0)
        whole = served.run(served.engine.generate(ids, sampling))

        async def use():
            return [chunk async for chunk in served.engine.stream(ids, sampling)]

        chunks = served.run(use())
        assert len(chunks) > sampling.samples, "they come as they are made"
        for index, sample in enumerate(whole):
            own = [chunk for chunk in chunks if chunk.sample == index]
            assert [token for chunk in own for token in chunk.token_ids] == sample.token_ids
            assert [chunk.finish for chunk in own if chunk.finish] == [sample.finish]
            assert own[-1].finish is not None
            assert all(len(c.token_ids) == len(c.logprobs) == len(c.versions) for c in own)

    def test_a_sample_begun_elsewhere_goes_on_as_if_it_had_not_been_interrupted(self, served):
        ids = served.ids("what is 1 + 1?")
        temperature = 1.0 if served.engine.capabilities.seeded else 0.0
        sampling = Sampling(samples=3, max_new_tokens=14, temperature=temperature, seed=6)
        whole = served.run(served.engine.generate(ids, sampling))
        old = served.version + 100  # whatever the other engine had
        begun = [
            GeneratedSequence(s.token_ids[:n], s.logprobs[:n], [old] * n) for s, n in zip(whole, (0, 1, 6), strict=True)
        ]
        found = served.run(served.engine.generate(ids, sampling, begun=begun))
        for sample, again, start in zip(whole, found, begun, strict=True):
            done = len(start.token_ids)
            assert again.token_ids == sample.token_ids
            assert again.finish == sample.finish
            assert again.versions == [old] * done + [served.engine.version] * (len(again.token_ids) - done)
            torch.testing.assert_close(torch.tensor(again.logprobs), torch.tensor(sample.logprobs), atol=2e-4, rtol=0)
        assert [len(start.token_ids) for start in begun] == [0, 1, 6], "what was handed in is not written to"

    def test_a_sample_that_was_complete_stays_as_it_is(self, served):
        ids = served.ids("hello")
        done = GeneratedSequence([5, 6], [-1.0, -2.0], [3, 3], "stop")
        begun = [done, GeneratedSequence([7], [-1.5], [3])]
        found = served.run(served.engine.generate(ids, Sampling(samples=2, max_new_tokens=4, seed=1), begun=begun))
        assert (found[0].token_ids, found[0].logprobs, found[0].finish) == ([5, 6], [-1.0, -2.0], "stop")
        assert found[1].token_ids[0] == 7 and len(found[1].token_ids) > 1

    def test_an_aborted_request_keeps_what_it_had_and_the_others_finish(self, served):
        ids = served.ids("hello")

        async def use():
            long = Sampling(samples=2, max_new_tokens=1500, temperature=2.0, seed=1)
            first = asyncio.Event()

            async def read():
                samples = [GeneratedSequence(), GeneratedSequence()]
                async for chunk in served.engine.stream(ids, long, request="long"):
                    samples[chunk.sample].token_ids += chunk.token_ids
                    samples[chunk.sample].finish = chunk.finish or "length"
                    first.set()
                return samples

            reading = asyncio.create_task(read())
            other = asyncio.create_task(served.engine.generate(ids, Sampling(max_new_tokens=10, seed=2)))
            await first.wait()
            served.engine.abort("long")
            served.engine.abort("nobody")
            return await reading, await other

        long, other = served.run(use())
        assert any(sample.finish == "abort" and 0 < len(sample.token_ids) < 1500 for sample in long)
        assert other[0].finish in ("stop", "length")

    def test_a_reader_who_leaves_takes_the_request_along(self, served):
        async def use():
            chunks = served.engine.stream(
                served.ids("hello"), Sampling(samples=4, max_new_tokens=1500, temperature=2.0)
            )
            async for _ in chunks:
                break
            await chunks.aclose()
            await until(lambda: served.engine.statistics()["running"] == 0)

        served.run(use())

    def test_lanes_go_before_each_other_and_priorities_within_them(self, served):
        order = []

        async def one(name, samples, lane, priority):
            sampling = Sampling(samples=samples, max_new_tokens=6, temperature=2.0, seed=1)
            await served.engine.generate([20, 21, 22], sampling, lane=lane, priority=priority)
            order.append(name)

        async def use():
            await served.engine.pause()
            plans = [("late", "training", 5), ("early", "training", -5), ("user", "interactive", 9)]
            tasks = [asyncio.create_task(one(name, 8, lane, priority)) for name, lane, priority in plans]
            await until(lambda: served.engine.statistics()["waiting"] >= 3)
            await served.engine.health()  # an answer from behind the requests: a server has got them all by then
            await served.engine.resume()
            await asyncio.gather(*tasks)

        served.run(use())
        assert order == ["user", "early", "late"]

    def test_a_paused_engine_makes_no_token_and_loses_none(self, served):
        async def use():
            sampling = Sampling(samples=2, max_new_tokens=60, temperature=2.0, seed=3)
            running = asyncio.create_task(served.engine.generate([20, 21], sampling))
            await until(lambda: served.engine.statistics()["generated_tokens"] > before + 2)
            await served.engine.pause()
            tokens = served.engine.statistics()["generated_tokens"]
            new = asyncio.create_task(served.engine.generate([22], Sampling(max_new_tokens=3)))
            await until(lambda: served.engine.statistics()["waiting"] > 0)
            await served.engine.health()
            assert served.engine.statistics()["generated_tokens"] == tokens
            assert not new.done()
            await served.engine.resume()
            await served.engine.resume()
            return await both(running, new)

        before = served.engine.statistics()["generated_tokens"]
        running, new = served.run(use())
        assert all(sample.finish in ("stop", "length") for sample in [*running, *new])

    @pytest.mark.parametrize("ids", [[], [-1], [10**7]])
    def test_a_request_that_could_never_be_served_is_refused_and_the_engine_goes_on(self, served, ids):
        with pytest.raises(ValueError):
            served.run(served.engine.generate(ids, Sampling()))
        with pytest.raises(ValueError):
            served.run(served.engine.generate([5], Sampling(samples=LIMITS["max_sequences"] + 1)))
        with pytest.raises(ValueError):
            served.run(served.engine.generate([5], Sampling(max_new_tokens=10**6)))
        assert len(served.run(served.engine.generate([5], Sampling(max_new_tokens=2)))) == 1

    def test_images_are_refused_where_the_policy_takes_none_and_the_engine_goes_on(self, served):
        image = Image("image/png", b"of no policy of text")
        for asked in (
            served.engine.generate([5], Sampling(), images=[image]),
            served.engine.score([5], [6], images=[image]),
        ):
            with pytest.raises(ValueError, match="image"):
                served.run(asked)
        assert len(served.run(served.engine.generate([5], Sampling(max_new_tokens=2)))) == 1

    def test_a_step_of_a_search_takes_its_prefix_from_the_cache(self, served):
        self.needs_model(served)
        size = served.engine.capabilities.prefix_tokens
        if size is None:
            pytest.skip("it has no prefix cache")
        prompt = (served.ids("the search begins here") * (1 + 2 * size))[: 2 * size + 7]
        (step,) = served.run(served.engine.generate(prompt, Sampling(max_new_tokens=size + 5, temperature=2.0, seed=4)))
        before = served.engine.statistics()
        longer = prompt + step.token_ids[:-1] + [33]
        (sample,) = served.run(served.engine.generate(longer, Sampling(max_new_tokens=6, seed=9)))
        after = served.engine.statistics()
        agree(served.model, longer, sample)
        cached = after["cached_prompt_tokens"] - before["cached_prompt_tokens"]
        assert cached >= (len(longer) - 2) // size * size if size > 1 else cached == len(longer) - 1

    # -------------------------------------------------------------------------------------------------- life and end

    def test_statistics_have_what_every_engine_has(self, served):
        statistics = served.engine.statistics()
        assert set(statistics) >= COMMON
        assert all(math.isfinite(value) for value in statistics.values())
        assert served.engine.error is None
        served.run(served.engine.health())

    def test_a_crash_reaches_everybody_and_another_engine_starts(self, folder, tmp_path):
        async def use():
            before = own_processes()
            engine = create(self.kind, folder, options=self.options, **LIMITS)
            await engine.start()
            sampling = Sampling(samples=2, max_new_tokens=1500, temperature=2.0)
            running = asyncio.create_task(engine.generate([20], sampling))
            await until(lambda: engine.statistics()["generated_tokens"] > 4)
            self.crash(engine, list(own_processes() - before))
            with pytest.raises(EngineError):
                await running
            for call in (engine.generate([20], Sampling()), engine.score([20], [21]), engine.health()):
                with pytest.raises(EngineError):
                    await call
            assert engine.error is not None
            await engine.stop()
            await until(lambda: not own_processes() - before)
            fresh = create(self.kind, folder, options=self.options, **LIMITS)
            await fresh.start()
            try:
                return await fresh.generate([20], Sampling(max_new_tokens=3))
            finally:
                await fresh.stop()

        async def bounded():
            async with asyncio.timeout(600):
                return await use()

        assert len(asyncio.run(bounded())[0].token_ids) > 0
