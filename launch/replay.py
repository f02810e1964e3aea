"""`safeladder replay RUN`: makes a run's optimizer steps again from the learner's record, and says where they first differ.

    ledger   which steps stand, of which groups, made at which version        checkpoints   the weights after some of them
    record   what those groups were, as the learner was handed them, and what each step came to

One process on the CPU: the learner's own code from message to weights, without hub, clock and files. It begins with the policy that
the run began with and makes every step of the surviving history; processes that died, and steps that a roll-back undid, leave no
trace in it. What is compared are bits: the batch by the ledger's digest, loss and gradient norm, the weights that were published, the
weights of each checkpoint that is still there. The same bits are promised on the same kind of processor with the same libraries.
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from safeladder.launch.config import Config, ConfigError, Pool, load_resolved
from safeladder.launch.rundir import RunDirectory
from safeladder.policies.ledger import Entry, Ledger
from safeladder.policies.recipe import Recipe, Rewards, from_mapping
from safeladder.protocol import codec, framing
from safeladder.protocol import messages as m
from safeladder.protocol import record as r

if TYPE_CHECKING:
    from safeladder.policies.batch import TrainingGroup
    from safeladder.policies.report import StepReport


MAX_CHOICES: Final = 64  # of messages for a batch; more than one is rare


class ReplayError(RuntimeError):
    """The run cannot be replayed, or not that far; says what is missing."""


@dataclass(frozen=True)
class Place:
    """Where a message stands in the record: its payload's length and the offset at which it ends."""

    length: int
    end: int


@dataclass(frozen=True)
class Step:
    """A step of the surviving history. mark: None where the record does not have it.

    messages: work's id -> what the process that made the step was handed of it before, the newest first: a work may come again under
    another lease while it is being trained, and was perhaps sampled anew meanwhile.
    """

    entry: Entry
    mark: r.Stepped | None
    messages: dict[str, list[Place]]

    @property
    def number(self) -> int:
        """As the learner counts: 1 is the first."""
        return self.entry.step + 1


@dataclass(frozen=True)
class Recorded:
    """A run's surviving history with its record. ended: why the record holds no more, in words; "" where nothing is known."""

    steps: list[Step]
    ended: str

    @classmethod
    def read(cls, run: RunDirectory) -> Recorded:
        """Raises ConfigError for a run without a record, RecordError for a damaged one, LedgerError."""
        from safeladder.launch import audit

        run.info()
        if not run.record.exists():
            raise ConfigError(f"{run.path} has no record: launch with run.record=true to have one")
        state = audit.newest_state(run.checkpoints)
        history = Ledger(run.ledger, read_only=True).lineage(state.ledger_head) if state else []
        wanted = {entry.hash: entry for entry in history}
        found: dict[str, Step] = {}
        handed: dict[str, list[Place]] = {}
        size, ended = 0, ""
        for record, length, end in r.read(run.record):
            size = end
            match record:
                case r.Began():
                    handed = {}  # a process has what it was handed itself
                case r.Handed():
                    handed.setdefault(_delivered(run.record, record)[0].id, []).insert(0, Place(length, end))
                case r.Stepped() if record.entry in wanted:
                    entry = wanted[record.entry]
                    found[entry.hash] = Step(entry, record, {i: [*handed[i]] for i in entry.ids if i in handed})
                case r.Closed():
                    ended = record.reason
        if torn := run.record.stat().st_size - size:
            ended = f"{torn} bytes at its end, from byte {size} on, are torn: a crash in the middle of a write"
        return cls([found.get(entry.hash, Step(entry, None, {})) for entry in history], ended)


@dataclass(frozen=True)
class Group:
    """A group as the learner was handed it, and what was made of it."""

    payload: m.Group
    rewards: Rewards
    training: TrainingGroup


@dataclass(frozen=True)
class Replayed:
    """A step made again. difference: what is not as it was, "" where all is. checkpoint: name of one with the same weights."""

    step: Step
    groups: list[Group]
    report: StepReport
    difference: str
    checkpoint: str


class Replay:
    """A learner without its process. `with` frees its folder."""

    def __init__(self, run: RunDirectory) -> None:
        """Loads the policy that the run began with. Raises ConfigError, ModelError."""
        import torch

        from safeladder.actors.places import Preparation
        from safeladder.actors.training import Training
        from safeladder.policies.ranks import Ranks

        self.run = run
        self.recorded = Recorded.read(run)
        self.config = load_resolved(run.config)
        torch.set_num_threads(learners_pool(self.config).threads)  # the order of sums depends on it
        self._folder = tempfile.TemporaryDirectory(prefix="safeladder-replay-")
        scratch = RunDirectory(Path(self._folder.name))  # without checkpoints: training begins at the beginning
        scratch.images.symlink_to(run.images)
        self._training = Training(self.config, scratch, Ranks.alone())
        recipe: Recipe = from_mapping(dataclasses.asdict(self.config.recipe))
        self._preparation = Preparation(self.config, recipe, self._training.tokenizer)
        self.tokenizer = self._training.tokenizer
        self.made: Replayed | None = None

    def __enter__(self) -> Replay:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def caveats(self) -> Iterator[str]:
        """Why the bits may differ although nothing is wrong."""
        pool = learners_pool(self.config)
        if not pool.device.startswith("cpu"):
            yield f"the run's learner computed on {pool.device}, this does on the CPU: bits differ"
        if (ranks := pool.options.get("ranks", 1)) > 1:
            yield f"the run's learner was {ranks} processes, this is one: sums may differ in their last bits"

    def steps(self, last: int | None = None) -> Iterator[Replayed]:
        """Makes step after step, up to number `last`; ends after the first that differs. `made` is the newest.

        Raises ReplayError where the record does not have what comes next, or not what the ledger has trained.
        """
        with self.run.record.open("rb") as file:
            for step in self.recorded.steps[:last]:
                groups = self._groups(file, step)
                report = self._training.train([group.training for group in groups], step.entry.version)
                self.made = Replayed(step, groups, report, *self._compare(step, report))
                yield self.made
                if self.made.difference:
                    return

    def _groups(self, file: BinaryIO, step: Step) -> list[Group]:
        from safeladder.actors.places import digest

        because = f": {self.recorded.ended}" if self.recorded.ended else ""
        if step.mark is None:
            raise ReplayError(f"the record does not have step {step.number} of {len(self.recorded.steps)}{because}")
        if missing := [identity for identity in step.entry.ids if identity not in step.messages]:
            raise ReplayError(f"the record does not have {missing[0]}, which step {step.number} was made of")
        choices = itertools.product(*(step.messages[identity] for identity in step.entry.ids))
        for places in itertools.islice(choices, MAX_CHOICES):
            groups = [self._group(file, place) for place in places]
            if digest([group.training for group in groups]) == step.entry.batch_digest:
                return groups
        said = f"has no batch with the digest {step.entry.batch_digest} for step {step.number}, which the ledger has trained"
        raise ReplayError(f"the record {said}: it was changed, or is of another run")

    def _group(self, file: BinaryIO, place: Place) -> Group:
        try:
            record = r.decode(framing.payload_at(file, place.end, place.length))
        except framing.Damage as error:
            raise ReplayError(f"{error}: it was changed while it was read") from None
        assert isinstance(record, r.Handed)
        work, parcel = _delivered(self.run.record, record)
        payload, arrays = codec.unpack(parcel)
        if not isinstance(payload, m.Group):
            raise ReplayError(f"the record has a {type(payload).__name__} as {work.id}, the ledger has trained it")
        writable = {name: array.copy() for name, array in arrays.items()}  # torch warns of memory that is not
        return Group(payload, *self._preparation.prepare(work.id, payload, writable))

    def _compare(self, step: Step, report: StepReport) -> tuple[str, str]:
        """What differs, and the name of a checkpoint that does not."""
        assert step.mark is not None
        for name in ("loss", "grad_norm"):
            was, now = getattr(step.mark, name), getattr(report, name)
            if was != now and not (was != was and now != now):
                return f"{name} was {was!r} and is {now!r}", ""
        if step.mark.weights and (now := self._training.digest(as_published=True)) != step.mark.weights:
            return f"the weights published were {step.mark.weights}, and are {now}", ""
        return self._compare_checkpoint(step)

    def _compare_checkpoint(self, step: Step) -> tuple[str, str]:
        """With the checkpoint of just this step, where there is one."""
        from safeladder.policies import checkpoint, model, tensors
        from safeladder.policies.weights.publishing import stream_of

        for folder in checkpoint.committed(self.run.checkpoints):
            if checkpoint.read_state(folder).ledger_head == step.entry.hash:
                stored = tensors.digest(stream_of(model.load(folder, self.config.policy.dtype)[0]))
                made = self._training.digest(as_published=False)
                return ("", folder.name) if made == stored else (f"{folder.name} holds {stored}, this is {made}", "")
        return "", ""

    def weights(self) -> str:
        """Digest of the weights as they are now."""
        return self._training.digest(as_published=False)


def learners_pool(config: Config) -> Pool:
    """The pool at the end of the routes."""
    ends = {family.route[-1] for family in config.recipe.families.values() if family.route}
    return next(pool for pool in config.pools.values() if ends & set(pool.queues))


def _delivered(path: Path, record: r.Handed) -> tuple[m.Work, codec.Parcel]:
    """What a recorded message brought. Raises ReplayError for one that is none."""
    try:
        _, body, parcels = codec.decode_from_hub(record.parts)
    except codec.WireError as error:
        raise ReplayError(f"{path} holds a message that cannot be read: {error}") from None
    if not isinstance(body, m.Lease):
        raise ReplayError(f"{path} holds a {type(body).__name__}, a learner is handed leases")
    return body.work, parcels[0]


# ------------------------------------------------------------------------------------------------------------ in words


def told(replay: Replay, last: int | None) -> Iterator[str]:
    """Replays up to step `last`, a line a step, and says what it came to.

    Raises ConfigError for a step that the run has not made, ReplayError where the record ends before.
    """
    total = len(replay.recorded.steps)
    if total == 0:
        raise ConfigError(f"{replay.run.path} has no checkpoint yet, and so no step that stands")
    if last is not None and not 1 <= last <= total:
        raise ConfigError(f"--stop-at {last}: the steps that stand are 1 to {total}")
    for caveat in replay.caveats():
        yield f"note: {caveat}"
    for made in replay.steps(last):
        same = "the same" + (f", and as {made.checkpoint}" if made.checkpoint else "")
        figures = f"{len(made.groups)} groups, loss {made.report.loss:.6g}, gradient norm {made.report.grad_norm:.4g}"
        yield f"step {made.step.number}: {figures}: {f'differs: {made.difference}' if made.difference else same}"
    yield f"weights: {replay.weights()}"


def batch(replayed: Replayed, tokenizer: Any = None) -> Iterator[str]:
    """The batch of a step, a line a completion; its tokens too where a tokenizer is given."""
    report, entry = replayed.report, replayed.step.entry
    yield (
        f"step {replayed.step.number}, made at version {entry.version}: {report.groups} groups, {report.sequences} completions, "
        f"{report.tokens} tokens, loss {report.loss:.6g}, KL {report.kl:.4g}, gradient norm {report.grad_norm:.4g}"
    )
    for group, trace, age in zip(replayed.groups, report.traces, entry.staleness, strict=True):
        training, earned = group.training, group.rewards
        yield f"{training.id} ({group.payload.record.label}), {age} versions old, prompt of {len(training.prompt_ids)} tokens"
        if tokenizer is not None:
            yield f"    prompt: {_pieces(tokenizer, training.prompt_ids)}"
        for k, completion in enumerate(group.payload.completions):
            channels = ", ".join(f"{name} {values[k]:.4g}" for name, values in earned.channels.items())
            correction = trace.corrections[k]
            parts = [
                f"  #{k} reward {earned.total[k]:.4g} ({channels})" if earned.valid[k] else f"  #{k} no reward",
                f"advantage {trace.advantages[k]:.4g}",
                "not computed" if correction is None else f"correction {correction:.4g}",
                f"loss weight {trace.loss_weights[k]:.4g}",
                f"{len(training.completion_ids[k])} tokens, {completion.finish}",
                _ages(training, k, entry.version),
            ]
            yield ", ".join(parts + ([f"left out: {earned.problems[k]}"] if k in earned.problems else []))
            if tokenizer is not None:
                yield f"    {_pieces(tokenizer, training.completion_ids[k], training.kept_of(k))}"


def _ages(training: TrainingGroup, k: int, version: int) -> str:
    ages = [version - int(own) for own in training.own_versions(k)]
    return f"{min(ages)} to {max(ages)} versions old" if ages else "no token of the policy's own"


def _pieces(tokenizer: Any, ids: Any, kept: Any = None) -> str:
    """Each token as text, those that the environment wrote in angle brackets."""
    pieces = [repr(tokenizer.decode([int(token)])) for token in ids]
    return " ".join(piece if kept is None or kept[k] else f"<{piece}>" for k, piece in enumerate(pieces))
