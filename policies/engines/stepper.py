"""Continuous batching, one step at a time: requests join and leave the batch between two decode steps.

No thread and no clock decide anything here: the same submissions between the same steps give the same batches. The
engine around it owns the thread; see `transformers_engine`.

What gates a waiting request: its lane (interactive before evaluation before training, first come first served within
one) and room for all its samples. A request that does not fit blocks those behind it, so a large one is never starved
by small ones; what unblocks it is rows that finish.

The samples of a request share one prefill, are of one length at every step, and hence have no padding among themselves.
A request that is alone in the batch goes through forwards whose shapes depend on it alone, so its tokens and
log-probabilities are the same bit for bit whenever it runs alone. Beside others, its random numbers stay the same, but
sums of another shape may round a probability in its last bits.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Final

import torch
from torch import Tensor

from safeladder.policies import weights
from safeladder.policies.engines.base import EngineError, Finish, GeneratedSequence
from safeladder.policies.engines.cache import BatchCache
from safeladder.policies.engines.sampling import draw, uniform
from safeladder.protocol.messages import LANES, Lane, Sampling

UTF8_BYTES: Final = (
    4  # a byte-level token may hold a quarter of a character, so a stop string spans at most this many a char
)
COUNTERS: Final = (
    *("requests", "prompt_tokens", "generated_tokens", "steps", "swaps", "peak_rows"),
    *("prefill_s", "decode_s", "sampling_s", "swap_s"),
)


@dataclass(slots=True, eq=False)
class Row:
    """One sample in the making. All its tokens but the newest stand in the cache."""

    request: Request
    sample: int
    sequence: GeneratedSequence = field(default_factory=GeneratedSequence)
    done: bool = False

    @property
    def cached(self) -> int:
        """Tokens in the cache, which is also the position id of the newest token."""
        return len(self.request.prompt_ids) + len(self.sequence.token_ids) - 1


@dataclass(slots=True, eq=False)
class Request:
    name: str
    prompt_ids: list[int]
    sampling: Sampling
    lane: Lane
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rows = [Row(self, sample) for sample in range(self.sampling.samples)]

    @property
    def longest(self) -> int:
        """Tokens of its longest row at the very end."""
        return len(self.prompt_ids) + self.sampling.max_new_tokens

    @property
    def sequences(self) -> list[GeneratedSequence]:
        return [row.sequence for row in self.rows]

    def end(self, finish: Finish) -> None:
        """Marks every row that is still going as finished in this way."""
        for row in self.rows:
            if not row.done:
                row.sequence.finish, row.done = finish, True


class Stepper:
    """Owns model, cache and batch. `max_sequences` rows decode together at most; `max_tokens` bounds rows times
    columns of the cache at its longest."""

    def __init__(self, model: Any, tokenizer: Any, *, max_sequences: int, max_tokens: int, version: int = 0) -> None:
        kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ()) - {
            "full_attention",
            "sliding_attention",
        }
        if kinds:
            raise EngineError(
                f"the transformers engine serves models of attention layers; this one has {sorted(kinds)}"
            )
        self.model, self.tokenizer, self.version = model, tokenizer, version
        self.max_sequences, self.max_tokens = max_sequences, max_tokens
        self.vocabulary = int(model.get_input_embeddings().num_embeddings)
        self.context = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or max_tokens)
        self.stop_ids = _stop_ids(model, tokenizer)
        self.waiting: dict[Lane, deque[Request]] = {lane: deque() for lane in LANES}
        self.rows: list[Row] = []
        self.cache = BatchCache()
        self.statistics = dict.fromkeys(COUNTERS, 0.0)

    # ------------------------------------------------------------------------------------------ between the steps

    def refuse(self, prompt_ids: Sequence[int], sampling: Sampling) -> str | None:
        """Why this request could never be served, or None."""
        length = len(prompt_ids) + sampling.max_new_tokens
        if not prompt_ids:
            return "the prompt is empty"
        if min(prompt_ids) < 0 or max(prompt_ids) >= self.vocabulary:
            return f"the prompt has token ids outside 0..{self.vocabulary - 1}"
        if length > self.context:
            return (
                f"{len(prompt_ids)} prompt + {sampling.max_new_tokens} new tokens exceed the context of {self.context}"
            )
        if sampling.samples > self.max_sequences:
            return f"{sampling.samples} samples exceed max_sequences = {self.max_sequences}"
        if sampling.samples * length > self.max_tokens:
            return f"{sampling.samples} samples of up to {length} tokens exceed max_tokens = {self.max_tokens}"
        return None

    def submit(self, request: Request) -> None:
        self.waiting[request.lane].append(request)
        self.statistics["requests"] += 1

    def abort(self, name: str) -> list[Request]:
        """Ends the requests of that name; returns them."""
        running = {id(row.request): row.request for row in self.rows}
        found = [request for request in self._everybody_waiting() if request.name == name]
        for request in found:
            self.waiting[request.lane].remove(request)
        found += [request for request in running.values() if request.name == name]
        for request in found:
            request.end("abort")
        self._drop_finished()
        return found

    def swap(self, tensors: Mapping[str, Tensor], version: int) -> None:
        """Replaces the weights in place; rows that are running go on with the new ones.

        Their cached keys and values stay as the old weights made them, so the tokens of a row that lives through a swap
        come from a mixture that no single version computes. Their log-probabilities are still those they were drawn
        with. Raises WeightsError, before any change, for tensors that are not this model's.
        """
        start = time.perf_counter()
        weights.copy_into(self.model, tensors)
        self.version = version
        self.statistics["swaps"] += 1
        self.statistics["swap_s"] += time.perf_counter() - start

    @property
    def idle(self) -> bool:
        return not self.rows and not any(self.waiting.values())

    def gauges(self) -> dict[str, float]:
        return {
            "running": float(len(self.rows)),
            "waiting": float(sum(map(len, self.waiting.values()))),
            "cache_tokens": float(len(self.rows) * self.cache.columns),
        }

    # ------------------------------------------------------------------------------------------------------ a step

    @torch.inference_mode()
    def step(self) -> list[Request]:
        """Admits what fits, then decodes one token for every row. Returns the requests that are complete now."""
        before = {id(row.request): row.request for row in self.rows}
        while (request := self._next_fitting()) is not None:
            self.waiting[request.lane].popleft()
            before[id(request)] = request
            self._prefill(request)
        if self.rows:
            self._decode()
        return [request for request in before.values() if all(row.done for row in request.rows)]

    def _everybody_waiting(self) -> list[Request]:
        return [request for lane in LANES for request in self.waiting[lane]]

    def _next_fitting(self) -> Request | None:
        request = next((queue[0] for queue in self.waiting.values() if queue), None)
        if request is None:
            return None
        rows = len(self.rows) + len(request.rows)
        longest = max([request.longest, *(row.request.longest for row in self.rows)])
        return request if rows <= self.max_sequences and rows * longest <= self.max_tokens else None

    def _prefill(self, request: Request) -> None:
        """One forward over the prompt [1, P] draws the first token of every sample; the rows then join the batch."""
        start = time.perf_counter()
        cache = BatchCache()
        logits = self.model(
            input_ids=self._tensor([request.prompt_ids]),
            position_ids=self._tensor([list(range(len(request.prompt_ids)))]),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        self.statistics["prefill_s"] += time.perf_counter() - start
        self.statistics["prompt_tokens"] += len(request.prompt_ids)
        self._sample(logits.expand(len(request.rows), -1), request.rows)
        going = [row for row in request.rows if not row.done]
        if going:
            self.cache.join(cache, len(going))
            self.rows += going
        self.statistics["peak_rows"] = max(self.statistics["peak_rows"], len(self.rows))

    def _decode(self) -> None:
        start = time.perf_counter()
        columns = self.cache.columns
        padding = self._tensor([columns - row.cached for row in self.rows])
        mask = None  # rows of one length need none, and attention is faster without
        if any(row.cached < columns for row in self.rows):
            mask = (torch.arange(columns + 1, device=self.model.device) >= padding[:, None]).long()
        logits = self.model(
            input_ids=self._tensor([[row.sequence.token_ids[-1]] for row in self.rows]),
            position_ids=self._tensor([[row.cached] for row in self.rows]),
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        self.statistics["decode_s"] += time.perf_counter() - start
        self.statistics["steps"] += 1
        self._sample(logits, self.rows)
        self._drop_finished()

    def _sample(self, logits: Tensor, rows: Sequence[Row]) -> None:
        """Draws the next token of `rows` from `logits` [rows, V], neighbours with the same distribution settings together."""
        start = time.perf_counter()
        at = 0
        for _, group in groupby(rows, key=lambda row: _settings(row.request.sampling)):
            neighbours = list(group)
            uniforms = [
                uniform(row.request.sampling.seed, row.sample, len(row.sequence.token_ids)) for row in neighbours
            ]
            sampling = neighbours[0].request.sampling
            tokens, logprobs = draw(logits[at : at + len(neighbours)], sampling, uniforms)
            at += len(neighbours)
            for row, token, logprob in zip(neighbours, tokens, logprobs, strict=True):
                self._append(row, token, logprob)
        self.statistics["generated_tokens"] += len(rows)
        self.statistics["sampling_s"] += time.perf_counter() - start

    def _append(self, row: Row, token: int, logprob: float) -> None:
        sequence, sampling = row.sequence, row.request.sampling
        sequence.token_ids.append(token)
        sequence.logprobs.append(logprob)
        sequence.versions.append(self.version)
        if token in self.stop_ids or (sampling.stop and self._stopped(sequence.token_ids, sampling.stop)):
            sequence.finish, row.done = "stop", True
        elif len(sequence.token_ids) >= sampling.max_new_tokens:
            sequence.finish, row.done = "length", True

    def _stopped(self, token_ids: Sequence[int], stop: Sequence[str]) -> bool:
        """Whether a stop string has just been completed; only the tail that could hold the longest one is decoded."""
        tail = UTF8_BYTES * max(map(len, stop)) + 1
        text = self.tokenizer.decode(token_ids[-tail:], skip_special_tokens=False)
        return any(string in text for string in stop)

    def _drop_finished(self) -> None:
        kept = [index for index, row in enumerate(self.rows) if not row.done]
        if len(kept) == len(self.rows):
            return
        self.rows = [self.rows[index] for index in kept]
        if self.rows:
            columns = self.cache.columns
            self.cache.keep(kept, min(columns - row.cached for row in self.rows))
        else:
            self.cache = BatchCache()

    def _tensor(self, values: Any) -> Tensor:
        return torch.tensor(values, device=self.model.device)


def _settings(sampling: Sampling) -> tuple[float, int, float, float]:
    return sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p


def _stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """End-of-sequence ids of the generation config and of the tokenizer together."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = list(configured) if isinstance(configured, list) else [configured]
    return frozenset(int(token) for token in [*ids, tokenizer.eos_token_id] if token is not None)
