"""Days of faults: no seed loses a work or trains one twice. And the simulator notices when a promise is broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from safeladder.protocol import board as boards
from safeladder.protocol import codec, simulator
from safeladder.protocol import hub as hubs
from safeladder.protocol import journal as j
from safeladder.protocol import link as links
from safeladder.protocol import messages as m

SEEDS = range(25)


@pytest.mark.parametrize("durability", ["ids", "full"])
@pytest.mark.parametrize("seed", SEEDS)
def test_every_work_is_accounted_for_once(seed: int, durability: j.Durability) -> None:
    world = simulator.World(seed, durability=durability)
    outcome = world.run()
    assert simulator.verify(outcome, world) == []
    assert len(outcome.trained) + len(outcome.skipped) == world.works


def test_the_seeds_hold_every_kind_of_fault() -> None:
    kinds: dict[str, int] = {}
    for seed in SEEDS:
        for kind, count in simulator.World(seed).run().faults.items():
            kinds[kind] = kinds.get(kind, 0) + count
    assert {
        "hub killed",
        "worker killed",
        "worker paused",
        "connection cut",
        "killed after commit",
        "generator stopped",
    } <= set(kinds)
    assert min(kinds.values()) >= 5


def test_a_seed_replays_the_same_run() -> None:
    assert simulator.World(3).run() == simulator.World(3).run()


# ------------------------------------------------------------------------------------- it bites: one broken promise each

Mutation = Callable[[pytest.MonkeyPatch], None]


def the_hub_takes_stale_answers_and_the_learner_trusts_it(patch: pytest.MonkeyPatch) -> None:
    """No fencing: a *done* without a valid lease still hands its outputs on, under whatever state the work is in."""
    fenced = hubs.HubCore._done

    def unfenced(hub: hubs.HubCore, worker: hubs.Worker, done: m.Done, parcels: list[codec.Parcel], now: float) -> None:
        if done.lease not in worker.leases:
            for parcel in parcels:
                if parcel.work.id not in hub.board.items:
                    hub._record(hub.board.accept(parcel, now))
        fenced(hub, worker, done, parcels, now)

    patch.setattr(hubs.HubCore, "_done", unfenced)
    the_learner_trains_what_it_gets(patch)


def the_learner_trains_what_it_gets(patch: pytest.MonkeyPatch) -> None:
    """No ledger: what was trained before a crash is trained again when its lease comes back."""
    learn = simulator.Worker.learn

    def forgetful(worker: simulator.Worker, event: links.Leased) -> None:
        disk = worker.disk
        worker.disk = simulator.Disk(disk.records)  # looks at an empty ledger
        worker.disk.trained, worker.disk.skipped = _Blind(disk.trained), _Blind(disk.skipped)
        worker.disk.total = disk.total
        learn(worker, event)
        if worker.disk is not disk:
            disk.trained, disk.skipped = list(worker.disk.trained), list(worker.disk.skipped)
            disk.total = worker.disk.total
            worker.disk = disk

    patch.setattr(simulator.Worker, "learn", forgetful)


class _Blind(list[str]):
    """A ledger that never finds what it holds."""

    def __contains__(self, _: object) -> bool:
        return False


def restore_forgets_every_seventh_work(patch: pytest.MonkeyPatch) -> None:
    restore = boards.Board.restore

    def forgetful(board: boards.Board, records: Any, now: float) -> Any:
        kept = [r for r in records if not (isinstance(r, j.Submitted) and int(r.id.strip("w").split("~")[0]) % 7 == 3)]
        return restore(board, kept, now)

    patch.setattr(boards.Board, "restore", forgetful)


def messages_go_before_their_records(patch: pytest.MonkeyPatch) -> None:
    """The records of a round reach the disk a second after its acknowledgements left."""

    def hasty(world: simulator.World) -> None:
        hub = world.hub
        assert hub is not None
        effects = hub.collect()

        def write() -> None:
            if world.hub is hub:
                world.disk.records += effects.records

        world.at(1.0, write)
        for peer, parts in effects.sends:
            name, _, boot = peer.decode().partition("|")
            worker = world.workers[name]
            if worker.alive and worker.boot == boot:
                world.transmit(worker, lambda w=worker, b=boot, p=parts: world.worker_receives(w, b, p))  # type: ignore[misc]

    patch.setattr(simulator.World, "flush_hub", hasty)


def a_partial_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    """The hub acknowledges what was made, and hands out the work as it was before."""
    patch.setattr(boards.Board, "advance", lambda board, item, parcel: [])


def nothing_is_sent_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(links, "RESEND_S", 1e9)
    patch.setattr(links.LinkCore, "_on_welcome", _without_repetition)


def _without_repetition(link: links.LinkCore, welcome: m.Welcome, now: float) -> None:
    link.welcomed, link._hub_boot, link._beat_at = True, welcome.hub_boot, now
    for lease in [lease for lease in link.held if lease not in welcome.kept]:
        link._revoke(lease)


def the_learner_settles_before_it_commits(patch: pytest.MonkeyPatch) -> None:
    """*Done* goes out when a work is taken in, as if its effect were already in a checkpoint."""
    learn = simulator.Worker.learn

    def early(worker: simulator.Worker, event: links.Leased) -> None:
        learn(worker, event)
        if event.lease in worker.held.values():
            worker.link.done(event.lease, [], worker.world.now)

    patch.setattr(simulator.Worker, "learn", early)


def the_hub_tells_nobody_that_a_work_died(patch: pytest.MonkeyPatch) -> None:
    def silent(board: boards.Board, item: boards.Item, error: str, now: float) -> list[j.Record]:
        board.dead[item.id] = boards.DeadLetter(item.root, item.stop, item.attempts, error)
        return board.finish(item, f"dead: {error}")

    patch.setattr(boards.Board, "set_aside", silent)


def a_dropped_worker_is_never_told(patch: pytest.MonkeyPatch) -> None:
    """The answer to an unknown peer names the hub's own boot, so that its link sees nothing amiss."""
    receive = hubs.HubCore.receive

    def vague(hub: hubs.HubCore, peer: bytes, parts: Any, now: float, user: str | None = None) -> None:
        known = peer in hub.workers
        receive(hub, peer, parts, now, user)
        if not known and peer not in hub.workers:
            hub._effects.sends = [(to, what) for to, what in hub._effects.sends if to != peer]

    patch.setattr(hubs.HubCore, "receive", vague)
    patch.setattr(links.LinkCore, "silence_s", property(lambda _: 1e9, lambda *_: None), raising=False)


@pytest.mark.parametrize(
    "mutation",
    [
        the_hub_takes_stale_answers_and_the_learner_trusts_it,
        the_learner_trains_what_it_gets,
        restore_forgets_every_seventh_work,
        messages_go_before_their_records,
        a_partial_is_forgotten,
        nothing_is_sent_again,
        the_learner_settles_before_it_commits,
        the_hub_tells_nobody_that_a_work_died,
        a_dropped_worker_is_never_told,
    ],
    ids=lambda mutation: mutation.__name__,
)
def test_a_broken_promise_is_found_within_the_seeds(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    mutation(monkeypatch)
    faults = simulator.Faults(kill_worker_s=0.0) if mutation is a_dropped_worker_is_never_told else None
    for seed in SEEDS:
        world = simulator.World(seed, faults=faults)
        if simulator.verify(world.run(limit_s=400.0), world):
            return
    pytest.fail(f"the simulator found nothing wrong with: {mutation.__name__}")
