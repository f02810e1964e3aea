"""The hub's logic: messages in, messages and journal records out, time as an argument. No socket, no file, no clock.

The shell around it (`protocol/hub_shell.py`) feeds `receive` and `tick`, makes the records of `collect` durable, and only
then sends the messages: whatever a worker is told has happened has happened on disk.

What it promises:

* A work is accepted once, whatever is sent twice. An accepted work ends as finished, or as a dead letter that can be listed.
* One lease of a work is valid at a time. Tokens grow, also over restarts; the late answer to an older one is refused.
* *Done* closes the lease and queues the outputs in the same step: no crash comes between the two. So does *fail* with a
  partial, which takes the place of the work at its stop.
* A worker that dies, leaves, falls silent for `silence_s` or does not renew a lease for `lease_s` has its works queued again.
  A work that fails `max_attempts` times at one stop is set aside with its error, and the last stop of its route is told.
* Calls (`reply_to`) are kept in memory alone: a caller has a deadline of its own and may ask again.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from safeladder.protocol import codec
from safeladder.protocol import journal as j
from safeladder.protocol import messages as m
from safeladder.protocol.board import Board, Item
from safeladder.protocol.hops import Hops

Message = list[codec.Frame]

MAX_TOPICS_BYTES = m.MAX_BODY_BYTES // 4
MAX_TOPIC_DEPTH = 32
MAX_SCANNED = 10_000  # works looked at for the oldest that are under way
SHOWN_WORKS = 3
MAX_REMEMBERED = 100_000  # closed leases, and publications


@dataclass(frozen=True, slots=True)
class HubOptions:
    """Times in seconds. `silence_s` should be some beats long, `lease_s` longer than `silence_s`.

    `adopt_grace_s`: how long a restarted hub hands out nothing that somebody may still hold; longer than a worker takes to
    connect again (`sockets.RECONNECT_MS` at most).
    """

    run: str = "run"
    durability: j.Durability = "ids"
    beat_s: float = 1.0
    silence_s: float = 10.0
    lease_s: float = 30.0
    adopt_grace_s: float = 3.0
    max_attempts: int = 3
    max_depth: int = 100_000


@dataclass(slots=True)
class Worker:
    """A peer that has said hello."""

    peer: bytes
    hello: m.Hello
    heard_at: float
    credit: int
    leases: dict[int, float] = field(default_factory=dict)  # token -> time at which it ends unless renewed
    progress: int = 0
    progress_at: float = 0.0
    busy_s: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.hello.name

    @property
    def spare(self) -> int:
        """Leases that it can take on. Negative after its credit was lowered."""
        return self.credit - len(self.leases)


@dataclass(slots=True)
class Effects:
    """What a round of the hub wants done: first the records made durable, then the messages sent, then the events logged."""

    records: list[j.Record] = field(default_factory=list)
    sends: list[tuple[bytes, Message]] = field(default_factory=list)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


class HubCore:
    """The hub as a state machine. `boot` must be larger than that of every earlier hub on the same journal."""

    def __init__(
        self, options: HubOptions, boot: int = 1, recovered: Sequence[j.Record] = (), now: float = 0.0
    ) -> None:
        self.options = options
        self.boot = boot
        self.board = Board(options.durability)
        self.topics: dict[str, dict[str, Any]] = self.board.restore(recovered, now)
        self.workers: dict[bytes, Worker] = {}
        self.counters: dict[str, int] = {}
        self.closed = False
        self.stopping = False
        self._names: dict[str, Worker] = {}
        self._holders: dict[int, tuple[Worker, str]] = {}  # lease token -> holder, work id
        self._takers: dict[str, list[Worker]] = {}  # queue -> who works on it
        self._closed_leases: dict[int, None] = {}  # the last ones, to tell a duplicate from a stale answer
        self._lost_leases: dict[int, str] = {}  # the last ones, with their works, to know a late answer
        self._published: dict[tuple[str, str], None] = {}  # the last ones: a repetition must not undo a newer value
        self._hops = Hops()
        self._ticked_at = now
        self._tokens = boot << 32
        self._claims_until = now + options.adopt_grace_s if self.board.items else 0.0
        self._effects = Effects(records=[j.Booted(boot)] if options.durability != "memory" else [])

    # ------------------------------------------------------------------------------------------------ the shell's side

    def collect(self) -> Effects:
        """Takes what has come up since the last call."""
        effects, self._effects = self._effects, Effects()
        return effects

    def receive(self, peer: bytes, parts: Sequence[codec.Frame], now: float, user: str | None = None) -> None:
        """Handles one message. `user` is the name that the peer's key stands for, None where keys are not used.

        Never raises for what a peer sent: a bad message is counted, reported to the peer and forgotten.
        """
        try:
            _, body, parcels = codec.decode_from_worker(parts)
        except codec.SchemaMismatch as error:
            self._reject(peer, "schema", m.Refused(str(error)))
            return
        except codec.WireError as error:
            self._reject(peer, "malformed", m.Problem(str(error)))
            return
        if isinstance(body, m.Hello):
            self._hello(peer, body, now, user)
        elif worker := self.workers.get(peer):
            worker.heard_at = now
            self._dispatch(worker, body, parcels, now)
        else:
            self._count("unknown_peer")
            self._send(peer, m.Pong(0))  # no hub has this boot: the worker says hello, also to the hub that dropped it
        self._grant(now)

    def tick(self, now: float) -> None:
        """Ends what is overdue and hands out what can be handed out. To be called a few times a beat."""
        self._excuse(now - self._ticked_at)
        self._ticked_at = now
        if self._claims_until and now >= self._claims_until:
            self._claims_until = 0.0
            self.board.unclaimed(now)
        for worker in [w for w in self.workers.values() if now - w.heard_at > self.options.silence_s]:
            self._event("worker.lost", name=worker.name, silent_s=round(now - worker.heard_at, 3))
            self._drop(worker, "fell silent", now)
        for worker in list(self.workers.values()):
            for token in [token for token, end in worker.leases.items() if now > end]:
                self._event("lease.expired", name=worker.name, work=self._holders[token][1])
                self._lose(token, f"lease of {worker.name} expired", now)
        for calls in list(self.board.calls.values()):
            for item in [item for item in calls.values() if item.deadline is not None and now > item.deadline]:
                self._answer_call(item, None, f"deadline of {item.root.work.deadline_s} s passed at {item.queue!r}")
        self._grant(now)
        self.tell_hops()

    def tell_hops(self) -> None:
        """Makes an event of what became of works since the last time. Each tick does; the shell does at the end."""
        if rows := self._hops.take():
            self._event("work.hops", rows=rows)

    def _excuse(self, gap: float) -> None:
        """Time in which the hub itself stood still (disk full, process paused) is nobody's silence.

        The signs of life of that time still wait in the socket, and not all of them are read in the next round.
        """
        if gap <= self.options.beat_s:
            return
        self._claims_until += gap if self._claims_until else 0.0
        for worker in self.workers.values():
            worker.heard_at = min(worker.heard_at + gap, self._ticked_at + gap)
            for token in worker.leases:
                worker.leases[token] += gap

    # ------------------------------------------------------------------------------------------------------ workers

    def _hello(self, peer: bytes, hello: m.Hello, now: float, user: str | None) -> None:
        if user is not None and user != hello.name:
            self._reject(peer, "stolen_name", m.Refused(f"the key of {user!r} cannot say hello as {hello.name!r}"))
            return
        known = self._names.get(hello.name)
        if known and known.hello.boot != hello.boot:
            if user is None and now - known.heard_at < self.options.silence_s:
                reason = f"the name {hello.name!r} belongs to a live worker (pid {known.hello.pid})"
                self._reject(peer, "name_taken", m.Refused(reason, retry=True))
                return
            self._drop(known, "was replaced", now)
        elif known:  # the same process again, over a new connection or after it missed us
            del self.workers[known.peer]
        worker = Worker(peer, hello, now, hello.credit, progress_at=now)
        if known and known.hello.boot == hello.boot:
            worker.leases = known.leases
            for token in known.leases:
                self._holders[token] = (worker, self._holders[token][1])
        self.workers[peer] = self._names[hello.name] = worker
        self._index_takers()
        kept = self._settle_held(worker, hello.held, now)
        welcome = m.Welcome(
            self.boot, self.options.run, self.options.beat_s, self.options.lease_s, state=self.topics, kept=kept
        )
        self._send(peer, welcome)
        self._event("worker.welcomed", name=hello.name, queues=hello.queues, credit=hello.credit, kept=len(kept))

    def _settle_held(self, worker: Worker, held: Sequence[m.Held], now: float) -> list[int]:
        """Leases that the worker says it holds stand when they are valid or can be claimed; others of ours it has lost."""
        named = {entry.lease for entry in held}
        for token in [token for token in worker.leases if token not in named]:
            self._lose(token, f"{worker.name} never received it", now, forgive=True)
        for entry in held:
            item = self.board.items.get(entry.work)
            if entry.lease in worker.leases or item is None:
                continue
            before = item.lease
            if self.board.claim(item, entry.lease, entry.stop):
                if before is not None:
                    self._forget(before)
                item.leased_at = now
                self._hold(worker, entry.lease, item.id, now)
        return [token for token in worker.leases if token in named]

    def _drop(self, worker: Worker, reason: str, now: float) -> None:
        for token in list(worker.leases):
            self._lose(token, f"{worker.name} {reason}", now, forgive=worker.hello.collects)
        self.workers.pop(worker.peer, None)
        if self._names.get(worker.name) is worker:
            del self._names[worker.name]
        self._index_takers()
        for item in list(self.board.calls.get(worker.name, {}).values()):
            if item.lease in self._holders:
                self._forget(item.lease)
            self.board.finish(item, "caller left")

    def _dispatch(self, worker: Worker, body: m.FromWorker, parcels: list[codec.Parcel], now: float) -> None:
        match body:
            case m.Beat():
                self._beat(worker, body, now)
            case m.Credit():
                worker.credit = body.credit
            case m.Submit():
                self._submit(worker, body, parcels, now)
            case m.Done():
                self._done(worker, body, parcels, now)
            case m.Fail():
                self._fail(worker, body, parcels, now)
            case m.Publish():
                self._publish(worker, body)
            case m.Query():
                self._send(worker.peer, m.Report(body.request, self.report(body.what, now)))
            case m.Command():
                self._send(worker.peer, m.Report(body.request, self._command(worker, body, now)))
            case m.Bye():
                self._event("worker.left", name=worker.name, reason=body.reason, returned=len(worker.leases))
                for token in list(worker.leases):
                    self._lose(token, f"{worker.name} left", now, forgive=True)
                self._drop(worker, "left", now)

    def _beat(self, worker: Worker, beat: m.Beat, now: float) -> None:
        if beat.progress != worker.progress:
            worker.progress, worker.progress_at = beat.progress, now
        worker.busy_s, worker.metrics = beat.busy_s, beat.metrics
        for token in beat.leases:
            if token in worker.leases:
                worker.leases[token] = now + self.options.lease_s
        revoked = [token for token in beat.leases if token not in worker.leases]
        self._send(worker.peer, m.Pong(self.boot, revoked))

    # ------------------------------------------------------------------------------------------------- works and leases

    def _submit(self, worker: Worker, submit: m.Submit, parcels: list[codec.Parcel], now: float) -> None:
        fresh = [parcel for parcel in parcels if not self.board.known(parcel.work.id)]
        for parcel in fresh:
            work = parcel.work
            if work.reply_to not in (None, worker.name):
                self._ack(worker, submit.request, "refused", f"{worker.name} cannot ask for {work.reply_to!r}")
                return
            if self.board.waiting(work.route[work.stop]) >= self.options.max_depth:
                detail = f"queue {work.route[work.stop]!r} is full ({self.options.max_depth} works)"
                self._ack(worker, submit.request, "refused", detail)
                return
        for parcel in {parcel.work.id: parcel for parcel in fresh}.values():
            self._accept(parcel, now)
        self._count("accepted", len(fresh))
        self._ack(worker, submit.request, "accepted" if fresh else "duplicate")

    def _accept(self, parcel: codec.Parcel, now: float) -> None:
        self._record(self.board.accept(parcel, now))
        self._hops.accepted(self.board.items[parcel.work.id], now)

    def _done(self, worker: Worker, done: m.Done, parcels: list[codec.Parcel], now: float) -> None:
        if done.lease not in worker.leases:
            duplicate = done.lease in self._closed_leases
            if not duplicate and (work := self._lost_leases.pop(done.lease, None)):  # told once: the answer is repeated
                self._count("late_answers")
                self._event("answer.refused", name=worker.name, work=work)
            self._ack(worker, done.request, "duplicate" if duplicate else "stale")
            return
        item = self.board.items[self._holders[done.lease][1]]
        if wrong := self._wrong_outputs(item, parcels):
            self._ack(worker, done.request, "refused", wrong)
            self._count("refused_outputs")
            self._lose(done.lease, f"{worker.name}: {wrong}", now)
            return
        self._close(done.lease)
        self._count("done")
        onward = next((parcel for parcel in parcels if parcel.work.id == item.id), None)
        for parcel in parcels:
            if parcel is not onward and not self.board.known(parcel.work.id):
                self._accept(parcel, now)
        if onward is not None and onward.work.stop < len(item.root.work.route):
            if item.root.work.reply_to and onward.work.stop == item.stop:
                self._hops.left("finished", item, worker.name, now, "answered")
                self._answer_call(item, onward, None)
            else:
                self._record(self.board.move(item, onward, now))
                self._hops.left("moved", item, worker.name, now)
        elif item.root.work.reply_to:
            self._hops.left("finished", item, worker.name, now, "no answer")
            self._answer_call(item, None, done.ended or f"{item.queue!r} gave no answer")
        elif item.last_stop:
            self._hops.left("finished", item, worker.name, now, done.ended or "done")
            self._record(self.board.finish(item, done.ended or "done"))
        else:
            reason = done.ended or f"ended at {item.queue!r}"
            self._record(self.board.end_early(item, reason, now))
            self._hops.left("ended", item, worker.name, now, reason)
        self._ack(worker, done.request, "accepted")

    @staticmethod
    def _wrong_outputs(item: Item, parcels: list[codec.Parcel]) -> str | None:
        """An output under the lease's own id keeps its route and goes forward (or is the answer of a call's last stop)."""
        for parcel in parcels:
            if parcel.work.id != item.id:
                continue
            if parcel.work.route != item.root.work.route:
                return f"the route of {item.id!r} may not change"
            answers = item.root.work.reply_to is not None and item.last_stop and parcel.work.stop == item.stop
            if parcel.work.stop <= item.stop and not answers:
                return f"{item.id!r} moves forward only: from stop {item.stop} to {parcel.work.stop}"
        return None

    def _fail(self, worker: Worker, fail: m.Fail, parcels: list[codec.Parcel], now: float) -> None:
        if fail.lease not in worker.leases:
            self._ack(worker, fail.request, "duplicate" if fail.lease in self._closed_leases else "stale")
            return
        item = self.board.items[self._holders[fail.lease][1]]
        for partial in parcels:
            if wrong := self._wrong_partial(item, fail, partial):
                self._ack(worker, fail.request, "refused", wrong)
                self._count("refused_outputs")
                self._lose(fail.lease, f"{worker.name}: {wrong}", now)
                return
            self._record(self.board.advance(item, partial))
            self._count("handed_back")
        self._count("returned" if fail.returned else "failed")
        if fail.retry or fail.restart or fail.returned:
            forgive = fail.returned or fail.restart
            self._lose(fail.lease, fail.error, now, forgive=forgive, restart=fail.restart)
            self._remember(fail.lease)
        else:
            self._close(fail.lease)
            self._give_up(item, fail.error, now, worker.name)
        self._ack(worker, fail.request, "accepted")

    @staticmethod
    def _wrong_partial(item: Item, fail: m.Fail, partial: codec.Parcel) -> str | None:
        """A partial is the same work at the same stop, and only of use where the work is queued again there."""
        work = partial.work
        if (work.id, work.route, work.stop) != (item.id, item.root.work.route, item.stop):
            return f"the partial of {item.id!r} must keep its id, its route and its stop {item.stop}"
        if fail.restart or not (fail.retry or fail.returned):
            return f"{item.id!r} does not wait at this stop again, a partial of it is of no use"
        return None

    def _lose(self, token: int, reason: str, now: float, forgive: bool = False, restart: bool = False) -> None:
        """A lease ends without an answer: the work waits again, or is set aside after its last attempt."""
        holder = self._holders[token][0].name
        item = self.board.items[self._forget(token)]  # and not `_close`: a late answer is stale, no duplicate
        self._lost_leases[token] = item.id
        if len(self._lost_leases) > MAX_REMEMBERED:
            del self._lost_leases[next(iter(self._lost_leases))]
        if not forgive and item.attempts >= self.options.max_attempts:
            self._give_up(item, reason, now, holder)
        else:
            self.board.release(item, now, restart=restart, forgive=forgive)
            self._hops.left("returned", item, holder, now, reason)

    def _give_up(self, item: Item, reason: str, now: float, by: str) -> None:
        self._hops.left("died", item, by, now, reason)
        self._event("work.died", work=item.id, queue=item.queue, attempts=item.attempts, error=reason)
        self._count("dead")
        if item.root.work.reply_to is not None:
            self._answer_call(item, None, f"{item.queue!r} failed: {reason}")
        else:
            self._record(self.board.set_aside(item, reason, now))

    def _grant(self, now: float) -> None:
        """Hands out waiting works to workers with credit, the one with the most of it first."""
        if self.closed:
            return
        for queue, takers in self._takers.items():
            while self.board.waiting(queue):
                worker = max(takers, key=lambda taker: taker.spare)
                item = self.board.next(queue) if worker.spare > 0 else None
                if item is None or item.parcel is None:
                    break
                self._tokens += 1
                self.board.lease(item, self._tokens)
                item.leased_at = now
                self._hops.leased(item, worker.name, now)
                self._hold(worker, self._tokens, item.id, now)
                lease = m.Lease(self._tokens, item.parcel.work, self.options.lease_s, item.attempts)
                self._send(worker.peer, lease, item.parcel.frames)
                self._count("leased")

    def _index_takers(self) -> None:
        self._takers = {}
        for worker in self.workers.values():
            for queue in dict.fromkeys(worker.hello.queues):
                self._takers.setdefault(queue, []).append(worker)

    def _answer_call(self, item: Item, answer: codec.Parcel | None, error: str | None) -> None:
        if item.lease in self._holders:
            self._forget(item.lease)
        self.board.finish(item, "answered")
        caller = self._names.get(item.root.work.reply_to or "")
        if caller is not None:
            reply = m.Reply(item.id, answer.work if answer else None, error)
            self._send(caller.peer, reply, answer.frames if answer else [])

    def _hold(self, worker: Worker, token: int, work: str, now: float) -> None:
        worker.leases[token] = now + self.options.lease_s
        self._holders[token] = (worker, work)

    def _close(self, token: int) -> str:
        """Ends a lease that its holder has answered and returns the id of its work."""
        self._remember(token)
        return self._forget(token)

    def _remember(self, token: int) -> None:
        self._closed_leases[token] = None
        if len(self._closed_leases) > MAX_REMEMBERED:
            del self._closed_leases[next(iter(self._closed_leases))]

    def _forget(self, token: int) -> str:
        worker, work = self._holders.pop(token)
        worker.leases.pop(token, None)
        return work

    # ----------------------------------------------------------------------------------------------- topics and reports

    def _publish(self, worker: Worker, publish: m.Publish) -> None:
        key = (worker.hello.boot, publish.request)
        if key in self._published:
            self._ack(worker, publish.request, "duplicate")
            return
        if wrong := self._wrong_topic(publish):
            self._ack(worker, publish.request, "refused", wrong)
            return
        self._published[key] = None
        if len(self._published) > MAX_REMEMBERED:
            del self._published[next(iter(self._published))]
        self.topics[publish.topic] = publish.value
        if self.options.durability != "memory":
            self._record([j.Topic(publish.topic, publish.value)])
        self._ack(worker, publish.request, "accepted")
        for other in self.workers.values():
            self._send(other.peer, m.Notice(publish.topic, publish.value))

    def _wrong_topic(self, publish: m.Publish) -> str | None:
        """Every welcome carries the values of all topics, so together they stay far below a body's bound."""
        if _deeper(publish.value, MAX_TOPIC_DEPTH):
            return f"a topic's value may be nested {MAX_TOPIC_DEPTH} deep"
        size = len(msgspec.msgpack.encode({**self.topics, publish.topic: publish.value}))
        if size > MAX_TOPICS_BYTES:
            return f"all topics together would have {size} bytes, at most {MAX_TOPICS_BYTES}"
        return None

    def report(self, what: str, now: float) -> dict[str, Any]:
        """What a query is answered with: `dead` letters, `workers`, or the whole `status`."""
        if what == "dead":
            return {
                identity: {"queue": d.root.work.route[d.stop], "attempts": d.attempts, "error": d.error[:1000]}
                for identity, d in self.board.dead.items()
            }
        workers = {
            w.name: {
                "queues": w.hello.queues,
                "credit": w.credit,
                "leases": len(w.leases),
                "heard_s": round(now - w.heard_at, 3),
                "progress_s": round(now - w.progress_at, 3),
                "busy_s": w.busy_s,
                "pid": w.hello.pid,
                "metrics": w.metrics,
            }
            for w in self.workers.values()
        }
        if what == "workers":
            return workers
        waiting = {queue: self.board.waiting(queue) for queue in self.board.queues()}
        return {
            "boot": self.boot,
            "waiting": waiting,
            "leased": len(self._holders),
            "dead": len(self.board.dead),
            "finished": len(self.board.finished),
            "counters": dict(self.counters),
            "workers": workers,
            "oldest": self._oldest(now),
        }

    def _oldest(self, now: float) -> list[dict[str, Any]]:
        """The works that came first among those that are still on their way to their last stop: what the end waits for."""
        found: list[dict[str, Any]] = []
        for item in itertools.islice(self.board.items.values(), MAX_SCANNED):
            if item.last_stop and item.lease is not None:
                continue
            holder = self._holders[item.lease][0].name if item.lease in self._holders else ""
            since = item.leased_at if holder else item.entered_at
            row = {"id": item.id, "queue": item.queue, "holder": holder, "seconds": round(now - since, 1)}
            found.append({**row, "attempts": item.attempts})
            if len(found) == SHOWN_WORKS:
                break
        return found

    def _command(self, worker: Worker, command: m.Command, now: float) -> dict[str, Any]:
        self._event("command.received", name=worker.name, what=command.what, argument=command.argument)
        match command.what:
            case "requeue":
                chosen = [command.argument] if command.argument else list(self.board.dead)
                if unknown := [identity for identity in chosen if identity not in self.board.dead]:
                    return {"error": f"no dead letter {unknown[0]!r}"}
                successors = {}
                for identity in chosen:
                    successors[identity], records = self.board.requeue(identity, now)
                    self._record(records)
                    self._hops.accepted(self.board.items[successors[identity]], now)
                return {"requeued": successors}
            case "exited":
                if gone := self._names.get(command.argument or ""):
                    self._event("worker.lost", name=gone.name, silent_s=round(now - gone.heard_at, 3))
                    self._drop(gone, "exited", now)
                return {"known": gone is not None}
            case "close":
                self.closed = True
            case "stop":
                self.stopping = True
        return {}

    # ---------------------------------------------------------------------------------------------------------- details

    def _reject(self, peer: bytes, why: str, answer: m.Refused | m.Problem) -> None:
        self._count(f"rejected_{why}")
        count = self.counters[f"rejected_{why}"]
        if (
            count & (count - 1) == 0
        ):  # the first, second, fourth, ...: a peer gone mad must not fill the disk with log lines
            self._event("message.rejected", why=why, count=count, reason=answer.reason, peer=peer.hex()[:64])
        self._send(peer, answer)

    def _ack(self, worker: Worker, request: str, status: str, detail: str = "") -> None:
        self._send(worker.peer, m.Ack(request, status, detail))  # type: ignore[arg-type]

    def _send(self, peer: bytes, body: m.FromHub, frames: Sequence[codec.Frame] = ()) -> None:
        self._effects.sends.append((peer, codec.encode(body, "hub", frames)))

    def _record(self, records: list[j.Record]) -> None:
        self._effects.records.extend(records)

    def _event(self, event: str, **fields: Any) -> None:
        self._effects.events.append((event, fields))

    def _count(self, name: str, amount: int = 1) -> None:
        self.counters[name] = self.counters.get(name, 0) + amount


def _deeper(value: Any, depth: int) -> bool:
    """Whether maps and lists are nested more than `depth` deep. Looks no deeper than that."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth < 0 or any(_deeper(entry, depth - 1) for entry in inner if isinstance(entry, dict | list))
