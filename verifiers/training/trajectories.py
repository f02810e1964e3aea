"""Steps, prefixes and continuations of them, drawn from an engine: what value models are labelled with.

Everything is done on token ids: a prefix is exactly the tokens that were sampled, never a text encoded anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from safeladder.policies.engines.base import Engine, GeneratedSequence
from safeladder.protocol.messages import Sampling

DELIMITER: Final = "\n\n"


@dataclass(frozen=True)
class Prefix:
    """A state: what the assistant has written after some steps. position: how many. ended: nothing comes after it."""

    token_ids: tuple[int, ...] = ()
    text: str = ""
    position: int = 0
    ended: bool = False


Choose = Callable[[Sequence[Prefix]], Awaitable[int]]


@dataclass(frozen=True)
class Sampler:
    """Draws from an engine that is started. step_tokens, total_tokens: at most so many in a step, in a whole answer."""

    engine: Engine
    tokenizer: Any
    temperature: float = 0.8
    step_tokens: int = 64
    total_tokens: int = 256
    delimiter: str = DELIMITER
    deadline_s: float = 600.0  # of one call of the engine

    async def trajectory(self, prompt_ids: Sequence[int], candidates: int, choose: Choose, seed: int) -> list[Prefix]:
        """The states after each step, the last one ended or out of tokens; each step is the chosen one of `candidates`."""
        state, states = Prefix(), []
        while not state.ended and len(state.token_ids) < self.total_tokens:
            room = min(self.step_tokens, self.total_tokens - len(state.token_ids))
            drawn = await self._draw(prompt_ids, state, candidates, room, [self.delimiter], seed + state.position)
            following = [self._after(state, sequence) for sequence in drawn]
            state = following[await choose(following) if candidates > 1 else 0]
            states.append(state)
        return states

    async def continuations(self, prompt_ids: Sequence[int], state: Prefix, count: int, seed: int) -> list[str]:
        """`count` whole answers that begin with the state: its own text where it has ended."""
        room = self.total_tokens - len(state.token_ids)
        if state.ended or room <= 0:
            return [state.text]
        drawn = await self._draw(prompt_ids, state, count, room, [], seed)
        return [self._text([*state.token_ids, *sequence.token_ids]) for sequence in drawn]

    async def _draw(
        self, prompt_ids: Sequence[int], state: Prefix, count: int, room: int, stop: list[str], seed: int
    ) -> list[GeneratedSequence]:
        sampling = Sampling(samples=count, max_new_tokens=room, temperature=self.temperature, stop=stop, seed=seed)
        async with asyncio.timeout(self.deadline_s):
            return await self.engine.generate([*prompt_ids, *state.token_ids], sampling)

    def _after(self, state: Prefix, sequence: GeneratedSequence) -> Prefix:
        ids = (*state.token_ids, *sequence.token_ids)
        ended = sequence.finish == "abort" or (bool(ids) and ids[-1] == self.tokenizer.eos_token_id)
        return Prefix(ids, self._text(ids), state.position + 1, ended)

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text
