"""What adaptors to engines in processes of their own have in common.

A request becomes one engine request for each sample, because such engines continue one prefix at a time. Each is read by
a task of its own, which puts chunks into the request's queue; `stream` takes them out. What may happen to a sample
beside being read to its end:

    abort      its last chunk is written at once and the task is cancelled; the engine hears of it from the task's end
    keep swap  one that has no token yet is asked for again, since the engine may have begun its prompt with old weights
    failure    the request's queue gets the error instead of chunks

Stop strings and stop tokens are looked for here, token by token, so that all engines end samples at the same place.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import time
from abc import abstractmethod
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog

from safeladder.policies import weights
from safeladder.policies.engines.base import (
    CachePolicy,
    Chunk,
    Engine,
    EngineError,
    Finish,
    GeneratedSequence,
    refuse_images,
)
from safeladder.policies.engines.outline import Outline
from safeladder.protocol.images import Image
from safeladder.protocol.messages import LANES, Lane, Sampling

LANE_WIDTH: Final = 2**40  # priorities of one lane lie this far from those of the next
LEAVING_S: Final = 5.0  # for cancelled tasks to say goodbye to the engine

log = structlog.get_logger()
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Piece:
    """What an engine says of one of its requests at a time. `cached`: prompt tokens that it took from its prefix cache."""

    token_ids: Sequence[int]
    logprobs: Sequence[float]
    versions: Sequence[int]
    finish: Finish | None = None
    cached: int = 0


@dataclass(frozen=True, slots=True)
class Ask:
    """One engine request. `priority`: lower goes before. `salt`: requests of another one must not share cached prefixes."""

    name: str
    ids: list[int]
    max_new_tokens: int
    sampling: Sampling
    seed: int
    priority: int
    salt: str


@dataclass(slots=True, eq=False)
class _Sample:
    index: int
    sequence: GeneratedSequence
    answered: bool = False  # the present engine request has brought a token
    task: asyncio.Task[None] | None = None
    done: bool = False


@dataclass(slots=True, eq=False)
class _Request:
    prompt_ids: list[int]
    sampling: Sampling
    priority: int
    samples: list[_Sample]
    news: asyncio.Queue[Chunk | EngineError] = field(default_factory=asyncio.Queue)

    def end(self, sample: _Sample, finish: Finish) -> None:
        sample.done = True
        self.news.put_nowait(Chunk(sample.index, [], [], [], finish))


class ClientEngine(Engine):
    """See `Engine` for the promises; a subclass speaks to its engine in the methods at the end."""

    engine_name = ""

    def __init__(self, path: Path, *, version: int, max_sequences: int, max_tokens: int) -> None:
        self.path, self.max_sequences, self.max_tokens = path, max_sequences, max_tokens
        self._version = version
        self._names = itertools.count()
        self._requests: dict[int, tuple[str | None, _Request]] = {}
        self._leaving: set[asyncio.Task[Any]] = set()
        self._error: BaseException | None = None
        self._started = self._stopped = self._paused = False
        self._counters = dict.fromkeys(
            ("requests", "generated_tokens", "prompt_tokens", "cached_prompt_tokens", "swaps", "swap_s"), 0.0
        )

    # ------------------------------------------------------------------------------------------------------ life

    @property
    def version(self) -> int:
        return self._version

    @property
    def error(self) -> BaseException | None:
        return self._error

    async def start(self) -> None:
        if self._started or self._stopped:
            raise EngineError("an engine is started once")
        self._started = True
        self._over: asyncio.Future[EngineError] = asyncio.get_running_loop().create_future()
        self._swapping = asyncio.Lock()
        begun = time.monotonic()
        self._outline = await asyncio.to_thread(Outline, self.path)
        self.context = min(self._outline.context, self.max_tokens)
        await self._launch()
        self._watch = asyncio.create_task(self._died())
        self._watch.add_done_callback(self._noticed)
        log.info("engine.started", engine=self.engine_name, version=self._version, seconds=time.monotonic() - begun)

    def _noticed(self, watch: asyncio.Task[str]) -> None:
        if not watch.cancelled():
            self._fail(EngineError(watch.result()) if watch.exception() is None else watch.exception())

    def _fail(self, error: BaseException | None) -> None:
        """The engine is not to be used any more: whatever is pending gets this error, and whatever comes."""
        if self._over.done():
            return
        self._error = error
        log.error("engine.failed", engine=self.engine_name, error=str(error), failed=len(self._requests))
        self._close(EngineError(f"the engine failed: {error}"))

    def _close(self, reason: EngineError) -> None:
        if not self._over.done():
            self._over.set_result(reason)
        for _, request in self._requests.values():
            request.news.put_nowait(reason)
            self._dismiss(request)

    async def stop(self) -> None:
        if self._stopped or not self._started:
            self._stopped = True
            return
        self._stopped = True
        self._close(EngineError("the engine was stopped"))
        if hasattr(self, "_watch"):
            self._watch.cancel()
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=LEAVING_S)
        await self._shut_down()
        log.info("engine.stopped", engine=self.engine_name)

    def _usable(self) -> None:
        if not self._started or self._stopped or self._over.done():
            reason = f"it failed: {self._error}" if self._error else "it is not running"
            raise EngineError(f"the engine takes no work: {reason}") from self._error

    async def _guarded(self, call: Coroutine[Any, Any, T]) -> T:
        """The result of `call`, or the engine's failure if that comes first."""
        task = asyncio.ensure_future(call)
        try:
            pending: set[asyncio.Future[Any]] = {task, self._over}
            await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not task.done():
                task.cancel()
        if self._over.done():
            cause = task.exception() if task.done() and not task.cancelled() else self._error
            raise EngineError(str(self._over.result())) from cause
        return task.result()

    # -------------------------------------------------------------------------------------------------- requests

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
        self._usable()
        prompt = [int(token) for token in prompt_ids]
        refusal = self._refuse(prompt, sampling, lane, begun)
        if refusal is not None:
            raise ValueError(f"request refused: {refusal}")
        starts = begun or [GeneratedSequence() for _ in range(sampling.samples)]
        samples = [
            _Sample(index, GeneratedSequence(list(start.token_ids)), done=start.finish != "abort")
            for index, start in enumerate(starts)
        ]
        order = LANES.index(lane) * LANE_WIDTH + max(-LANE_WIDTH // 2, min(priority, LANE_WIDTH // 2 - 1))
        asked = _Request(prompt, sampling, order, samples)
        self._requests[id(asked)] = (request, asked)
        self._counters["requests"] += 1
        self._counters["prompt_tokens"] += len(prompt)
        going = sum(not sample.done for sample in samples)
        try:
            for sample in samples:
                if not sample.done:
                    self._begin(asked, sample)
            while going:
                news = await asked.news.get()
                if isinstance(news, EngineError):
                    raise EngineError(str(news)) from self._error
                going -= news.finish is not None
                yield news
        finally:
            del self._requests[id(asked)]
            self._dismiss(asked)

    def _refuse(
        self, prompt: list[int], sampling: Sampling, lane: Lane, begun: Sequence[GeneratedSequence]
    ) -> str | None:
        """Why this request could never be served, or None."""
        length = len(prompt) + sampling.max_new_tokens
        if not prompt:
            return "the prompt is empty"
        ids = [*prompt, *(token for sequence in begun for token in sequence.token_ids)]
        if min(ids) < 0 or max(ids) >= self._outline.vocabulary:
            return f"it has token ids outside 0..{self._outline.vocabulary - 1}"
        if length > self._outline.context:
            return (
                f"{len(prompt)} prompt + {sampling.max_new_tokens} new tokens exceed the context of "
                f"{self._outline.context}"
            )
        if sampling.samples > self.max_sequences:
            return f"{sampling.samples} samples exceed max_sequences = {self.max_sequences}"
        if sampling.samples * length > self.max_tokens:
            return f"{sampling.samples} samples of up to {length} tokens exceed max_tokens = {self.max_tokens}"
        if begun and len(begun) != sampling.samples:
            return f"{len(begun)} begun sequences for {sampling.samples} samples"
        if lane not in LANES:
            return f"there is no lane {lane!r}"
        return self._lacks(sampling)

    def _begin(self, request: _Request, sample: _Sample) -> None:
        """Asks the engine for what is left of a sample."""
        tokens, sampling = sample.sequence.token_ids, request.sampling
        if tokens and self._ended(tokens, sampling):
            request.end(sample, "stop")
        elif len(tokens) >= sampling.max_new_tokens:
            request.end(sample, "length")
        else:
            sample.answered = False
            sample.task = asyncio.create_task(self._read(request, sample))
            self._leaving.add(sample.task)
            sample.task.add_done_callback(functools.partial(self._left, request))

    def _left(self, request: _Request, task: asyncio.Task[None]) -> None:
        """No task ends in a way that its reader does not hear of."""
        self._leaving.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("engine.sample_failed", engine=self.engine_name, error=repr(error))
            request.news.put_nowait(EngineError(f"reading a sample failed: {error!r}"))

    async def _read(self, request: _Request, sample: _Sample) -> None:
        """A task: reads one engine request to its end, and writes its chunks."""
        tokens = sample.sequence.token_ids
        ask = Ask(
            name=f"safeladder-{next(self._names)}",
            ids=request.prompt_ids + tokens,
            max_new_tokens=request.sampling.max_new_tokens - len(tokens),
            sampling=request.sampling,
            seed=_seed(request.sampling.seed, sample.index, len(tokens)),
            priority=request.priority,
            salt=str(self._version),
        )
        try:
            async with aclosing(self._ask(ask)) as pieces:
                async for piece in pieces:
                    chunk = self._chunk(request, sample, piece)
                    request.news.put_nowait(chunk)
                    if chunk.finish is not None:
                        sample.done = True
                        return
            raise EngineError("the engine ended a request without saying how")
        except EngineError as error:
            request.news.put_nowait(error)

    def _chunk(self, request: _Request, sample: _Sample, piece: Piece) -> Chunk:
        """Takes over a piece up to the token that ends the sample, if one does."""
        tokens, sampling = sample.sequence.token_ids, request.sampling
        if piece.token_ids and not sample.answered:
            sample.answered = True
            self._counters["cached_prompt_tokens"] += piece.cached
        before = len(tokens)
        finish = piece.finish
        for token in piece.token_ids:
            tokens.append(int(token))
            if self._ended(tokens, sampling):
                finish = "stop"
                break
            if len(tokens) >= sampling.max_new_tokens:
                finish = "length"
                break
        taken = len(tokens) - before
        self._counters["generated_tokens"] += taken
        logprobs = [0.0] * taken if sampling.temperature == 0 else list(piece.logprobs[:taken])
        return Chunk(sample.index, tokens[before:], logprobs, list(piece.versions[:taken]), finish)

    def _ended(self, tokens: Sequence[int], sampling: Sampling) -> bool:
        return tokens[-1] in self._outline.stop_ids or self._outline.stopped(tokens, sampling.stop)

    def _dismiss(self, request: _Request) -> None:
        for sample in request.samples:
            if sample.task is not None:
                sample.task.cancel()

    def abort(self, request: str) -> None:
        for name, asked in list(self._requests.values()):
            for sample in asked.samples if name == request else ():
                if not sample.done:
                    asked.end(sample, "abort")
                    if sample.task is not None:
                        sample.task.cancel()

    async def score(
        self,
        prompt_ids: Sequence[int],
        completion_ids: Sequence[int],
        temperature: float = 1.0,
        images: Sequence[Image] = (),
    ) -> list[float]:
        refuse_images(images)
        self._usable()
        prompt, completion = [int(t) for t in prompt_ids], [int(t) for t in completion_ids]
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}; log-probabilities need one above 0")
        if not completion:
            return []
        refusal = self._refuse(prompt + completion[:-1], Sampling(max_new_tokens=1), "training", ())
        if refusal is None and not (prompt and 0 <= completion[-1] < self._outline.vocabulary):
            refusal = "the prompt is empty" if not prompt else "it has token ids outside the vocabulary"
        if refusal is not None:
            raise ValueError(f"request refused: {refusal}")
        return await self._guarded(self._score(prompt, completion, temperature))

    # --------------------------------------------------------------------------------------------- weights, pauses

    async def pause(self) -> None:
        self._usable()
        async with self._swapping:
            if not self._paused:
                await self._guarded(self._freeze("keep"))
                self._paused = True

    async def resume(self) -> None:
        self._usable()
        async with self._swapping:
            if self._paused:
                self._paused = False
                await self._guarded(self._thaw())

    async def load_weights(self, path: Path, version: int, cache: CachePolicy | None = None) -> None:
        self._usable()
        policy = cache or self.capabilities.swaps[0]
        if policy not in self.capabilities.swaps:
            raise ValueError(f"this engine cannot {policy!r} its cache at a swap, only {self.capabilities.swaps}")
        if version == self._version:
            return
        async with self._swapping:
            self._usable()
            if version == self._version:
                return
            manifest = await asyncio.to_thread(self._verified, path)
            if manifest.version != version:
                raise EngineError(f"{path} holds version {manifest.version}, asked for was {version}")
            if version < self._version:
                raise EngineError(f"version {version} is older than {self._version}, which is running")
            # A caller who gives up meanwhile must not leave the engine frozen, nor half of its weights exchanged.
            await asyncio.shield(asyncio.ensure_future(self._guarded(self._swap(path, version, policy))))

    def _verified(self, path: Path) -> weights.Manifest:
        """The manifest, once the file's digest is right and its tensors are this model's. Raises WeightsError."""
        manifest, tensors = weights.read_tensors(path)
        self._outline.require(tensors)
        return manifest

    async def _swap(self, path: Path, version: int, policy: CachePolicy) -> None:
        begun = time.perf_counter()
        await self._freeze(policy)
        complete = False
        try:
            await self._replace(path, version, policy)
            complete = True
        finally:
            if not complete:
                self._fail(
                    EngineError(f"version {version} was not taken over whole; the engine's weights are undefined")
                )
        self._version = version
        if policy == "keep":
            await self._ask_again()
        if not self._paused:
            await self._thaw()
        self._counters["swaps"] += 1
        self._counters["swap_s"] += time.perf_counter() - begun
        log.info("weights.loaded", version=version, cache=policy, running=len(self._going()))

    async def _ask_again(self) -> None:
        """Samples without a token yet are withdrawn and asked for under the new version's salt."""
        fresh = [(request, sample) for request, sample in self._going() if not sample.answered]
        tasks = [sample.task for _, sample in fresh if sample.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for request, sample in fresh:
            if not sample.done and id(request) in self._requests:
                self._begin(request, sample)

    def _going(self) -> list[tuple[_Request, _Sample]]:
        return [
            (request, sample) for _, request in self._requests.values() for sample in request.samples if not sample.done
        ]

    # ------------------------------------------------------------------------------------------------------- state

    async def health(self) -> None:
        self._usable()
        await self._guarded(self._ping())

    def statistics(self) -> Mapping[str, float]:
        going = self._going()
        gauges = dict(self._gauges())
        running = min(float(len(going)), gauges.pop("running"))
        return {
            **self._counters,
            **gauges,
            "running": running,
            "waiting": len(going) - running,
            "version": float(self._version),
        }

    # --------------------------------------------------------------------------------------- what a subclass does

    @abstractmethod
    async def _launch(self) -> None:
        """Makes the engine ready to answer, with `version` as the name of its weights."""

    @abstractmethod
    async def _died(self) -> str:
        """Returns when the engine has failed by itself, with the reason."""

    @abstractmethod
    async def _shut_down(self) -> None:
        """Ends every process of the engine, by force if need be. Also called after a failed `_launch`."""

    @abstractmethod
    def _ask(self, ask: Ask) -> AsyncGenerator[Piece]:
        """Carries out one request; when closed or cancelled before its end, withdraws it. Raises EngineError."""

    @abstractmethod
    async def _score(self, prompt: list[int], completion: list[int], temperature: float) -> list[float]:
        """As `score`, of a request that has been checked."""

    @abstractmethod
    async def _freeze(self, policy: CachePolicy) -> None:
        """Stops decoding; "recompute" lets go of the keys and values of running requests. May find it frozen already."""

    @abstractmethod
    async def _replace(self, path: Path, version: int, policy: CachePolicy) -> None:
        """Exchanges the weights of the frozen engine for those of a publication that has been verified."""

    @abstractmethod
    async def _thaw(self) -> None:
        """Goes on decoding."""

    @abstractmethod
    async def _ping(self) -> None:
        """Returns when the engine answers. Raises EngineError."""

    @abstractmethod
    def _gauges(self) -> Mapping[str, float]:
        """running (samples that decode, as the engine said last), cache_tokens, cache_capacity, and its own."""

    def _lacks(self, sampling: Sampling) -> str | None:
        """Which of the options of `sampling` this engine does not have, or None."""
        return None


def _seed(seed: int, sample: int, position: int) -> int:
    """A seed for an engine's own generator, 31 bits: one for each sample, and for each place where it is taken up."""
    digest = blake2b(f"{seed}/{sample}/{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 33
