"""Generator: samples completions, token-in token-out, with the log-probability and the weight version of every token.

Inbox: groups without completions. Outbox: the same with completions and their arrays. Two things block it: the engine's capacity
(requests wait inside the engine, by lane), and weights that are too old for a group (`min_version`), for which it waits
`version_wait_s` and then gives the group back. The learner unblocks it by publishing. If the learner dies, the generator goes on
with the weights it has. If this process is told to stop, it hands its groups back at once with the tokens that they have, and
another goes on from there (`continuation.py`). If it dies, the hub gives its groups to another, which begins anew.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from safeladder.actors.actor import Actor, ActorError, Delivery, HandBack, Output, Postpone, Reject
from safeladder.actors.continuation import Misfit, output, sequences_of, tokens, unfinished, version_range
from safeladder.actors.image_source import ImageSource
from safeladder.actors.intake import Intake
from safeladder.launch.rundir import RunDirectory
from safeladder.policies.engines.base import EngineError, GeneratedSequence
from safeladder.protocol import messages as m
from safeladder.protocol.images import Image, has_images, references
from safeladder.protocol.keys import ensure_secret

CANCEL_S = 5.0  # for a part of the work to end after it was cancelled


class Generator(Actor):
    """Serves the run's newest policy through an engine."""

    role = "generator"

    @dataclass
    class Options:
        """`engine`: a name of `policies/engines`, or module:Class. `max_sequences`, `max_tokens`: rows and KV tokens in the batch
        at once. `engine_options`: what that engine alone knows, see docs/engines.md.

        pull_weights: from the learner's server (`weights.serve`) also where its folder can be seen. attest_s: for an engine
        to score the probe of a publication.
        """

        engine: str = "transformers"
        max_sequences: int = 16
        max_tokens: int = 16384
        engine_options: dict[str, Any] = field(default_factory=dict)
        version_wait_s: float = 300.0
        pull_weights: bool = False
        attest_s: float = 60.0

    async def start(self) -> None:
        from safeladder.policies import model
        from safeladder.policies.engines.registry import create
        from safeladder.policies.vision import Processor

        policy = self.config.policy
        path = await asyncio.to_thread(model.resolve, policy.model, Path(policy.cache) if policy.cache else None)
        self._tokenizer = await asyncio.to_thread(model.load_tokenizer, path)
        self._processor = await asyncio.to_thread(Processor.open, path, self._tokenizer)
        self._images = ImageSource(self)
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
        secret = RunDirectory(self.context.directory).weights_key
        self._engine.weights_key = await asyncio.to_thread(ensure_secret, secret)
        await self._engine.start()
        self._intake = Intake(self, self._engine, always_pull=self.options.pull_weights, attest_s=self.options.attest_s)
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
            self.metrics = dict(statistics)
            if self._engine.error is not None:
                raise ActorError(f"the engine has failed: {self._engine.error}") from self._engine.error
            if news.done():
                self._published.clear()
                await self._intake.take(self._wanted)
            else:
                news.cancel()

    async def handle(self, delivery: Delivery) -> Output | HandBack:
        group = delivery.group
        wait_s = self.options.version_wait_s
        if not await self._unless_stopping(self._intake.reach(group.min_version, wait_s)):
            raise Postpone("the worker is stopping")
        shown = await asyncio.to_thread(self._shown, delivery)
        prompt_ids = self._prompt(delivery)
        sequences = self._begun(delivery, prompt_ids)
        kept = tokens(sequences)
        lengths = [len(sequence.token_ids) for sequence in sequences]
        since = asyncio.get_running_loop().time()
        whole = await self._unless_stopping(self._sample(delivery, prompt_ids, shown, sequences))
        newest = max((v for s, at in zip(sequences, lengths, strict=True) for v in s.versions[at:]), default=0)
        # what a version has sampled here stays here until that version has proved itself
        if newest > self._intake.proved and not await self._unless_stopping(self._intake.reach(newest, wait_s)):
            raise Postpone(f"the worker is stopping, and version {newest} is not proved")
        if delivery.revoked or (tokens(sequences) == kept and not whole):
            raise Postpone("the lease was revoked" if delivery.revoked else "the worker is stopping")
        made = output(group, prompt_ids, sequences, self._decode)
        counts = {"id": delivery.id, "tokens": tokens(sequences), "kept": kept, "versions": version_range(sequences)}
        half_way = isinstance(made.payload, m.Group) and unfinished(made.payload)
        if whole and half_way:
            raise EngineError(f"the engine has aborted {delivery.id!r}, which nobody asked for")
        if half_way:
            self.log.info("group.handed_back", **counts)
            return HandBack("the worker is stopping", made)
        completions = made.payload.completions if isinstance(made.payload, m.Group) else []
        self.log.info(
            "group.generated",
            seconds=round(asyncio.get_running_loop().time() - since, 3),
            lengths=[len(sequence.token_ids) for sequence in sequences],
            finishes=[completion.finish for completion in completions],
            **counts,
        )
        if self.config.logs.texts:
            answers = [completion.text for completion in completions]
            self.log.info("group.texts", id=delivery.id, prompt=group.record.prompt, answers=answers)
        return made

    def _prompt(self, delivery: Delivery) -> list[int]:
        """The tokens that came along, of a search that continues exactly these or of a group that was handed back; else the
        record's."""
        from safeladder.policies.model import ModelError, encode_prompt

        if "prompt_ids" in delivery.arrays:
            given: list[int] = delivery.arrays["prompt_ids"].tolist()
            return given
        group = delivery.group
        shots = earlier_turns(group.record) or [(shot.user, shot.assistant) for shot in self.config.policy.shots]
        sizes = [(reference.width, reference.height) for reference in references(group.record)]
        asked = question(group.record)
        try:
            return encode_prompt(
                self._tokenizer, asked, group.system, group.prefix, shots, images=sizes, processor=self._processor
            )
        except ModelError as error:
            raise Reject(f"{group.record.id!r}: {error}") from None

    def _shown(self, delivery: Delivery) -> list[Image]:
        """The images of a group. Raises Reject where this policy or this engine takes none."""
        record = delivery.group.record
        if not has_images(record):
            return []
        if self._processor is None or not self._engine.capabilities.images:
            lacking = "the policy" if self._processor is None else f"the engine {self.options.engine!r}"
            raise Reject(f"{record.id!r} has images, and {lacking} takes text only")
        return self._images.images(record)

    def _begun(self, delivery: Delivery, prompt_ids: Sequence[int]) -> list[GeneratedSequence]:
        """What another generator made of this group before it was stopped; empty sequences where there is nothing to go on from."""
        group = delivery.group
        if unfinished(group):
            try:
                sequences = sequences_of(group, delivery.arrays, prompt_ids)
            except Misfit as reason:
                self.log.warning("group.begun_anew", id=delivery.id, reason=str(reason))
            else:
                kept = {"tokens": tokens(sequences), "versions": version_range(sequences)}
                self.log.info("group.continued", id=delivery.id, version=self._engine.version, **kept)
                return sequences
        return [GeneratedSequence() for _ in range(group.sampling.samples)]

    async def _sample(
        self,
        delivery: Delivery,
        prompt_ids: Sequence[int],
        shown: Sequence[Image],
        sequences: Sequence[GeneratedSequence],
    ) -> None:
        """Brings `sequences` to their ends, token by token. Cancelled, it leaves in them what has come until then."""
        begun = copy.deepcopy(list(sequences))  # the engine's own: ours grow meanwhile
        chunks = self._engine.stream(
            prompt_ids,
            delivery.group.sampling,
            lane=delivery.work.lane,
            request=self._request(delivery),
            begun=begun if tokens(begun) else (),
            images=shown,
        )
        async for chunk in chunks:
            sequences[chunk.sample].extend(chunk)

    async def _unless_stopping(self, part: Coroutine[Any, Any, None]) -> bool:
        """Runs `part` to its end. False when the process was told to stop before that: `part` has been cancelled."""
        running, stop = asyncio.create_task(part), asyncio.create_task(self.stopping.wait())
        try:
            await asyncio.wait({running, stop}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
                return True
            return False
        finally:
            stop.cancel()
            if running.cancel():
                await asyncio.wait({running}, timeout=CANCEL_S)

    def _decode(self, token_ids: list[int]) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        return text

    def revoked(self, delivery: Delivery) -> None:
        self._engine.abort(self._request(delivery))

    @staticmethod
    def _request(delivery: Delivery) -> str:
        """Of the lease too: the same work may come again while its former request is still ending."""
        return f"{delivery.id}#{delivery.lease}"

    async def stop(self) -> None:
        await self._engine.stop()


def earlier_turns(record: m.Record) -> list[tuple[str, str]]:
    """The turns before the prompt, as (user, assistant) pairs: what `extra["turns"]` holds of a conversation."""
    turns = msgspec.convert(record.extra.get("turns", []), list[m.Turn])
    contents = [turn.content for turn in turns]
    roles = [turn.role for turn in turns]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise Reject(f"{record.id!r}: earlier turns are pairs of user and assistant, these are {roles}")
    return list(zip(contents[::2], contents[1::2], strict=True))


def question(record: m.Record) -> str:
    """The user's turn: the prompt, with lettered choices under it where the record has some."""
    if not record.choices:
        return record.prompt
    lines = [f"{chr(ord('A') + index)}. {choice}" for index, choice in enumerate(record.choices)]
    return "\n".join([record.prompt, *lines])
