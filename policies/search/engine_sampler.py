"""Draws a search's steps from an engine in the same process; the actor's way over the generator pool is `actors/searcher.py`.

All requests of a call run in the engine at once. The tokens of the prefix are sent as they were sampled, never as text, so the
continuation is of exactly this prefix, and an engine with a prefix cache does not compute it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from safeladder.policies.engines.base import Engine, GeneratedSequence
from safeladder.policies.search.base import Draw
from safeladder.policies.search.tree import Step
from safeladder.protocol.messages import Lane, Sampling


class Prompt(Protocol):
    """What a problem's `prompt` must have here."""

    @property
    def token_ids(self) -> Sequence[int]: ...


@dataclass(frozen=True)
class StepSampling:
    """`delimiters`: strings that end a step; none: a step is as many tokens as it may have."""

    delimiters: tuple[str, ...] = ("\n\n",)
    temperature: float = 0.8
    top_p: float = 1.0


class EngineSampler:
    """A `Sampler` over an engine."""

    def __init__(self, engine: Engine, tokenizer: Any, options: StepSampling | None = None, lane: Lane = "interactive"):
        self._engine, self._tokenizer, self._lane = engine, tokenizer, lane
        self._options = options or StepSampling()

    async def draw(self, requests: Sequence[Draw]) -> list[list[Step]]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._one(request)) for request in requests]
        return [task.result() for task in tasks]

    async def _one(self, request: Draw) -> list[Step]:
        prompt: Prompt = request.prompt
        sequences = await self._engine.generate(
            [*prompt.token_ids, *request.token_ids], sampling(request, self._options), lane=self._lane
        )
        return [step(sequence, self._tokenizer, self._options.delimiters, request.whole) for sequence in sequences]


def sampling(request: Draw, options: StepSampling) -> Sampling:
    """How an engine is asked for `request`."""
    return Sampling(
        samples=request.count,
        max_new_tokens=request.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        stop=[] if request.whole else list(options.delimiters),
        seed=request.seed,
    )


def step(sequence: GeneratedSequence, tokenizer: Any, delimiters: Sequence[str], whole: bool) -> Step:
    """A sampled sequence as a step. It is final when the model ended it: a step that stopped without a delimiter in it."""
    text = tokenizer.decode(sequence.token_ids, skip_special_tokens=True)
    ended = sequence.finish == "stop" and (whole or not any(mark in text for mark in delimiters))
    return Step(
        text,
        tuple(sequence.token_ids),
        tuple(sequence.logprobs),
        final=ended or whole,
        versions=tuple(sequence.versions),
    )
