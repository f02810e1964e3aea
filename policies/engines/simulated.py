"""An engine without a model, for tests of capacity: how many generators, how large batches, which lanes, before any GPU is paid for.

Lengths are lognormal, as those of real completions nearly are; what a prefill and a decode step cost is a linear model
whose four numbers come from a real engine's measurement (`docs/engines-speed.md`). Tokens are noise keyed by seed, sample and
position, so a run repeats itself; log-probabilities are those of that noise, and mean nothing.

Everything runs as one task in the caller's loop. A step is: admit what fits, wait for as long as the cost model says, give
every row a token. `scale` turns modelled seconds into waited ones; 0 waits for nothing but gives way to the loop.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any, ClassVar, Final

import structlog

from safeladder.policies import weights
from safeladder.policies.engines.base import (
    CachePolicy,
    Capabilities,
    Chunk,
    Engine,
    EngineError,
    GeneratedSequence,
    refuse_images,
)
from safeladder.policies.engines.requests import Request, Row, Waiting
from safeladder.policies.engines.sampling import uniform
from safeladder.protocol.images import Image
from safeladder.protocol.messages import LANES, Lane, Sampling

log = structlog.get_logger()

LENGTH_KEY: Final = -1  # the position whose random number is a sample's length


class SimulatedEngine(Engine):
    """`median_tokens` and `sigma` (of the logarithm) make the lengths. Costs in seconds: `prefill_token_s` for each prompt
    token, `step_s` for a decode step and `step_sequence_s` for each sequence in it, `swap_s` for new weights."""

    capabilities: ClassVar[Capabilities] = Capabilities(real=False, exact_logprobs=False)

    def __init__(
        self,
        path: Path,
        *,
        version: int = 0,
        dtype: str = "float32",
        device: str = "cpu",
        max_sequences: int = 16,
        max_tokens: int = 16_384,
        median_tokens: float = 200.0,
        sigma: float = 0.8,
        prefill_token_s: float = 2e-4,
        step_s: float = 0.03,
        step_sequence_s: float = 2e-3,
        swap_s: float = 0.3,
        vocabulary: int = 256,
        scale: float = 1.0,
    ) -> None:
        self.path, self._version = path, version
        self._error: BaseException | None = None
        self.max_sequences, self.max_tokens, self.vocabulary = max_sequences, max_tokens, vocabulary
        self._lengths = NormalDist(math.log(median_tokens), sigma)
        self._costs = prefill_token_s, step_s, step_sequence_s, swap_s
        self.scale = scale
        self._waiting, self._rows = Waiting(), list[Row]()
        self._queues: dict[int, asyncio.Queue[Chunk | EngineError]] = {}  # by id(request)
        self._work, self._still = asyncio.Event(), asyncio.Event()
        self._paused, self._swapping = False, 0.0
        self._task: asyncio.Task[None] | None = None
        self._names = itertools.count()
        self._counts = dict.fromkeys(
            (
                "requests",
                "generated_tokens",
                "prompt_tokens",
                "cached_prompt_tokens",
                "steps",
                "swaps",
                "swap_s",
                "busy_s",
            ),
            0.0,
        )

    @classmethod
    def open(cls, path: Path, **options: Any) -> SimulatedEngine:
        return cls(path, **options)

    @property
    def version(self) -> int:
        return self._version

    @property
    def error(self) -> BaseException | None:
        return self._error

    async def start(self) -> None:
        if self._task is not None:
            raise EngineError("an engine is started once")
        self._task = asyncio.create_task(self._run(), name="simulated engine")
        log.info("engine.started", engine="simulated", version=self._version)

    async def stop(self) -> None:
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task])
        self._end(EngineError("the engine was stopped"))

    def fail(self, error: BaseException) -> None:
        """Makes the engine fail with this error, for tests of what its users do then."""
        self._error = error
        if self._task is not None:
            self._task.cancel()
        self._end(EngineError(f"the engine failed: {error!r}"))

    # ------------------------------------------------------------------------------------------------------- requests

    async def stream(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        *,
        lane: Lane = "training",
        priority: int = 0,
        request: str | None = None,
        begun: Sequence[GeneratedSequence] = (),
        images: Sequence[Image] = (),
    ) -> AsyncGenerator[Chunk]:
        refuse_images(images)
        self._alive()
        self._check(prompt_ids, sampling, lane, begun)
        name = request if request is not None else f"request-{next(self._names)}"
        asked = Request(name, list(prompt_ids), sampling, lane, priority, begun)
        queue: asyncio.Queue[Chunk | EngineError] = asyncio.Queue()
        self._queues[id(asked)] = queue
        self._waiting.put(asked)
        self._counts["requests"] += 1
        self._work.set()
        left = sampling.samples
        try:
            while left:
                news = await queue.get()
                if isinstance(news, EngineError):
                    raise news
                left -= news.finish is not None
                yield news
        finally:
            if left:
                self._abort(asked)
            self._queues.pop(id(asked), None)

    def abort(self, request: str) -> None:
        everybody = [*self._waiting, *{id(row.request): row.request for row in self._rows}.values()]
        for asked in everybody:
            if asked.name == request:
                self._abort(asked)

    async def score(
        self,
        prompt_ids: Sequence[int],
        completion_ids: Sequence[int],
        temperature: float = 1.0,
        images: Sequence[Image] = (),
    ) -> list[float]:
        refuse_images(images)
        self._alive()
        if not prompt_ids or temperature <= 0:
            raise ValueError("request refused: a score needs a prompt and a temperature above 0")
        return [-math.log(self.vocabulary)] * len(completion_ids)

    def _check(self, prompt_ids: Sequence[int], sampling: Sampling, lane: Lane, begun: Sequence[Any]) -> None:
        rows, longest = sampling.samples, len(prompt_ids) + sampling.max_new_tokens
        if not prompt_ids or lane not in LANES or (begun and len(begun) != rows):
            raise ValueError("request refused: the prompt is empty, the lane unknown, or not every sample is begun")
        if min(prompt_ids) < 0 or max(prompt_ids) >= max(self.vocabulary, 10**6):
            raise ValueError("request refused: there are token ids outside the vocabulary")
        if rows > self.max_sequences or rows * longest > self.max_tokens:
            raise ValueError(f"request refused: {rows} samples of {longest} tokens have no room")

    def _abort(self, asked: Request) -> None:
        self._waiting.remove(asked)
        asked.end("abort")
        self._rows = [row for row in self._rows if not row.done]
        self._tell(asked)

    def _tell(self, asked: Request) -> None:
        queue = self._queues.get(id(asked))
        for chunk in asked.news():
            if queue is not None:
                queue.put_nowait(chunk)

    # -------------------------------------------------------------------------------------------------------- control

    async def pause(self) -> None:
        self._alive()
        self._paused = True
        self._work.set()
        await self._still.wait()

    async def resume(self) -> None:
        self._alive()
        self._paused = False
        self._work.set()

    async def load_weights(self, path: Path, version: int, cache: CachePolicy | None = None) -> None:
        """Verifies the publication as a real engine does, and takes its number."""
        self._alive()
        if cache is not None and cache not in self.capabilities.swaps:
            raise ValueError(f"there is no cache policy {cache!r}")
        if version == self._version:
            return
        manifest, tensors = await asyncio.to_thread(weights.read_tensors, path)
        if manifest.version != version or version < self._version:
            raise EngineError(f"{path} holds version {manifest.version}; {version} was asked for, {self._version} runs")
        if not any("embed" in name for name in tensors):
            raise weights.WeightsError("not a model's weights: nothing in them is an embedding")
        self._version = version
        self._swapping += self._costs[3]
        self._counts["swaps"] += 1
        self._counts["swap_s"] += self._costs[3]

    async def health(self) -> None:
        self._alive()

    def statistics(self) -> Mapping[str, float]:
        longest = max((row.request.longest for row in self._rows), default=0)
        return {
            **self._counts,
            "running": float(len(self._rows)),
            "waiting": float(len(self._waiting)),
            "cache_tokens": float(len(self._rows) * longest),
            "cache_capacity": float(self.max_tokens),
            "version": float(self._version),
        }

    def _alive(self) -> None:
        if self._error is not None:
            raise EngineError(f"the engine takes no work: it failed: {self._error!r}") from self._error
        if self._task is None or self._task.done():
            raise EngineError("the engine takes no work: it is not running")

    def _end(self, reason: EngineError) -> None:
        for queue in self._queues.values():
            queue.put_nowait(reason)
        self._queues.clear()

    # ------------------------------------------------------------------------------------------------------- the steps

    async def _run(self) -> None:
        while True:
            if self._paused or not (self._rows or len(self._waiting)):
                self._still.set()
                self._work.clear()
                await self._work.wait()
                continue
            self._still.clear()
            await self._step()

    async def _step(self) -> None:
        prefill_token_s, step_s, step_sequence_s, _ = self._costs
        admitted = self._admitted()
        prompts = sum(len(request.prompt_ids) for request in admitted)
        self._rows += [row for request in admitted for row in request.going]
        seconds = self._swapping + prompts * prefill_token_s + step_s + len(self._rows) * step_sequence_s
        self._swapping = 0.0
        await asyncio.sleep(seconds * self.scale)
        self._counts["prompt_tokens"] += prompts
        self._counts["steps"] += 1
        self._counts["busy_s"] += seconds
        self._counts["generated_tokens"] += len(self._rows)
        touched = {id(request): request for request in [*admitted, *(row.request for row in self._rows)]}
        for row in self._rows:
            self._append(row)
        self._rows = [row for row in self._rows if not row.done]
        for request in touched.values():
            self._tell(request)

    def _admitted(self) -> list[Request]:
        admitted: list[Request] = []
        rows, longest = len(self._rows), max((row.request.longest for row in self._rows), default=0)
        while (request := self._waiting.first()) is not None:
            rows, longest = rows + len(request.going), max(longest, request.longest)
            if rows > self.max_sequences or rows * longest > self.max_tokens:
                break
            admitted.append(self._waiting.take())
        return admitted

    def _append(self, row: Row) -> None:
        sampling, sequence = row.request.sampling, row.sequence
        number = uniform(sampling.seed, row.sample, len(sequence.token_ids))
        sequence.token_ids.append(int(number * self.vocabulary))
        sequence.logprobs.append(-math.log(self.vocabulary))
        sequence.versions.append(self._version)
        # never 0 or 1, where the inverse of the normal distribution has no value
        share = min(max(uniform(sampling.seed, row.sample, LENGTH_KEY), 1e-12), 1 - 1e-12)
        if len(sequence.token_ids) >= max(1.0, math.exp(self._lengths.inv_cdf(share))):
            row.end("stop")
        elif len(sequence.token_ids) >= sampling.max_new_tokens:
            row.end("length")
