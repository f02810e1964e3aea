"""What an engine is: something that turns prompts into sampled tokens and says how likely and how old each one is.

Engines work on token ids in both directions. Text never takes part, because decoding and encoding again does not always
give the same tokens, and the learner must train on exactly those that were sampled.

An engine's life: `await start()`, then any number of `stream`, `generate`, `score`, `abort`, `load_weights`, `pause` and
`resume` from one asyncio loop, then `await stop()`. An engine of one's own implements the abstract methods here, is named in
`registry.ENGINES` or as `module:Class`, and passes `tests/policies/engines/conformance.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from safeladder.protocol.images import Image
from safeladder.protocol.messages import Lane, Sampling

Finish = Literal["stop", "length", "abort"]
CachePolicy = Literal["keep", "recompute"]


class EngineError(Exception):
    """The engine cannot do what was asked, or has failed; the message says which and why."""


@dataclass(slots=True)
class GeneratedSequence:
    """One sample. The three lists have one entry for each sampled token.

    `token_ids` include the end-of-sequence token where that ended the sample. `logprobs` are ln of the probability
    under the very distribution that was sampled from, that is after temperature and truncation: 0 at temperature 0.
    `versions` name the weights that each token was sampled with. `finish`: "stop" for an end-of-sequence token or a stop
    string, "length" for max_new_tokens, "abort" for an aborted request, whose tokens so far are kept.
    """

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    finish: Finish = "abort"

    def extend(self, chunk: Chunk) -> None:
        """Takes in what is new of this sample."""
        self.token_ids += chunk.token_ids
        self.logprobs += chunk.logprobs
        self.versions += chunk.versions
        self.finish = chunk.finish or self.finish


@dataclass(frozen=True, slots=True)
class Chunk:
    """News of one sample: the tokens since its last chunk. `finish` is set in its last one, which may hold no token."""

    sample: int
    token_ids: Sequence[int]
    logprobs: Sequence[float]
    versions: Sequence[int]
    finish: Finish | None = None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What differs between engines and a caller may have to know.

    real: tokens and log-probabilities are the model's (False: invented, for tests of capacity).
    exact_logprobs: log-probabilities are of the distribution after truncation (top-k, top-p, min-p) too, not of the one
    before it. seeded: the same seed gives the same tokens whatever else is in the batch. prefix_tokens: smallest prefix, in
    tokens, that a later request can take from the cache (1: any; None: no prefix cache). swaps: what the
    key-value cache of running requests may do at a weight swap. min_p, images: whether these are served.
    """

    real: bool = True
    exact_logprobs: bool = True
    seeded: bool = True
    prefix_tokens: int | None = None
    swaps: tuple[CachePolicy, ...] = ("keep",)
    min_p: bool = True
    images: bool = False


def refuse_images(images: Sequence[Image]) -> None:
    """For engines without: raises ValueError where there are some."""
    if images:
        raise ValueError("request refused: this engine takes no images")


class Engine(ABC):
    """One copy of the policy that generates. Called from one asyncio loop; every await's deadline is the caller's.

    No call hangs on a failed engine: its error reaches every pending await and every later call, as EngineError.
    """

    capabilities: ClassVar[Capabilities]
    weights_key: bytes | None = (
        None  # the run's secret, set before `start`: publications not signed with it are refused
    )

    @classmethod
    @abstractmethod
    def open(
        cls,
        path: Path,
        *,
        version: int = 0,
        dtype: str = "float32",
        device: str = "cpu",
        max_sequences: int = 16,
        max_tokens: int = 16_384,
        **options: Any,
    ) -> Engine:
        """An engine over the model folder `path`, whose weights count as `version`; not started yet.

        At most `max_sequences` samples decode together, over at most `max_tokens` tokens of key-value cache. `options` are
        the engine's own; TypeError for one that it does not have.
        """

    @property
    @abstractmethod
    def version(self) -> int:
        """The weight version that the next token will be sampled with."""

    @property
    @abstractmethod
    def error(self) -> BaseException | None:
        """What the engine died of; None while it is well, and after an orderly stop."""

    @abstractmethod
    async def start(self) -> None:
        """Makes the engine ready, which may take minutes. Once in its life."""

    @abstractmethod
    def stream(
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
        """Samples `sampling.samples` completions of `prompt_ids`; chunks of different samples come as they are made.

        `lane` goes before `priority`, and a lower priority before a higher one, first come first served among equals.
        `request` is a name for `abort`. Closing the generator, or cancelling the task that reads it, aborts the request.

        `begun` continues what another engine began: one sequence a sample, whose tokens count as sampled
        (`max_new_tokens` includes them) and are not repeated in the chunks; one whose `finish` is not "abort" is complete.
        To continue from a prefix that is not the sample's own (a step of a search), put it at the end of `prompt_ids`.

        `images` are shown at the image tokens of `prompt_ids`, in order; there are as many tokens as the policy makes of them.

        Raises ValueError for a request that could never be served (empty prompt, token id outside the vocabulary, too
        long, too many samples, images that it cannot take, an option that this engine lacks), EngineError otherwise.
        """

    @abstractmethod
    def abort(self, request: str) -> None:
        """Ends the request of that name soon, its samples with finish "abort". A name that is not known (any more) is no
        error: the request may just have finished."""

    @abstractmethod
    async def score(
        self,
        prompt_ids: Sequence[int],
        completion_ids: Sequence[int],
        temperature: float = 1.0,
        images: Sequence[Image] = (),
    ) -> list[float]:
        """ln p of each token of `completion_ids` after `prompt_ids` and the tokens before it, under the present weights,
        at `temperature` (> 0) and without truncation. Raises as `stream` does."""

    @abstractmethod
    async def pause(self) -> None:
        """Returns once no decode step runs. Requests stay where they are, and new ones are taken but not begun."""

    @abstractmethod
    async def resume(self) -> None:
        """Goes on after `pause`. No error when not paused."""

    @abstractmethod
    async def load_weights(self, path: Path, version: int, cache: CachePolicy | None = None) -> None:
        """Changes to the publication at `path`, between two decode steps; returns once the engine decodes with it.

        Running requests go on. Their cached keys and values stay as the old weights made them ("keep"), or are made
        anew by the new ones before the next token ("recompute"); None is the first of `capabilities.swaps`. No *new* request
        ever uses a prefix that older weights computed. The version it already has is no error and does nothing. Raises
        WeightsError for a damaged or foreign publication and EngineError for an older version; the engine then goes on
        as before.
        """

    @abstractmethod
    async def health(self) -> None:
        """Returns when the engine answers. Raises EngineError when it has failed."""

    @abstractmethod
    def statistics(self) -> Mapping[str, float]:
        """Counters since the start and gauges of now. Never waits.

        Every engine has: requests, generated_tokens, prompt_tokens, cached_prompt_tokens (taken from the prefix cache),
        running and waiting (samples, requests), cache_tokens and cache_capacity (key-value tokens in use, and at most),
        swaps, swap_s (seconds in which decoding stood still for them), version. More are an engine's own.
        """

    @abstractmethod
    async def stop(self) -> None:
        """Fails what is pending and releases the model. Returns when that is done; may be called again."""

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
        """What `stream` brings, put together: one sequence a sample, in order, each with what was `begun` of it."""
        sequences = [
            GeneratedSequence(list(start.token_ids), list(start.logprobs), list(start.versions), start.finish)
            for start in begun or [GeneratedSequence() for _ in range(sampling.samples)]
        ]
        chunks = self.stream(
            prompt_ids, sampling, lane=lane, priority=priority, request=request, begun=begun, images=images
        )
        async for chunk in chunks:
            sequences[chunk.sample].extend(chunk)
        return sequences
