"""The embedded engine: continuous batching over any causal model of `transformers`, in this process.

One stepping thread owns model, cache and batch. It consumes an inbox (submissions, aborts, weight swaps, the stop) and
produces results through futures. It blocks on the inbox when it has nothing to decode, and is woken by any message;
between two decode steps it takes what has arrived without waiting. The asyncio side only posts messages and awaits
futures, so the loop never waits for a forward pass.

When the stepping thread fails, every pending future gets that error and every later call too: nothing waits for a
thread that is gone. The error itself goes on to `threading.excepthook`, which prints it.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from torch import Tensor

from safeladder.policies import model as models
from safeladder.policies import weights
from safeladder.policies.engines.base import Engine, EngineError, GeneratedSequence
from safeladder.policies.engines.stepper import Request, Stepper
from safeladder.policies.weights import WeightsError
from safeladder.protocol.messages import LANES, Lane, Sampling

log = structlog.get_logger()

LEAVING_S = 10.0  # for the stepping thread to return after its last act


@dataclass(slots=True)
class _Submit:
    request: Request
    future: Future[list[GeneratedSequence]]


@dataclass(slots=True)
class _Abort:
    name: str


@dataclass(slots=True)
class _Swap:
    tensors: Mapping[str, Tensor]
    version: int
    future: Future[None]


@dataclass(slots=True)
class _Stop:
    pass


class TransformersEngine(Engine):
    """See `Engine` for the promises and `Stepper` for how a batch is made up.

    `statistics()` has the counters requests, prompt_tokens, generated_tokens, steps, swaps, peak_rows, the seconds
    prefill_s, decode_s, sampling_s, swap_s, and the gauges running, waiting (requests), cache_tokens and version.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, version: int = 0, max_sequences: int = 16, max_tokens: int = 16_384
    ) -> None:
        self._stepper = Stepper(model, tokenizer, max_sequences=max_sequences, max_tokens=max_tokens, version=version)
        self._inbox: queue.SimpleQueue[_Submit | _Abort | _Swap | _Stop] = queue.SimpleQueue()
        self._names = itertools.count()
        self._weights: weights.Reader | None = None
        self._loading = asyncio.Lock()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._ended: Future[None] = Future()
        self._error: BaseException | None = None
        # Guards what both sides touch: pending futures, and whether the thread still takes messages.
        self._lock = threading.Lock()
        self._open = False
        self._pending: dict[int, Future[Any]] = {}
        self._results: dict[int, Future[list[GeneratedSequence]]] = {}  # the thread's: id(request) -> its future

    @classmethod
    def open(
        cls, path: Path, *, version: int = 0, dtype: str = "float32", device: str = "cpu", **limits: int
    ) -> TransformersEngine:
        """Over the model folder `path`. `limits`: max_sequences, max_tokens."""
        model, tokenizer = models.load(path, dtype=dtype, device=device)
        return cls(model, tokenizer, version=version, **limits)

    @property
    def version(self) -> int:
        return self._stepper.version

    @property
    def error(self) -> BaseException | None:
        return self._error

    def start(self) -> None:
        with self._lock:
            if self._open or self._ended.done():
                raise EngineError("an engine is started once")
            self._open = True
        self._thread.start()
        log.info("engine.started", engine="transformers", version=self.version)

    # -------------------------------------------------------------------------------------------- the asyncio side

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, lane: Lane = "training", request: str | None = None
    ) -> list[GeneratedSequence]:
        ids = [int(token) for token in prompt_ids]
        refusal = self._stepper.refuse(ids, sampling)
        if refusal is None and lane not in LANES:
            refusal = f"there is no lane {lane!r}"
        if refusal is not None:
            raise ValueError(f"request refused: {refusal}")
        name = request if request is not None else f"request-{next(self._names)}"
        future: Future[list[GeneratedSequence]] = Future()
        self._post(_Submit(Request(name, ids, sampling, lane), future))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            self.abort(name)
            raise

    def abort(self, request: str) -> None:
        with self._lock:
            if self._open:
                self._inbox.put(_Abort(request))

    async def load_weights(self, path: Path, version: int) -> None:
        if version == self.version:
            return
        # Verifying and mapping half a gigabyte takes about half a second; decoding goes on meanwhile.
        async with self._loading:  # the reader's memory is one version's until the swap is over
            manifest, tensors = await asyncio.to_thread(self._reader().read, path)
            if manifest.version != version:
                raise EngineError(f"{path} holds version {manifest.version}, asked for was {version}")
            future: Future[None] = Future()
            self._post(_Swap(tensors, version, future))
            await asyncio.wrap_future(future)

    def _reader(self) -> weights.Reader:
        if self._weights is None:
            self._weights = weights.Reader(self.weights_key)
        return self._weights

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

    def _post(self, message: _Submit | _Swap) -> None:
        """Hands a message to the thread, unless nobody would ever take it."""
        with self._lock:
            if not self._open:
                reason = f"it failed: {self._error!r}" if self._error else "it is not running"
                raise EngineError(f"the engine takes no work: {reason}") from self._error
            self._pending[id(message.future)] = message.future
            self._inbox.put(message)

    # -------------------------------------------------------------------------------------------- the stepping thread

    def _run(self) -> None:
        try:
            while self._take_messages():
                for request in self._stepper.step():
                    self._deliver(request)
        finally:
            self._end(sys.exception())

    def _take_messages(self) -> bool:
        """Acts on everything in the inbox, waiting for something if there is nothing to decode. False: stop."""
        while True:
            try:
                message = self._inbox.get(block=self._stepper.idle)
            except queue.Empty:
                return True
            match message:
                case _Submit(request, future):
                    self._results[id(request)] = future
                    self._stepper.submit(request)
                case _Abort(name):
                    for request in self._stepper.abort(name):
                        self._deliver(request)
                case _Swap(tensors, version, future):
                    self._swap(tensors, version, future)
                case _Stop():
                    return False

    def _deliver(self, request: Request) -> None:
        self._settle(self._results.pop(id(request)), request.sequences)

    def _swap(self, tensors: Mapping[str, Tensor], version: int, future: Future[None]) -> None:
        if version < self.version:
            self._settle(future, EngineError(f"version {version} is older than {self.version}, which is running"))
            return
        try:
            self._stepper.swap(tensors, version)
        except WeightsError as error:
            self._settle(future, error)
            return
        log.info("weights.loaded", version=version, running=len(self._stepper.rows))
        self._settle(future, None)

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
            pending = list(self._pending.values())
        for future in pending:
            reason = EngineError(f"the engine failed: {error!r}" if error else "the engine was stopped")
            reason.__cause__ = error
            self._settle(future, reason)
        if error is None:
            log.info("engine.stopped", failed=len(pending))
        else:
            log.error("engine.failed", error=repr(error), failed=len(pending))
        self._ended.set_result(None)
