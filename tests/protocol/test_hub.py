"""The hub's promises, one a test, spoken to directly: bytes in, bytes out, time as an argument."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from talk import ROUTE, Peer, Talk, task

from safeladder.protocol import codec
from safeladder.protocol import journal as j
from safeladder.protocol import link as links
from safeladder.protocol import messages as m


def names(records: list[j.Record]) -> list[str]:
    return [type(record).__name__ for record in records]


def status(talk: Talk) -> dict[str, Any]:
    return talk.hub.report("status", talk.now)


# ------------------------------------------------------------------------------------------------------- acceptance


def test_a_work_is_accepted_once_whatever_is_sent_twice() -> None:
    talk = Talk()
    source = talk.join("source/0")
    assert source.submit(task("w0"), request="r1").status == "accepted"
    assert source.submit(task("w0"), request="r1").status == "duplicate"
    assert source.submit(task("w0"), task("w1"), task("w1")).status == "accepted"
    generator = talk.join("generator/0", "generator", credit=5)
    assert sorted(lease.work.id for lease in generator.leases.values()) == ["w0", "w1"]
    learner = talk.join("learner/0", "generator", "verifier", "learner", credit=9)
    for lease in list(generator.leases):
        generator.onward(lease)
    for _ in range(2):
        learner.look()
        for lease in list(learner.leases):
            learner.onward(lease) if learner.leases[lease].work.stop != 2 else learner.done(lease)
    assert status(talk)["finished"] == 2
    assert source.submit(task("w0")).status == "duplicate"  # also when it is over
    talk.restart()
    source.hello()
    assert source.submit(task("w0")).status == "duplicate"  # also after a crash


def test_what_is_acknowledged_is_among_the_records_of_the_same_round() -> None:
    talk = Talk()
    source = talk.join("source/0")
    before = len(talk.records)
    parcel = task("w0")
    talk.hub.receive(source.peer, codec.encode(m.Submit("r", [parcel.work]), "source/0", parcel.frames), 0.0)
    effects = talk.hub.collect()
    assert names(effects.records) == ["Submitted"]
    assert len(effects.sends) == 1
    assert len(talk.records) == before


def test_a_queue_at_its_bound_refuses_and_takes_nothing_of_the_request() -> None:
    talk = Talk(max_depth=2)
    source = talk.join("source/0")
    assert source.submit(task("w0"), task("w1")).status == "accepted"
    ack = source.submit(task("w2", route=["elsewhere"]), task("w3"))
    assert (ack.status, "'generator' is full (2 works)" in ack.detail) == ("refused", True)
    assert not talk.hub.board.known("w2")
    talk.join("generator/0", "generator", credit=1)
    assert source.submit(task("w3")).status == "accepted"


def test_a_peer_that_has_not_said_hello_is_told_to() -> None:
    talk = Talk()
    stranger = Peer(talk, "source/0")
    answers = stranger.say(m.Submit("r", [task("w0").work]), [task("w0")])
    assert answers == [m.Pong(0)]  # no hub's boot: whatever boot the worker knows, it says hello
    assert not talk.hub.board.known("w0")
    assert talk.hub.counters["unknown_peer"] == 1


def test_messages_that_cannot_be_read_are_counted_and_answered() -> None:
    talk = Talk()
    source = talk.join("source/0")
    talk.deliver(source.peer, codec.encode(m.Bye(), "source/0", schema="9:other"))
    talk.deliver(source.peer, [b"junk"])
    refused, problem = source.look()
    assert isinstance(refused, m.Refused)
    assert "9:other" in refused.reason
    assert isinstance(problem, m.Problem)
    assert talk.hub.counters == {"rejected_schema": 1, "rejected_malformed": 1}
    assert source.submit(task("w0")).status == "accepted"


# ---------------------------------------------------------------------------------------------------------- fencing


def test_the_answer_to_an_older_lease_is_refused_and_a_repetition_is_recognised() -> None:
    talk = Talk(lease_s=2.0)
    talk.join("source/0").submit(task("w0"))
    slow = talk.join("generator/slow", "generator")
    old = slow.lease("w0")
    slow.say(m.Credit(0))
    talk.pass_time(2.5)  # the lease expires
    quick = talk.join("generator/quick", "generator")
    new = quick.lease("w0")
    assert new > old
    assert slow.onward(old).status == "stale"  # settled for the worker, and nothing happens
    assert talk.hub.board.items["w0"].stop == 0
    assert quick.onward(new).status == "accepted"
    assert quick.onward(new).status == "duplicate"
    assert slow.fail(old).status == "stale"
    assert quick.done(123).status == "stale"
    assert quick.fail(124).status == "stale"
    assert talk.hub.board.items["w0"].stop == 1
    told = [fields for event, fields in talk.events if event == "answer.refused"]
    assert told == [{"name": "generator/slow", "work": "w0"}]  # once, and of no other token


def test_lease_tokens_grow_also_over_restarts() -> None:
    talk = Talk(lease_s=100.0)
    source, tokens = talk.join("source/0"), []
    for number in range(4):
        source.hello()
        source.submit(task(f"w{number}"))
        worker = talk.join(f"generator/{number}", "generator")
        tokens.append(worker.lease(f"w{number}"))
        talk.restart()
    assert tokens == sorted(set(tokens))


def test_a_worker_cannot_answer_for_another_ones_lease() -> None:
    talk = Talk()
    talk.join("source/0").submit(task("w0"))
    holder = talk.join("generator/0", "generator")
    thief = talk.join("generator/1", "generator")
    thief.parcels = holder.parcels
    assert thief.onward(holder.lease()).status == "stale"
    assert holder.onward(holder.lease()).status == "accepted"


# ----------------------------------------------------------------------------------- leases, silence, death, leaving


def test_a_lease_that_is_not_renewed_expires_and_one_that_is_renewed_stands() -> None:
    talk = Talk(silence_s=100.0, lease_s=3.0)
    source = talk.join("source/0")
    source.submit(task("w0"), task("w1"))
    worker = talk.join("generator/0", "generator", credit=2)
    renewed, forgotten = worker.lease("w0"), worker.lease("w1")
    worker.say(m.Credit(1))
    for _ in range(5):
        talk.pass_time(1.0)
        worker.beat(renewed)
    assert status(talk)["leased"] == 1
    assert worker.beat(renewed, forgotten) == [m.Pong(1, [forgotten])]
    assert worker.onward(renewed).status == "accepted"
    assert talk.hub.board.items["w1"].attempts == 2  # granted again once there was room


def test_the_works_of_a_silent_worker_go_to_another() -> None:
    talk = Talk(silence_s=3.0, lease_s=100.0)
    source = talk.join("source/0")
    source.submit(task("w0"))
    silent = talk.join("generator/0", "generator")
    lively = talk.join("generator/1", "generator")
    talk.pass_time(2.9, beating=(source, lively))
    assert not lively.leases
    talk.pass_time(0.3, beating=(source, lively))
    assert lively.lease("w0") > silent.lease("w0")
    assert ("worker.lost", "generator/0") in [(event, fields.get("name")) for event, fields in talk.events]
    assert silent.beat() == [m.Pong(0)]
    silent.hello(silent.hold(silent.lease()))
    assert silent.onward(silent.lease()).status == "stale"


def test_time_in_which_the_hub_itself_stood_still_is_nobodys_silence() -> None:
    talk = Talk(silence_s=3.0, lease_s=5.0)
    talk.join("source/0").submit(task("w0"))
    worker = talk.join("generator/0", "generator")
    talk.pass_time(1.0, beating=(worker,))
    talk.now += 60.0  # a full disk, a stopped process
    talk.hub.tick(talk.now)
    talk.flush()
    assert worker.onward(worker.lease()).status == "accepted"
    talk.pass_time(3.5)
    assert not talk.hub.workers  # from then on silence counts again


def test_the_supervisors_word_ends_a_workers_leases_at_once() -> None:
    talk = Talk()
    launcher = talk.join("launcher")
    launcher.submit(task("w0"))
    talk.join("generator/0", "generator")
    assert launcher.command("exited", "generator/0") == {"known": True}
    assert launcher.command("exited", "generator/0") == {"known": False}
    assert talk.join("generator/1", "generator").lease("w0")


def test_a_good_bye_gives_back_without_counting_an_attempt() -> None:
    talk = Talk(max_attempts=1)
    talk.join("source/0").submit(task("w0"))
    for number in range(3):
        worker = talk.join(f"generator/{number}", "generator")
        assert worker.leases[worker.lease("w0")].attempt == 1
        worker.say(m.Bye("done for today"))
    assert not talk.hub.board.dead


def test_a_collectors_death_counts_no_attempt_and_an_ordinary_ones_does() -> None:
    for collects, dead in ((True, 0), (False, 1)):
        talk = Talk(max_attempts=2)
        launcher = talk.join("launcher")
        launcher.submit(task("w0", route=["learner"]))
        for number in range(4):
            talk.join(f"learner/{number}", "learner", collects=collects)
            launcher.command("exited", f"learner/{number}")
        assert len(talk.hub.board.dead) == dead


def test_a_work_that_was_never_received_counts_no_attempt() -> None:
    talk = Talk(max_attempts=1)
    talk.join("source/0").submit(task("w0"))
    worker = talk.join("generator/0", "generator")
    first = worker.lease()
    worker.hello(held=[])  # the connection was cut before the lease arrived
    second = worker.lease()
    assert second > first
    assert worker.leases[second].attempt == 1


# ------------------------------------------------------------------------------------------------- done and its outputs


def test_done_closes_the_lease_and_queues_all_outputs_in_one_step() -> None:
    talk = Talk(durability="full")
    talk.join("source/0").submit(task("w0"))
    generator = talk.join("generator/0", "generator")
    lease = generator.lease()
    outputs = [task("w0", 5, stop=1), task("extra", 6, route=["verifier"]), task("w0~x", route=["other"])]
    body = m.Done("r", lease, [parcel.work for parcel in outputs])
    talk.hub.receive(generator.peer, codec.encode(body, "g", [f for p in outputs for f in p.frames]), talk.now)
    effects = talk.hub.collect()
    assert sorted(names(effects.records)) == ["Moved", "Submitted", "Submitted"]
    assert len(effects.sends) == 1
    assert [item.queue for item in talk.hub.board.items.values()] == ["verifier", "verifier", "other"]
    assert status(talk)["leased"] == 0


def test_an_output_keeps_lane_and_return_address_of_its_first_state() -> None:
    talk = Talk()
    talk.join("source/0").submit(task("w0", lane="evaluation"))
    generator = talk.join("generator/0", "generator")
    generator.done(generator.lease(), task("w0", 99, stop=1, lane="interactive", reply_to="generator/0"))
    work = talk.join("verifier/0", "verifier").parcels.popitem()[1].work
    assert (work.lane, work.reply_to, work.sequence) == ("evaluation", None, 0)


@pytest.mark.parametrize(
    ("output", "why"),
    [
        (task("w0", stop=0), "moves forward only"),
        (task("w0", stop=1, route=[*ROUTE, "more"]), "may not change"),
        (task("w0", stop=1, route=["generator", "learner"]), "may not change"),
    ],
)
def test_wrong_outputs_are_refused_and_count_as_an_attempt(output: codec.Parcel, why: str) -> None:
    talk = Talk(max_attempts=2)
    talk.join("source/0").submit(task("w0"))
    generator = talk.join("generator/0", "generator")
    for attempt in (1, 2):
        assert generator.leases[generator.lease()].attempt == attempt
        ack = generator.done(generator.lease(), output, task("beside", route=["x"]))
        assert (ack.status, why in ack.detail) == ("refused", True)
    assert list(talk.hub.board.dead) == ["w0"]
    assert not talk.hub.board.known("beside")


def test_a_work_ended_early_is_told_to_the_last_stop() -> None:
    talk = Talk()
    talk.join("source/0").submit(task("w0", 41))
    generator = talk.join("generator/0", "generator")
    assert generator.done(generator.lease(), ended="too long").status == "accepted"
    learner = talk.join("learner/0", "learner")
    payload, arrays = codec.unpack(learner.parcels[learner.lease("w0")])
    assert (payload, arrays) == (m.Skipped(41, "too long"), {})
    learner.done(learner.lease())
    assert talk.hub.board.finished == {"w0": "done"}
    assert not talk.hub.board.dead  # ended in order: no dead letter


# ---------------------------------------------------------------------------------------------------------- dead letters


def poisoned(talk: Talk, identity: str = "w0") -> Peer:
    """Submits a work and fails it until it is set aside."""
    launcher = talk.join("launcher")
    launcher.submit(task(identity, 3))
    generator = talk.join("generator/0", "generator")
    for attempt in range(1, talk.options.max_attempts + 1):
        assert generator.leases[generator.lease()].attempt == attempt
        assert generator.fail(generator.lease(), "poison").status == "accepted"
    generator.say(m.Credit(0))
    return launcher


def test_what_fails_max_attempts_times_is_set_aside_with_its_error_and_the_last_stop_is_told() -> None:
    talk = Talk(max_attempts=3)
    launcher = poisoned(talk)
    assert launcher.query("dead") == {"w0": {"queue": "generator", "attempts": 3, "error": "poison"}}
    learner = talk.join("learner/0", "learner")
    assert codec.unpack(learner.parcels[learner.lease("w0")])[0] == m.Skipped(3, "dead: poison")
    talk.restart()
    launcher.hello()
    assert launcher.query("dead") == {"w0": {"queue": "generator", "attempts": 3, "error": "poison"}}


def test_a_failure_that_cannot_be_retried_is_set_aside_at_once_and_a_returned_one_never() -> None:
    talk = Talk(max_attempts=2)
    talk.join("source/0").submit(task("w0"))
    worker = talk.join("generator/0", "generator")
    for _ in range(5):
        worker.fail(worker.lease(), "stopping", returned=True)
    assert not talk.hub.board.dead
    worker.fail(worker.lease(), "malformed", retry=False)
    assert list(talk.hub.board.dead) == ["w0"]


def test_a_restart_begins_at_the_first_stop_again_without_an_attempt() -> None:
    talk = Talk(max_attempts=1)
    talk.join("source/0").submit(task("w0"))
    generator = talk.join("generator/0", "generator")
    verifier = talk.join("verifier/0", "verifier")
    for _ in range(3):
        generator.onward(generator.lease())
        verifier.fail(verifier.lease(), "too stale", restart=True)
        assert generator.leases[generator.lease()].work.stop == 0
    assert not talk.hub.board.dead


@pytest.mark.parametrize("restart", [False, True])
def test_a_requeued_dead_letter_comes_back_as_a_new_work_from_its_first_stop(restart: bool) -> None:
    talk = Talk(max_attempts=1)
    launcher = poisoned(talk)
    if restart:
        talk.restart()
        launcher.hello()
    assert launcher.command("requeue", "nobody") == {"error": "no dead letter 'nobody'"}
    assert launcher.command("requeue") == {"requeued": {"w0": "w0~1"}}
    assert launcher.query("dead") == {}
    worker = talk.join("generator/1", "generator")
    assert worker.leases[worker.lease("w0~1")].attempt == 1
    worker.fail(worker.lease(), "again")
    assert launcher.command("requeue", "w0~1") == {"requeued": {"w0~1": "w0~2"}}


@pytest.mark.parametrize("identity", ["a~b", "a~1", "~", "x" * 200, "a~" + "9" * 190])
def test_requeueing_copes_with_every_id_and_never_takes_one_that_is_known(identity: str) -> None:
    talk = Talk(max_attempts=1)
    launcher = poisoned(talk, identity)
    launcher.submit(task(f"{identity[:180]}~1"), task("a~2"))
    (successor,) = launcher.command("requeue")["requeued"].values()
    assert successor not in (identity, "a~2", f"{identity[:180]}~1")
    assert len(successor) <= 200
    assert talk.hub.board.items[successor].root.work.id == successor


# ------------------------------------------------------------------------------------------------------------- credit


def test_works_go_to_the_worker_with_most_room_and_never_beyond_credit() -> None:
    talk = Talk()
    small = talk.join("generator/0", "generator", credit=1)
    large = talk.join("generator/1", "generator", credit=4)
    source = talk.join("source/0")
    source.submit(*[task(f"w{n}", n) for n in range(9)])
    small.look(), large.look()
    assert (len(small.leases), len(large.leases)) == (1, 4)
    large.say(m.Credit(0))
    for lease in list(large.leases):
        large.onward(lease)
    assert len(large.leases) == 4
    large.say(m.Credit(2))
    assert len(large.leases) == 6


def test_works_are_handed_out_by_lane_and_then_by_sequence() -> None:
    talk = Talk()
    source = talk.join("source/0")
    order = [
        ("t2", "training", 2),
        ("e1", "evaluation", 1),
        ("t1", "training", 1),
        ("i9", "interactive", 9),
        ("i8", "interactive", 8),
    ]
    source.submit(*[task(identity, sequence, lane=lane) for identity, lane, sequence in order])
    worker = talk.join("generator/0", "generator", credit=0)
    seen = []
    for _ in order:
        worker.say(m.Credit(1))
        seen.append(worker.leases[worker.lease()].work.id)
        worker.say(m.Credit(0))
        worker.onward(worker.lease())
    assert seen == ["i8", "i9", "e1", "t1", "t2"]


def test_a_closed_hub_grants_nothing_more_but_settles_what_is_out() -> None:
    talk = Talk()
    launcher = talk.join("launcher")
    launcher.submit(task("w0"), task("w1"))
    worker = talk.join("generator/0", "generator")
    launcher.command("close")
    assert worker.onward(worker.lease()).status == "accepted"
    assert len(worker.leases) == 1
    launcher.command("stop")
    assert talk.hub.stopping


# -------------------------------------------------------------------------------------------------------------- calls


def call(identity: str, caller: str, deadline_s: float = 10.0, **work: Any) -> codec.Parcel:
    return task(identity, reply_to=caller, deadline_s=deadline_s, lane="interactive", **work)


def replies(peer: Peer) -> list[m.Reply]:
    peer.look()
    return [body for body in peer.heard if isinstance(body, m.Reply)]


def test_a_call_brings_the_last_stops_output_back_to_its_caller() -> None:
    talk = Talk()
    caller = talk.join("gateway/0")
    assert caller.submit(call("c0", "gateway/0", route=["generator", "verifier"])).status == "accepted"
    generator = talk.join("generator/0", "generator")
    generator.onward(generator.lease())
    verifier = talk.join("verifier/0", "verifier")
    verifier.done(verifier.lease(), task("c0", 77, route=["generator", "verifier"], stop=1))
    (reply,) = replies(caller)
    assert reply.error is None
    assert reply.work is not None
    assert reply.work.id == "c0"
    assert not talk.hub.board.items
    assert not talk.hub.board.finished
    assert names(talk.records) == ["Booted"]  # a call is not journaled


@pytest.mark.parametrize("how", ["deadline waiting", "deadline leased", "no output", "failed", "worker dies"])
def test_a_call_without_an_answer_ends_in_an_error_that_names_the_queue(how: str) -> None:
    talk = Talk(max_attempts=1, silence_s=60.0)
    caller = talk.join("gateway/0")
    caller.submit(call("c0", "gateway/0", 5.0))
    worker = talk.join("generator/0", "generator") if how != "deadline waiting" else None
    if how.startswith("deadline"):
        talk.pass_time(4.9)
        assert replies(caller) == []
        talk.pass_time(0.3)
    elif worker and how == "no output":
        worker.done(worker.lease())
    elif worker and how == "failed":
        worker.fail(worker.lease(), "broken")
    else:
        caller.command("exited", "generator/0")
    (reply,) = replies(caller)
    assert reply.work is None
    assert "'generator'" in str(reply.error)
    assert not talk.hub.board.items
    if worker and how == "deadline leased":
        assert worker.onward(worker.lease()).status == "stale"
    assert status(talk)["leased"] == 0
    assert status(talk)["waiting"]["generator"] == 0


def test_a_deadline_of_a_work_that_is_no_call_changes_nothing() -> None:
    talk = Talk()
    source = talk.join("source/0")
    source.submit(task("w0", deadline_s=1.0), task("w1", deadline_s=float("nan")))
    talk.pass_time(2.0, beating=(source,))
    assert sorted(talk.hub.board.items) == ["w0", "w1"]


def test_the_calls_of_a_caller_that_leaves_or_dies_are_forgotten() -> None:
    for word in ("bye", "exited"):
        talk = Talk()
        launcher, caller = talk.join("launcher"), talk.join("gateway/0")
        worker = talk.join("generator/0", "generator")
        caller.submit(call("c0", "gateway/0"), call("c1", "gateway/0"), task("w0"))
        worker.look()
        caller.say(m.Bye()) if word == "bye" else launcher.command("exited", "gateway/0")
        assert list(talk.hub.board.items) == ["w0"]
        assert not talk.hub.board.calls
        assert worker.onward(worker.lease("c0")).status == "stale"
        assert worker.lease("w0")


def test_nobody_can_ask_in_anothers_name() -> None:
    talk = Talk()
    ack = talk.join("gateway/0").submit(call("c0", "gateway/1"))
    assert (ack.status, ack.detail) == ("refused", "gateway/0 cannot ask for 'gateway/1'")


# ------------------------------------------------------------------------------------------------------------- topics


def test_a_late_joiner_and_everybody_there_learn_the_latest_value() -> None:
    talk = Talk()
    learner, early = talk.join("learner/0"), talk.join("generator/0")
    for version in (1, 2):
        learner.say(m.Publish(f"r{version}", "policy", {"version": version}))
    early.look()
    assert [body.value for body in early.heard if isinstance(body, m.Notice)] == [{"version": 1}, {"version": 2}]
    late = talk.join("generator/1")
    assert late.heard[0].state == {"policy": {"version": 2}}
    talk.restart()
    assert talk.join("generator/2").heard[0].state == {"policy": {"version": 2}}


def test_a_repeated_publication_does_not_undo_a_newer_one() -> None:
    talk = Talk()
    learner = talk.join("learner/0")
    for request, version in (("r1", 1), ("r2", 2), ("r1", 1)):
        learner.say(m.Publish(request, "policy", {"version": version}))
    assert learner.heard[-1] == m.Ack("r1", "duplicate")
    assert talk.hub.topics == {"policy": {"version": 2}}
    other = talk.join("feeder/0")
    other.say(m.Publish("r1", "policy", {"version": 3}))  # its own r1
    assert talk.hub.topics == {"policy": {"version": 3}}


def test_topics_that_would_make_the_welcome_unreadable_are_refused() -> None:
    talk = Talk()
    learner = talk.join("learner/0")
    nested: dict[str, Any] = {}
    for _ in range(100):
        nested = {"in": [nested]}
    for value in (nested, {"text": "x" * 5_000_000}):
        (ack,) = [
            body for body in learner.say(m.Publish(f"r{len(value)}{id(value)}", "t", value)) if isinstance(body, m.Ack)
        ]
        assert ack.status == "refused"
    for number in range(30):
        learner.say(m.Publish(f"n{number}", f"topic{number}", {"text": "x" * 400_000}))
    assert 5 < len(talk.hub.topics) < 30
    assert isinstance(talk.join("generator/0").heard[0], m.Welcome)


# ------------------------------------------------------------------------------------------------- names and restarts


def test_a_name_of_a_live_worker_is_refused_and_one_of_a_silent_worker_is_taken_over() -> None:
    talk = Talk(silence_s=3.0)
    talk.join("source/0").submit(task("w0"))
    first = talk.join("generator/0", "generator", pid=123)
    second = Peer(talk, "generator/0", ("generator",))
    (refused,) = second.hello()
    assert refused == m.Refused("the name 'generator/0' belongs to a live worker (pid 123)", retry=True)
    assert first.onward(first.lease()).status == "accepted"
    talk.now += 3.1  # no tick in between: the newcomer is the first to notice
    assert isinstance(second.hello()[0], m.Welcome)
    assert first.beat() == [m.Pong(0)]


def test_a_key_stands_for_one_name_and_its_owner_replaces_its_former_self_at_once() -> None:
    talk = Talk()
    talk.join("source/0", user="source/0").submit(task("w0"))
    thief = Peer(talk, "generator/0", ("generator",), user="gateway/0")
    (refused,) = thief.hello()
    assert refused == m.Refused("the key of 'gateway/0' cannot say hello as 'generator/0'")
    talk.join("generator/0", "generator", user="generator/0")
    assert talk.join("generator/0", "generator", user="generator/0").lease("w0")


@pytest.mark.parametrize("durability", ["ids", "full"])
def test_leases_held_over_a_hub_restart_are_adopted(durability: str) -> None:
    talk = Talk(durability=durability, adopt_grace_s=2.0)
    source = talk.join("source/0")
    source.submit(task("w0"), task("w1"))
    generator = talk.join("generator/0", "generator", credit=2)
    generator.onward(generator.lease("w0"))
    verifier = talk.join("verifier/0", "verifier")
    far, near = verifier.lease("w0"), generator.lease("w1")
    talk.restart()
    rival = talk.join("generator/1", "generator", credit=9)
    assert not rival.leases  # nothing is handed out that somebody may still hold
    assert verifier.hello(verifier.hold(far))[0].kept == [far]
    assert generator.hello(generator.hold(near))[0].kept == [near]
    assert verifier.onward(far).status == "accepted"  # though "ids" never knew of that hop
    assert generator.onward(near).status == "accepted"
    talk.pass_time(3.0, beating=(rival, generator, verifier))
    assert not rival.leases
    assert {item.id: item.stop for item in talk.hub.board.items.values()} == {"w0": 2, "w1": 1}


@pytest.mark.parametrize(("durability", "queue"), [("ids", "generator"), ("full", "verifier")])
def test_what_nobody_claims_waits_again_where_the_journal_had_it(durability: str, queue: str) -> None:
    talk = Talk(durability=durability, adopt_grace_s=2.0)
    talk.join("source/0").submit(task("w0"))
    generator = talk.join("generator/0", "generator")
    generator.onward(generator.lease())
    talk.restart()
    everybody = talk.join("worker/0", *ROUTE)
    talk.pass_time(1.9, beating=(everybody,))
    assert not everybody.leases
    talk.pass_time(0.3, beating=(everybody,))
    (lease,) = everybody.leases.values()
    assert lease.work.route[lease.work.stop] == queue


def test_a_claim_from_behind_what_the_journal_has_is_refused() -> None:
    """The generator's answer was durable when the hub died, its acknowledgement was not sent."""
    talk = Talk(durability="full")
    talk.join("source/0").submit(task("w0"))
    generator = talk.join("generator/0", "generator")
    old = generator.lease()
    generator.onward(old)
    talk.restart()
    assert generator.hello(generator.hold(old))[0].kept == []
    assert generator.onward(old).status == "stale"
    talk.pass_time(3.0)
    verifier = talk.join("verifier/0", "verifier")
    assert verifier.parcels[verifier.lease("w0")].work.stop == 1


def test_a_work_that_has_died_cannot_be_claimed_back_to_life() -> None:
    talk = Talk(max_attempts=1)
    talk.join("source/0").submit(task("w0"))
    generator = talk.join("generator/0", "generator")
    old = generator.lease()
    generator.fail(old, "poison")
    talk.restart()
    assert generator.hello(generator.hold(old))[0].kept == []
    talk.pass_time(3.0)
    learner = talk.join("learner/0", "learner")
    assert isinstance(codec.unpack(learner.parcels[learner.lease("w0")])[0], m.Skipped)
    assert list(talk.hub.board.dead) == ["w0"]


def test_the_newest_of_two_claims_to_a_work_stands() -> None:
    talk = Talk(adopt_grace_s=5.0, lease_s=2.0, silence_s=50.0)
    talk.join("source/0").submit(task("w0"))
    slow = talk.join("generator/0", "generator")
    old = slow.lease()
    slow.say(m.Credit(0))
    quick = talk.join("generator/1", "generator")
    talk.pass_time(2.5)
    quick.onward(quick.lease())
    verifier = talk.join("verifier/0", "verifier")
    new = verifier.lease()
    for order in ((slow, verifier), (verifier, slow)):
        talk.restart()
        for peer in order:
            peer.hello(peer.hold(old if peer is slow else new))
        holders = {work: worker.name for worker, work in talk.hub._holders.values()}
        assert len(holders) == 1
    assert holders == {"w0": "verifier/0"}


# --------------------------------------------------------------------------------------------------- hub and link together


def test_a_link_says_hello_again_to_a_hub_that_dropped_it_and_goes_on() -> None:
    talk = Talk(silence_s=3.0, lease_s=100.0)
    talk.join("source/0").submit(task("w0"))
    link = links.LinkCore(m.Hello("generator/0", "b", ["generator"], 1), silence_s=60.0)
    seen: list[links.Event] = []

    def converse() -> None:
        for _ in range(6):
            effects = link.collect()
            seen.extend(effects.events)
            for parts in effects.sends:
                talk.hub.receive(b"generator/0|b", parts, talk.now)
            sends = talk.hub.collect().sends
            for peer, parts in sends:
                if peer == b"generator/0|b":
                    link.receive(parts, talk.now)

    link.start(0.0)
    converse()
    (lease,) = [event.lease for event in seen if isinstance(event, links.Leased)]
    talk.pass_time(5.0)  # the worker's process stands still
    assert not talk.hub.workers
    link.tick(talk.now)
    converse()
    assert [worker.name for worker in talk.hub.workers.values()] == ["generator/0"]
    assert links.Revoked(lease) in seen
    assert len([event for event in seen if isinstance(event, links.Leased)]) == 2


# ------------------------------------------------------------------------------------------------ anything in any order


class AnyOrder(RuleBasedStateMachine):
    """Workers come, go, answer, fail and fall silent in any order, and the hub is killed. Credit and books always hold."""

    @initialize(durability=st.sampled_from(["ids", "full"]))
    def start(self, durability: str) -> None:
        self.talk = Talk(durability=durability, max_attempts=2)
        self.numbers = itertools.count()
        self.source = self.talk.join("source/0")
        self.launcher = self.talk.join("launcher")
        self.peers: list[Peer] = []
        self.accepted: set[str] = set()
        self.trained: list[str] = []

    def pick(self, choice: int) -> tuple[Peer, int] | None:
        held = [(peer, token) for peer in self.peers for token in peer.leases]
        return held[choice % len(held)] if held else None

    @rule(count=st.integers(1, 4), lane=st.sampled_from(m.LANES))
    def submit(self, count: int, lane: m.Lane) -> None:
        works = [task(f"w{next(self.numbers)}", lane=lane) for _ in range(count)]
        if self.source.submit(*works).status == "accepted":
            self.accepted |= {parcel.work.id for parcel in works}

    @rule(queues=st.sets(st.sampled_from(ROUTE), min_size=1), credit=st.integers(0, 4))
    @precondition(lambda self: len(self.peers) < 5)
    def join(self, queues: set[str], credit: int) -> None:
        self.peers.append(self.talk.join(f"worker/{next(self.numbers)}", *sorted(queues), credit=credit))

    @rule(choice=st.integers(0, 100), credit=st.integers(0, 4))
    @precondition(lambda self: self.peers)
    def set_credit(self, choice: int, credit: int) -> None:
        peer = self.peers[choice % len(self.peers)]
        peer.say(m.Credit(credit))

    @rule(
        choice=st.integers(0, 100),
        keep=st.booleans(),
        how=st.sampled_from(["done", "done", "done", "ended", "wrong", "fail", "restart", "return"]),
    )
    def answer(self, choice: int, keep: bool, how: str) -> None:
        """`keep` repeats the answer later: the worker has not heard its acknowledgement."""
        if (held := self.pick(choice)) is None:
            return
        peer, token = held
        work = peer.leases[token].work
        last = work.stop == len(work.route) - 1
        outputs = [] if last else [task(work.id, stop=work.stop + (0 if how == "wrong" else 1))]
        if how in ("done", "ended", "wrong"):
            body: Any = m.Done(
                peer.request(),
                token,
                [] if how == "ended" else [p.work for p in outputs],
                "because" if how == "ended" else None,
            )
        else:
            body, outputs = (
                m.Fail(peer.request(), token, "broken", restart=how == "restart", returned=how == "return"),
                [],
            )
        sent = [] if how == "ended" else outputs
        heard = peer.say(body, sent)
        answers = [body for body in heard if isinstance(body, m.Ack)]
        if m.Pong(0) in heard:
            self.rejoin(peer)
            return
        if answers and answers[0].status == "accepted" and last and how in ("done", "wrong"):
            self.trained.append(work.id)
        if not keep:
            peer.leases.pop(token, None)

    @rule(choice=st.integers(0, 100))
    @precondition(lambda self: self.peers)
    def die(self, choice: int) -> None:
        peer = self.peers.pop(choice % len(self.peers))
        self.launcher.command("exited", peer.name)

    @rule(seconds=st.floats(0.1, 4.0), beating=st.booleans())
    def wait(self, seconds: float, beating: bool) -> None:
        self.talk.pass_time(seconds, (self.source, self.launcher, *(self.peers if beating else ())))

    @rule(forgetful=st.booleans())
    def restart_hub(self, forgetful: bool) -> None:
        if forgetful:  # the journal was compacted just before
            boots = [record for record in self.talk.records if isinstance(record, j.Booted)]
            self.talk.records = [*boots, *self.talk.hub.board.snapshot()]
        self.talk.restart()
        for peer in (self.source, self.launcher, *self.peers):
            self.rejoin(peer)

    def rejoin(self, peer: Peer) -> None:
        named = set(peer.leases)
        welcome = peer.hello(peer.hold(*peer.leases))[0]
        for token in named - set(welcome.kept):
            del peer.leases[token]

    @rule()
    def requeue(self) -> None:
        self.accepted |= set(self.launcher.command("requeue").get("requeued", {}).values())

    @invariant()
    def credit_is_never_exceeded_by_a_grant(self) -> None:
        for worker in getattr(self, "talk", Talk()).hub.workers.values():
            granted = [token for token in worker.leases if token >> 32 == self.talk.boot]
            largest = max([worker.hello.credit, worker.credit, 4])
            assert len(granted) <= largest

    @invariant()
    def every_accepted_work_is_somewhere_and_only_there(self) -> None:
        if not hasattr(self, "talk"):
            return
        board = self.talk.hub.board
        for identity in self.accepted:
            assert (identity in board.items) + (identity in board.finished) == 1
        held = [work for _, work in self.talk.hub._holders.values()]
        assert len(held) == len(set(held))
        for token, (worker, identity) in self.talk.hub._holders.items():
            assert board.items[identity].lease == token
            assert token in worker.leases
        for queue in board.queues():
            waiting = [i for i in board.items.values() if i.queue == queue and i.lease is None and not i.claimable]
            assert board.waiting(queue) == len(waiting)

    @invariant()
    def nothing_is_trained_twice(self) -> None:
        assert len(getattr(self, "trained", [])) == len(set(getattr(self, "trained", [])))

    @invariant()
    def the_disk_holds_the_books(self) -> None:
        if not hasattr(self, "talk"):
            return
        copy = type(self.talk.hub.board)(self.talk.options.durability)
        copy.restore(self.talk.records, 0.0)
        assert copy.finished == self.talk.hub.board.finished
        assert set(copy.items) == set(self.talk.hub.board.items)
        assert set(copy.dead) == set(self.talk.hub.board.dead)


AnyOrder.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
TestAnyOrder = AnyOrder.TestCase
