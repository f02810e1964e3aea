"""The policy's own tokens as they come: the generator is asked for a few at a time, in the interactive lane.

Each call continues what the calls before have sampled, in the form in which a stopping generator hands its work back
(`actors/continuation.py`): prompt and completions token by token, with their log-probabilities and versions. A draw depends on seed,
sample and position alone, so under the same weights the pieces joined are the tokens of one long call. The engine's prefix cache
makes going on cheap. Between two calls nothing is left at the generator: who stops asking has freed everything.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

import msgspec
import numpy as np

from safeladder.actors.continuation import PER_TOKEN
from safeladder.actors.pools import Asked, Caller
from safeladder.protocol import codec
from safeladder.protocol import messages as m


@dataclass(frozen=True, slots=True)
class News:
    """What is new of one choice. `finish`: "stop" or "length" with its last tokens, else None."""

    choice: int
    token_ids: list[int]
    logprobs: list[float]
    finish: str | None


class PolicyStream:
    """`sampling.samples` answers to one question. `asked.token_ids` holds the prompt after the first piece."""

    def __init__(self, caller: Caller, asked: Asked, queue: str, sampling: m.Sampling, piece_tokens: int) -> None:
        self.asked, self.sampling = asked, sampling
        self._caller, self._queue, self._piece = caller, queue, piece_tokens
        self._columns: dict[str, list[list[float]]] = {name: [[]] * sampling.samples for name in PER_TOKEN}
        self._finish: list[str | None] = [None] * sampling.samples

    @property
    def tokens(self) -> int:
        """Sampled so far, of all choices."""
        return sum(map(len, self._columns["completion_ids"]))

    @property
    def version(self) -> int:
        """The oldest weights that sampled a token."""
        return int(min((version for row in self._columns["versions"] for version in row), default=0))

    async def pieces(self) -> AsyncGenerator[list[News]]:
        """News until every choice has ended. Raises CallError where the pool does not answer."""
        while None in self._finish:
            yield await self._next()

    async def _next(self) -> list[News]:
        lengths = [len(row) for row in self._columns["completion_ids"]]
        going = [choice for choice, finish in enumerate(self._finish) if finish is None]
        limit = min(self.sampling.max_new_tokens, lengths[going[0]] + self._piece)
        group = m.Group(
            self.asked.record,
            msgspec.structs.replace(self.sampling, max_new_tokens=limit),
            system=self.asked.system,
            prefix=self.asked.prefix,
            # the text is for verifiers, of whom there are none on this route
            completions=[m.Completion("", finish or "abort") for finish in self._finish] if any(lengths) else [],  # type: ignore[arg-type]
        )
        parcel = await self._caller.call(self.asked, group, self._arrays() if any(lengths) else {}, [self._queue])
        answered, arrays = codec.unpack(parcel)
        assert isinstance(answered, m.Group)
        self.asked.token_ids = arrays["prompt_ids"].tolist()
        ends = np.cumsum(arrays["lengths"]).tolist()
        for name in PER_TOKEN:
            starts = [0, *ends[:-1]]
            self._columns[name] = [arrays[name][a:b].tolist() for a, b in zip(starts, ends, strict=True)]
        for choice in going:
            finish = answered.completions[choice].finish
            self._finish[choice] = None if finish == "length" and limit < self.sampling.max_new_tokens else finish
        return [
            News(
                choice,
                [int(token) for token in self._columns["completion_ids"][choice][lengths[choice] :]],
                self._columns["behaviour_logprobs"][choice][lengths[choice] :],
                self._finish[choice],
            )
            for choice in going
        ]

    def _arrays(self) -> codec.Arrays:
        arrays: codec.Arrays = {
            "prompt_ids": np.array(self.asked.token_ids, np.int32),
            "lengths": np.array([len(row) for row in self._columns["completion_ids"]], np.int32),
        }
        for name, rows in self._columns.items():
            arrays[name] = np.array([value for row in rows for value in row], PER_TOKEN[name])
        return arrays
