"""A generator that plays a policy of deliberation: searches, reads what it found, answers right or wrong, sure or not, as the seed says.

An actor like any other: its tokens are the tiny model's, so that reference and learner work on them as on sampled ones. Its own module,
because runs name it as `scripted:Scripted`.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from tokenizers import Tokenizer

from safeladder.actors.actor import Actor, Delivery, Output
from safeladder.protocol import messages as m

RESULTS = re.compile(r"<results>(\[.*)\n")


class Scripted(Actor):
    """Four ways to end, by the seed: 308 or 307, confidence 9 or 2. Every fourth trajectory begins with a malformed turn."""

    role = "generator"

    @dataclass
    class Options:
        max_sequences: int = 8
        max_tokens: int = 8192

    async def start(self) -> None:
        from safeladder.policies import model

        policy = self.config.policy
        path = await asyncio.to_thread(model.resolve, policy.model, policy.cache and Path(policy.cache))
        self._tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))

    def handle(self, delivery: Delivery) -> Output:
        group = delivery.group
        if "prompt_ids" in delivery.arrays:
            prompt = delivery.arrays["prompt_ids"].tolist()
        else:
            said = f"{group.system}\n{group.record.prompt}\n{group.prefix}"
            prompt = self._tokenizer.encode(said, add_special_tokens=False).ids
        text = self._turn(self._tokenizer.decode(prompt, skip_special_tokens=False), group)
        text = text if group.prefix else "<think>" + text
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids[: group.sampling.max_new_tokens]
        text = self._tokenizer.decode(ids)
        arrays = {
            "prompt_ids": np.array(prompt, np.int32),
            "lengths": np.array([len(ids)], np.int32),
            "completion_ids": np.array(ids, np.int32),
            "behaviour_logprobs": np.full(len(ids), -5.0, np.float32),
            "versions": np.full(len(ids), group.min_version, np.int32),
        }
        return Output(msgspec.structs.replace(group, completions=[m.Completion(text, "stop")]), arrays)

    def _turn(self, before: str, group: m.Group) -> str:
        seed = group.sampling.seed
        found = RESULTS.findall(before)
        if "</document>" in before:
            answer, confidence = ("308" if seed % 2 else "307"), (9 if seed // 2 % 2 else 2)
            return f"read</think><confidence>{confidence}</confidence><answer>{answer}</answer>"
        if found and (rows := json.loads(found[-1])):
            return f"found</think><confidence>4</confidence><read>{rows[0]['id']}</read>"
        if seed // 4 % 4 == 0 and "</notice>" not in before:
            return "no end"
        return f"look</think><confidence>1</confidence><search>{group.record.prompt}</search>"
