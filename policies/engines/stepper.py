"""Continuous batching, one step at a time: requests join and leave the batch between two decode steps.

No thread and no clock decide anything here: the same submissions between the same steps give the same batches. The
engine around it owns the thread; see `transformers_engine`.

What gates a waiting request: its lane and priority (see `Waiting`) and room for all its samples. A request that does not
fit blocks those behind it, so a large one is never starved by small ones; what unblocks it is rows that finish.

The samples of a request share one prefill, are of one length at every step, and hence have no padding among themselves.
A request that is alone in the batch, and whose prompt takes nothing from the prefix cache, goes through forwards whose
shapes depend on it alone, so its tokens and log-probabilities are the same bit for bit whenever it runs so. Otherwise
its random numbers stay the same, but sums of another shape may round a probability in its last bits.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain, groupby
from typing import Any, Final

import torch
from torch import Tensor

from safeladder.policies.engines.base import CachePolicy, EngineError, GeneratedSequence
from safeladder.policies.engines.decoder import Decoder, States, TransformersDecoder, split, tokens
from safeladder.policies.engines.llama import LlamaDecoder, serves
from safeladder.policies.engines.prefixes import Prefixes, agreeing
from safeladder.policies.engines.requests import Request, Row, Waiting
from safeladder.policies.engines.sampling import draw, uniform
from safeladder.policies.engines.vision_decoder import VisionDecoder
from safeladder.policies.vision import FAMILIES, Layout, Picture
from safeladder.protocol.messages import Sampling

# A byte-level token may hold a quarter of a character, so a stop string spans at most this many a character.
UTF8_BYTES: Final = 4
SHORT: Final = 16  # tokens of a completion that is scored from the prefix cache
COUNTERS: Final = (
    *("requests", "prompt_tokens", "cached_prompt_tokens", "generated_tokens", "scored_tokens", "steps", "swaps"),
    *("peak_rows", "prefill_s", "decode_s", "sampling_s", "swap_s"),
)


class Stepper:
    """Owns decoder, batch and prefix cache.

    `max_sequences` rows decode together at most. `max_tokens` bounds rows times columns of the cache at its longest and
    the prefix cache together, which lives in what the rows leave; `prefix_tokens` bounds the prefix cache further (0: none).
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_sequences: int,
        max_tokens: int,
        prefix_tokens: int | None = None,
        version: int = 0,
    ) -> None:
        text = model.config.get_text_config()
        kinds = set(getattr(text, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
        if kinds:
            raise EngineError(
                f"the transformers engine serves models of attention layers; this one has {sorted(kinds)}"
            )
        self.model, self.tokenizer, self.version = model, tokenizer, version
        self.max_sequences, self.max_tokens = max_sequences, max_tokens
        self.prefix_tokens = max_tokens if prefix_tokens is None else min(prefix_tokens, max_tokens)
        self.vocabulary = int(model.get_input_embeddings().num_embeddings)
        self.context = int(getattr(text, "max_position_embeddings", 0) or max_tokens)
        self.stop_ids = _stop_ids(model, tokenizer)
        self.decoder: Decoder
        if model.config.model_type in FAMILIES:
            self.decoder = VisionDecoder(model)
        else:
            self.decoder = LlamaDecoder(model) if serves(model) else TransformersDecoder(model)
        self.prefixes = Prefixes(self.prefix_tokens)
        self.waiting = Waiting()
        self.rows: list[Row] = []
        self.statistics = dict.fromkeys(COUNTERS, 0.0)
        self._remake = False  # the rows' cache, by the weights of now, before the next token

    # ------------------------------------------------------------------------------------------ between the steps

    def refuse(self, prompt_ids: Sequence[int], sampling: Sampling, begun: Sequence[GeneratedSequence]) -> str | None:
        """Why this request could never be served, or None."""
        length = len(prompt_ids) + sampling.max_new_tokens
        if not prompt_ids:
            return "the prompt is empty"
        if begun and len(begun) != sampling.samples:
            return f"{len(begun)} samples are begun, {sampling.samples} are asked for"
        if any(not len(start.token_ids) == len(start.logprobs) == len(start.versions) for start in begun):
            return "a begun sample needs one log-probability and one version a token"
        if any(len(start.token_ids) > sampling.max_new_tokens for start in begun):
            return f"a begun sample has more than {sampling.max_new_tokens} tokens already"
        if reason := self.foreign([*prompt_ids, *(token for start in begun for token in start.token_ids)]):
            return reason
        if length > self.context:
            return (
                f"{len(prompt_ids)} prompt + {sampling.max_new_tokens} new tokens exceed the context of {self.context}"
            )
        if sampling.samples > self.max_sequences:
            return f"{sampling.samples} samples exceed max_sequences = {self.max_sequences}"
        if sampling.samples * length > self.max_tokens:
            return f"{sampling.samples} samples of up to {length} tokens exceed max_tokens = {self.max_tokens}"
        return None

    def foreign(self, ids: Sequence[int]) -> str | None:
        if ids and (min(ids) < 0 or max(ids) >= self.vocabulary):
            return f"there are token ids outside 0..{self.vocabulary - 1}"
        return None

    def submit(self, request: Request) -> None:
        self.waiting.put(request)
        self.statistics["requests"] += 1

    def find(self, name: str) -> list[Request]:
        """The requests of that name, waiting or running."""
        return [request for request in [*self.waiting, *self.running] if request.name == name]

    @torch.inference_mode()
    def abort(self, request: Request) -> None:
        """Ends a request, waiting or running; what it has so far stays in its rows."""
        self.waiting.remove(request)
        request.end("abort")
        self._drop_finished()

    def swap(
        self, tensors: Mapping[str, Tensor], version: int, cache: CachePolicy = "keep", prepared: Any = None
    ) -> None:
        """Replaces the weights in place; rows that are running go on with the new ones.

        With "keep", their cached keys and values stay as the old weights made them, so the tokens of a row that lives
        through a swap come from a mixture that no single version computes. Their log-probabilities are still those they
        were drawn with. With "recompute" the cache is made anew before the next token. Raises WeightsError, before any
        change, for tensors that are not this model's.
        """
        start = time.perf_counter()
        self.decoder.load(tensors, prepared)
        self.prefixes.clear()
        self.version = version
        self._remake = bool(self.rows) and (cache == "recompute" or self._remake)
        for row in self.rows:
            row.current = False
        self.statistics["swaps"] += 1
        self.statistics["swap_s"] += time.perf_counter() - start

    @property
    def idle(self) -> bool:
        return not self.rows and not len(self.waiting)

    @property
    def running(self) -> list[Request]:
        return list({id(row.request): row.request for row in self.rows}.values())

    def gauges(self) -> dict[str, float]:
        return {
            "running": float(len(self.rows)),
            "waiting": float(len(self.waiting)),
            "cache_tokens": float(len(self.rows) * self.decoder.columns + self.prefixes.tokens),
            "prefix_tokens": float(self.prefixes.tokens),
            "cache_capacity": float(self.max_tokens),
        }

    @torch.inference_mode()
    def score(
        self,
        prompt_ids: Sequence[int],
        completion_ids: Sequence[int],
        temperature: float,
        pictures: Mapping[int, Picture] | None = None,
    ) -> list[float]:
        """See `Engine.score`. The logits [completion, V] exist at once, in the model's own type.

        The prompt of a short completion goes through the prefix cache, so that a judge's labels cost their prompt once.
        """
        if 0 < len(completion_ids) <= SHORT and not pictures:
            logits = self._after(prompt_ids, completion_ids)
        else:
            ids = [*prompt_ids, *completion_ids][:-1]
            layout = Layout(self.model, pictures)
            inputs = layout.inputs(ids, layout.positions(ids)[0])
            logits = self.model(**inputs, use_cache=False, logits_to_keep=len(completion_ids)).logits[0]
        chosen = self._tensor(list(completion_ids))[:, None]
        self.statistics["scored_tokens"] += len(completion_ids)
        found: list[Tensor] = [
            (part.float() / temperature).log_softmax(-1).gather(-1, token)
            for part, token in zip(torch.split(logits, 256), torch.split(chosen, 256), strict=True)
        ]
        return [float(value) for part in found for value in part[:, 0]]

    def _after(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> Tensor:
        """[completion, V] the logits of each token of the completion."""
        ids = list(prompt_ids)
        before = self.prefixes.find(ids, len(ids) - 1)
        if missing := ids[tokens(before) : -1]:
            (before,), _ = self.decoder.extend([(missing, before)])
            self.prefixes.insert(ids[:-1], partial(split, before))
        return self.decoder.logits([ids[-1], *completion_ids[:-1]], before)

    # ------------------------------------------------------------------------------------------------------ a step

    @torch.inference_mode()
    def step(self) -> list[Request]:
        """Admits what fits, then decodes one token for every row. Returns the requests that are complete now."""
        if self._remake:
            self._recompute()
        before = {id(request): request for request in self.running}
        admitted = self._admitted()
        if admitted:
            before |= {id(request): request for request in admitted}
            self._begin([request for request in admitted if request.going])
        if self.rows:
            self._decode()
        return [request for request in before.values() if not request.going]

    def _admitted(self) -> list[Request]:
        """Takes the waiting requests that fit beside the rows there are, in their order."""
        admitted: list[Request] = []
        rows, longest = len(self.rows), max((row.request.longest for row in self.rows), default=0)
        while (request := self.waiting.first()) is not None:
            rows, longest = rows + len(request.going), max(longest, request.longest)
            if rows > self.max_sequences or rows * longest > self.max_tokens:
                break
            admitted.append(self.waiting.take())
            self._give_room(self.max_tokens - rows * longest)
        return admitted

    def _give_room(self, left: int) -> None:
        self.prefixes.capacity = min(self.prefix_tokens, left)
        self.prefixes.shrink()

    def _begin(self, requests: Sequence[Request]) -> None:
        """Computes the prompts and draws the first token of every sample that has none; its rows then join the batch."""
        if not requests:
            return
        start = time.perf_counter()
        befores = []
        for request in requests:
            ids = request.prompt_ids
            self._offer_rows(ids)
            before = self.prefixes.find(ids, len(ids) - 1)  # the last token's logits are asked for
            if (whole := _whole(ids, tokens(before))) < tokens(before):
                before = split(before, 0, whole) if whole else []
            befores.append(before)
            self.statistics["prompt_tokens"] += len(ids)
            self.statistics["cached_prompt_tokens"] += tokens(befores[-1])
        prompts, logits = self._fill(requests, befores)
        for request, states in zip(requests, prompts, strict=True):
            self.prefixes.insert(request.prompt_ids, partial(split, states))
        self.statistics["prefill_s"] += time.perf_counter() - start
        fresh = [[row for row in request.going if not row.sequence.token_ids] for request in requests]
        if any(fresh):
            times = self._tensor([len(rows) for rows in fresh])
            self._sample(logits.repeat_interleave(times, 0), list(chain.from_iterable(fresh)))
        self._join(
            [row for request in requests for row in request.going], dict(zip(map(id, requests), prompts, strict=True))
        )
        self.statistics["peak_rows"] = max(self.statistics["peak_rows"], len(self.rows))

    def _fill(self, requests: Sequence[Request], befores: Sequence[States]) -> tuple[list[States], Tensor]:
        return self.decoder.extend(
            [(each.prompt_ids[tokens(before) :], before) for each, before in zip(requests, befores, strict=True)],
            {name: picture for request in requests for name, picture in request.pictures.items()},
        )

    def _join(self, rows: list[Row], prompts: Mapping[int, States]) -> None:
        """Adds rows to the batch, computing what they have behind their prompts but the newest token."""
        start = time.perf_counter()
        states = [prompts[id(row.request)] for row in rows]
        begun = [at for at, row in enumerate(rows) if len(row.sequence.token_ids) > 1]
        if begun:
            tails, _ = self.decoder.extend([(rows[at].sequence.token_ids[:-1], states[at]) for at in begun])
            for at, tail in zip(begun, tails, strict=True):
                states[at] = tail
        if rows:
            self.decoder.join(states)
            self.rows += rows
        self.statistics["prefill_s"] += time.perf_counter() - start

    def _recompute(self) -> None:
        """Makes the cache of all rows anew by the weights of now."""
        start = time.perf_counter()
        rows, requests = self.rows, self.running
        self._remake, self.rows = False, []
        self.decoder.keep([], [])
        prompts, _ = self._fill(requests, [[] for _ in requests])
        self._join(rows, dict(zip(map(id, requests), prompts, strict=True)))
        for row in rows:
            row.current = True
        self.statistics["swap_s"] += time.perf_counter() - start

    def _offer_rows(self, ids: list[int]) -> None:
        """Puts into the prefix cache what `ids` have in common with a running row, where that is more than it holds."""
        known = self.prefixes.matched(ids)
        for number, row in enumerate(self.rows):
            common = agreeing(row.cached_ids, ids) if row.current else 0
            if common > known:
                self.prefixes.insert(ids[:common], partial(self.decoder.states, number, row.cached))
                known = common

    def _decode(self) -> None:
        start = time.perf_counter()
        logits = self.decoder.step([row.sequence.token_ids[-1] for row in self.rows], [row.cached for row in self.rows])
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
            drawn, logprobs = draw(logits[at : at + len(neighbours)], sampling, uniforms)
            at += len(neighbours)
            for row, token, logprob in zip(neighbours, drawn, logprobs, strict=True):
                self._append(row, token, logprob)
        self.statistics["generated_tokens"] += len(rows)
        self.statistics["sampling_s"] += time.perf_counter() - start

    def _append(self, row: Row, token: int, logprob: float) -> None:
        sequence, sampling = row.sequence, row.request.sampling
        sequence.token_ids.append(token)
        sequence.logprobs.append(logprob)
        sequence.versions.append(self.version)
        if token in self.stop_ids or (sampling.stop and self._stopped(sequence.token_ids, sampling.stop)):
            row.end("stop")
        elif len(sequence.token_ids) >= sampling.max_new_tokens:
            row.end("length")

    def _stopped(self, token_ids: Sequence[int], stop: Sequence[str]) -> bool:
        """Whether a stop string has just been completed; only the tail that could hold the longest one is decoded."""
        tail = UTF8_BYTES * max(map(len, stop)) + 1
        text = self.tokenizer.decode(token_ids[-tail:], skip_special_tokens=False)
        return any(string in text for string in stop)

    def _drop_finished(self) -> None:
        """Takes the finished rows out of the batch; the prefix cache keeps what it has room for."""
        kept = [index for index, row in enumerate(self.rows) if not row.done]
        if len(kept) == len(self.rows):
            return
        # Rows from the end fill the gaps, so that few of them move.
        fill = iter([index for index in kept if index >= len(kept)])
        kept = [next(fill) if self.rows[index].done else index for index in range(len(kept))]
        for number, row in enumerate(self.rows):
            if row.done and row.current:
                self.prefixes.insert(row.cached_ids, partial(self.decoder.states, number, row.cached))
        self.rows = [self.rows[index] for index in kept]
        self.decoder.keep(kept, [row.cached for row in self.rows])
        # What the rows need at their longest was set aside when they came; those that are gone give it back.
        self._give_room(self.max_tokens - len(self.rows) * max((row.request.longest for row in self.rows), default=0))

    def _tensor(self, values: Any) -> Tensor:
        return torch.tensor(values, device=self.model.device)


def _whole(ids: Sequence[int], count: int) -> int:
    """As many of the first `count` tokens as hold no image in part; an image's tokens are negative and equal."""
    while 0 < count < len(ids) and ids[count] < 0 and ids[count - 1] == ids[count]:
        count -= 1
    return count


def _settings(sampling: Sampling) -> tuple[float, int, float, float]:
    return sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p


def _stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """End-of-sequence ids of the generation config and of the tokenizer together."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = list(configured) if isinstance(configured, list) else [configured]
    return frozenset(int(token) for token in [*ids, tokenizer.eos_token_id] if token is not None)
