"""The example actors against a real hub: a class in Python, a process in JavaScript, and the schema that the latter is written against."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest
from example_bench import (
    DEADLINE_S,
    NODE_ACTOR,
    OPTIONS,
    Bench,
    RunningHub,
    assert_only_verdicts_added,
    group,
    group_of,
    node_actor,
)
from schema_check import assert_fits_schema, violations

from safeladder.actors.actor import Actor, Context, Delivery
from safeladder.actors.runtime import Runtime
from safeladder.launch.config import Config, ConfigError, Pool
from safeladder.launch.factory import actor_class, actor_options
from safeladder.protocol import codec, keys
from safeladder.protocol import link as links
from safeladder.protocol import messages as m
from safeladder.protocol.transport import Link

needs_node = pytest.mark.skipif(
    shutil.which("node") is None or not (NODE_ACTOR.parent / "node_modules" / "zeromq").is_dir(),
    reason="needs node (20 or later) and `npm ci` in launch/examples/node",
)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[RunningHub]:
    running = RunningHub(tmp_path / "journal")
    yield running
    running.stop()


@pytest.fixture
def bench(hub: RunningHub) -> Iterator[Bench]:
    bench = Bench(hub.endpoint)
    yield bench
    bench.link.close("over")


# ---------------------------------------------------------------------------------------------------- a class in Python

WORD_LIMIT = Pool(
    actor="safeladder.launch.examples.word_limit:WordLimit",
    credit=2,
    queues=["word_limit"],
    options={"max_words": 4},
)


async def serve(endpoint: str, pool: Pool, directory: Path, until: Callable[[], Any]) -> Any:
    """Runs the pool's actor as its process would, until `until` returns."""
    kind = actor_class(pool)
    runtime = Runtime(kind)
    link = Link(endpoint, "word_limit/0", pool.queues, on_event=runtime.on_event, role=kind.role, vitals=runtime.vitals)
    context = Context("word_limit/0", pool, Config(), directory, link)
    running = asyncio.create_task(runtime.run(context, actor_options(kind, pool, "pools.word_limit.options")))
    try:
        return await asyncio.to_thread(until)
    finally:
        runtime.stop()
        await running


def test_word_limit_scores_by_words_and_passes_everything_else_on(
    hub: RunningHub, bench: Bench, tmp_path: Path
) -> None:
    texts = ["one two", "one two three four", "one two three four five six seven eight", "一二三四五", ""]
    sent = bench.submit(texts, "word_limit", count=3)
    received = asyncio.run(serve(hub.endpoint, WORD_LIMIT, tmp_path, lambda: bench.take(3)))
    assert {parcel.work.id for parcel in received} == set(sent)
    for parcel in received:
        verdicts = assert_only_verdicts_added(sent[parcel.work.id], parcel, "word_limit")
        assert [verdict.score for verdict in verdicts] == [1.0, 1.0, 0.5, 0.8, 1.0]
        assert [verdict.label for verdict in verdicts] == ["within", "within", "over", "over", "within"]
        assert {(verdict.principle, verdict.status) for verdict in verdicts} == {("rules", "ok")}


def test_word_limit_counts_the_prefix_that_the_completion_continues(
    hub: RunningHub, bench: Bench, tmp_path: Path
) -> None:
    bench.submit(["three four five"], "word_limit", prefix="one two ")
    (parcel,) = asyncio.run(serve(hub.endpoint, WORD_LIMIT, tmp_path, lambda: bench.take(1)))
    assert group_of(parcel).verdicts[-1].rationale == "5 words"


def test_word_limit_sets_aside_what_is_no_group_without_another_try(
    hub: RunningHub, bench: Bench, tmp_path: Path
) -> None:
    bench.link.submit([codec.pack(m.Document("note"), id="d1", route=["word_limit", "sink"])]).result(DEADLINE_S)
    (parcel,) = asyncio.run(serve(hub.endpoint, WORD_LIMIT, tmp_path, lambda: bench.take(1)))
    assert isinstance(codec.unpack(parcel)[0], m.Skipped)
    assert bench.ask("dead")["d1"]["attempts"] == 1


def test_a_misspelt_option_of_word_limit_is_refused_by_name() -> None:
    pool = Pool(actor=WORD_LIMIT.actor, options={"max_word": 4})
    with pytest.raises(ConfigError, match=r"max_word.*did you mean 'max_words'"):
        actor_options(actor_class(pool), pool, "pools.word_limit.options")


class Batched(Actor):
    """Handles what is waiting together, as docs/actors.md describes it."""

    batch = 16

    def handle_batch(self, deliveries: Sequence[Delivery]) -> list[m.Group]:
        self.worked()
        return [delivery.group for delivery in deliveries]


def test_a_rejected_work_does_not_take_its_batch_with_it(hub: RunningHub, bench: Bench, tmp_path: Path) -> None:
    note = codec.pack(m.Document("note"), id="d1", route=["word_limit", "sink"])
    groups = [group(f"g{number}", ["x"], ["word_limit", "sink"]) for number in range(5)]
    bench.link.submit([*groups[:2], note, *groups[2:]]).result(DEADLINE_S)
    pool = Pool(actor=f"{__name__}:Batched", credit=6, queues=["word_limit"])
    received = asyncio.run(serve(hub.endpoint, pool, tmp_path, lambda: bench.take(6)))
    assert list(bench.ask("dead")) == ["d1"]
    arrived = [parcel.work.id for parcel in received if not isinstance(codec.unpack(parcel)[0], m.Skipped)]
    assert sorted(arrived) == ["g0", "g1", "g2", "g3", "g4"]


# ------------------------------------------------------------------------------------------------ a process in JavaScript


@needs_node
def test_node_actor_adds_verdicts_and_passes_frames_on_unchanged(hub: RunningHub, bench: Bench, tmp_path: Path) -> None:
    sent = bench.submit(["Thank you, happy to help!", "Shut up, please.", "Paris.", "请坐。"], "politeness", count=5)
    with node_actor(hub.endpoint, tmp_path) as actor:
        for parcel in bench.take(5):
            verdicts = assert_only_verdicts_added(sent[parcel.work.id], parcel, "politeness")
            assert [(v.label, v.score) for v in verdicts] == [
                ("polite", 1.0),
                ("rude", 0.0),
                ("neutral", 0.5),
                ("polite", 1.0),
            ]
        actor.wait_for("work.settled", 5)
        assert actor.end() == 0
    assert {line["status"] for line in actor.events("work.settled")} == {"accepted"}


@needs_node
def test_node_actor_gives_no_score_to_a_completion_that_failed(hub: RunningHub, bench: Bench, tmp_path: Path) -> None:
    parcel = group("g", ["x"], ["politeness", "sink"])
    failed = msgspec.structs.replace(group_of(parcel), completions=[m.Completion("", "error", "engine died")])
    bench.link.submit([codec.pack(failed, id="g", route=["politeness", "sink"])]).result(DEADLINE_S)
    with node_actor(hub.endpoint, tmp_path):
        (received,) = bench.take(1)
    assert [(v.status, v.score) for v in group_of(received).verdicts[1:]] == [("abstain", None)]


@needs_node
def test_node_actor_keeps_a_lease_alive_by_its_beats(hub: RunningHub, bench: Bench, tmp_path: Path) -> None:
    bench.submit(["Hello."], "politeness")
    with node_actor(hub.endpoint, tmp_path, delay_ms=int(2.5 * OPTIONS.lease_s * 1000)):
        bench.take(1)
    assert hub.hub.core.counters["leased"] == 2  # once to the actor, once to the bench


@needs_node
def test_node_actor_survives_a_restart_of_the_hub(hub: RunningHub, bench: Bench, tmp_path: Path) -> None:
    sent = bench.submit(["Thank you."], "politeness", count=8)
    with node_actor(hub.endpoint, tmp_path, delay_ms=400) as actor:
        actor.wait_for("work.settled", 4)  # two pairs are through, and it has just begun with the third
        hub.stop()
        hub.start()
        received = bench.take(8)
        again = actor.wait_for("hub.joined", 2)
        assert again["hub_boot"] == 2
        assert again["kept"] >= 1  # what it was at work on it has not had to give up
        assert actor.process.poll() is None
        assert sorted(parcel.work.id for parcel in received) == sorted(sent)
        for parcel in received:
            assert_only_verdicts_added(sent[parcel.work.id], parcel, "politeness")
        assert bench.wait_for("status", lambda status: status["finished"] == 8)["dead"] == 0


@needs_node
def test_node_actor_returns_its_leases_on_sigterm(hub: RunningHub, bench: Bench, tmp_path: Path) -> None:
    sent = bench.submit(["Thank you."], "politeness", count=5)
    with node_actor(hub.endpoint, tmp_path, delay_ms=600_000, credit=4) as actor:
        bench.wait_for("workers", lambda workers: workers.get("politeness/0", {}).get("leases") == 4)
        assert actor.end() == 0
        assert bench.wait_for("status", lambda status: status["waiting"]["politeness"] == 5)["leased"] == 0
        assert actor.lines[-1]["event"] == "process.finished"
    assert all(item.attempts == 0 for item in hub.hub.core.board.items.values())  # given back, not lost
    with node_actor(hub.endpoint, tmp_path):
        assert {parcel.work.id for parcel in bench.take(5)} == set(sent)


@needs_node
def test_node_actor_that_the_hub_has_given_up_drops_its_lease_and_comes_back(
    hub: RunningHub, bench: Bench, tmp_path: Path
) -> None:
    sent = bench.submit(["Thank you."], "politeness")
    with node_actor(hub.endpoint, tmp_path, delay_ms=1000) as actor:
        bench.wait_for("workers", lambda workers: workers.get("politeness/0", {}).get("leases") == 1)
        assert bench.link.command("exited", "politeness/0").result(DEADLINE_S) == {"known": True}
        actor.wait_for("lease.revoked")
        (parcel,) = bench.take(1)
        assert_only_verdicts_added(sent[parcel.work.id], parcel, "politeness")
        actor.wait_for("work.settled")
        assert len(actor.events("work.settled")) == 1


@needs_node
def test_node_actor_sets_aside_what_is_no_group(hub: RunningHub, bench: Bench, tmp_path: Path) -> None:
    bench.link.submit([codec.pack(m.Document("note"), id="d1", route=["politeness", "sink"])]).result(DEADLINE_S)
    with node_actor(hub.endpoint, tmp_path):
        bench.take(1)
    assert bench.ask("dead")["d1"] == {
        "queue": "politeness",
        "attempts": 1,
        "error": "Error: d1 carries a document, this actor takes groups",
    }


@needs_node
def test_node_actor_answers_a_call_at_the_last_stop(hub: RunningHub, bench: Bench, tmp_path: Path) -> None:
    sent = group("call", ["Thank you."], ["politeness"])
    with node_actor(hub.endpoint, tmp_path):
        answer = bench.link.call(sent, DEADLINE_S).result(DEADLINE_S)
    assert_only_verdicts_added(sent, answer, "politeness")


@needs_node
def test_node_actor_of_another_schema_exits_78(hub: RunningHub, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"x-schema": "1:0000000000000000"}))
    with node_actor(hub.endpoint, tmp_path, SAFELADDER_SCHEMA_FILE=str(other)) as actor:
        assert actor.wait() == 78
    assert "schema" in actor.events("hub.refused")[0]["reason"]


@needs_node
def test_node_actor_joins_a_hub_with_keys(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    keys.create(folder, ["politeness/0"])
    hub = RunningHub(tmp_path / "journal", keys.load_hub(folder))
    try:
        with node_actor(
            hub.endpoint, tmp_path, SAFELADDER_KEY_FILE=str(keys.worker_file(folder, "politeness/0"))
        ) as actor:
            actor.wait_for("hub.joined")
            assert actor.end() == 0
    finally:
        hub.stop()


# ----------------------------------------------------------------------------------------------------------- the schema


def test_every_message_of_a_link_fits_the_exported_schema() -> None:
    link = links.LinkCore(m.Hello("bench/0", "boot", ["sink"]))
    parcel = group("g", ["Thank you."], ["politeness", "sink"])
    link.start(0.0)
    link.receive(codec.encode(m.Welcome(1, "run", 1.0, 30.0), "hub"), 0.0)
    link.receive(codec.encode(m.Lease(1 << 32, parcel.work, 30.0), "hub", parcel.frames), 0.0)
    link.submit([parcel], 0.0)
    link.call(parcel, 0.0, 9.0)
    link.done(1 << 32, [parcel], 0.0)
    link.fail(1 << 32, "no", 0.0)
    link.publish("weights", {"version": 3}, 0.0)
    link.query("status", 0.0)
    link.command("exited", "a/0", 0.0)
    link.set_credit(4)
    link.tick(5.0)
    link.leave("over")
    types = {assert_fits_schema(parts) for parts in link.collect().sends}
    assert types == {"hello", "beat", "credit", "submit", "done", "fail", "publish", "query", "command", "bye"}


def test_the_schema_check_sees_what_is_wrong() -> None:
    schema = m.json_schema()
    body = schema["properties"]["body"]
    assert list(violations({"type": "credit", "credit": 1}, body, schema)) == []
    assert list(violations({"type": "credit"}, body, schema)) == [": credit is missing"]
    assert list(violations({"type": "credit", "credit": "1"}, body, schema)) == [".credit: '1' is no integer"]
    assert list(violations({"type": "credit", "credit": 1, "x": 1}, body, schema)) == [": x is unknown"]
    assert "none of" in next(violations({"type": "credits"}, body, schema))


@needs_node
def test_every_message_of_the_node_actor_fits_the_exported_schema(
    hub: RunningHub, bench: Bench, tmp_path: Path
) -> None:
    bench.link.submit([codec.pack(m.Document("note"), id="d1", route=["politeness", "sink"])]).result(DEADLINE_S)
    bench.submit(["Thank you."], "politeness")
    with node_actor(hub.endpoint, tmp_path, delay_ms=500) as actor:
        bench.take(2)
        actor.wait_for("work.settled", 2)
        actor.end()
    bench.wait_for("workers", lambda workers: "politeness/0" not in workers)
    mine = [parts for parts in hub.heard if msgpack.unpackb(parts[0])["sender"] == "politeness/0"]
    assert {assert_fits_schema(parts) for parts in mine} == {"hello", "beat", "done", "fail", "bye"}
