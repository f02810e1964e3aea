"""Demonstrator: in supervised learning it stands where a generator would, and gives what the record says instead of a sample.

Inbox: groups without completions whose record has a `completion` (a text as the policy would write it, with what an environment
replied in between) or `segments` (a list of `{"text", "own"}`: edited chains of `/v1/sessions`). Outbox: the same with that one
completion; tokens that are not the policy's own are masked, and so stand in no loss. From there it goes on as any group:
rules judge it, the learner trains it, ledger and checkpoints account for it. Blocks on nothing and holds no state: if it dies,
another replica does its work.

Nobody sampled these tokens, so their behaviour log-probability is unknown and stands as 0, and their version is the oldest that the group
may have. The learner must not read either: `objective: {sft: {}}`, `advantage: {ones: {}}`, `correction: {"off": {}}`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from safeladder.actors.actor import Actor, Delivery, Output, Reject
from safeladder.actors.deliberation import instructed, language_of
from safeladder.actors.generator import earlier_turns, question
from safeladder.policies.search.deliberate import grammar
from safeladder.protocol import codec
from safeladder.protocol import messages as m

COMPLETION: Final = "completion"  # of a record: what is to be learned, without `policy.prefix` or with it
SEGMENTS: Final = "segments"


class Segment(msgspec.Struct):
    """`own`: the policy's, to be learned."""

    text: str
    own: bool = True


class Demonstrator(Actor):
    """Encodes text as text: a special token that somebody spelled out stays letters."""

    role = "demonstrator"

    @dataclass
    class Options:
        """`accepted_only`: refuses records whose `accepted` is false, which a person has not said yes to.

        `max_tokens`: a longer completion is set aside as a dead letter, never cut.
        """

        accepted_only: bool = True
        max_tokens: int = 8192

    async def start(self) -> None:
        from safeladder.policies import model

        policy = self.config.policy
        path = await asyncio.to_thread(model.resolve, policy.model, Path(policy.cache) if policy.cache else None)
        self._tokenizer = await asyncio.to_thread(model.load_tokenizer, path)

    def handle(self, delivery: Delivery) -> Output:
        """One completion. Raises Reject for a record that demonstrates nothing."""
        from safeladder.policies.model import encode_prompt

        group, record = delivery.group, delivery.group.record
        if self.options.accepted_only and not record.extra.get("accepted", True):
            raise Reject(f"{record.id!r} was not accepted by who edited it")
        system, prefix = record.extra.get("system", group.system), str(record.extra.get("prefix", group.prefix))
        segments = demonstrated(record, prefix)
        text = "".join(segment.text for segment in segments)
        if grammar.parse(prefix + text).answer is not None:  # a trajectory: the searcher tells its policy the grammar
            system = instructed(system, language_of(record.prompt))
        shots = earlier_turns(record) or [(shot.user, shot.assistant) for shot in self.config.policy.shots]
        tokens = [self._encode(segment.text) for segment in segments]
        ended = bool(record.extra.get("ended", True))
        if ended and self._tokenizer.eos_token_id is not None:
            tokens[-1].append(self._tokenizer.eos_token_id)
        flat = [token for part in tokens for token in part]
        if len(flat) > self.options.max_tokens:
            raise Reject(f"{record.id!r}: its completion has {len(flat)} tokens, {self.options.max_tokens} may")
        own = np.repeat(np.array([segment.own for segment in segments], np.uint8), [len(part) for part in tokens])
        arrays: codec.Arrays = {
            "prompt_ids": np.array(encode_prompt(self._tokenizer, question(record), system, prefix, shots), np.int32),
            "lengths": np.array([len(flat)], np.int32),
            "completion_ids": np.array(flat, np.int32),
            "behaviour_logprobs": np.zeros(len(flat), np.float32),
            "versions": np.full(len(flat), group.min_version, np.int32),
            "own": own,
        }
        self.log.info("group.demonstrated", id=delivery.id, own_tokens=int(own.sum()), tokens=len(flat))
        said = m.Completion(text, "stop" if ended else "length")
        return Output(msgspec.structs.replace(group, completions=[said], system=system, prefix=prefix), arrays)

    def _encode(self, text: str) -> list[int]:
        ids: Sequence[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return list(ids)


def demonstrated(record: m.Record, prefix: str) -> list[Segment]:
    """What the record wants learned, as it goes on from `prefix`. Raises Reject where there is nothing."""
    if SEGMENTS in record.extra:
        try:
            segments = msgspec.convert(record.extra[SEGMENTS], list[Segment])
        except msgspec.ValidationError as error:
            raise Reject(f"{record.id!r}: {SEGMENTS}: {error}") from None
    else:
        text: Any = record.extra.get(COMPLETION)
        if not isinstance(text, str):
            raise Reject(f"{record.id!r} has neither `{COMPLETION}` nor `{SEGMENTS}`: a demonstration needs one")
        segments = cut(text.removeprefix(prefix), prefix)
    if not any(segment.own and segment.text.strip() for segment in segments):
        raise Reject(f"{record.id!r}: nothing of it is the policy's own, so there is nothing to learn")
    return segments


def cut(text: str, opening: str) -> list[Segment]:
    """A completion cut where the policy's part and the environment's meet; nothing of it is lost.

    The environment's part is its reply to a turn with the `opening` of the next one, as `deliberate` encodes it.
    """
    closings, kinds = "|".join(grammar.ACTIONS), "|".join(grammar.REPLIES)
    reply = re.compile(rf"(?<=</)(?:{closings})>(\n<({kinds})>.*?</\2>\n{re.escape(opening)})", re.DOTALL)
    found: list[Segment] = []
    begin = 0
    for match in reply.finditer(text):
        found += [Segment(text[begin : match.start(1)]), Segment(match[1], own=False)]
        begin = match.end(1)
    return [*found, Segment(text[begin:])]
