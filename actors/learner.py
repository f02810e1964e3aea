"""Learner: assembles groups in order of admission, improves the policy, publishes weights, keeps the ledger.

Inbox: judged groups, `Skipped` in the place of groups that ended early, `End`. Outbox: the topic `policy` (version, step, where the
weights are), nothing else. What blocks it is the next group in order of admission: generator, verifiers, reference unblock it.
If one of those dies, the hub gives its work to another and the learner waits; if the hub dies, the learner keeps what it holds
and names it to the successor.

Exactly once: a lease is kept until a checkpoint that contains its group's effect is committed, and only then settled. If this
process dies, its successor starts at the newest checkpoint; what had not been committed comes back from the hub and is trained
again, in the history that survives once. A group that comes back although the checkpoint contains it is settled at once.

Staleness: a group whose oldest token is more than `eta` versions behind at the gradient step (after a rollback) goes back to
its first stop to be sampled anew and keeps its place in the order; under the policy `drop` it is dropped, with its line in
the ledger. Dynamic sampling drops groups that carry no gradient when they arrive. Admission makes up for what is dropped.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from safeladder.actors.actor import Actor, ActorError, Delivery, Keep, Outcome, Reject
from safeladder.launch.config import digest as config_digest
from safeladder.launch.rundir import RunDirectory
from safeladder.policies.batch import TrainingGroup
from safeladder.policies.ledger import Entry, Ledger, VersionCounter
from safeladder.policies.recipe import RecipeError, Rewards, from_mapping, rewards
from safeladder.policies.selection import LengthBias
from safeladder.policies.staleness import Order, staleness, window
from safeladder.policies.thought import thought_length
from safeladder.protocol import messages as m

if TYPE_CHECKING:
    from safeladder.actors.training import Training


@dataclass
class Place:
    """A group in the order of admission, ready to be trained."""

    delivery: Delivery
    rewards: Rewards
    training: TrainingGroup
    staleness: int = 0

    @property
    def sequence(self) -> int:
        return self.delivery.group.sequence


class Learner(Actor):
    """One process, one model, one history."""

    role = "learner"
    collects = True

    @dataclass
    class Options:
        """`stall_log_s`: how often to say what is being waited for.

        ranks: processes that the model is sharded over (FSDP2); rank r computes on the r-th device from the pool's on.
        ranks_timeout_s: how long one of them may keep the others waiting.
        """

        stall_log_s: float = 30.0
        ranks: int = 1
        ranks_timeout_s: float = 300.0

    # -------------------------------------------------------------------------------------------------------- start

    async def start(self) -> None:
        self._run = RunDirectory(self.context.directory)
        self._arrived = asyncio.Event()
        self._end: Delivery | None = None
        self._held: dict[str, Delivery] = {}  # trained or dropped, not committed: settled with the next checkpoint
        self._late: list[Place] = []  # requeued dead letters, whose place in the order has passed
        self._skips: dict[int, Delivery] = {}  # tombstones that no batch has accounted for yet
        self._directory: Path | None = None
        self._waited_s = 0.0
        self._lengths = LengthBias()
        self._uninformative = 0  # groups set aside since the last step
        self._training: Training
        await asyncio.to_thread(self._load)
        if self._version > 0:
            await asyncio.to_thread(self._publish)
        await self._announce()
        self.log.info("learner.ready", step=self._step, version=self._version, next_sequence=self._order.cursor)

    def _load(self) -> None:
        """The newest checkpoint, or the first policy where there is none."""
        from safeladder.actors.ranks import gather
        from safeladder.policies import weights

        learner = self.config.learner
        self._recipe = from_mapping(dataclasses.asdict(self.config.recipe))
        self._training = gather(self.context, self.options.ranks, self.options.ranks_timeout_s)
        self._tokenizer = self._training.tokenizer
        state = self._training.state
        if self._training.restored:
            path = str(self._training.restored)
            self.log.info("checkpoint.restored", path=path, step=state.step, version=state.version)
        self._ledger = Ledger(self._run.ledger)
        self._counter = VersionCounter(self._run.versions)
        self._step, self._version, self._head = state.step, state.version, state.ledger_head
        lineage = self._ledger.lineage(self._head)
        dropped = [identity for entry in lineage for identity in entry.dropped]
        self._committed = self._ledger.consumed(self._head) | set(dropped)
        self._dropped = len(dropped)
        bound = self.config.staleness
        passed = {n for entry in lineage for n in (*entry.sequences, *entry.dropped_sequences)}
        places = window(bound.policy, bound.window, bound.eta, learner.batch)
        self._order: Order[Place] = Order(learner.batch, state.feeder_cursor, places, passed)
        place = self.config.weights.home
        size = self._training.bytes
        self._home = weights.home(self._run.path.name, size, self._run.weights) if place == "auto" else Path(place)
        if self._counter.newest > self._version:
            # Later weights were given out once: these are a rollback, and a number never stands for two policies.
            self._version = self._counter.next(self._step)

    # -------------------------------------------------------------------------------------------------------- inbox

    async def handle(self, delivery: Delivery) -> Outcome:
        payload = delivery.payload
        if delivery.id in self._committed:
            return None  # its effect is in a committed checkpoint: nothing is left but to settle
        if delivery.id in self._held:
            self._held[delivery.id] = delivery  # trained since the checkpoint; the hub had to give a new lease
            return Keep
        if isinstance(payload, m.End):
            self._end = delivery
            if self._order.total is None:
                self._order.end(payload.total)
        elif isinstance(payload, m.Skipped):
            self._skip(payload, delivery)
        else:
            self._add(await asyncio.to_thread(self._prepare, delivery))
        self._arrived.set()
        return Keep

    def _skip(self, skipped: m.Skipped, delivery: Delivery) -> None:
        fresh = skipped.sequence not in self._skips
        self._skips[skipped.sequence] = delivery
        if fresh:
            self._order.skip(skipped.sequence)
            self.log.warning("group.skipped", id=delivery.id, reason=skipped.reason)

    def _add(self, place: Place) -> None:
        buffered = [other for other in self._order.items() if other.sequence == place.sequence]
        if buffered:  # the same group under a new lease
            self._order.withdraw(place.sequence)
        else:
            self._lengths.drawn([len(tokens) for tokens in place.training.completion_ids])
        if place.sequence in self._skips:  # set aside before, and now under a new lease
            self._skips[place.sequence] = place.delivery
        elif self.config.learner.dynamic_sampling and not self._informative(place.training):
            self._uninformative += 1
            self._set_aside(place, "carries no gradient")
        elif place.sequence < self._order.cursor:
            self._late = [other for other in self._late if other.delivery.id != place.delivery.id] + [place]
        else:
            self._order.add(place.sequence, place)

    def _set_aside(self, place: Place, reason: str) -> None:
        """Drops a group that has come: its place in the order closes, and its lease is settled with its line in the ledger."""
        self.log.info("group.dropped", id=place.delivery.id, reason=reason)
        if place.sequence < self._order.cursor:
            self._held[place.delivery.id] = place.delivery  # a late one has no place; it ended in the ledger before
            return
        self._order.skip(place.sequence)
        self._skips[place.sequence] = place.delivery

    def _informative(self, group: TrainingGroup) -> bool:
        from safeladder.policies.credit import informative

        return informative(group, self._training.options)

    def _prepare(self, delivery: Delivery) -> Place:
        """Rewards and training arrays of a group. Raises Reject for a group that lacks what training needs."""
        group, arrays = delivery.group, delivery.arrays
        needed = {"prompt_ids", "lengths", "completion_ids", "behaviour_logprobs", "versions"}
        if self.config.learner.reference_kl > 0:
            needed.add("reference_logprobs")
        if missing := needed - set(arrays):
            raise Reject(f"group {delivery.id!r} came without {sorted(missing)}; which stop of its route makes them?")
        try:
            earned = rewards(group, self._recipe)
        except RecipeError as error:
            raise Reject(str(error)) from None
        ends = np.cumsum(arrays["lengths"])[:-1]
        completions = np.split(arrays["completion_ids"], ends)
        kept = np.split(arrays["kept"].astype(np.bool_), ends) if "kept" in arrays else None
        family = self._recipe.family(group.record.label)
        unknown = np.full(len(group.completions), np.nan)
        training = TrainingGroup(
            id=delivery.id,
            prompt_ids=arrays["prompt_ids"],
            completion_ids=completions,
            behaviour=np.split(arrays["behaviour_logprobs"], ends),
            versions=np.split(arrays["versions"], ends),
            rewards=earned.total,
            valid=earned.valid,
            reference=np.split(arrays["reference_logprobs"], ends) if "reference_logprobs" in needed else None,
            kept=kept,
            channels=earned.terms,
            channel_weights={name: term.weight for name, term in family.terms.items()},
            # a family that does not name a constrained cost has nothing to say of it
            costs={**dict.fromkeys(self.config.constraints, unknown), **earned.costs},
            thought_lengths=self._thought_lengths(completions, kept),
            qualified=earned.qualified,
        )
        return Place(delivery, earned, training)

    def _thought_lengths(
        self, completions: Sequence[NDArray[np.int32]], kept: Sequence[NDArray[np.bool_]] | None
    ) -> NDArray[np.int64] | None:
        """Counted only where a rule looks at lengths."""
        if not (self.config.learner.length_rewards or self.config.learner.length_advantage):
            return None
        masks = kept or [None] * len(completions)
        return np.array(
            [thought_length(self._tokenizer, c.tolist(), mask) for c, mask in zip(completions, masks, strict=True)],
            np.int64,
        )

    def revoked(self, delivery: Delivery) -> None:
        """The hub gave the group to nobody else (there is one learner): it comes again under a new lease."""
        for place in self._order.items():
            if place.delivery is delivery:
                self._order.withdraw(place.sequence)

    # --------------------------------------------------------------------------------------------------------- steps

    async def run(self) -> None:
        learner = self.config.learner
        committed_step = self._step
        while self._step < learner.steps and (places := await self._next_batch()) is not None:
            await self._train(places)
            # what is set aside holds leases too: they must not use up the credit that the next batch needs
            full = len(self._held) > self.context.pool.credit // 2
            if self._step - committed_step >= learner.checkpoint_every or full:
                await self._commit()
                committed_step = self._step
        if self._step > committed_step:
            await self._commit()
        if self._order.finished:  # what ended early after the last group, and the end itself, have no step to wait for
            for delivery in [*self._skips.values(), *([self._end] if self._end else [])]:
                delivery.finish()
        self.log.info(
            "learner.finished",
            step=self._step,
            version=self._version,
            stopped=self.stopping.is_set(),
            end_of_stream=self._order.finished,
        )
        await asyncio.to_thread(self._training.stop)

    async def _next_batch(self) -> list[Place] | None:
        """The next groups in order, all of them fresh enough; None when stopping or at the end of the stream."""
        began = said = spoken = time.monotonic()
        announced = self._order.tombstones
        while not self.stopping.is_set():
            self._arrived.clear()
            self._part_with_stale()
            if self._uninformative > (self.config.learner.max_uninformative or 64 * self.config.learner.batch):
                raise ActorError(
                    f"{self._uninformative} groups in a row carry no gradient: every answer to a prompt earns the same. The "
                    "tasks are too easy or too hard for the policy, or the recipe's terms cannot tell answers apart"
                )
            if batch := self._order.take():
                self._waited_s = time.monotonic() - began
                late, self._late = self._late, []
                return [*batch, *late]
            if self._order.finished:
                return None
            if self._order.tombstones != announced:
                announced = self._order.tombstones
                await self._announce()  # admission makes up for what was dropped
            stop = asyncio.create_task(self.stopping.wait())
            news = asyncio.create_task(self._arrived.wait())
            await asyncio.wait({stop, news}, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
            stop.cancel()
            news.cancel()
            self.worked()  # waiting for others is no stall of this role
            if time.monotonic() - spoken > self.options.ranks_timeout_s / 4:
                spoken = time.monotonic()
                await asyncio.to_thread(self._training.idle)
            if time.monotonic() - said > self.options.stall_log_s:
                said = time.monotonic()
                self.log.warning(
                    "learner.waiting",
                    waited_s=round(said - began, 1),
                    for_sequence=self._order.cursor,
                    buffered=len(self._order),
                )
        return None

    def _part_with_stale(self) -> None:
        """Sends every buffered group that is older than the bound back to be sampled anew, or drops it where the policy says
        so; it only gets older by waiting."""
        bound = self.config.staleness
        for place in [*self._order.items(), *self._late]:
            place.staleness = max(staleness(place.training.versions, self._version), default=0)
            if place.staleness <= bound.eta:
                continue
            if place in self._late:
                self._late.remove(place)
            else:
                self._order.withdraw(place.sequence)
            if bound.policy == "drop":
                self._set_aside(place, f"staleness {place.staleness} above {bound.eta}")
            else:
                self.log.info("group.resampled", id=place.delivery.id, staleness=place.staleness, eta=bound.eta)
                place.delivery.give_back(f"staleness {place.staleness} above {bound.eta}", restart=True)

    async def _train(self, places: list[Place]) -> None:
        """One optimizer step, its line in the ledger, and the new weights for everybody."""
        began = time.monotonic()
        report = await asyncio.to_thread(self._training.train, [place.training for place in places], self._version)
        trained_at = self._version
        self._version = await asyncio.to_thread(self._counter.next, self._step + 1)
        dropped = [self._skips.pop(sequence) for sequence in self._order.passed]
        entry = Entry(
            step=self._step,
            version=trained_at,
            published=self._version,
            boot=self.link.boot,
            parent=self._head,
            ids=[place.delivery.id for place in places],
            sequences=[place.sequence for place in places],
            dropped=[delivery.id for delivery in dropped],
            dropped_sequences=self._order.passed,
            staleness=[place.staleness for place in places],
            batch_digest=digest([place.training for place in places]),
        )
        self._head = await asyncio.to_thread(self._ledger.append, entry)
        self._step += 1
        self._dropped += len(dropped)
        for delivery in [*(place.delivery for place in places), *dropped]:
            self._held[delivery.id] = delivery
        self._lengths.trained([len(tokens) for place in places for tokens in place.training.completion_ids])
        uninformative, self._uninformative = self._uninformative, 0
        publishing = time.monotonic()
        await asyncio.to_thread(self._publish)
        await self._announce()
        publish_s = time.monotonic() - publishing
        self.worked()
        seconds = time.monotonic() - began + self._waited_s
        figures = {**dataclasses.asdict(report), "step": self._step}
        figures |= figures.pop("off_policy")
        self.log.info(
            "step.completed",
            steps=self.config.learner.steps,
            version=trained_at,
            published=self._version,
            wait_s=round(self._waited_s, 3),
            publish_s=round(publish_s, 3),
            step_s=round(seconds, 3),
            tokens_per_s=round(report.tokens / max(seconds, 1e-9), 1),
            staleness=[place.staleness for place in places],
            staleness_max=max(place.staleness for place in places),
            uninformative=uninformative,
            dropped=len(dropped),
            selection_bias=round(self._lengths.value(), 6),
            **summarize(places),
            **figures,
        )

    # ---------------------------------------------------------------------------------------- publication and checkpoint

    def _publish(self) -> None:
        from safeladder.policies import weights

        self._directory = weights.folder(self._home, self._version)
        self._training.publish(self._home, self._version, self._step, self.context.name)
        weights.retire(self._home, self.config.weights.keep)

    async def _announce(self) -> None:
        """Tells everybody the version and the feeder how far the order has come. Raises TimeoutError after two minutes."""
        value = {
            "version": self._version,
            "step": self._step,
            "directory": str(self._directory) if self._directory else None,
            "next_sequence": self._order.cursor,
            "dropped": self._dropped + self._order.tombstones,
            "ahead": self._order.ahead,
        }
        async with asyncio.timeout(120.0):
            await asyncio.wrap_future(self.link.publish("policy", value))

    async def _commit(self) -> None:
        """Writes a checkpoint and then settles every lease whose effect it contains."""
        from safeladder.policies import checkpoint

        began = time.monotonic()
        state = checkpoint.CheckpointState(
            step=self._step,
            version=self._version,
            ledger_head=self._head,
            feeder_cursor=self._order.cursor,
            config_digest=config_digest(self.config),
        )

        try:
            path = await asyncio.to_thread(self._training.save, state)
        except checkpoint.CheckpointError as error:
            self.log.error("checkpoint.failed", step=self._step, error=str(error))
            if self.stopping.is_set() or self._step >= self.config.learner.steps:
                raise ActorError(str(error)) from error
            return  # the leases are kept, and the next step tries again
        settled, self._held = self._held, {}
        self._committed |= set(settled)
        for delivery in settled.values():
            delivery.finish()
        self.worked()
        self.log.info(
            "checkpoint.committed",
            path=str(path),
            step=self._step,
            version=self._version,
            settled=len(settled),
            seconds=round(time.monotonic() - began, 3),
        )


def digest(batch: Sequence[TrainingGroup]) -> str:
    """Names the tokens and rewards of a batch, for the ledger."""
    found = hashlib.blake2b(digest_size=16)
    for group in batch:
        for array in [group.prompt_ids, *group.completion_ids, *group.behaviour, group.rewards]:
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def summarize(places: Sequence[Place]) -> dict[str, Any]:
    """Means over a batch for the log: rewards by family and by verifier (None where nothing could be judged)."""
    families: dict[str, list[float]] = {}
    channels: dict[str, list[float]] = {}
    unsafe: list[float] = []
    for place in places:
        earned, group = place.rewards, place.delivery.group
        families.setdefault(group.record.label, []).extend(earned.total[earned.valid].tolist())
        for name, values in earned.channels.items():
            channels.setdefault(name, []).extend(values[np.isfinite(values)].tolist())
        unsafe += earned.unsafe[np.isfinite(earned.unsafe)].tolist()
    totals = [reward for values in families.values() for reward in values]
    finishes = [completion.finish for place in places for completion in place.delivery.group.completions]
    return {
        "reward_mean": _mean(totals),
        "reward_std": round(float(np.std(totals)), 6) if totals else None,
        "unsafe_rate": _mean(unsafe),
        "families": {label: _mean(values) for label, values in sorted(families.items())},
        "channels": {name: _mean(values) for name, values in sorted(channels.items())},
        "samples": len(finishes),
        "truncated_ratio": round(finishes.count("length") / max(1, len(finishes)), 4),
    }


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 6) if values else None
