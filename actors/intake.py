"""A generator's way to new weights: find a publication, load it between two decode steps, have the engine prove that it has.

One that has been retired meanwhile, or is refused, is passed over: the engine stays as it was. One that was loaded and does not
compute what the learner does ends the process, since an engine does not go back. What blocks are the learner's server, for as long as
a pull gets bytes, and the engine. If the learner dies, what was announced last is taken, or refused where it is gone.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safeladder.actors.actor import Actor, ActorError, Postpone
from safeladder.actors.weight_source import WeightSource
from safeladder.launch.rundir import RunDirectory
from safeladder.policies.engines.base import Engine, EngineError
from safeladder.policies.weights import Probe, WeightsError, attestation, read_manifest
from safeladder.protocol.keys import load_worker


class Intake:
    """Brings publications into one engine. `take` by one task at a time; `reach` by any number."""

    def __init__(self, actor: Actor, engine: Engine, *, always_pull: bool, attest_s: float) -> None:
        self._actor, self._engine, self._attest_s = actor, engine, attest_s
        self._changed = asyncio.Condition()
        self.proved = engine.version  # the newest version that computes what the learner does
        context, keys = actor.context, actor.config.hub.keys
        self._source = WeightSource(
            RunDirectory(context.directory).weights / f"pulled-{context.name.replace('/', '-')}",
            engine.weights_key or b"",
            load_worker(Path(keys), context.name) if keys else None,
            always_pull,
        )

    async def take(self, wanted: Mapping[str, Any] | None) -> None:
        """Changes to the announced publication, unless it is no newer. Raises ActorError when there is no way back."""
        if not wanted or not wanted.get("directory") or wanted["version"] <= self._engine.version:
            return
        version, loop = wanted["version"], asyncio.get_running_loop()
        begun = loop.time()
        try:
            path = await self._found(wanted)
            # Before the engine changes: the folder may be retired while it does, and what lacks a probe must not be loaded.
            probes = (await asyncio.to_thread(read_manifest, path, self._engine.weights_key)).probes
            if self._actor.config.weights.canary and not probes:
                raise WeightsError(f"version {version} came without a probe, and weights.canary asks for one")
            found = loop.time()
            await self._engine.load_weights(path, version)
            loaded = loop.time()
            await self._attest(probes, version)
        except (WeightsError, EngineError) as error:
            self._actor.log.warning("weights.refused", version=version, error=str(error))
            if self._engine.version == version:
                raise ActorError(
                    f"version {version} is loaded and refused, and there is no way back: {error}"
                ) from error
            await asyncio.to_thread(self._source.settle, version, False)
            return
        await asyncio.to_thread(self._source.settle, version, True)
        self._actor.log.info(
            "weights.loaded",
            version=version,
            find_s=round(found - begun, 3),
            load_s=round(loaded - found, 3),
            attest_s=round(loop.time() - loaded, 3),
            seconds=round(loop.time() - begun, 3),
        )
        async with self._changed:
            self.proved = version
            self._changed.notify_all()

    async def reach(self, version: int, wait_s: float) -> None:
        """Returns once `version` or a later one is proved. Raises Postpone after `wait_s`."""
        try:
            async with asyncio.timeout(wait_s), self._changed:
                await self._changed.wait_for(lambda: self.proved >= version)
        except TimeoutError:
            raise Postpone(f"version {version} did not come in {wait_s} s, this engine has {self.proved}") from None

    async def _found(self, wanted: Mapping[str, Any]) -> Path:
        """Where the publication is; a pull under way ends when this process is to stop."""
        finding = asyncio.create_task(asyncio.to_thread(self._source.find, wanted))
        stop = asyncio.create_task(self._actor.stopping.wait())
        await asyncio.wait({finding, stop}, return_when=asyncio.FIRST_COMPLETED)
        if not finding.done():
            self._source.stop.set()
        stop.cancel()
        return await finding

    async def _attest(self, probes: Sequence[Probe], version: int) -> None:
        """Compares what the engine makes of the publication's probe with what the learner did. Raises WeightsError."""
        section, dtype = self._actor.config.weights, self._actor.config.policy.dtype
        if not section.canary:
            return
        tolerance = section.canary_tolerance or attestation.tolerance(dtype, section.dtype or dtype)
        try:
            async with asyncio.timeout(self._attest_s):
                scores = [await self._engine.score(probe.prompt_ids, probe.completion_ids) for probe in probes]
            found = attestation.compare(probes, scores, tolerance)
        except (TimeoutError, ValueError) as error:
            raise WeightsError(f"the engine cannot score the probe of version {version}: {error!r}") from error
        self._actor.log.info("weights.attested", version=version, passed=found.passed, **dataclasses.asdict(found))
        if not found.passed:
            raise WeightsError(f"the engine does not compute version {version}: {found}")
