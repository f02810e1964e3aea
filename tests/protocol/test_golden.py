"""Messages of schema 1 as they were written, kept as files: every later schema must read them, with defaults for what is new.

SAFELADDER_WRITE_GOLDEN=1 pytest tests/protocol/test_golden.py     writes vectors that are missing; never changes one
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import numpy as np
import pytest

from safeladder.protocol import codec
from safeladder.protocol import messages as m

GOLDEN = Path(__file__).parent / "golden"
INDEX = GOLDEN / "schema-1.json"
WRITE = "SAFELADDER_WRITE_GOLDEN"


def vectors() -> dict[str, tuple[Any, list[codec.Frame]]]:
    """One message of every kind, with every optional field that a reader must not lose."""
    record = m.Record(
        "math-1", "math", "What is 2 + 2?", "4", category="sums", choices=["3", "4"], source="made", extra={"level": 1}
    )
    verdict = m.Verdict(
        0, "rules", "1", "knowledge", "ok", label="right", score=1.0, confidence=0.5, rationale="equal", seconds=0.25
    )
    group = m.Group(
        record,
        m.Sampling(2, 64, 0.7, 0.9, 40, 0.05, ["\n"], 2**40),
        sequence=7,
        min_version=3,
        system="Be brief.",
        prefix="<think>",
        completions=[m.Completion("4", "stop"), m.Completion("", "error", "out of memory")],
        verdicts=[verdict, m.Verdict(1, "safety", "2", "safety", "timeout", target="step", step=1, error="late")],
    )
    arrays = {
        "prompt_ids": np.array([1, 2, 3], np.int32),
        "lengths": np.array([2, 0], np.int32),
        "behaviour_logprobs": np.array([-0.5, -1.25], np.float32),
        "empty": np.zeros((0, 4), np.float64),
        "wide": np.array([[1, -1], [2**40, 0]], np.int64),
        "mask": np.array([1, 0], np.uint8),
        "half": np.array([0.5], np.float16),
        "bits": np.array([16256], np.uint16),
    }
    parcel = codec.pack(group, arrays, id="math-1", route=["generator", "rules", "learner"], stop=1, sequence=7)
    call = codec.pack(
        m.Question("Why?", "s", 8, 99, 0.5, 3),
        id="q1",
        route=["searcher"],
        lane="interactive",
        reply_to="gateway/0",
        deadline_s=9.5,
    )
    answer = codec.pack(
        m.Answer("Because.", "best_of_n", [m.Candidate("Because.", 0.5, "ok", 2)], 1.5, "n"),
        id="q1",
        route=["searcher"],
    )
    begun = msgspec.structs.replace(group, completions=[m.Completion("4", "stop"), m.Completion("It", "abort")])
    partial = codec.pack(begun, arrays, id="math-1", route=["generator", "rules", "learner"], sequence=7)
    small = [
        codec.pack(m.End(100), id="end", route=["learner"]),
        codec.pack(m.Skipped(3, "dead: poison"), id="w3", route=["learner"]),
        codec.pack(m.Document("note", {"a": [1, None]}), id="note", route=["x"], lane="evaluation"),
    ]
    works = [parcel, call, *small]
    return {
        "hello": (
            m.Hello(
                "generator/0", "b00t", ["generator"], 4, "generator", 99, "host", [m.Held(2**33, "math-1", 1)], True
            ),
            [],
        ),
        "beat": (m.Beat("b00t", 12, 0.5, [2**33, 2**33 + 1], {"tokens_s": 12.5}), []),
        "credit": (m.Credit(3), []),
        "submit": (m.Submit("b00t.1", [w.work for w in works]), [f for w in works for f in w.frames]),
        "done": (m.Done("b00t.2", 2**33, [parcel.work], "too long"), parcel.frames),
        "fail": (m.Fail("b00t.3", 2**33, "broken", False, True, True), []),
        "fail_partial": (
            m.Fail("b00t.7", 2**33, "stopping", returned=True, partial=partial.work),
            partial.frames,
        ),
        "publish": (m.Publish("b00t.4", "policy", {"version": 3, "files": ["a"]}), []),
        "query": (m.Query("b00t.5", "dead"), []),
        "command": (m.Command("b00t.6", "requeue", "math-1"), []),
        "bye": (m.Bye("finished"), []),
        "welcome": (m.Welcome(2, "run", 1.0, 30.0, {"policy": {"version": 3}}, [2**33]), []),
        "refused": (m.Refused("the name is taken", True), []),
        "lease": (m.Lease(2**33, parcel.work, 30.0, 2), parcel.frames),
        "ack": (m.Ack("b00t.1", "refused", "full"), []),
        "pong": (m.Pong(2, [2**33]), []),
        "notice": (m.Notice("policy", {"version": 4}), []),
        "reply": (m.Reply("q1", answer.work, None), []),
        "reply_error": (m.Reply("q1", None, "no answer"), []),
        "report": (m.Report("b00t.5", {"math-1": {"error": "poison"}}), []),
        "problem": (m.Problem("unreadable body"), []),
    }


def understood(body: Any, parcels: list[codec.Parcel]) -> Any:
    """Everything that a reader gets out of a message, as JSON: the body, and each payload and array."""
    read = []
    for parcel in parcels:
        payload, arrays = codec.unpack(parcel)
        described = {name: {"dtype": str(array.dtype), "values": array.tolist()} for name, array in arrays.items()}
        read.append({"payload": msgspec.to_builtins(payload), "arrays": described})
    plain = msgpack.unpackb(msgspec.msgpack.encode(body), strict_map_key=False)  # works carry raw payloads
    single = [plain.get("work") or {}, plain.get("partial") or {}]
    for holder in (*plain.get("works", []), *plain.get("outputs", []), *single):
        holder.pop("payload", None)  # stands in `read`, as its type reads it
    return json.loads(json.dumps({"kind": type(body).__name__, "body": plain, "works": read}))


def decode(parts: list[bytes]) -> tuple[Any, list[codec.Parcel]]:
    """As a peer of today, past the handshake that compares the schemas' names."""
    head = msgpack.unpackb(parts[0])
    parts = [msgpack.packb({**head, "schema": m.SCHEMA}), *parts[1:]]
    try:
        return codec.decode_from_worker(parts)[1:]
    except codec.WireError:
        return codec.decode_from_hub(parts)[1:]


def write_missing() -> None:
    GOLDEN.mkdir(exist_ok=True)
    index = json.loads(INDEX.read_text()) if INDEX.exists() else {"schema": m.SCHEMA, "vectors": {}}
    for name, (body, frames) in vectors().items():
        if name not in index["vectors"]:
            parts = [bytes(part) for part in codec.encode(body, "golden", frames)]
            (GOLDEN / f"{name}.bin").write_bytes(msgpack.packb(parts))
            index["vectors"][name] = {"file": f"{name}.bin", "understood": understood(*decode(parts))}
    INDEX.write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")


if os.environ.get(WRITE):
    write_missing()
KEPT = json.loads(INDEX.read_text())["vectors"]


def contains(now: Any, then: Any) -> bool:
    """Whether what is read today holds all that was read then; new fields may have come."""
    if isinstance(then, dict):
        return isinstance(now, dict) and all(key in now and contains(now[key], value) for key, value in then.items())
    if isinstance(then, list):
        return isinstance(now, list) and len(now) == len(then) and all(map(contains, now, then))
    return bool(now == then)


@pytest.mark.parametrize("name", sorted(KEPT))
def test_a_message_of_schema_1_is_still_understood(name: str) -> None:
    parts = msgpack.unpackb((GOLDEN / KEPT[name]["file"]).read_bytes())
    assert contains(understood(*decode(parts)), KEPT[name]["understood"])


def test_every_kind_of_message_and_payload_has_a_vector() -> None:
    kinds = {kept["understood"]["kind"] for kept in KEPT.values()}
    assert kinds == {kind.__name__ for kind in (*m.FromWorker.__args__, *m.FromHub.__args__)}
    payloads = {work["payload"]["type"] for kept in KEPT.values() for work in kept["understood"]["works"]}
    assert payloads == {kind.__struct_config__.tag for kind in m.Payload.__args__}


REQUIRED = {
    "hello": {"name": "n", "boot": "b", "queues": []},
    "beat": {"boot": "b"},
    "credit": {"credit": 1},
    "submit": {"request": "r", "works": [{"id": "w", "route": ["q"], "payload": {"type": "end", "total": 1}}]},
    "done": {"request": "r", "lease": 1},
    "fail": {"request": "r", "lease": 1, "error": "e"},
    "publish": {"request": "r", "topic": "t", "value": {}},
    "query": {"request": "r", "what": "status"},
    "command": {"request": "r", "what": "stop"},
    "bye": {},
    "welcome": {"hub_boot": 1, "run": "r", "beat_s": 1.0, "lease_s": 2.0},
    "refused": {"reason": "r"},
    "lease": {"lease": 1, "work": {"id": "w", "route": ["q"], "payload": {"type": "end", "total": 1}}, "lease_s": 1.0},
    "ack": {"request": "r", "status": "accepted"},
    "pong": {"hub_boot": 1},
    "notice": {"topic": "t", "value": {}},
    "reply": {"call": "c"},
    "report": {"request": "r", "value": {}},
    "problem": {"reason": "r"},
}


@pytest.mark.parametrize("kind", sorted(REQUIRED))
def test_a_peer_that_knows_only_the_fields_required_in_schema_1_is_read_with_defaults(kind: str) -> None:
    """A new field without a default would make this fail, and so would one that stopped being optional."""
    parts = [msgpack.packb({"schema": m.SCHEMA, "sender": "old"}), msgpack.packb({"type": kind, **REQUIRED[kind]})]
    body, parcels = decode(parts)
    assert type(body).__struct_config__.tag == kind
    for parcel in parcels:
        assert codec.unpack(parcel) == (m.End(1), {})
        assert (parcel.work.stop, parcel.work.lane, parcel.work.reply_to) == (0, "training", None)


@pytest.mark.parametrize("name", sorted(KEPT))
def test_a_field_that_a_newer_peer_adds_is_passed_over(name: str) -> None:
    parts = msgpack.unpackb((GOLDEN / KEPT[name]["file"]).read_bytes())
    newer = {**msgpack.unpackb(parts[1], strict_map_key=False), "of_schema_2": {"deep": [1]}}
    assert contains(understood(*decode([parts[0], msgpack.packb(newer), *parts[2:]])), KEPT[name]["understood"])


def test_the_check_notices_a_lost_field() -> None:
    then = KEPT["hello"]["understood"]
    now = json.loads(json.dumps(then))
    now["body"]["held"][0]["lease"] += 1
    assert not contains(now, then)
    del now["body"]["collects"]
    assert not contains(now, then)
