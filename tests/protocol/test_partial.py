"""Works given back half done: what was made goes with the lease that made it, once, and nobody works on less afterwards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from talk import ROUTE, Peer, Talk, task

from safeladder.protocol import codec
from safeladder.protocol import link as links
from safeladder.protocol import messages as m


def part(made: int, identity: str = "w0", **work: Any) -> codec.Parcel:
    """The work with `made` things made of it."""
    arrays = {"made": np.arange(made, dtype=np.int64)}
    return codec.pack(m.Document("part"), arrays, id=identity, **{"route": ROUTE, **work})


def made(peer: Peer, lease: int) -> int:
    """How much there is in the work that this lease brought; 0 for its first state."""
    payload, arrays = codec.unpack(peer.parcels[lease])
    assert isinstance(payload, m.Document)
    return len(arrays["made"]) if payload.kind == "part" else 0


def begin(**options: Any) -> tuple[Talk, Peer]:
    talk = Talk(**options)
    talk.join("source/0").submit(task("w0", 5), task("w1", 6))
    return talk, talk.join("generator/0", "generator")


def test_the_next_holder_gets_what_was_made_so_far_and_no_attempt_is_counted() -> None:
    talk, generator = begin(max_attempts=1)
    for count in (3, 7):
        assert generator.fail(generator.lease(), "stopping", returned=True, partial=part(count)).status == "accepted"
        lease = generator.leases[generator.lease()]
        assert (lease.work.id, lease.work.stop, lease.attempt) == ("w0", 0, 1)  # before w1: its place is its sequence
        assert made(generator, lease.lease) == count
        assert lease.work.sequence == 5
    generator.onward(generator.lease())
    verifier = talk.join("verifier/0", "verifier")
    assert made(verifier, verifier.lease("w0")) == 7
    assert talk.hub.counters["handed_back"] == 2


def test_a_late_partial_changes_nothing() -> None:
    talk, slow = begin(lease_s=2.0, silence_s=50.0)
    old = slow.lease("w0")
    slow.say(m.Credit(0))
    talk.pass_time(2.5)
    quick = talk.join("generator/1", "generator")
    quick.fail(quick.lease("w0"), "stopping", returned=True, partial=part(4))
    assert slow.fail(old, "stopping", returned=True, partial=part(2)).status == "stale"
    assert made(quick, quick.lease("w0")) == 4


def test_a_repeated_partial_is_recognised_while_another_works_on_it() -> None:
    talk, first = begin()
    lease = first.lease("w0")
    first.say(m.Credit(0))
    second = talk.join("generator/1", "generator", credit=2)
    first.fail(lease, "stopping", returned=True, partial=part(4))
    second.fail(second.lease("w0"), "stopping", returned=True, partial=part(6))
    assert first.fail(lease, "stopping", returned=True, partial=part(4)).status == "duplicate"
    assert made(second, second.lease("w0")) == 6


@pytest.mark.parametrize(
    ("partial", "how", "why"),
    [
        (part(1, "w1"), {"returned": True}, "must keep its id"),
        (part(1, stop=1), {"returned": True}, "must keep its id"),
        (part(1, route=["generator", "learner"]), {"returned": True}, "must keep its id"),
        (part(1), {"restart": True}, "does not wait at this stop"),
        (part(1), {"retry": False}, "does not wait at this stop"),
    ],
)
def test_a_wrong_partial_is_refused_and_counts_as_an_attempt(
    partial: codec.Parcel, how: dict[str, bool], why: str
) -> None:
    _, generator = begin(max_attempts=3)
    ack = generator.fail(generator.lease("w0"), "stopping", partial=partial, **how)
    assert (ack.status, why in ack.detail) == ("refused", True)
    again = generator.leases[generator.lease("w0")]
    assert (again.attempt, made(generator, again.lease)) == (2, 0)
    assert (
        generator.fail(again.lease, "broken", partial=part(2)).status == "accepted"
    )  # a failure may bring one as well
    assert (generator.leases[generator.lease("w0")].attempt, made(generator, generator.lease("w0"))) == (3, 2)


@pytest.mark.parametrize(("durability", "left"), [("ids", 0), ("full", 4)])
@pytest.mark.parametrize("compacted", [False, True])
def test_after_a_hub_crash_the_work_is_what_the_level_promises(durability: str, left: int, compacted: bool) -> None:
    talk, generator = begin(durability=durability)
    generator.fail(generator.lease("w0"), "stopping", returned=True, partial=part(4))
    generator.say(m.Bye())
    if compacted:
        talk.records = list(talk.hub.board.snapshot())
    talk.restart()
    talk.pass_time(3.0)
    other = talk.join("generator/1", "generator")
    assert made(other, other.lease("w0")) == left


@pytest.mark.parametrize("compacted", [False, True])
def test_a_lease_that_was_given_back_cannot_be_claimed_after_a_crash_to_bring_back_less(compacted: bool) -> None:
    """Neither acknowledgement reached its worker; both repeat to the hub's successor, the one that has less first."""
    talk, first = begin(durability="full")
    old = first.lease("w0")
    first.say(m.Credit(0))
    second = talk.join("generator/1", "generator", credit=2)
    first.fail(old, "stopping", returned=True, partial=part(4))
    new = second.lease("w0")
    second.fail(new, "stopping", returned=True, partial=part(6))
    third = second.lease("w0")
    if compacted:
        talk.records = list(talk.hub.board.snapshot())
    talk.restart()
    for peer, lease in ((first, old), (second, new)):
        assert peer.hello(peer.hold(lease))[0].kept == []
        assert peer.fail(lease, "stopping", returned=True, partial=part(4)).status == "stale"
    assert second.hello(second.hold(third))[0].kept == [third]  # but the lease after them can
    second.onward(third)
    verifier = talk.join("verifier/0", "verifier")
    assert made(verifier, verifier.lease("w0")) == 6


def test_a_restart_from_the_first_stop_begins_without_the_partial() -> None:
    talk, generator = begin()
    generator.fail(generator.lease("w0"), "stopping", returned=True, partial=part(4))
    generator.onward(generator.lease("w0"))
    verifier = talk.join("verifier/0", "verifier")
    verifier.fail(verifier.lease("w0"), "too old", restart=True)
    generator.say(m.Credit(5))
    assert made(generator, generator.lease("w0")) == 0


def test_a_call_too_goes_on_from_a_partial_and_is_answered() -> None:
    talk = Talk()
    caller = talk.join("searcher/0")
    caller.submit(task("q", route=["generator"], reply_to="searcher/0", deadline_s=60.0))
    generator = talk.join("generator/0", "generator")
    partial = part(4, "q", route=["generator"])
    generator.fail(generator.lease("q"), "stopping", returned=True, partial=partial)
    assert made(generator, generator.lease("q")) == 4
    assert generator.done(generator.lease("q"), part(5, "q", route=["generator"])).status == "accepted"
    caller.look()
    assert [body.error for body in caller.heard if isinstance(body, m.Reply)] == [None]


def test_a_link_repeats_a_partial_with_its_arrays_until_it_is_settled() -> None:
    talk, generator = begin()
    lease = generator.lease("w0")
    link = links.LinkCore(generator.introduction)
    link.start(0.0)
    link.receive(codec.encode(m.Welcome(1, "run", 1.0, 30.0), "hub"), 0.0)
    link.collect()
    link.fail(lease, "stopping", 0.0, returned=True, partial=part(4))
    sent = link.collect().sends
    link.tick(links.RESEND_S + 0.1)
    repeated = [parts for parts in link.collect().sends if parts == sent[0]]
    assert len(sent) == len(repeated) == 1
    for parts in sent + repeated:
        talk.deliver(generator.peer, [bytes(frame) for frame in parts])
    generator.look()
    acks = [body.status for body in generator.heard if isinstance(body, m.Ack)]
    assert acks == ["accepted", "duplicate"]
    assert made(generator, generator.lease("w0")) == 4
