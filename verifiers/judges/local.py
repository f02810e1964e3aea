"""A judge's model in this process: an engine of `policies/engines`, shared by all judges of the process that name the same model.

Engines speak in token ids, so the conversation is written out and encoded here. Where the answer must be one of a few labels, the
labels are not drawn but weighed: `engine.score` gives the probability of each label's tokens, and the most probable of them is
what decoding restricted to the labels would say, with its probability among them.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass

from safeladder.protocol.messages import Sampling
from safeladder.verifiers import engines
from safeladder.verifiers.engines import EngineOptions, Served
from safeladder.verifiers.judges.prompt import Defuse, Prompt, special_token_breaker


@dataclass
class LocalModel:
    """`model`: a name that `policies.model.resolve` knows. Used on the verifiers' loop only."""

    model: str
    options: EngineOptions

    def __post_init__(self) -> None:
        self._starting: asyncio.Task[Served] | None = None
        self._defuse: Defuse | None = None

    async def start(self) -> None:
        """Raises ModelUnavailable when there is no such model or engine."""
        await self._served()

    async def stop(self) -> None:
        if self._starting is not None:
            starting, self._starting = self._starting, None
            await engines.release(await starting)

    async def takes_images(self) -> bool:
        """Never: a judge's prompt goes to its engine as token ids alone, also where the engine takes images."""
        return False

    async def reply(self, prompt: Prompt, max_new_tokens: int) -> str:
        """What the model says, greedily. Special tokens are left out."""
        served = await self._served()
        ids = self._encoded(served, prompt)
        sampling = Sampling(samples=1, max_new_tokens=max_new_tokens, temperature=0.0)
        (sequence,) = await served.engine.generate(ids, sampling)
        text: str = served.tokenizer.decode(sequence.token_ids, skip_special_tokens=True)
        return text

    async def logprobs(self, prompt: Prompt, answers: Sequence[str], ended: bool) -> list[float]:
        """ln p(answer | prompt) of each answer, over the whole vocabulary; with `ended`, of the answer and the end of the turn."""
        served = await self._served()
        written = self._written(served, prompt)
        ids = _ids(served, written)
        end = [served.tokenizer.eos_token_id] if ended and served.tokenizer.eos_token_id is not None else []
        scores = await asyncio.gather(
            *(served.engine.score(ids, _continuation(served, written, ids, answer) + end) for answer in answers)
        )
        return [math.fsum(score) for score in scores]

    async def _served(self) -> Served:
        if self._starting is None or (self._starting.done() and self._starting.exception() is not None):
            self._starting = asyncio.create_task(engines.acquire(self.model, self.options))
        return await asyncio.shield(self._starting)

    def _encoded(self, served: Served, prompt: Prompt) -> list[int]:
        return _ids(served, self._written(served, prompt))

    def _written(self, served: Served, prompt: Prompt) -> str:
        """The conversation as the model reads it, markup included."""
        if self._defuse is None:
            added = [token.content for token in served.tokenizer.added_tokens_decoder.values() if token.special]
            self._defuse = special_token_breaker([*added, *served.tokenizer.all_special_tokens])
        turns = [{"role": turn.role, "content": turn.text(self._defuse)} for turn in prompt.messages]
        if prompt.raw:
            return _begun(turns[0]["content"], prompt)
        if not served.tokenizer.chat_template:
            raise ValueError(f"the tokenizer of {self.model} has no chat template, and this judge needs one")
        text: str = served.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, **dict(prompt.options)
        )
        return _begun(text, prompt)


def _begun(written: str, prompt: Prompt) -> str:
    return written if written.endswith(prompt.begun) else written + prompt.begun


def _ids(served: Served, written: str) -> list[int]:
    # The markup, with its special tokens, stands in the text already.
    ids: list[int] = served.tokenizer(written, add_special_tokens=False)["input_ids"]
    return ids


def _continuation(served: Served, written: str, ids: list[int], answer: str) -> list[int]:
    """The answer's tokens as the model would write them there: encoded in place, or alone where the seam would move."""
    together = _ids(served, written + answer)
    return together[len(ids) :] if together[: len(ids)] == ids and len(together) > len(ids) else _ids(served, answer)
