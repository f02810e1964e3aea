"""What an engine is: something that turns prompts into sampled tokens and says how likely and how old each one is.

Engines work on token ids in both directions. Text never takes part, because decoding and encoding again does not always
give the same tokens, and the learner must train on exactly those that were sampled.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from safeladder.protocol.messages import Lane, Sampling

Finish = Literal["stop", "length", "abort"]


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


class Engine(ABC):
    """One copy of the policy that generates. Called from one asyncio loop; every await's deadline is the caller's.

    No call hangs on a failed engine: its error reaches every pending await and every later call, as EngineError.
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
    def start(self) -> None:
        """Makes the engine ready. Once in its life."""

    @abstractmethod
    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, lane: Lane = "training", request: str | None = None
    ) -> list[GeneratedSequence]:
        """Samples `sampling.samples` completions of `prompt_ids`, returned in order of the sample index.

        `request` is a name for `abort`. A cancelled call is aborted. Raises ValueError for a request that could never
        be served (empty prompt, token id outside the vocabulary, too long, too many samples), EngineError otherwise.
        """

    @abstractmethod
    def abort(self, request: str) -> None:
        """Ends the request of that name soon: its `generate` returns what was sampled, with finish "abort". A name that
        is not known (any more) is no error: the request may just have finished."""

    @abstractmethod
    async def load_weights(self, path: Path, version: int) -> None:
        """Changes to the publication at `path`, between two decode steps; returns once the engine decodes with it.

        Running requests go on. The version it already has is no error and does nothing. Raises WeightsError for a
        damaged or foreign publication and EngineError for an older version; the engine then goes on as before.
        """

    @abstractmethod
    def statistics(self) -> dict[str, float]:
        """Counters since the start and gauges of now; see the engine for its keys. Never waits."""

    @abstractmethod
    async def stop(self) -> None:
        """Fails what is pending and releases the model. Returns when that is done; may be called again."""
