"""What every rank of a learner holds: the model, its optimizer, its multipliers; checkpoints in, checkpoints out.

A learner of one process has one of these and calls it. A learner of several ranks has one in each process: rank 0 is the learner
actor, and each thing that it asks of its own part it first tells the others (`Ranks.share`), who do the same at the same time
(`serve`), because forward, backward and the gathering of weights are collectives. If a rank dies, all others raise
`RanksError` and end, the supervisor starts the learner anew, and it goes on from the newest checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from safeladder.launch.config import Config
from safeladder.launch.rundir import RunDirectory
from safeladder.policies import batch as batches
from safeladder.policies import checkpoint, lora, model, tensors
from safeladder.policies.batch import TrainingGroup
from safeladder.policies.constraints import ConstraintOptions, Constraints
from safeladder.policies.lazy_start import LazyStart
from safeladder.policies.options import StepOptions
from safeladder.policies.ranks import Ranks
from safeladder.policies.step import LearnerStep, StepReport
from safeladder.policies.vision import Gallery, Processor, tower
from safeladder.policies.weights import Publisher, attestation, folder, read_manifest
from safeladder.policies.weights.manifest import Manifest
from safeladder.policies.weights.publishing import stream_of
from safeladder.protocol.image_store import ImageStore
from safeladder.protocol.keys import ensure_secret


class Training:
    """One rank's part. Calls come from one thread at a time; on ranks above 0 only `serve` is called."""

    def __init__(self, config: Config, run: RunDirectory, ranks: Ranks) -> None:
        """Loads the newest checkpoint of the run, or the first policy where there is none."""
        policy = config.policy
        self._run, self._ranks = run, ranks
        self._keep = config.learner.keep_checkpoints
        self._weights = config.weights
        self._published_dtype = model.DTYPES[config.weights.dtype or policy.dtype]
        self._key = ensure_secret(run.weights_key)
        self._publisher: Publisher | None = None
        base = model.resolve(policy.model, Path(policy.cache) if policy.cache else None)
        self.restored = checkpoint.latest(run.checkpoints)
        self.state = checkpoint.CheckpointState(step=0, version=0)
        if self.restored:
            self.state = checkpoint.read_state(self.restored)
        # with adapters the base stays what it was; without, the checkpoint holds the whole model
        source = base if policy.lora else self.restored or base
        self._model, self.tokenizer = model.load(source, policy.dtype, str(ranks.device))
        self.processor = Processor.open(source, self.tokenizer)
        if policy.freeze_vision:
            for module in tower(self._model):
                module.requires_grad_(False)
        if policy.lora:
            chosen = dataclasses.asdict(policy.lora)
            lora.attach(self._model, lora.LoraOptions(**{**chosen, "targets": chosen["targets"] or lora.ALL_LINEAR}))
        self._learner = LearnerStep(
            self._model,
            step_options(config),
            steps_done=self.state.step,
            constraints=constraints(config),
            lazy_start=LazyStart(**dataclasses.asdict(config.learner.lazy_start))
            if config.learner.lazy_start
            else None,
            ranks=ranks,
            gallery=Gallery(self.processor, ImageStore(run.images).read) if self.processor else None,
        )
        if self.restored:
            checkpoint.restore(self.restored, self._model, self._learner.optimizer)
            self._learner.restore(self.state.extra.get("learner", {}))

    @property
    def bytes(self) -> int:
        """Size of the weights as they are published, of all ranks together."""
        return sum(parameter.numel() * self._published_dtype.itemsize for parameter in self._model.parameters())

    # ------------------------------------------------------------------------------------------------ rank 0 asks

    def train(self, batch: Sequence[TrainingGroup], version: int) -> StepReport:
        """One step. Raises StepError for a batch that cannot be trained on."""
        self._tell("train", version=version, batch=batches.encode(batch) if self._ranks.world > 1 else b"")
        return self._learner.train(batch, version)

    def publish(self, home: Path, version: int, step: int, name: str) -> Manifest:
        """Publishes the weights as `version`, unless they stand there already. Raises WeightsError, also when what stands
        there is not ours."""
        if folder(home, version).exists():
            return read_manifest(folder(home, version), self._key)
        self._tell("publish", home=str(home), version=version, step=step, name=name)
        manifest = self._publish(home, version, step, name)
        assert manifest is not None  # only the first rank is asked
        return manifest

    def digest(self, as_published: bool) -> str:
        """Of the plain weights, "sha256:" and hex: as they would be published whole, or with all their bits."""
        return tensors.digest(stream_of(self._model, self._published_dtype if as_published else None))

    def save(self, state: checkpoint.CheckpointState) -> Path:
        """Commits a checkpoint and retires old ones. Raises CheckpointError; what stood before still stands."""
        self._tell("save", state=state)
        return self._save(state)

    def idle(self) -> None:
        """Says to the other ranks that there is nothing to do yet, so that their wait does not run out."""
        self._tell("idle")

    def stop(self) -> None:
        """Ends the other ranks, and this one's part in the group."""
        self._tell("stop")
        self._ranks.close()

    # ---------------------------------------------------------------------------------------------- the others do

    def serve(self) -> None:
        """Does what rank 0 asks for until it says stop. Raises RanksError when rank 0 is gone or silent."""
        while True:
            asked: dict[str, Any] = msgspec.msgpack.decode(self._ranks.share())
            match asked.pop("do"):
                case "train":
                    self._learner.train(batches.decode(asked["batch"]), asked["version"])
                case "publish":
                    self._publish(Path(asked["home"]), asked["version"], asked["step"], asked["name"])
                case "save":
                    with contextlib.suppress(checkpoint.CheckpointError):  # rank 0 raises it too, and decides
                        self._save(msgspec.convert(asked["state"], checkpoint.CheckpointState))
                case "stop":
                    self._ranks.close()
                    return

    def _tell(self, do: str, **what: Any) -> None:
        if self._ranks.world > 1:
            self._ranks.share(msgspec.msgpack.encode({"do": do, **what}))

    def _publish(self, home: Path, version: int, step: int, name: str) -> Manifest | None:
        """None on ranks that write nothing."""
        probes = attestation.score(self._model, attestation.texts(self.tokenizer)) if self._weights.canary else []
        stream = stream_of(self._model, self._published_dtype)
        if not self._ranks.first:
            stream.exhaust()
            return None
        if self._publisher is None or self._publisher.directory != home:
            self._publisher = Publisher(home, self._key, self._weights.full_every if self._weights.delta else 1)
        return self._publisher.publish(stream, version, step=step, created_by=name, probes=probes)

    def _save(self, state: checkpoint.CheckpointState) -> Path:
        state = msgspec.structs.replace(state, extra={**state.extra, "learner": self._learner.state()})
        path = checkpoint.save(
            self._run.checkpoints,
            state.step,
            self._model,
            self.tokenizer,
            self._learner.optimizer,
            state,
            self._ranks,
            self.processor,
        )
        if self._ranks.first:
            checkpoint.retire(self._run.checkpoints, self._keep)
        return path


def step_options(config: Config) -> StepOptions:
    """The learner's section of the configuration as the options of a step."""
    shared = {f.name for f in dataclasses.fields(StepOptions)} & {f.name for f in dataclasses.fields(config.learner)}
    chosen: dict[str, Any] = {name: getattr(config.learner, name) for name in shared}
    return StepOptions(**chosen, temperature=config.sampling.temperature or 1.0)


def constraints(config: Config) -> Constraints | None:
    """The constraints' section, or None where it is empty. Raises ValueError naming the constraint and the key."""
    chosen = {}
    for name, section in config.constraints.items():
        try:
            chosen[name] = ConstraintOptions(**dataclasses.asdict(section))
        except ValueError as error:
            raise ValueError(f"constraints.{name}.{error}") from None
    return Constraints(chosen) if chosen else None
