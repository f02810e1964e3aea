"""Demonstrator: in supervised learning it stands where a generator would, and gives the record's own completion instead of a sampled one.

Inbox: groups without completions whose record has a `completion`. Outbox: the same with that one completion and the arrays of a sampled
one; nobody sampled it, so its log-probabilities are 0 and its version is the one it was admitted for, which no rule about age notices.
From there it goes on as any group: rules judge it, the learner trains it (objective `sft`, advantage `ones`), ledger and checkpoints
account for it. What an environment wrote in a trajectory is marked as not the policy's own, and so stands in no loss.

Blocks on nothing. It holds no state: if it dies, another replica does its work.
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
from safeladder.protocol import messages as m

FIELD: Final = "completion"  # of a record: what is to be learned, without `policy.prefix` or with it


class Demonstrator(Actor):
    """Makes training groups of demonstrations."""

    role = "demonstrator"

    @dataclass
    class Options:
        """`max_tokens`: a longer completion is set aside as a dead letter, never cut."""

        max_tokens: int = 8192

    async def start(self) -> None:
        from safeladder.policies import model

        policy = self.config.policy
        path = await asyncio.to_thread(model.resolve, policy.model, policy.cache and Path(policy.cache))
        self._tokenizer = await asyncio.to_thread(model.load_tokenizer, path)

    def handle(self, delivery: Delivery) -> Output:
        from safeladder.policies.model import encode_prompt

        group = delivery.group
        text = completion(group)
        system = group.system
        if (
            grammar.parse(group.prefix + text).answer is not None
        ):  # a trajectory: the searcher tells its policy the grammar
            system = instructed(system, language_of(group.record.prompt))
        shots = earlier_turns(group.record) or [(shot.user, shot.assistant) for shot in self.config.policy.shots]
        prompt = encode_prompt(self._tokenizer, question(group.record), system, group.prefix, shots)
        parts = segments(text, group.prefix)
        tokens = [self._encode(part) for part, _ in parts]
        tokens[-1] = [*tokens[-1], self._tokenizer.eos_token_id]
        flat = [token for part in tokens for token in part]
        if len(flat) > self.options.max_tokens:
            raise Reject(f"{delivery.id!r}: its completion has {len(flat)} tokens, {self.options.max_tokens} may")
        own = [int(mine) for part, (_, mine) in zip(tokens, parts, strict=True) for _ in part]
        arrays = {
            "prompt_ids": np.array(prompt, np.int32),
            "lengths": np.array([len(flat)], np.int32),
            "completion_ids": np.array(flat, np.int32),
            "behaviour_logprobs": np.zeros(len(flat), np.float32),
            "versions": np.full(len(flat), group.min_version, np.int32),
            "own": np.array(own, np.uint8),
        }
        return Output(msgspec.structs.replace(group, completions=[m.Completion(text, "stop")]), arrays)

    def _encode(self, text: str) -> list[int]:
        # text of a file is never a special token, just as what an environment writes is none
        ids: Sequence[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return list(ids)


def completion(group: m.Group) -> str:
    """What the record wants learned, as it goes on from the group's prefix. Raises Reject where there is none."""
    given: Any = group.record.extra.get(FIELD)
    if not isinstance(given, str) or not given.strip():
        raise Reject(f"{group.record.id!r} has no `{FIELD}`: a demonstration needs one")
    return given.removeprefix(group.prefix)


def segments(text: str, opening: str) -> list[tuple[str, bool]]:
    """A completion cut where the policy's part and the environment's meet: (text, whether the policy wrote it), nothing lost.

    The environment's part is its reply to a turn with the `opening` of the next one, as `deliberate` encodes it.
    """
    closings, kinds = "|".join(grammar.ACTIONS), "|".join(grammar.REPLIES)
    reply = re.compile(rf"(?<=</)(?:{closings})>(\n<({kinds})>.*?</\2>\n{re.escape(opening)})", re.DOTALL)
    found: list[tuple[str, bool]] = []
    begin = 0
    for match in reply.finditer(text):
        found += [(text[begin : match.start(1)], True), (match[1], False)]
        begin = match.end(1)
    return [*found, (text[begin:], True)]
