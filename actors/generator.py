"""Generator: samples completions, token-in token-out, with the log-probability and the weight version of every token.

Inbox: groups without completions. Outbox: the same with completions and their arrays. Two things block it: the engine's capacity
(requests wait inside the engine, by lane), and weights that are too old for a group (`min_version`), for which it waits
`version_wait_s` and then gives the group back. The learner unblocks it by publishing. If the learner dies, the generator goes on
with the weights it has. If this process dies, the hub gives its groups to another; what was half written is written again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from safeladder.actors.actor import Actor, ActorError, Delivery, Output, Postpone
from safeladder.protocol import messages as m


class Generator(Actor):
    """Serves the run's newest policy through an engine."""

    role = "generator"

    @dataclass
    class Options:
        """`engine`: a name of `policies/engines`, or module:Class. `max_sequences`, `max_tokens`: rows and KV tokens in the batch
        at once. `engine_options`: what that engine alone knows, see docs/engines.md."""

        engine: str = "transformers"
        max_sequences: int = 16
        max_tokens: int = 16384
        version_wait_s: float = 300.0
        engine_options: dict[str, Any] = field(default_factory=dict)

    async def start(self) -> None:
        from safeladder.policies import model
        from safeladder.policies.engines.registry import create

        policy = self.config.policy
        path = await asyncio.to_thread(model.resolve, policy.model, policy.cache and Path(policy.cache))
        self._tokenizer = await asyncio.to_thread(model.load_tokenizer, path)
        self._engine = await asyncio.to_thread(
            create,
            self.options.engine,
            path,
            dtype=policy.dtype,
            device=self.context.pool.device,
            max_sequences=self.options.max_sequences,
            max_tokens=self.options.max_tokens,
            options=self.options.engine_options,
        )
        await self._engine.start()
        self._version_changed = asyncio.Condition()
        self._wanted: Mapping[str, Any] | None = self.link.state.get("policy")
        self._published = asyncio.Event()
        self._published.set()

    def noticed(self, topic: str, value: Mapping[str, Any]) -> None:
        if topic == "policy" and hasattr(self, "_published"):
            self._wanted = value
            self._published.set()

    async def run(self) -> None:
        """Takes each publication as it comes, the newest first, until the process stops."""
        stop = asyncio.create_task(self.stopping.wait())
        while not stop.done():
            news = asyncio.create_task(self._published.wait())
            health = asyncio.create_task(asyncio.sleep(1.0))
            await asyncio.wait({news, stop, health}, return_when=asyncio.FIRST_COMPLETED)
            health.cancel()
            statistics = self._engine.statistics()
            if statistics.get("steps") != self.metrics.get("steps"):
                self.worked()  # an engine that decodes is making progress
            self.metrics = statistics
            if self._engine.error is not None:
                raise ActorError(f"the engine has failed: {self._engine.error}") from self._engine.error
            if news.done():
                self._published.clear()
                await self._take(self._wanted)
            else:
                news.cancel()

    async def _take(self, wanted: Mapping[str, Any] | None) -> None:
        """Loads a publication between two decode steps. One that has been retired meanwhile is passed over."""
        from safeladder.policies.engines.base import EngineError
        from safeladder.policies.weights import WeightsError

        if not wanted or not wanted.get("directory") or wanted["version"] <= self._engine.version:
            return
        try:
            begun = asyncio.get_running_loop().time()
            await self._engine.load_weights(Path(wanted["directory"]), wanted["version"])
        except (WeightsError, EngineError) as error:
            self.log.warning("weights.refused", version=wanted["version"], error=str(error))
            return
        seconds = asyncio.get_running_loop().time() - begun
        self.log.info("weights.loaded", version=wanted["version"], seconds=round(seconds, 3))
        async with self._version_changed:
            self._version_changed.notify_all()

    async def handle(self, delivery: Delivery) -> Output:
        from safeladder.policies.model import encode_prompt

        group = delivery.group
        await self._recent_enough(group.min_version)
        policy = self.config.policy
        shots = [(shot.user, shot.assistant) for shot in policy.shots]
        prompt_ids = encode_prompt(self._tokenizer, question(group.record), group.system, group.prefix, shots)
        begun = asyncio.get_running_loop().time()
        sequences = await self._engine.generate(
            prompt_ids, group.sampling, lane=delivery.work.lane, request=delivery.id
        )
        seconds = asyncio.get_running_loop().time() - begun
        completions = [
            m.Completion(self._tokenizer.decode(sequence.token_ids, skip_special_tokens=True), sequence.finish)
            for sequence in sequences
        ]
        lengths = np.array([len(sequence.token_ids) for sequence in sequences], np.int32)
        arrays = {
            "prompt_ids": np.array(prompt_ids, np.int32),
            "lengths": lengths,
            "completion_ids": np.concatenate([np.array(s.token_ids, np.int32) for s in sequences]),
            "behaviour_logprobs": np.concatenate([np.array(s.logprobs, np.float32) for s in sequences]),
            "versions": np.concatenate([np.array(s.versions, np.int32) for s in sequences]),
        }
        self.log.info(
            "group.generated",
            id=delivery.id,
            tokens=int(lengths.sum()),
            seconds=round(seconds, 3),
            versions=[int(arrays["versions"].min(initial=2**31 - 1)), int(arrays["versions"].max(initial=0))],
        )
        return Output(msgspec.structs.replace(group, completions=completions), arrays)

    def revoked(self, delivery: Delivery) -> None:
        self._engine.abort(delivery.id)

    async def _recent_enough(self, version: int) -> None:
        try:
            async with asyncio.timeout(self.options.version_wait_s), self._version_changed:
                await self._version_changed.wait_for(lambda: self._engine.version >= version)
        except TimeoutError:
            waited_s = self.options.version_wait_s
            raise Postpone(
                f"version {version} did not come in {waited_s} s, this engine has {self._engine.version}"
            ) from None

    async def stop(self) -> None:
        await self._engine.stop()


def question(record: m.Record) -> str:
    """The user's turn: the prompt, with lettered choices under it where the record has some."""
    if not record.choices:
        return record.prompt
    lines = [f"{chr(ord('A') + index)}. {choice}" for index, choice in enumerate(record.choices)]
    return "\n".join([record.prompt, *lines])
