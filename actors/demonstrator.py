"""Demonstrator: puts what a record says in the place of what a generator would sample: edited chains of `/v1/sessions`, or one's own.

Inbox: groups without completions whose record has `extra.segments`, a list of `{"text", "own"}`. Outbox: the same with one completion,
whose tokens are masked as an environment's are where a segment is not `own`. Blocks on nothing and
holds no state: it may be killed at any time.

Nobody sampled these tokens, so their behaviour log-probability is unknown and stands as 0, and their version is the oldest that the group
may have. The learner must not read either: `objective: {sft: {}}`, `advantage: {ones: {}}`, `correction: {"off": {}}`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from safeladder.actors.actor import Actor, Delivery, Output, Reject
from safeladder.actors.generator import earlier_turns, question
from safeladder.protocol import messages as m


class Segment(msgspec.Struct):
    """`own`: to be learned."""

    text: str
    own: bool = True


class Demonstrator(Actor):
    """Encodes text as text: a special token that a person spelled out stays letters."""

    role = "demonstrator"

    @dataclass
    class Options:
        """`accepted_only`: refuses records whose `accepted` is false, which a person has not said yes to."""

        accepted_only: bool = True

    async def start(self) -> None:
        from safeladder.policies import model

        policy = self.config.policy
        path = await asyncio.to_thread(model.resolve, policy.model, policy.cache and Path(policy.cache))
        self._tokenizer = await asyncio.to_thread(model.load_tokenizer, path)

    def handle(self, delivery: Delivery) -> Output:
        """One completion. Raises Reject for a record that demonstrates nothing."""
        from safeladder.policies.model import encode_prompt

        group = delivery.group
        extra = group.record.extra
        if self.options.accepted_only and not extra.get("accepted", True):
            raise Reject(f"{group.record.id!r} was not accepted by who edited it")
        segments = self._segments(group.record)
        system, prefix = extra.get("system", group.system), str(extra.get("prefix", group.prefix))
        shots = earlier_turns(group.record) or [(shot.user, shot.assistant) for shot in self.config.policy.shots]
        prompt = encode_prompt(self._tokenizer, question(group.record), system, prefix, shots)
        tokens = [self._encode(segment.text) for segment in segments]
        own = [segment.own for segment in segments]
        if extra.get("ended", True) and self._tokenizer.eos_token_id is not None:
            tokens.append([self._tokenizer.eos_token_id])
            own.append(own[-1])
        flat = [token for part in tokens for token in part]
        arrays = {
            "prompt_ids": np.array(prompt, np.int32),
            "lengths": np.array([len(flat)], np.int32),
            "completion_ids": np.array(flat, np.int32),
            "behaviour_logprobs": np.zeros(len(flat), np.float32),
            "versions": np.full(len(flat), group.min_version, np.int32),
            "own": np.repeat(np.array(own, np.uint8), [len(part) for part in tokens]),
        }
        said = m.Completion(
            "".join(segment.text for segment in segments), "stop" if extra.get("ended", True) else "length"
        )
        self.log.info("group.demonstrated", id=delivery.id, own_tokens=int(arrays["own"].sum()), tokens=len(flat))
        return Output(msgspec.structs.replace(group, completions=[said], system=system, prefix=prefix), arrays)

    def _encode(self, text: str) -> Sequence[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids

    def _segments(self, record: m.Record) -> list[Segment]:
        try:
            segments = msgspec.convert(record.extra.get("segments"), list[Segment])
        except msgspec.ValidationError as error:
            raise Reject(f"{record.id!r}: extra.segments: {error}") from None
        if not any(segment.own and segment.text for segment in segments):
            raise Reject(f"{record.id!r}: nothing of it is the policy's own, so there is nothing to learn")
        return segments
