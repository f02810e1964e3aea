"""The embedded engine: continuous batching over any causal model of `transformers`, in this process.

One stepping thread owns model, cache and batch. It consumes an inbox (submissions, aborts, scores, weight swaps, pauses, the
stop) and produces chunks into the requests' queues and results through futures. It blocks on the inbox when it has
nothing to decode or is paused, and is woken by any message; between two decode steps it takes what has arrived without
waiting. The asyncio side only posts messages and awaits queues and futures, so the loop never waits for a forward pass.

When the stepping thread fails, every pending wait gets that error and every later call too: nothing waits for a
thread that is gone. The error itself goes on to `threading.excepthook`, which prints it.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import sys
import threading
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import structlog
from torch import Tensor

from safeladder.policies import model as models
from safeladder.policies import weights
from safeladder.policies.engines.base import CachePolicy, Capabilities, Chunk, Engine, EngineError, GeneratedSequence
from safeladder.policies.engines.requests import Request
from safeladder.policies.engines.stepper import Stepper
from safeladder.policies.vision import Gallery, Picture, Processor, VisionError
from safeladder.policies.weights import WeightsError
from safeladder.protocol.images import Image
from safeladder.protocol.messages import LANES, Lane, Sampling

log = structlog.get_logger()

LEAVING_S = 10.0  # for the stepping thread to return after its last act


@dataclass(slots=True, eq=False)
class _Reader:
    """Who waits for a request. `whole`: for its end only, so that the loop is not woken for every token."""

    request: Request
    whole: bool
    news: asyncio.Queue[list[Chunk] | EngineError] = field(default_factory=asyncio.Queue)


@dataclass(slots=True)
class _Submit:
    reader: _Reader


@dataclass(slots=True)
class _Abort:
    target: str | Request


@dataclass(slots=True)
class _Score:
    prompt_ids: list[int]
    completion_ids: list[int]
    temperature: float
    pictures: Mapping[int, Picture]
    future: Future[list[float]]


@dataclass(slots=True)
class _Swap:
    tensors: Mapping[str, Tensor]
    prepared: Any
    version: int
    cache: CachePolicy
    future: Future[None]


@dataclass(slots=True)
class _Pause:
    paused: bool
    future: Future[None]


@dataclass(slots=True)
class _Pass:
    future: Future[None]


@dataclass(slots=True)
class _Stop:
    pass


class TransformersEngine(Engine):
    """See `Engine` for the promises and `Stepper` for how a batch is made up.

    `statistics()` has besides what every engine has: scored_tokens, steps, peak_rows, prefix_tokens (stored in the prefix
    cache), and the seconds prefill_s, decode_s, sampling_s.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(prefix_tokens=1, swaps=("keep", "recompute"), images=True)

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        version: int = 0,
        max_sequences: int = 16,
        max_tokens: int = 16_384,
        prefix_tokens: int | None = None,
        processor: Processor | None = None,
    ) -> None:
        """`processor`: of images, for a policy that sees."""
        self._gallery = None if processor is None else Gallery(processor)
        self._stepper = Stepper(
            model,
            tokenizer,
            version=version,
            max_sequences=max_sequences,
            max_tokens=max_tokens,
            prefix_tokens=prefix_tokens,
        )
        self._inbox: queue.SimpleQueue[_Submit | _Abort | _Score | _Swap | _Pause | _Pass | _Stop] = queue.SimpleQueue()
        self._names = itertools.count()
        self._weights: weights.Reader | None = None
        self._loading = asyncio.Lock()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: Future[None] = Future()
        self._error: BaseException | None = None
        # Guards what both sides touch: pending futures and readers, and whether the thread still takes messages.
        self._lock = threading.Lock()
        self._open = False
        self._pending: dict[int, Future[Any]] = {}
        self._readers: dict[int, _Reader] = {}  # by id(request)
        self._scores: deque[_Score] = deque()  # the thread's own, as is:
        self._paused = False

    @classmethod
    def open(
        cls, path: Path, *, version: int = 0, dtype: str = "float32", device: str = "cpu", **options: Any
    ) -> TransformersEngine:
        """See `Engine.open`. `prefix_tokens` bounds the prefix cache (None: what the running rows leave of max_tokens)."""
        model, tokenizer = models.load(path, dtype=dtype, device=device)
        return cls(model, tokenizer, version=version, processor=Processor.open(path, tokenizer), **options)

    @property
    def version(self) -> int:
        return self._stepper.version

    @property
    def model(self) -> Any:
        """The model whose parameters are served; to be looked at while the engine is paused or stopped."""
        return self._stepper.model

    @property
    def error(self) -> BaseException | None:
        return self._error

    async def start(self) -> None:
        with self._lock:
            if self._open or self._ended.done():
                raise EngineError("an engine is started once")
            self._open = True
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        log.info("engine.started", engine="transformers", version=self.version)

    # -------------------------------------------------------------------------------------------- the asyncio side

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
        pictures = await self._look(images)
        reader = _Reader(self._request(prompt_ids, sampling, lane, priority, request, begun, pictures), whole=False)
        self._post(_Submit(reader))
        left = sampling.samples
        try:
            while left:
                for chunk in await self._read(reader):
                    left -= chunk.finish is not None
                    yield chunk
        finally:
            if left:
                self._tell(_Abort(reader.request))

    async def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        *,
        lane: Lane = "training",
        priority: int = 0,
        request: str | None = None,
        begun: Sequence[GeneratedSequence] = (),
        images: Sequence[Image] = (),
    ) -> list[GeneratedSequence]:
        pictures = await self._look(images)
        reader = _Reader(self._request(prompt_ids, sampling, lane, priority, request, begun, pictures), whole=True)
        self._post(_Submit(reader))
        try:
            await self._read(reader)
        except asyncio.CancelledError:
            self._tell(_Abort(reader.request))
            raise
        return reader.request.sequences

    def _request(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        lane: Lane,
        priority: int,
        name: str | None,
        begun: Sequence[GeneratedSequence],
        pictures: Sequence[Picture],
    ) -> Request:
        ids = [int(token) for token in prompt_ids]
        refusal = self._stepper.refuse(ids, sampling, begun)
        if refusal is None and lane not in LANES:
            refusal = f"there is no lane {lane!r}"
        if refusal is not None:
            raise ValueError(f"request refused: {refusal}")
        name = name if name is not None else f"request-{next(self._names)}"
        shown = {picture.name: picture for picture in pictures}
        return Request(name, self._named(ids, pictures), sampling, lane, priority, begun, shown)

    async def _look(self, images: Sequence[Image]) -> list[Picture]:
        """The pictures of images, cut on another thread. Raises ValueError for what the policy cannot take."""
        if not images:
            return []
        if self._gallery is None:
            raise ValueError("request refused: it has images, and this policy takes text only")
        return await asyncio.to_thread(self._gallery.look, images)  # an ImageError is a ValueError

    def _named(self, ids: list[int], pictures: Sequence[Picture]) -> list[int]:
        if self._gallery is None:
            return ids
        try:
            return self._gallery.processor.named(ids, pictures)
        except VisionError as error:
            raise ValueError(f"request refused: {error}") from None

    async def _read(self, reader: _Reader) -> list[Chunk]:
        news = await reader.news.get()
        if isinstance(news, EngineError):
            raise news
        return news

    def abort(self, request: str) -> None:
        self._tell(_Abort(request))

    async def score(
        self,
        prompt_ids: Sequence[int],
        completion_ids: Sequence[int],
        temperature: float = 1.0,
        images: Sequence[Image] = (),
    ) -> list[float]:
        prompt, completion = [int(token) for token in prompt_ids], [int(token) for token in completion_ids]
        refusal = self._stepper.foreign([*prompt, *completion])
        if not prompt:
            refusal = "the prompt is empty"
        elif len(prompt) + len(completion) > self._stepper.context:
            refusal = f"{len(prompt)} + {len(completion)} tokens exceed the context of {self._stepper.context}"
        elif temperature <= 0:
            refusal = f"a score needs a temperature above 0, not {temperature}"
        if refusal is not None:
            raise ValueError(f"request refused: {refusal}")
        pictures = await self._look(images)
        future: Future[list[float]] = Future()
        shown = {picture.name: picture for picture in pictures}
        self._post(_Score(self._named(prompt, pictures), completion, temperature, shown, future))
        return await asyncio.wrap_future(future)

    async def pause(self) -> None:
        await self._set_paused(True)

    async def resume(self) -> None:
        await self._set_paused(False)

    async def _set_paused(self, paused: bool) -> None:
        future: Future[None] = Future()
        self._post(_Pause(paused, future))
        await asyncio.wrap_future(future)

    async def load_weights(self, path: Path, version: int, cache: CachePolicy | None = None) -> None:
        if cache is not None and cache not in self.capabilities.swaps:
            raise ValueError(f"there is no cache policy {cache!r}; there are {', '.join(self.capabilities.swaps)}")
        if version == self.version:
            return
        # Verifying and mapping half a gigabyte takes about half a second; decoding goes on meanwhile.
        async with self._loading:  # the reader's memory is one version's until the swap is over
            manifest, tensors = await asyncio.to_thread(self._reader().read, path)
            if manifest.version != version:
                raise EngineError(f"{path} holds version {manifest.version}, asked for was {version}")
            prepared = await asyncio.to_thread(self._stepper.decoder.prepare, tensors)
            future: Future[None] = Future()
            self._post(_Swap(tensors, prepared, version, cache or self.capabilities.swaps[0], future))
            await asyncio.wrap_future(future)

    def _reader(self) -> weights.Reader:
        if self._weights is None:
            self._weights = weights.Reader(self.weights_key)
        return self._weights

    async def health(self) -> None:
        """Waits for the stepping thread to come by, which it does between two steps."""
        future: Future[None] = Future()
        self._post(_Pass(future))
        await asyncio.wrap_future(future)

    def statistics(self) -> dict[str, float]:
        return {**self._stepper.statistics, **self._stepper.gauges(), "version": float(self.version)}

    async def stop(self) -> None:
        with self._lock:
            started = self._open or self._ended.done()
            if self._open:
                self._inbox.put(_Stop())
        if started:
            await asyncio.shield(asyncio.wrap_future(self._ended))
            # A thread that is still on its way out when the interpreter ends takes the process down with SIGABRT.
            await asyncio.to_thread(self._thread.join, LEAVING_S)

    def _post(self, message: _Submit | _Score | _Swap | _Pause | _Pass) -> None:
        """Hands a message to the thread, unless nobody would ever take it."""
        with self._lock:
            if not self._open:
                reason = f"it failed: {self._error!r}" if self._error else "it is not running"
                raise EngineError(f"the engine takes no work: {reason}") from self._error
            if isinstance(message, _Submit):
                self._readers[id(message.reader.request)] = message.reader
            else:
                self._pending[id(message.future)] = message.future
            self._inbox.put(message)

    def _tell(self, message: _Abort) -> None:
        with self._lock:
            if self._open:
                self._inbox.put(message)

    # -------------------------------------------------------------------------------------------- the stepping thread

    def _run(self) -> None:
        try:
            while self._take_messages():
                if self._scores:
                    self._score(self._scores.popleft())
                self._deliver(self._stepper.step())
        finally:
            self._end(sys.exception())

    def _take_messages(self) -> bool:
        """Acts on everything in the inbox, waiting for something if there is nothing to do. False: stop."""
        while True:
            try:
                message = self._inbox.get(block=self._paused or (self._stepper.idle and not self._scores))
            except queue.Empty:
                return True
            match message:
                case _Submit(reader):
                    self._stepper.submit(reader.request)
                case _Abort(target):
                    found = self._stepper.find(target) if isinstance(target, str) else [target]
                    for request in found:
                        self._stepper.abort(request)
                    self._deliver(found)
                case _Score():
                    self._scores.append(message)
                case _Swap():
                    self._swap(message)
                case _Pause(paused, future):
                    self._paused = paused
                    self._settle(future, None)
                case _Pass(future):
                    self._settle(future, None)
                case _Stop():
                    return False

    def _deliver(self, ended: Sequence[Request]) -> None:
        """Hands to the readers, in one go, what is new of the running requests, and all of those that have ended."""
        with self._lock:
            streams = [reader for reader in self._readers.values() if not reader.whole]
            ends = [reader for request in ended if (reader := self._readers.pop(id(request), None)) is not None]
        news = [
            (reader, chunks)
            for reader in [*streams, *(reader for reader in ends if reader.whole)]
            if (chunks := reader.request.news())
        ]
        self._hand(news)

    def _hand(self, news: Sequence[tuple[_Reader, list[Chunk] | EngineError]]) -> None:
        def put() -> None:
            for reader, what in news:
                reader.news.put_nowait(what)

        if news and self._loop is not None:
            self._loop.call_soon_threadsafe(put)

    def _score(self, asked: _Score) -> None:
        if asked.completion_ids:
            scored = self._stepper.score(asked.prompt_ids, asked.completion_ids, asked.temperature, asked.pictures)
            self._settle(asked.future, scored)
        else:
            self._settle(asked.future, [])

    def _swap(self, swap: _Swap) -> None:
        if swap.version < self.version:
            reason = f"version {swap.version} is older than {self.version}, which is running"
            self._settle(swap.future, EngineError(reason))
            return
        try:
            self._stepper.swap(swap.tensors, swap.version, swap.cache, swap.prepared)
        except WeightsError as error:
            self._settle(swap.future, error)
            return
        log.info("weights.loaded", version=swap.version, cache=swap.cache, running=len(self._stepper.rows))
        self._settle(swap.future, None)

    def _settle(self, future: Future[Any], outcome: Any) -> None:
        """Resolves a future with a value or an error, unless its caller has given up on it."""
        with self._lock:
            self._pending.pop(id(future), None)
        if not future.set_running_or_notify_cancel():
            return
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    def _end(self, error: BaseException | None) -> None:
        """The thread's last act, however it ends: whatever is pending fails, and nothing more is accepted."""
        with self._lock:
            self._open, self._error = False, error
            pending, readers = list(self._pending.values()), list(self._readers.values())
            self._readers.clear()
        for future in pending:
            self._settle(future, self._reason(error))
        self._hand([(reader, self._reason(error)) for reader in readers])
        if error is None:
            log.info("engine.stopped", failed=len(pending) + len(readers))
        else:
            log.error("engine.failed", error=repr(error), failed=len(pending) + len(readers))
        self._ended.set_result(None)

    def _reason(self, error: BaseException | None) -> EngineError:
        reason = EngineError(f"the engine failed: {error!r}" if error else "the engine was stopped")
        reason.__cause__ = error
        return reason
