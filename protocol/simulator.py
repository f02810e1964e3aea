"""Days of faults in a minute: the real hub and link logic on a simulated clock, network and disk, from one seed.

    python -m safeladder.protocol.simulator --seeds 0 200

Works go from a source over generators and verifiers to a learner that trains by adding up their numbers. A generator makes a work
token by token, and writes into each token the lease under which it made it. Meanwhile the hub and every role are killed and
restarted, paused, and cut off, and generators are stopped in order, which give back what they have made so far; messages are
late, lost with their connection, and sent twice. At the end the learner's surviving history must hold every work once, with every
token once: the sum itself proves that nothing was lost or trained twice. A failure is replayed from its seed alone.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from safeladder.protocol import codec
from safeladder.protocol import journal as j
from safeladder.protocol import link as links
from safeladder.protocol import messages as m
from safeladder.protocol.hub import HubCore, HubOptions

ROUTE = ["generator", "verifier", "learner"]
TOKENS = 4  # of a work


@dataclass(frozen=True)
class Faults:
    """How often things go wrong, as the mean number of seconds between two faults of a kind (0: never)."""

    kill_hub_s: float = 20.0
    kill_worker_s: float = 15.0
    stop_generator_s: float = 15.0  # in order: what it has made goes back with its leases
    pause_worker_s: float = 30.0
    cut_s: float = 20.0
    delay_s: float = 0.05
    duplicate_ratio: float = 0.02
    poison_ratio: float = 0.02  # works that make a generator fail every time


@dataclass
class Disk:
    """What survives a crash: the hub's records, the source's cursor, the learner's checkpoint.

    The cursor matters to the proof: a source that began anew would submit again whatever the hub had lost, and hide it.
    """

    records: list[j.Record] = field(default_factory=list)
    submitted: set[str] = field(default_factory=set)
    trained: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    total: int = 0


@dataclass(frozen=True)
class Partial:
    """What was made of a work when its lease was given back, and how often the hub had been killed by then."""

    work: str
    made: list[int]
    hubs_killed: int


@dataclass
class Outcome:
    """What a simulated run came to."""

    seconds: float
    trained: list[str]
    skipped: list[str]
    total: int
    faults: dict[str, int]
    messages: int
    finished: bool


class Worker:
    """One simulated process: a link and the role's logic."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.role = name.split("/")[0]
        self.paused_until = 0.0
        self.cut_until = 0.0
        self.start()

    def start(self) -> None:
        self.alive = True
        self.boot = f"{self.name}-{next(self.world.numbers)}"
        queues = [self.role] if self.role in ROUTE else []
        credit = {"generator": 3, "verifier": 2, "learner": 40}.get(self.role, 0)
        hello = m.Hello(self.name, self.boot, queues, credit, self.role, collects=self.role == "learner")
        self.link = links.LinkCore(hello, silence_s=5.0)
        self.link.start(self.world.now)
        self.open: dict[str, set[int]] = {}
        self.parts: dict[int, tuple[codec.Parcel, list[int]]] = {}  # a generator: lease -> its work, the tokens so far
        self.handed: dict[str, Partial] = {}  # a generator: request -> what it gave back
        self.stopping = False
        self.held: dict[str, int] = {}  # the learner: id -> lease
        self.values: dict[str, int] = {}
        self.dropped: set[str] = set()
        self.disk = self.world.disk
        self.since_commit = 0
        if self.role == "source":
            self.world.later(0.1, self, self.feed)
        self.world.flush(self)

    # ------------------------------------------------------------------------------------------------------ the roles

    def feed(self) -> None:
        """Submits what has not been acknowledged, in slices."""
        world = self.world
        missing = [n for n in range(world.works) if f"w{n}" not in self.disk.submitted][:5]
        if missing and not self.open:
            parcels = [
                codec.pack(m.Document("task"), {"n": np.array([n], np.int64)}, id=f"w{n}", route=ROUTE, sequence=n)
                for n in missing
            ]
            self.open[self.link.submit(parcels, world.now)] = set(missing)
        if missing:
            world.later(0.5, self, self.feed)

    def on(self, event: links.Event) -> None:
        match event:
            case links.Settled() if event.request in self.open:
                self.disk.submitted |= {f"w{n}" for n in self.open.pop(event.request)}
            case links.Settled() if event.request in self.handed:
                partial = self.handed.pop(event.request)
                if event.value["status"] == "accepted":
                    self.world.partials.append(partial)
            case links.Leased() if self.role == "generator":
                self.begin(event)
            case links.Leased() if self.role == "verifier":
                self.world.later(self.world.random.expovariate(2.0), self, lambda: self.serve(event))
            case links.Leased() if self.role == "learner":
                self.learn(event)

    def begin(self, event: links.Leased) -> None:
        if self.stopping:
            self.link.fail(event.lease, "stopping", self.world.now, returned=True)
            return
        _, arrays = codec.unpack(event.parcel)
        self.parts[event.lease] = event.parcel, arrays["made"].tolist() if "made" in arrays else []
        self.world.later(self.world.random.expovariate(2.0 * TOKENS), self, lambda: self.generate(event.lease))

    def generate(self, lease: int) -> None:
        """One token more. The work is handed on with the last one."""
        if lease not in self.parts or lease not in self.link.held:
            self.parts.pop(lease, None)
            return
        parcel, made = self.parts[lease]
        if parcel.work.id in self.world.poison:
            self.link.fail(lease, "poison", self.world.now)
            return
        made.append(lease)
        if len(made) < TOKENS:
            self.world.later(self.world.random.expovariate(2.0 * TOKENS), self, lambda: self.generate(lease))
        else:
            self.link.done(lease, [self.as_made(lease, parcel.work.stop + 1)], self.world.now)
            del self.parts[lease]

    def as_made(self, lease: int, stop: int) -> codec.Parcel:
        parcel, made = self.parts[lease]
        payload, arrays = codec.unpack(parcel)
        arrays = {**arrays, "made": np.array(made, np.int64)}
        return codec.pack(payload, arrays, id=parcel.work.id, route=parcel.work.route, stop=stop)

    def give_back(self) -> None:
        """An orderly stop: what is made goes back; the process ends when that is settled, or after two seconds."""
        self.stopping = True
        self.link.set_credit(0)
        for lease in [lease for lease in self.parts if lease in self.link.held]:
            parcel, made = self.parts[lease]
            partial = self.as_made(lease, parcel.work.stop) if made else None
            request = self.link.fail(lease, "stopping", self.world.now, returned=True, partial=partial)
            if made:
                self.handed[request] = Partial(parcel.work.id, made, self.world.counts.get("hub killed", 0))
        self.parts.clear()
        self.world.flush(self)
        self.leave(self.world.now + 2.0)

    def leave(self, deadline: float) -> None:
        if self.link.unsettled and self.world.now < deadline:
            self.world.later(0.1, self, lambda: self.leave(deadline))
            return
        self.link.leave("stopped")
        self.world.flush(self)
        self.world.kill(self, "generator stopped")

    def serve(self, event: links.Leased) -> None:
        work = event.parcel.work
        if event.lease not in self.link.held:
            return
        payload, arrays = codec.unpack(event.parcel)
        output = codec.pack(payload, arrays, id=work.id, route=work.route, stop=work.stop + 1)
        self.link.done(event.lease, [output], self.world.now)

    def learn(self, event: links.Leased) -> None:
        """Trains at once, commits every eight works, settles only what is committed."""
        identity = event.parcel.work.id
        payload, arrays = codec.unpack(event.parcel)
        if identity in self.disk.trained or identity in self.disk.skipped:
            self.link.done(event.lease, [], self.world.now)
            return
        fresh = identity not in self.held
        self.held[identity] = event.lease
        if not fresh:
            return
        if isinstance(payload, m.Skipped):
            self.dropped.add(identity)
        else:
            self.values[identity] = int(arrays["n"][0])
            self.world.check_tokens(identity, arrays["made"].tolist())
        self.since_commit += 1
        if (
            self.since_commit >= 8
            or len(self.disk.trained) + len(self.disk.skipped) + len(self.held) >= self.world.works
        ):
            self.commit()

    def commit(self) -> None:
        self.since_commit = 0
        self.disk.trained += [identity for identity in self.held if identity in self.values]
        self.disk.skipped += [identity for identity in self.held if identity in self.dropped]
        self.disk.total += sum(self.values.values())
        if self.world.random.random() < 0.1:
            self.world.kill(self, "killed after commit")  # before the hub has heard of it
            return
        for lease in self.held.values():
            self.link.done(lease, [], self.world.now)
        self.held, self.values, self.dropped = {}, {}, set()


class World:
    """Clock, network, disk and everybody in it."""

    def __init__(self, seed: int, works: int = 120, faults: Faults | None = None, durability: j.Durability = "ids"):
        self.random = random.Random(seed)
        self.faults = faults or Faults()
        self.works = works
        self.now = 0.0
        self.numbers = itertools.count(1)
        self.disk = Disk()
        self.counts: dict[str, int] = {}
        self.messages = 0
        self.partials: list[Partial] = []  # which the hub has acknowledged
        self.wrong: list[str] = []
        self.options = HubOptions(
            durability=durability, beat_s=0.5, silence_s=3.0, lease_s=6.0, adopt_grace_s=1.5, max_attempts=6
        )
        self.poison = {f"w{n}" for n in range(works) if self.random.random() < self.faults.poison_ratio}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self.hub: HubCore | None = None
        self.start_hub()
        names = ["source/0", "generator/0", "generator/1", "verifier/0", "learner/0"]
        self.workers = {name: Worker(self, name) for name in names}
        self.peers = {name: name for name in names}
        self.at(0.1, self.tick)
        for kind in ("kill_hub", "kill_worker", "stop_generator", "pause_worker", "cut"):
            self.plan(kind)

    # ------------------------------------------------------------------------------------------------------- the clock

    def at(self, delay: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + delay, next(self.numbers), action))

    def later(self, delay: float, worker: Worker, action: Callable[[], None]) -> None:
        """As `at`, but only if the same process is still there then; a paused process does it when it wakes up."""
        boot = worker.boot

        def run() -> None:
            if not worker.alive or worker.boot != boot:
                return
            if worker.paused_until > self.now:
                self.later(worker.paused_until - self.now, worker, action)
                return
            action()
            self.flush(worker)

        self.at(delay, run)

    def run(self, limit_s: float = 3600.0) -> Outcome:
        while self._events and self.now < limit_s and not self.finished:
            self.now, _, action = heapq.heappop(self._events)
            action()
        disk = self.disk
        return Outcome(self.now, disk.trained, disk.skipped, disk.total, self.counts, self.messages, self.finished)

    @property
    def finished(self) -> bool:
        return len(self.disk.trained) + len(self.disk.skipped) >= self.works

    def tick(self) -> None:
        if self.hub is not None:
            self.hub.tick(self.now)
            self.flush_hub()
        for worker in self.workers.values():
            if worker.alive and worker.paused_until <= self.now:
                worker.link.tick(self.now)
                self.flush(worker)
        self.at(0.1, self.tick)

    # ----------------------------------------------------------------------------------------------------- the network

    def flush(self, worker: Worker) -> None:
        """Puts on the wire what the worker's link wants sent, and gives the worker what the link has for it."""
        if not worker.alive:
            return
        effects = worker.link.collect()
        peer = f"{worker.name}|{worker.boot}".encode()
        for parts in effects.sends:
            self.transmit(worker, lambda parts=parts: self.hub_receives(peer, parts))  # type: ignore[misc]
        for event in effects.events:
            worker.on(event)
        if effects.events:
            self.flush(worker)

    def transmit(self, worker: Worker, arrive: Callable[[], None]) -> None:
        self.messages += 1
        if worker.cut_until > self.now:
            return  # lost with the connection
        self.at(self.random.expovariate(1 / self.faults.delay_s), arrive)
        if self.random.random() < self.faults.duplicate_ratio:
            self.at(self.random.expovariate(1 / self.faults.delay_s), arrive)

    def hub_receives(self, peer: bytes, parts: list[codec.Frame]) -> None:
        if self.hub is not None:
            self.hub.receive(peer, parts, self.now)
            self.flush_hub()

    def flush_hub(self) -> None:
        assert self.hub is not None
        effects = self.hub.collect()
        self.disk.records += effects.records  # durable first
        for peer, parts in effects.sends:
            name, _, boot = peer.decode().partition("|")
            worker = self.workers[name]
            if worker.alive and worker.boot == boot:
                self.transmit(worker, lambda w=worker, b=boot, p=parts: self.worker_receives(w, b, p))  # type: ignore[misc]

    def worker_receives(self, worker: Worker, boot: str, parts: list[codec.Frame]) -> None:
        if not worker.alive or worker.boot != boot:
            return
        if worker.paused_until > self.now:
            self.later(worker.paused_until - self.now, worker, lambda: worker.link.receive(parts, self.now))
            return
        worker.link.receive(parts, self.now)
        self.flush(worker)

    # ------------------------------------------------------------------------------------------------------ the faults

    def plan(self, kind: str) -> None:
        mean = getattr(self.faults, f"{kind}_s")
        if mean > 0:

            def strike() -> None:
                getattr(self, kind)()
                self.plan(kind)

            self.at(self.random.expovariate(1 / mean), strike)

    def count(self, kind: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1

    def start_hub(self) -> None:
        boot = sum(isinstance(record, j.Booted) for record in self.disk.records) + 1
        records = list(self.disk.records)
        if self.random.random() < 0.3 and records:  # sometimes the journal has just been compacted
            board = HubCore(self.options, boot, records, self.now).board
            boots = [record for record in records if isinstance(record, j.Booted)]
            records = self.disk.records = [*boots, *board.snapshot()]
        self.hub = HubCore(self.options, boot, records, self.now)
        self.flush_hub()

    def check_tokens(self, identity: str, made: list[int]) -> None:
        """Tokens come from leases in their order, and those that the hub has taken back are there.

        At level `ids` a crash may undo them: one since, or one before, when what is trained was made already.
        """
        if len(made) != TOKENS or made != sorted(made):
            self.wrong.append(f"{identity} was made under the leases {made}, of {TOKENS} tokens")
        kills = self.counts.get("hub killed", 0)
        for partial in self.partials:
            if partial.work != identity or made[: len(partial.made)] == partial.made:
                continue
            before = made[-1] >> 32 < partial.made[-1] >> 32  # a lease's upper half is the number of its hub
            if self.options.durability == "full" or (partial.hubs_killed == kills and not before):
                self.wrong.append(f"{identity} was given back as {partial.made} and trained as {made}")

    def kill_hub(self) -> None:
        if self.hub is not None:
            self.count("hub killed")
            self.hub = None
            self.at(self.random.uniform(0.2, 4.0), self.start_hub)

    def kill_worker(self) -> None:
        self.kill(self.random.choice(list(self.workers.values())), "worker killed")

    def kill(self, worker: Worker, kind: str) -> None:
        if worker.alive:
            self.count(kind)
            worker.alive = False
            self.at(self.random.uniform(0.2, 5.0), worker.start)

    def stop_generator(self) -> None:
        """As by SIGTERM, which a paused process hears when it goes on."""
        worker = self.random.choice([worker for worker in self.workers.values() if worker.role == "generator"])
        if worker.alive and not worker.stopping:
            self.later(0.0, worker, worker.give_back)

    def pause_worker(self) -> None:
        self.count("worker paused")
        worker = self.random.choice(list(self.workers.values()))
        worker.paused_until = self.now + self.random.uniform(0.5, 12.0)

    def cut(self) -> None:
        self.count("connection cut")
        worker = self.random.choice(list(self.workers.values()))
        worker.cut_until = self.now + self.random.uniform(0.1, 6.0)


def verify(outcome: Outcome, world: World) -> list[str]:
    """What the run broke of the promise: an empty list when nothing."""
    wrong = list(world.wrong)
    everything = {f"w{n}" for n in range(world.works)}
    if not outcome.finished:
        wrong.append(
            f"stood still: {len(outcome.trained) + len(outcome.skipped)} of {world.works} after {outcome.seconds:.0f} s"
        )
    for name, ids in (("trained", outcome.trained), ("skipped", outcome.skipped)):
        if twice := {identity for identity in ids if ids.count(identity) > 1}:
            wrong.append(f"{name} twice: {sorted(twice)}")
    if both := set(outcome.trained) & set(outcome.skipped):
        wrong.append(f"both trained and skipped: {sorted(both)}")
    if outcome.finished and (lost := everything - set(outcome.trained) - set(outcome.skipped)):
        wrong.append(f"lost: {sorted(lost)}")
    if outcome.total != sum(int(identity[1:]) for identity in outcome.trained):
        wrong.append("the learner's sum is not that of what it trained")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs=2, default=(0, 50), metavar=("FROM", "TO"))
    parser.add_argument("--durability", choices=["ids", "full"], default="ids")
    chosen = parser.parse_args()
    failures, faults, simulated, messages = 0, 0, 0.0, 0
    for seed in range(*chosen.seeds):
        world = World(seed, durability=chosen.durability)
        outcome = world.run()
        wrong = verify(outcome, world)
        failures += bool(wrong)
        faults += sum(outcome.faults.values())
        simulated += outcome.seconds
        messages += outcome.messages
        for line in wrong:
            sys.stdout.write(f"seed {seed}: {line}\n")
    sys.stdout.write(
        f"{chosen.seeds[1] - chosen.seeds[0]} runs, {simulated / 3600:.1f} simulated hours, {faults} faults, "
        f"{messages} messages: {failures} failed\n"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
