"""Learner: assembles groups into batches as the staleness policy says, improves the policy, publishes weights, keeps the ledger.

Inbox: judged groups, `Skipped` in the place of groups that ended early, `End`. Outbox: the topic `policy` (version, step, where the
weights are, how many groups are accounted for), and with `data.curriculum` the topic `outcomes` (what became of the last groups).
What blocks it are the groups that the staleness policy waits for:
generator, verifiers, reference unblock it. If one of those dies, the hub gives its work to another and the learner waits; if the hub
dies, the learner keeps what it holds and names it to the successor.

Exactly once: a lease is kept until a checkpoint that contains its group's effect is committed, and only then settled. If this
process dies, its successor starts at the newest checkpoint; what had not been committed comes back from the hub and is trained
again, in the history that survives once. A group that comes back although the checkpoint contains it is settled at once.

Dropped groups (ended early, of no use, too old under the policy `drop`) stand in the ledger beside what the next step trained and are
held like it. Each raises this process's credit by one meanwhile, so that however many there are, what is waited for still fits.

Staleness: no group older than `eta` goes into a step. That one is, is a fault, and ends this process with an error; except that a
group admitted before this process began may have aged in a rollback: it goes back to its first stop to be sampled anew and keeps its
place. Under `drop` it is dropped.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safeladder.actors.actor import Actor, ActorError, Delivery, Keep, Outcome, Reject
from safeladder.actors.image_source import ImageSource
from safeladder.actors.places import Place, Preparation, digest, explain, summarize
from safeladder.actors.recording import Recorder
from safeladder.launch.config import ConfigError
from safeladder.launch.config import digest as config_digest
from safeladder.launch.rundir import RunDirectory
from safeladder.policies import staleness
from safeladder.policies.arrivals import Arrivals
from safeladder.policies.drift import Drift, DriftBounds
from safeladder.policies.ledger import Entry, Ledger, VersionCounter
from safeladder.policies.recipe import Rewards, from_mapping
from safeladder.policies.selection import LengthSelection
from safeladder.protocol import messages as m
from safeladder.protocol import record
from safeladder.protocol.chunk_shell import ChunkServer
from safeladder.protocol.keys import load_secret, load_server

if TYPE_CHECKING:
    from safeladder.actors.training import Training
    from safeladder.policies.traces import Trace


OUTCOMES = 1024  # groups whose outcome is told again with each step, for a feeder that was away
ENDED, STALE, UNINFORMATIVE, REJECTED = "ended early", "stale", "uninformative", "rejected"


@dataclass
class Dropped:
    """A group that will not be trained. `number`: its place in the order of admission. accuracy: as `Place.accuracy`."""

    delivery: Delivery
    number: int
    reason: str
    accuracy: float | None = None


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
        self._late: list[Place] = []  # requeued dead letters, whose place in the order is accounted for
        self._dropped: dict[str, Dropped] = {}  # since the last step: the next one's line in the ledger will name them
        self._spare: set[str] = set()  # the dropped among all that is held
        self._selection = LengthSelection()
        self._outcomes: deque[tuple[int, float | None, bool]] = deque(maxlen=OUTCOMES)
        self._directory: Path | None = None
        self._waited_s = 0.0
        self._server: ChunkServer | None = None
        self._training: Training
        await asyncio.to_thread(self._load)
        self._recorder = await asyncio.to_thread(self._open_record) if self.config.run.record else None
        if self._version > 0:
            await asyncio.to_thread(self._publish)
        await self._announce()
        self.log.info("learner.ready", step=self._step, version=self._version, next_sequence=self._arrivals.cursor)

    def _load(self) -> None:
        """The newest checkpoint, or the first policy where there is none."""
        from safeladder.actors.ranks import gather
        from safeladder.policies import weights

        self._training = gather(self.context, self.options.ranks, self.options.ranks_timeout_s)
        recipe = from_mapping(dataclasses.asdict(self.config.recipe))
        self._preparation = Preparation(self.config, recipe, self._training.tokenizer, ImageSource(self).fetch)
        state = self._training.state
        if self._training.restored:
            path = str(self._training.restored)
            self.log.info("checkpoint.restored", path=path, step=state.step, version=state.version)
        self._ledger = Ledger(self._run.ledger)
        self._counter = VersionCounter(self._run.versions)
        self._step, self._version, self._head = state.step, state.version, state.ledger_head
        self._committed = self._ledger.consumed(self._head)
        self._staleness = staleness.create(self.config.staleness, self.config.learner.batch)
        history = self._ledger.lineage(self._head)
        ahead = [number for entry in history for number in (*entry.sequences, *entry.dropped_sequences)]
        self._arrivals: Arrivals[Place] = Arrivals(state.feeder_cursor, ahead)
        self._cursor = self._arrivals.cursor  # as of the last step: what the ledger has
        place = self.config.weights.home
        size = self._training.bytes
        self._home = weights.home(self._run.path.name, size, self._run.weights) if place == "auto" else Path(place)
        if serve := self.config.weights.serve:
            folder = self.config.hub.keys
            self._server = ChunkServer(
                serve, self._home, load_server(Path(folder), self.context.name) if folder else None
            )
            self.log.info("weights.served", endpoint=self._server.endpoint)
        if self._counter.newest > self._version:
            # Later weights were given out once: these are a rollback, and a number never stands for two policies.
            self._version = self._counter.next(self._step)
        # what a learner before this one let in may belong to a history that has not survived
        self._sure_from = self._version + 1 if "policy" in self.link.state else 0

    def _open_record(self) -> Recorder:
        recorder = Recorder(self._run.record, self.config.run.record_max_bytes, self.log)
        recorder.began(self.link.boot, self._step, self._head)
        return recorder

    # -------------------------------------------------------------------------------------------------------- inbox

    async def handle(self, delivery: Delivery) -> Outcome:
        payload = delivery.payload
        if self._recorder:
            self._recorder.handed(delivery, self.config.hub.lease_s)
        if delivery.id in self._committed:
            return None  # its effect is in a committed checkpoint: nothing is left but to settle
        if self._held_again(delivery):
            return Keep
        if isinstance(payload, m.End):
            self._end = delivery
            if self._arrivals.total is None:
                self._arrivals.end(payload.total)
        elif isinstance(payload, m.Skipped):
            self.log.warning("group.skipped", id=delivery.id, reason=payload.reason)
            self._drop(delivery, payload.sequence, ENDED)
        else:
            number = delivery.group.sequence
            try:
                place = await asyncio.to_thread(self._preparation.place, delivery)
            except Reject as error:  # a dead letter at the last stop would leave a hole in the order
                self.log.error("group.rejected", id=delivery.id, error=str(error))
                self._withdraw(number)
                self._drop(delivery, number, REJECTED)
            else:
                if not self._held_again(delivery):  # it may have been trained meanwhile, under an older lease
                    self._add(place)
        self._arrived.set()
        return Keep

    def _held_again(self, delivery: Delivery) -> bool:
        """Whether this work is held already; then the hub had to give a new lease for it."""
        if delivery.id in self._held:
            self._held[delivery.id] = delivery
        elif dropped := self._dropped.get(delivery.id):
            dropped.delivery = delivery
        else:
            return False
        return True

    def _add(self, place: Place) -> None:
        if not self._withdraw(place.sequence):  # else the same group under a new lease
            self._selection.draw(place.lengths)
        if not place.informative:
            self._drop(place.delivery, place.sequence, UNINFORMATIVE, place.rewards, place.accuracy)
        elif self._arrivals.accounted_for(place.sequence):
            self._late = [other for other in self._late if other.id != place.id] + [place]
        else:
            self._arrivals.add(place.sequence, place)

    def _withdraw(self, number: int) -> bool:
        """Takes a group out of what is here. False when it is not here."""
        found = number in self._arrivals
        if found:
            self._arrivals.withdraw(number)
        return found

    def _drop(
        self,
        delivery: Delivery,
        number: int,
        reason: str,
        earned: Rewards | None = None,
        accuracy: float | None = None,
    ) -> None:
        """Accounts for a group that will not be trained; admission makes up for it."""
        delivery.payload, delivery.arrays = m.Skipped(number, reason), {}  # nothing else of it is needed any more
        self._dropped[delivery.id] = Dropped(delivery, number, reason, accuracy)
        self._spare.add(delivery.id)
        if not self._arrivals.accounted_for(number):
            self._arrivals.drop(number)
        said = {} if earned is None else explain(earned)
        self.log.info("group.dropped", id=delivery.id, sequence=number, reason=reason, **said)
        self._lend_credit()

    def _lend_credit(self) -> None:
        if not self.stopping.is_set():
            self.link.set_credit(self.context.pool.credit + len(self._spare))

    def revoked(self, delivery: Delivery) -> None:
        """The hub gave the group to nobody else (there is one learner): it comes again under a new lease."""
        for place in self._arrivals.items():
            if place.delivery is delivery:
                self._arrivals.withdraw(place.sequence)

    # --------------------------------------------------------------------------------------------------------- steps

    async def run(self) -> None:
        learner = self.config.learner
        committed_step = self._step
        while self._step < learner.steps and (places := await self._next_batch()) is not None:
            await self._train(places)
            if self._step - committed_step >= learner.checkpoint_every:
                await self._commit()
                committed_step = self._step
        if self._step > committed_step:
            await self._commit()
        if (
            self._arrivals.finished
        ):  # what was dropped after the last group, and the end itself, have no step to wait for
            for dropped in self._dropped.values():
                self.link.done(dropped.delivery.lease, ended=dropped.reason)
            if self._end:
                self._end.finish()
        self.log.info(
            "learner.finished",
            step=self._step,
            version=self._version,
            stopped=self.stopping.is_set(),
            end_of_stream=self._arrivals.finished,
        )
        await asyncio.to_thread(self._training.stop)

    async def _next_batch(self) -> list[Place] | None:
        """The groups of the next step, all of them fresh enough; None when stopping or at the end of the stream."""
        began = said = spoken = time.monotonic()
        while not self.stopping.is_set():
            self._arrived.clear()
            self._set_stale_aside()
            if numbers := self._staleness.choose(self._arrivals, self._step):
                self._waited_s = time.monotonic() - began
                batch, self._late = [*self._arrivals.take(numbers), *self._late], []
                self._held.update({place.id: place.delivery for place in batch})
                return batch
            if self._arrivals.finished:
                return None
            self._refuse_endless_sampling()
            if self._arrivals.accounted != self._announced:
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
                    for_sequence=self._arrivals.cursor,
                    buffered=len(self._arrivals),
                )
        return None

    def _set_stale_aside(self) -> None:
        """Nothing that is older than the bound stays here: it only gets older by waiting. Raises ActorError for a fault."""
        eta = self.config.staleness.eta
        for place in [*self._arrivals.items(), *self._late]:
            own = [place.training.own_versions(k) for k in range(len(place.training.versions))]
            place.staleness = max(staleness.staleness(own, self._version), default=0)
            if place.staleness <= eta:
                continue
            if place in self._late:
                self._late.remove(place)
                self._resample(place)
            elif self._staleness.drops:
                self._arrivals.withdraw(place.sequence)
                self._drop(place.delivery, place.sequence, STALE, place.rewards, place.accuracy)
            elif place.delivery.group.min_version < self._sure_from:
                self._arrivals.withdraw(place.sequence)
                self._resample(place)
            else:
                self._refuse_stale(place)

    def _resample(self, place: Place) -> None:
        eta = self.config.staleness.eta
        self.log.info("group.resampled", id=place.id, staleness=place.staleness, eta=eta)
        place.delivery.give_back(f"staleness {place.staleness} above {eta}", restart=True)

    def _refuse_stale(self, place: Place) -> None:
        """The staleness policy promises that this does not happen."""
        admitted, eta, policy = (
            place.delivery.group.min_version,
            self.config.staleness.eta,
            self.config.staleness.policy,
        )
        self.log.error("staleness.violated", id=place.id, staleness=place.staleness, eta=eta, min_version=admitted)
        raise ActorError(
            f"group {place.id} is {place.staleness} versions old at version {self._version}, the bound of policy "
            f"{policy!r} is {eta}; it was admitted for version {admitted} or later: has a generator sampled with older weights?"
        )

    def _refuse_endless_sampling(self) -> None:
        """Raises ConfigError when too many groups in a row taught nothing."""
        learner = self.config.learner
        most = learner.max_uninformative or 64 * learner.batch
        count = self._useless
        if sum(count.values()) > most:
            said = ", ".join(f"{number} {reason}" for reason, number in sorted(count.items()))
            raise ConfigError(
                f"learner.max_uninformative: {sum(count.values())} groups in a row could not be trained on ({said}), {most} may; "
                "are the tasks all too easy or too hard, or do all samples of a group get the same reward?"
            )

    @property
    def _useless(self) -> Counter[str]:
        """Groups since the last step from which nothing can be learnt, by reason."""
        return Counter(d.reason for d in self._dropped.values() if d.reason in (UNINFORMATIVE, REJECTED))

    async def _train(self, places: list[Place]) -> None:
        """One optimizer step, its line in the ledger, and the new weights for everybody."""
        began = time.monotonic()
        for place in places:
            if place.staleness > self.config.staleness.eta:
                self._refuse_stale(place)
        report = await asyncio.to_thread(self._training.train, [place.training for place in places], self._version)
        trained_at = self._version
        self._version = await asyncio.to_thread(self._counter.next, self._step + 1)
        dropped, self._dropped = [*self._dropped.values()], {}
        self._cursor = self._arrivals.cursor  # the ledger gets all of it in one line: nothing may come between
        entry = Entry(
            step=self._step,
            version=trained_at,
            published=self._version,
            boot=self.link.boot,
            parent=self._head,
            ids=[place.delivery.id for place in places],
            sequences=[place.sequence for place in places],
            dropped=[group.delivery.id for group in dropped],
            staleness=[place.staleness for place in places],
            batch_digest=digest([place.training for place in places]),
            dropped_sequences=[group.number for group in dropped],
            reasons=[group.reason for group in dropped],
        )
        self._held.update({group.delivery.id: group.delivery for group in dropped})
        self._head = await asyncio.to_thread(self._ledger.append, entry)
        self._step += 1
        for place in places:
            self._selection.train(place.lengths)
        bias, reasons = self._selection.bias, Counter(group.reason for group in dropped)
        publishing = time.monotonic()
        digest_of_weights = await asyncio.to_thread(self._publish)
        await self._announce()
        if self.config.data.curriculum is not None:
            self._outcomes.extend((place.sequence, place.accuracy, True) for place in places)
            self._outcomes.extend((group.number, group.accuracy, False) for group in dropped)
            await self._tell("outcomes", {"groups": list(self._outcomes)})
        publish_s = time.monotonic() - publishing
        if self._recorder:
            mark = record.Stepped(self._head, self._step, report.loss, report.grad_norm, digest_of_weights)
            await self._recorder.stepped(mark)
        self.worked()
        seconds = time.monotonic() - began + self._waited_s
        self._watch_drift(report.engine_drift)
        figures = {**dataclasses.asdict(report), "step": self._step}
        figures |= figures.pop("off_policy")
        del figures["traces"]
        self._tell_groups(places, report.traces)
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
            dropped=dict(reasons),
            uninformative=reasons[UNINFORMATIVE],
            selection_bias=None if bias is None else round(bias, 6),
            **summarize(places),
            **figures,
        )

    def _tell_groups(self, places: list[Place], traces: list[Trace]) -> None:
        """One line a group: all that the step had to do with it."""
        for place, trace in zip(places, traces, strict=True):
            self.log.info(
                "group.trained",
                id=place.id,
                step=self._step,
                published=self._version,
                staleness=place.staleness,
                **explain(place.rewards),
                **dataclasses.asdict(trace),
            )

    def _watch_drift(self, drift: Drift | None) -> None:
        """Says it loudly when an engine no longer computes what the learner does. Training goes on: the corrections see
        the same log-probabilities, and whether to stop is for a person to decide."""
        sampling, alarm = self.config.sampling, self.config.weights.drift
        if drift is None or sampling.temperature == 0 or sampling.top_k or sampling.top_p < 1 or sampling.min_p:
            return
        types = {self.config.policy.dtype, self.config.weights.dtype or self.config.policy.dtype}
        coarsest = next(dtype for dtype in ("bfloat16", "float16", "float32") if dtype in types)
        bounds = DriftBounds.of(coarsest, alarm.mean, alarm.outside)
        if reason := bounds.broken(drift):
            self.log.warning(
                "drift.alarm",
                step=self._step,
                version=self._version,
                reason=reason,
                advice="the engine computes another policy than the learner from the same weights: look for weights.refused "
                "and weights.loaded in the generators' logs, compare their dtype and engine version with the learner's, and "
                "restart the generators; widen weights.drift only if the difference is rounding",
                **dataclasses.asdict(drift),
            )

    # ---------------------------------------------------------------------------------------- publication and checkpoint

    def _publish(self) -> str:
        """Returns the digest of the weights, "" of a delta."""
        from safeladder.policies import weights

        self._directory = weights.folder(self._home, self._version)
        manifest = self._training.publish(self._home, self._version, self._step, self.context.name)
        weights.retire(self._home, self.config.weights.keep, key=load_secret(self._run.weights_key))
        return manifest.digest if manifest.base is None else ""

    async def _announce(self) -> None:
        """Tells everybody the version and the feeder what is accounted for. Raises TimeoutError after two minutes."""
        self._announced = self._arrivals.accounted  # drops of any later moment, also during a commit, are told again
        value = {
            "version": self._version,
            "step": self._step,
            "directory": str(self._directory) if self._directory else None,
            "next_sequence": self._arrivals.cursor,
            "accounted": self._announced,
            "serve": self._server.endpoint if self._server else None,
            "serve_key": self._server.public_key if self._server else None,
        }
        await self._tell("policy", value)

    async def _tell(self, topic: str, value: dict[str, Any]) -> None:
        async with asyncio.timeout(120.0):
            await asyncio.wrap_future(self.link.publish(topic, value))

    async def stop(self) -> None:
        if self._server:
            await asyncio.to_thread(self._server.close)
        if self._recorder:
            await self._recorder.close()

    async def _commit(self) -> None:
        """Writes a checkpoint and then settles every lease whose effect it contains."""
        from safeladder.policies import checkpoint

        began = time.monotonic()
        state = checkpoint.CheckpointState(
            step=self._step,
            version=self._version,
            ledger_head=self._head,
            feeder_cursor=self._cursor,
            config_digest=config_digest(self.config),
        )

        if self._recorder:
            await self._recorder.sync()  # no checkpoint outlives a power cut without what it was made of
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
        self._spare -= set(settled)
        self._lend_credit()
        self.worked()
        self.log.info(
            "checkpoint.committed",
            path=str(path),
            step=self._step,
            version=self._version,
            settled=len(settled),
            seconds=round(time.monotonic() - began, 3),
        )
