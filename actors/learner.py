"""Learner: assembles groups in order of admission, improves the policy, publishes weights, keeps the ledger.

Inbox: judged groups, `Skipped` in the place of groups that ended early, `End`. Outbox: the topic `policy` (version, step, where the
weights are), nothing else. What blocks it is the next group in order of admission: generator, verifiers, reference unblock it.
If one of those dies, the hub gives its work to another and the learner waits; if the hub dies, the learner keeps what it holds
and names it to the successor.

Exactly once: a lease is kept until a checkpoint that contains its group's effect is committed, and only then settled. If this
process dies, its successor starts at the newest checkpoint; what had not been committed comes back from the hub and is trained
again, in the history that survives once. A group that comes back although the checkpoint contains it is settled at once.

Staleness: a group whose oldest token is more than `eta` versions behind at the gradient step (after a rollback) goes back to
its first stop to be sampled anew; it keeps its place in the order.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from safeladder.actors.actor import Actor, ActorError, Delivery, Keep, Outcome
from safeladder.launch.rundir import RunDirectory
from safeladder.policies.staleness import InOrder
from safeladder.protocol import messages as m


@dataclass
class Place:
    """One position in the order of admission, and what fills it."""

    delivery: Delivery
    dropped: str | None = None  # why no group will ever fill it
    staleness: int = 0
    rewards: Any = None
    training: Any = field(default=None, repr=False)


class Learner(Actor):
    """One process, one model, one history."""

    role = "learner"
    collects = True

    @dataclass
    class Options:
        """`stall_log_s`: how often to say what is being waited for."""

        stall_log_s: float = 30.0

    # -------------------------------------------------------------------------------------------------------- start

    async def start(self) -> None:
        self._run = RunDirectory(self.context.directory)
        self._arrived = asyncio.Event()
        self._total: int | None = None
        self._end: Delivery | None = None
        self._held: dict[str, Delivery] = {}  # trained or dropped, not committed: settled with the next checkpoint
        self._dropped = 0
        await asyncio.to_thread(self._load)
        self._order: InOrder[Place] = InOrder(self.config.learner.batch, start=self._next_sequence)
        await self._announce(await asyncio.to_thread(self._first_publication))
        self.log.info(
            "learner.ready", step=self._step, version=self._version, next_sequence=self._next_sequence,
            committed=len(self._committed),
        )

    def _load(self) -> None:
        """The newest checkpoint, or the first policy where there is none."""
        from safeladder.policies import checkpoint, model, weights
        from safeladder.policies.ledger import Ledger, VersionCounter
        from safeladder.policies.recipe import Recipe
        from safeladder.policies.step import LearnerStep

        policy, learner = self.config.policy, self.config.learner
        self._recipe = Recipe.from_config(self.config.recipe)
        latest = checkpoint.latest(self._run.checkpoints)
        source = latest or model.resolve(policy.model, policy.cache)
        self._model, self._tokenizer = model.load(source, policy.dtype, self.context.pool.device)
        self._learner = LearnerStep(self._model, step_options(self.config))
        self._ledger = Ledger(self._run.ledger)
        self._counter = VersionCounter(self._run.versions)
        self._step, self._version, self._head, self._consumed = 0, 0, "", 0
        self._next_sequence = 0
        if latest:
            state = checkpoint.restore(latest, self._model, self._learner.optimizer)
            self._step, self._version, self._head = state.step, state.version, state.ledger_head
            self._learner.steps = state.step
            self.log.info("checkpoint.restored", path=str(latest), step=state.step, version=state.version)
        lineage = self._ledger.lineage(self._head)
        self._committed = self._ledger.consumed(self._head)
        self._consumed = sum(len(entry.ids) for entry in lineage)
        self._dropped = sum(len(entry.dropped) for entry in lineage)
        self._next_sequence = self._consumed + self._dropped
        bytes_needed = sum(p.numel() * p.element_size() for p in self._model.parameters())
        self._home = weights.home(self._run.path.name, bytes_needed, self._run.weights, self.config.weights.home)

    def _first_publication(self) -> Path | None:
        """Version 0 is the first policy, which generators load themselves. After a restart the weights are published again.

        If a later version than the checkpoint's was ever given out, these weights need a new number: they are a rollback.
        """
        if self._counter.last > self._version:
            self._version = self._counter.next()
        return None if self._version == 0 else self._publish()

    # -------------------------------------------------------------------------------------------------------- inbox

    async def handle(self, delivery: Delivery) -> Outcome:
        payload = delivery.payload
        if delivery.id in self._committed:
            return None  # its effect is in a committed checkpoint: nothing to do but settle
        if delivery.id in self._held:
            self._held[delivery.id] = delivery  # trained since the checkpoint; the hub had to give a new lease
            return Keep
        if isinstance(payload, m.End):
            self._total, self._end = payload.total, delivery
        elif isinstance(payload, m.Skipped):
            self._order.add(payload.sequence, Place(delivery, dropped=payload.reason))
            self.log.warning("group.skipped", id=delivery.id, reason=payload.reason)
        else:
            place = await asyncio.to_thread(self._prepare, delivery)
            self._order.add(delivery.group.sequence, place)
        self._arrived.set()
        return Keep

    def _prepare(self, delivery: Delivery) -> Place:
        """Rewards and training arrays of a group. Raises Reject-like errors for a group that lacks what training needs."""
        from safeladder.policies.recipe import rewards
        from safeladder.policies.step import TrainingGroup

        group, arrays = delivery.group, delivery.arrays
        missing = {"prompt_ids", "lengths", "completion_ids", "behaviour_logprobs", "versions"} - set(arrays)
        if missing:
            raise ActorError(f"group {delivery.id!r} came without {sorted(missing)}; does its route pass a generator?")
        earned = rewards(group, self._recipe)
        ends = np.cumsum(arrays["lengths"])[:-1]

        def split(name: str) -> list[Any]:
            return np.split(arrays[name], ends)

        training = TrainingGroup(
            id=delivery.id,
            prompt_ids=arrays["prompt_ids"],
            completion_ids=split("completion_ids"),
            behaviour=split("behaviour_logprobs"),
            reference=split("reference_logprobs") if "reference_logprobs" in arrays else None,
            rewards=earned.total,
            valid=earned.valid,
        )
        return Place(delivery, rewards=earned, training=training)

    # --------------------------------------------------------------------------------------------------------- steps

    async def run(self) -> None:
        learner = self.config.learner
        committed_step = self._step
        while self._step < learner.steps:
            places = await self._next_batch()
            if places is None:
                break
            await self._train(places)
            if self._step - committed_step >= learner.checkpoint_every:
                await self._commit()
                committed_step = self._step
        if self._step > committed_step or self._held:
            await self._commit()
        over = self._step >= learner.steps or self._ended
        self.log.info("learner.finished", step=self._step, version=self._version, over=over)
        if over and self._end is not None:
            self._end.finish()

    @property
    def _ended(self) -> bool:
        return self._total is not None and self._consumed + self._dropped >= self._total

    async def _next_batch(self) -> list[Place] | None:
        """The next groups in order, all of them fresh enough; None when stopping or at the end of the stream."""
        waited_since = time.monotonic()
        said_at = waited_since
        while not self.stopping.is_set():
            dropped = await self._settle_dropped()
            batch = self._order.take()
            if batch is None and self._total is not None:
                rest = self._total - self._consumed - self._dropped
                batch = self._order.take(rest) if 0 < rest < self.config.learner.batch else None
            if batch is not None and (fresh := self._fresh_enough(batch)):
                self._waited_s = time.monotonic() - waited_since
                return fresh
            if self._ended:
                return None
            if dropped or batch is not None:
                continue
            self._arrived.clear()
            stop = asyncio.create_task(self.stopping.wait())
            news = asyncio.create_task(self._arrived.wait())
            await asyncio.wait({stop, news}, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
            stop.cancel()
            news.cancel()
            self.worked()  # waiting for others is no stall of this role
            if time.monotonic() - said_at > self.options.stall_log_s:
                said_at = time.monotonic()
                waited_s = round(said_at - waited_since, 1)
                self.log.warning("learner.waiting", waited_s=waited_s, for_sequence=self._order.next, buffered=len(self._order))
        return None

    async def _settle_dropped(self) -> bool:
        """Places at the head of the order that no group will fill are accounted for, and admission is told."""
        dropped = self._order.take_skipped(lambda place: place.dropped is not None)
        return False if not dropped else await self._account(dropped)

    async def _account(self, dropped: list[Place]) -> bool:
        self._pending_dropped = [*getattr(self, "_pending_dropped", []), *dropped]
        self._dropped += len(dropped)
        for place in dropped:
            self._held[place.delivery.id] = place.delivery
        await self._announce(self._directory)
        return True

    def _fresh_enough(self, batch: list[Place]) -> list[Place]:
        """The batch, unless some of it is older than the bound: those are sampled anew and the others wait for them."""
        eta = self.config.staleness.eta
        stale = []
        for place in batch:
            versions = place.delivery.arrays["versions"]
            place.staleness = self._version - int(versions.min(initial=self._version))
            if place.staleness > eta:
                stale.append(place)
        if not stale:
            return batch
        for place in batch:
            if place in stale:
                self.log.info("group.resampled", id=place.delivery.id, staleness=place.staleness, eta=eta)
                place.delivery.give_back(f"staleness {place.staleness} above {eta}", restart=True)
            else:
                self._order.put_back(place.delivery.group.sequence, place)
        self._order.rewind(min(place.delivery.group.sequence for place in batch))
        return []

    async def _train(self, places: list[Place]) -> None:
        from safeladder.policies.ledger import Entry

        begun = time.monotonic()
        report = await asyncio.to_thread(self._learner.train, [place.training for place in places], self.worked)
        trained_at = self._version
        self._version = await asyncio.to_thread(self._counter.next)
        dropped = getattr(self, "_pending_dropped", [])
        self._pending_dropped: list[Place] = []
        entry = Entry(
            step=self._step,
            version=trained_at,
            published=self._version,
            boot=self.link.boot,
            parent=self._head,
            ids=[place.delivery.id for place in places],
            sequences=[place.delivery.group.sequence for place in places],
            dropped=[place.delivery.id for place in dropped],
            staleness=[place.staleness for place in places],
        )
        self._head = await asyncio.to_thread(self._ledger.append, entry)
        self._step += 1
        self._consumed += len(places)
        for place in places:
            self._held[place.delivery.id] = place.delivery
        published = time.monotonic()
        await self._announce(await asyncio.to_thread(self._publish))
        self._report(places, report, trained_at, begun, time.monotonic() - published)

    def _report(self, places: list[Place], report: Any, version: int, begun: float, publish_s: float) -> None:
        seconds = time.monotonic() - begun + self._waited_s
        totals = np.concatenate([place.rewards.total[place.rewards.valid] for place in places])
        unsafe = np.concatenate([place.rewards.unsafe for place in places])
        families: dict[str, list[float]] = {}
        channels: dict[str, list[float]] = {}
        for place in places:
            earned = place.rewards
            families.setdefault(place.delivery.group.record.label, []).extend(earned.total[earned.valid].tolist())
            for name, values in earned.channels.items():
                channels.setdefault(name, []).extend(values[np.isfinite(values)].tolist())
        finishes = [c.finish for place in places for c in place.delivery.group.completions]
        self.log.info(
            "step.completed",
            step=self._step,
            steps=self.config.learner.steps,
            version=version,
            published=self._version,
            reward_mean=_mean(totals),
            reward_std=float(totals.std()) if len(totals) else None,
            unsafe_rate=_mean(unsafe[np.isfinite(unsafe)]),
            families={label: _mean(values) for label, values in families.items()},
            channels={name: _mean(values) for name, values in channels.items()},
            invalid=int(sum((~place.rewards.valid).sum() for place in places)),
            groups=len(places),
            samples=len(finishes),
            truncated_ratio=finishes.count("length") / max(1, len(finishes)),
            staleness_max=max(place.staleness for place in places),
            staleness=[place.staleness for place in places],
            seconds=round(seconds, 3),
            wait_s=round(self._waited_s, 3),
            train_s=round(report.seconds, 3),
            publish_s=round(publish_s, 3),
            tokens_per_s=round(report.tokens / max(seconds, 1e-9), 1),
            **report.metrics(),
        )

    # ---------------------------------------------------------------------------------------- publication and checkpoint

    def _publish(self) -> Path:
        from safeladder.policies import weights

        weights.publish(self._model, self._home, self._version, step=self._step)
        weights.retire(self._home, self.config.weights.keep)
        return weights.directory_of(self._home, self._version)

    async def _announce(self, directory: Path | None) -> None:
        self._directory = directory
        value = {
            "version": self._version,
            "step": self._step,
            "consumed": self._consumed,
            "dropped": self._dropped,
            "next_sequence": self._consumed + self._dropped,
            "directory": str(directory) if directory else None,
        }
        async with asyncio.timeout(120.0):
            await asyncio.wrap_future(self.link.publish("policy", value))

    async def _commit(self) -> None:
        """Writes a checkpoint and then settles every lease whose effect it contains."""
        from safeladder.policies import checkpoint

        begun = time.monotonic()
        state = checkpoint.CheckpointState(
            step=self._step,
            version=self._version,
            ledger_head=self._head,
            feeder_cursor=self._consumed + self._dropped,
            boot=self.link.boot,
        )

        def write() -> Path:
            path = checkpoint.save(self._run.checkpoints, state, self._model, self._tokenizer, self._learner.optimizer)
            checkpoint.retire(self._run.checkpoints, self.config.learner.keep_checkpoints)
            return path

        path = await asyncio.to_thread(write)
        settled = list(self._held.values())
        self._committed |= set(self._held)
        self._held.clear()
        for delivery in settled:
            delivery.finish()
        self.worked()
        self.log.info(
            "checkpoint.committed", path=str(path), step=self._step, version=self._version, settled=len(settled),
            seconds=round(time.monotonic() - begun, 3), pid=os.getpid(),
        )

    async def stop(self) -> None:
        """The run's shared memory is freed when its last learner ends in order; after a crash the supervisor does it."""
        if self._step >= self.config.learner.steps:
            await asyncio.to_thread(shutil.rmtree, self._home, True)


def step_options(config: Any) -> Any:
    """The learner section of the configuration as the options of a step."""
    from dataclasses import fields

    from safeladder.policies.step import StepOptions

    names = {f.name for f in fields(StepOptions)}
    chosen = {name: getattr(config.learner, name) for name in names if hasattr(config.learner, name)}
    return StepOptions(**{**chosen, "temperature": config.sampling.temperature or 1.0})


def _mean(values: Any) -> float | None:
    return round(float(np.mean(values)), 6) if len(values) else None
