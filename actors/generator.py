"""Generator: samples completions, token-in token-out, with the log-probability and the weight version of every token.

Inbox: groups without completions. Outbox: the same with completions and their arrays. Two things block it: the engine's capacity
(requests wait inside the engine, by lane), and weights that are too old for a group (`min_version`), for which it waits
`version_wait_s` and then gives the group back. The learner unblocks it by publishing. If the learner dies, the generator goes on
with the weights it has. If this process dies, the hub gives its groups to another; what was half written is written again.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from safeladder.actors.actor import Actor, ActorError, Delivery, Output, Postpone
from safeladder.launch.rundir import RunDirectory
from safeladder.protocol import messages as m
from safeladder.protocol.keys import ensure_secret, load_worker

if TYPE_CHECKING:
    from safeladder.actors.weight_source import WeightSource
    from safeladder.policies.weights import Probe


class Generator(Actor):
    """Serves the run's newest policy through an engine."""

    role = "generator"

    @dataclass
    class Options:
        """`engine`: a name of `policies/engines`. `max_sequences`, `max_tokens`: rows and KV tokens in the batch at once.

        pull_weights: from the learner's server (`weights.serve`) also where its folder can be seen. attest_s: for an engine
        to score the probe of a publication.
        """

        engine: str = "transformers"
        max_sequences: int = 16
        max_tokens: int = 16384
        version_wait_s: float = 300.0
        pull_weights: bool = False
        attest_s: float = 60.0

    async def start(self) -> None:
        from safeladder.policies import model
        from safeladder.policies.engines.registry import create

        policy = self.config.policy
        path = await asyncio.to_thread(model.resolve, policy.model, policy.cache and Path(policy.cache))
        self._tokenizer = await asyncio.to_thread(model.load_tokenizer, path)
        self._source: WeightSource | None = None
        self._engine = await asyncio.to_thread(
            create,
            self.options.engine,
            path,
            dtype=policy.dtype,
            device=self.context.pool.device,
            max_sequences=self.options.max_sequences,
            max_tokens=self.options.max_tokens,
        )
        self._engine.weights_key = await asyncio.to_thread(
            ensure_secret, RunDirectory(self.context.directory).weights_key
        )
        await self._engine.start()
        self._version_changed = asyncio.Condition()
        self._proved = self._engine.version  # the newest version that computes what the learner does
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
        """Loads a publication between two decode steps and has the engine prove that it has. One that has been retired
        meanwhile, or is refused, is passed over: the engine stays as it was. One that was loaded and does not compute what the
        learner does ends this process, since an engine does not go back. Raises ActorError."""
        from safeladder.policies.engines.base import EngineError
        from safeladder.policies.weights import WeightsError, read_manifest

        if not wanted or not wanted.get("directory") or wanted["version"] <= self._engine.version:
            return
        version, loop = wanted["version"], asyncio.get_running_loop()
        begun = loop.time()
        source = self._weights()
        try:
            path = await self._found(source, wanted)
            # Before the engine changes: the folder may be retired while it does, and what lacks a probe must not be loaded.
            probes = (await asyncio.to_thread(read_manifest, path, self._engine.weights_key)).probes
            if self.config.weights.canary and not probes:
                raise WeightsError(f"version {version} came without a probe, and weights.canary asks for one")
            found = loop.time()
            await self._engine.load_weights(path, version)
            loaded = loop.time()
            await self._attest(probes, version)
        except (WeightsError, EngineError) as error:
            self.log.warning("weights.refused", version=version, error=str(error))
            if self._engine.version == version:
                raise ActorError(
                    f"version {version} is loaded and refused, and there is no way back: {error}"
                ) from error
            await asyncio.to_thread(source.settle, version, False)
            return
        await asyncio.to_thread(source.settle, version, True)
        self.log.info(
            "weights.loaded",
            version=version,
            find_s=round(found - begun, 3),
            load_s=round(loaded - found, 3),
            attest_s=round(loop.time() - loaded, 3),
            seconds=round(loop.time() - begun, 3),
        )
        async with self._version_changed:
            self._proved = version
            self._version_changed.notify_all()

    async def _found(self, source: WeightSource, wanted: Mapping[str, Any]) -> Path:
        """Where the publication is; a pull under way ends when this process is to stop."""
        finding = asyncio.create_task(asyncio.to_thread(source.find, wanted))
        stop = asyncio.create_task(self.stopping.wait())
        await asyncio.wait({finding, stop}, return_when=asyncio.FIRST_COMPLETED)
        if not finding.done():
            source.stop.set()
        stop.cancel()
        return await finding

    def _weights(self) -> WeightSource:
        """Made with the first publication: from then on the run has its secret."""
        if self._source is None:
            from safeladder.actors.weight_source import WeightSource

            run = RunDirectory(self.context.directory)
            keys, name = self.config.hub.keys, self.context.name
            home = run.weights / f"pulled-{name.replace('/', '-')}"
            self._source = WeightSource(
                home,
                self._engine.weights_key,
                load_worker(Path(keys), name) if keys else None,
                self.options.pull_weights,
            )
        return self._source

    async def _attest(self, probes: Sequence[Probe], version: int) -> None:
        """Compares what the engine makes of the publication's probe with what the learner did. Raises WeightsError."""
        from safeladder.policies.weights import WeightsError, attestation

        section, dtype = self.config.weights, self.config.policy.dtype
        if not section.canary:
            return
        tolerance = section.canary_tolerance or attestation.tolerance(dtype, section.dtype or dtype)
        try:
            async with asyncio.timeout(self.options.attest_s):
                scores = [await self._engine.score(probe.prompt_ids, probe.completion_ids) for probe in probes]
            found = attestation.compare(probes, scores, tolerance)
        except (TimeoutError, ValueError) as error:
            raise WeightsError(f"the engine cannot score the probe of version {version}: {error!r}") from error
        self.log.info("weights.attested", version=version, passed=found.passed, **dataclasses.asdict(found))
        if not found.passed:
            raise WeightsError(f"the engine does not compute version {version}: {found}")

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
        # What a version has sampled stays here until it has proved itself.
        await self._recent_enough(max((max(s.versions, default=0) for s in sequences), default=0))
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
                await self._version_changed.wait_for(lambda: self._proved >= version)
        except TimeoutError:
            waited_s = self.options.version_wait_s
            raise Postpone(f"version {version} did not come in {waited_s} s, this engine has {self._proved}") from None

    async def stop(self) -> None:
        await self._engine.stop()


def question(record: m.Record) -> str:
    """The user's turn: the prompt, with lettered choices under it where the record has some."""
    if not record.choices:
        return record.prompt
    lines = [f"{chr(ord('A') + index)}. {choice}" for index, choice in enumerate(record.choices)]
    return "\n".join([record.prompt, *lines])
