"""Frames to messages and back: what may travel, what is refused, and that refusing is all that bad bytes can cause."""

from __future__ import annotations

import functools
import operator
import random

import msgpack
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safeladder.protocol import codec
from safeladder.protocol import messages as m

NAMES = st.text(min_size=1, max_size=20)
SHORT = st.text(max_size=30)
INTEGERS = st.integers(-(2**62), 2**62)
NUMBERS = st.floats(allow_nan=False)
VALUES = st.dictionaries(
    SHORT, st.none() | st.booleans() | INTEGERS | NUMBERS | SHORT | st.lists(INTEGERS, max_size=3), max_size=4
)
CREDIT = st.integers(0, 1_000_000)
DTYPES = {
    "uint8": "u1",
    "int32": "<i4",
    "int64": "<i8",
    "float16": "<f2",
    "bfloat16": "<u2",
    "float32": "<f4",
    "float64": "<f8",
}

ARRAYS = st.dictionaries(
    NAMES,
    st.tuples(
        st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=m.MAX_DIMENSIONS), st.binary(max_size=8)
    ),
    max_size=3,
)
RECORDS = st.builds(
    m.Record,
    id=NAMES,
    label=NAMES,
    prompt=SHORT,
    reference=st.none() | SHORT | st.lists(SHORT, max_size=3),
    extra=VALUES,
)
COMPLETIONS = st.builds(m.Completion, text=SHORT, finish=st.sampled_from(["stop", "length", "abort", "error"]))
VERDICTS = st.builds(
    m.Verdict,
    sample=st.integers(0, 9),
    verifier=NAMES,
    version=NAMES,
    principle=NAMES,
    status=st.sampled_from(["ok", "abstain", "timeout", "error"]),
    score=st.none() | NUMBERS,
    confidence=st.none() | st.floats(0, 1),
    rationale=st.none() | SHORT,
)
SAMPLING = st.builds(
    m.Sampling,
    samples=st.integers(1, 1024),
    temperature=st.floats(0, 100),
    stop=st.lists(SHORT, max_size=3),
    seed=INTEGERS,
)
PAYLOADS = st.one_of(
    st.builds(
        m.Group,
        record=RECORDS,
        sampling=SAMPLING,
        sequence=INTEGERS,
        prefix=SHORT,
        completions=st.lists(COMPLETIONS, max_size=3),
        verdicts=st.lists(VERDICTS, max_size=3),
    ),
    st.builds(m.Question, text=SHORT, candidates=st.integers(1, 256), seed=INTEGERS),
    st.builds(
        m.Answer,
        text=SHORT,
        strategy=NAMES,
        candidates=st.lists(st.builds(m.Candidate, text=SHORT, score=st.none() | NUMBERS), max_size=3),
    ),
    st.builds(m.End, total=st.integers(0, 2**40)),
    st.builds(m.Skipped, sequence=INTEGERS, reason=SHORT),
    st.builds(m.Document, kind=NAMES, data=VALUES),
)


@st.composite
def parcels(draw: st.DrawFn) -> codec.Parcel:
    arrays = {}
    for name, (dtype, shape, seed) in draw(ARRAYS).items():
        count = functools.reduce(operator.mul, shape, 1) * m.DTYPES[dtype]  # type: ignore[index]
        content = (seed or b"\x01").ljust(1, b"\x00") * count
        arrays[name] = np.frombuffer(content[:count], DTYPES[dtype]).reshape(shape)
    route = draw(st.lists(NAMES, min_size=1, max_size=4))
    return codec.pack(
        draw(PAYLOADS),
        arrays,
        id=draw(NAMES),
        route=route,
        stop=draw(st.integers(0, len(route) - 1)),
        lane=draw(st.sampled_from(m.LANES)),
        sequence=draw(INTEGERS),
        reply_to=draw(st.none() | NAMES),
        deadline_s=draw(st.none() | NUMBERS),
    )


LISTS = st.lists(parcels(), max_size=3)
FROM_WORKER = st.one_of(
    st.builds(
        m.Hello,
        name=NAMES,
        boot=NAMES,
        queues=st.lists(NAMES, max_size=4),
        credit=CREDIT,
        held=st.lists(st.builds(m.Held, lease=INTEGERS, work=NAMES, stop=INTEGERS), max_size=3),
        collects=st.booleans(),
    ),
    st.builds(
        m.Beat,
        boot=NAMES,
        progress=INTEGERS,
        busy_s=NUMBERS,
        leases=st.lists(INTEGERS, max_size=4),
        metrics=st.dictionaries(SHORT, NUMBERS, max_size=3),
    ),
    st.builds(m.Credit, credit=CREDIT),
    st.builds(
        m.Fail,
        request=NAMES,
        lease=INTEGERS,
        error=SHORT,
        retry=st.booleans(),
        restart=st.booleans(),
        returned=st.booleans(),
    ),
    st.builds(m.Publish, request=NAMES, topic=NAMES, value=VALUES),
    st.builds(m.Query, request=NAMES, what=st.sampled_from(["status", "dead", "workers"])),
    st.builds(
        m.Command,
        request=NAMES,
        what=st.sampled_from(["requeue", "exited", "close", "stop"]),
        argument=st.none() | SHORT,
    ),
    st.builds(m.Bye, reason=SHORT),
)
FROM_HUB = st.one_of(
    st.builds(
        m.Welcome,
        hub_boot=INTEGERS,
        run=SHORT,
        beat_s=NUMBERS,
        lease_s=NUMBERS,
        state=st.dictionaries(SHORT, VALUES, max_size=2),
        kept=st.lists(INTEGERS, max_size=3),
    ),
    st.builds(m.Refused, reason=SHORT, retry=st.booleans()),
    st.builds(
        m.Ack, request=NAMES, status=st.sampled_from(["accepted", "duplicate", "stale", "refused"]), detail=SHORT
    ),
    st.builds(m.Pong, hub_boot=INTEGERS, revoked=st.lists(INTEGERS, max_size=3)),
    st.builds(m.Notice, topic=NAMES, value=VALUES),
    st.builds(m.Reply, call=NAMES, error=st.none() | SHORT),
    st.builds(m.Report, request=NAMES, value=VALUES),
    st.builds(m.Problem, reason=SHORT),
)


def one_work(frame: bytes = bytes(8), **array: object) -> list[codec.Frame]:
    """A submit of one work with one array, described as told."""
    described = {"name": "a", "dtype": "int64", "shape": [1], **array}
    work = {"id": "w", "route": ["q"], "payload": {"type": "end", "total": 1}, "arrays": [described]}
    body = {"type": "submit", "request": "r", "works": [work]}
    return [header([frame]), msgpack.packb(body), frame]


def header(given: list[bytes] | None = None, /, **fields: object) -> bytes:
    raw = given or []
    return msgpack.packb({"schema": m.SCHEMA, "sender": "s", "frames": len(raw), "bytes": sum(map(len, raw)), **fields})


def refused(parts: list[codec.Frame], match: str) -> None:
    with pytest.raises(codec.WireError, match=match):
        codec.decode_from_worker(parts)


def plain(value: object) -> object:
    """What standard msgpack makes of a struct: maps, lists, strings, numbers."""
    return msgspec.to_builtins(value, builtin_types=(bytes,))


# ------------------------------------------------------------------------------------------------------- round trips


@given(FROM_WORKER)
@settings(max_examples=150, deadline=None)
def test_what_a_worker_says_is_what_the_hub_reads(body: m.FromWorker) -> None:
    parts = codec.encode(body, "worker/0")
    head, read, works = codec.decode_from_worker(parts)
    assert (read, works, head.sender, head.schema) == (body, [], "worker/0", m.SCHEMA)
    assert msgpack.unpackb(parts[0]) == {"schema": m.SCHEMA, "sender": "worker/0", "frames": 0, "bytes": 0}
    assert msgpack.unpackb(parts[1], strict_map_key=False) == plain(body)


@given(FROM_HUB)
@settings(max_examples=150, deadline=None)
def test_what_the_hub_says_is_what_a_worker_reads(body: m.FromHub) -> None:
    parts = codec.encode(body, "hub")
    assert codec.decode_from_hub(parts)[1] == body
    assert msgpack.unpackb(parts[1], strict_map_key=False) == plain(body)


@given(LISTS, st.sampled_from(["submit", "done", "lease", "reply"]))
@settings(max_examples=150, deadline=None)
def test_parcels_arrive_with_their_payloads_and_arrays(sent: list[codec.Parcel], kind: str) -> None:
    if kind != "done" and not sent:
        return
    if kind in ("lease", "reply"):
        sent = sent[:1]
    works = [parcel.work for parcel in sent]
    body: m.Body = {
        "submit": lambda: m.Submit("r", works),
        "done": lambda: m.Done("r", 7, works, None),
        "lease": lambda: m.Lease(7, works[0], 3.0),
        "reply": lambda: m.Reply("c", works[0]),
    }[kind]()  # type: ignore[assignment]
    parts = [bytes(part) for part in codec.encode(body, "x", [frame for parcel in sent for frame in parcel.frames])]
    decode = codec.decode_from_worker if kind in ("submit", "done") else codec.decode_from_hub
    _, _, received = decode(parts)  # type: ignore[operator]
    assert len(received) == len(sent)
    foreign = msgpack.unpackb(parts[1], strict_map_key=False)
    read = foreign.get("works") or foreign.get("outputs") or ([foreign["work"]] if foreign.get("work") else [])
    for before, after, independent in zip(sent, received, read, strict=True):
        assert msgspec.structs.replace(before.work, payload=b"") == msgspec.structs.replace(after.work, payload=b"")
        payload, arrays = codec.unpack(before)
        payload_after, arrays_after = codec.unpack(after)
        assert payload == payload_after
        assert independent["payload"] == plain(payload)
        assert list(arrays) == list(arrays_after)
        for name, array in arrays.items():
            other = arrays_after[name]
            assert (other.dtype, other.shape, other.tobytes()) == (array.dtype, array.shape, array.tobytes())
            assert not other.flags.writeable
        assert [(a["dtype"], a["shape"]) for a in independent.get("arrays", [])] == [
            (a.dtype, a.shape) for a in before.work.arrays
        ]


def test_an_array_that_is_not_contiguous_travels_in_c_order() -> None:
    array = np.arange(12, dtype=np.int32).reshape(3, 4).T
    _, arrays = codec.unpack(codec.pack(m.End(1), {"a": array}, id="w", route=["q"]))
    assert np.array_equal(arrays["a"], array)


@pytest.mark.parametrize("dtype", ["O", "U3", ">i4", "c8", "bool", "uint32"])
def test_an_array_of_a_dtype_that_may_not_travel_is_refused_by_name(dtype: str) -> None:
    with pytest.raises(codec.WireError, match="array 'a' has dtype"):
        codec.pack(m.End(1), {"a": np.zeros(2, dtype)}, id="w", route=["q"])


# ------------------------------------------------------------------------------------------------------------- bounds


def test_another_schema_is_refused_and_both_are_named() -> None:
    parts = codec.encode(m.Bye(), "worker/3", schema="1:feedfacefeedface")
    with pytest.raises(codec.SchemaMismatch) as caught:
        codec.decode_from_worker(parts)
    assert "worker/3" in str(caught.value)
    assert "1:feedfacefeedface" in str(caught.value)
    assert m.SCHEMA in str(caught.value)


def test_the_schema_name_depends_on_the_structure_and_not_on_its_prose() -> None:
    schema = m.json_schema()
    assert schema["x-schema"] == m.SCHEMA
    assert "description" in str(schema["$defs"]["Verdict"])
    assert "description" not in m._without_prose(schema["$defs"]["Verdict"])


@pytest.mark.parametrize("count", [0, 1])
def test_a_message_without_header_and_body_is_refused(count: int) -> None:
    refused([header()] * count, "a message has a header and a body")


BYE = msgpack.packb({"type": "bye"})
BOUNDS = {
    "header": ([bytes(m.MAX_HEADER_BYTES + 1), BYE], "header of 4097 bytes"),
    "body": ([header(), bytes(m.MAX_BODY_BYTES + 1)], "body of 16777217 bytes"),
    "frames": ([header([b""] * 257), BYE, *[b""] * 257], "257 raw frames"),
    "announced frames": ([header([b"1"]), BYE], "announces 1 frames of 1 bytes, got 0 of 0"),
    "announced bytes": ([header([b"1"], bytes=2), BYE, b"1"], "announces 1 frames of 2 bytes, got 1 of 1"),
    "more frames than arrays": ([header([b"1"]), BYE, b"1"], "1 raw frames for works that describe 0"),
    "header bound": ([header(frames=257), BYE], "unreadable header"),
    "sender": ([header(sender="s" * 201), BYE], "unreadable header"),
    "no schema": ([msgpack.packb({"sender": "s"}), BYE], "unreadable header"),
    "unknown body": ([header(), msgpack.packb({"type": "launch"})], "unreadable body"),
    "a body of the other side": ([header(), msgpack.packb({"type": "welcome"})], "unreadable body"),
    "wrong field": ([header(), msgpack.packb({"type": "credit", "credit": "many"})], "unreadable body"),
    "credit": ([header(), msgpack.packb({"type": "credit", "credit": 1_000_001})], "unreadable body"),
    "empty name": (
        [header(), msgpack.packb({"type": "hello", "name": "", "boot": "b", "queues": []})],
        "unreadable body",
    ),
    "queues": (
        [header(), msgpack.packb({"type": "hello", "name": "n", "boot": "b", "queues": ["q"] * 65})],
        "unreadable body",
    ),
    "no works": ([header(), msgpack.packb({"type": "submit", "request": "r", "works": []})], "unreadable body"),
    "error text": (
        [header(), msgpack.packb({"type": "fail", "request": "r", "lease": 1, "error": "e" * 100_001})],
        "unreadable body",
    ),
    "trailing bytes": ([header(), BYE + b"\x00"], "unreadable body"),
    "empty body": ([header(), b""], "unreadable body"),
    "bad UTF-8 in the header": ([header().replace(b"\xa1s", b"\xa1\xff"), BYE], "unreadable header"),
    "bad UTF-8 in the body": ([header(), BYE[:-3] + b"\xff\xfe\xfd"], "unreadable body"),
    "five dimensions": (one_work(shape=[1, 1, 1, 1, 1]), "unreadable body"),
    "negative size": (one_work(shape=[-1]), "unreadable body"),
    "unknown dtype": (one_work(dtype="object"), "unreadable body"),
    "frame too short": (one_work(bytes(7)), "array 'a' of 'w' describes 8 bytes, has 7"),
    "frame too long": (one_work(bytes(9)), "describes 8 bytes, has 9"),
    "2 GB": (one_work(shape=[2**28]), "describes 2147483648 bytes, has 8"),
    "product beyond 64 bits": (one_work(shape=[2**40] * 4), "bytes, has 8"),
    "an empty array with sides that numpy cannot span": (one_work(b"", shape=[0, 2**40, 2**40]), "spans"),
    "product that wraps to 8 bytes": (one_work(dtype="uint8", shape=[2**34, 2**30, 1, 1]), "bytes, has 8"),
}


@pytest.mark.parametrize("case", BOUNDS)
def test_what_breaks_a_bound_is_refused_with_the_bound_in_the_error(case: str) -> None:
    refused(*BOUNDS[case])


def test_frames_of_more_than_the_message_bound_are_refused() -> None:
    frame = memoryview(bytes(m.MAX_MESSAGE_BYTES // 4 + 1))
    head = msgpack.packb({"schema": m.SCHEMA, "sender": "s", "frames": 4, "bytes": 4 * len(frame)})
    refused([head, BYE, *[frame] * 4], "unreadable header")


def test_a_work_beyond_its_route_and_a_missing_frame_are_refused() -> None:
    work = {"id": "w", "route": ["q"], "payload": None, "stop": 1}
    refused(
        [header(), msgpack.packb({"type": "submit", "request": "r", "works": [work]})],
        "stands at stop 1 of a route of 1",
    )
    parts = one_work()
    refused([header(), parts[1]], "describes 1 arrays, 0 frames are left")


@pytest.mark.parametrize("depth", [2_000, 200_000, 10_000_000])
@pytest.mark.parametrize("opener", [b"\x91", b"\x81\xa1k"])
def test_deep_nesting_is_refused_wherever_it_stands(depth: int, opener: bytes) -> None:
    nested = opener * min(depth, m.MAX_BODY_BYTES // len(opener) // 2) + b"\xc0"
    publish = msgpack.packb({"type": "publish", "request": "r", "topic": "t"})
    publish = bytes([publish[0] + 1]) + publish[1:] + b"\xa5value" + nested
    refused([header(), publish], "unreadable body")
    document = b"\x82\xa4type\xa8document\xa4kind\xa1k"
    document = bytes([document[0] + 1]) + document[1:] + b"\xa4data\x81\xa1k" + nested
    work = msgpack.packb({"id": "w", "route": ["q"]})
    work = bytes([work[0] + 1]) + work[1:] + b"\xa7payload" + document
    submit = b"\x83\xa4type\xa6submit\xa7request\xa1r\xa5works\x91" + work
    try:  # the hub carries payloads unread; whoever reads one refuses it
        _, _, received = codec.decode_from_worker([header(), submit])
    except codec.WireError:
        return
    with pytest.raises(codec.WireError, match="payload of work 'w'"):
        codec.unpack(received[0])


# --------------------------------------------------------------------------------------------------- hostile bytes


def samples() -> list[list[bytes]]:
    arrays = {"ids": np.arange(5, dtype=np.int32), "logprobs": np.ones((2, 2), np.float32)}
    group = m.Group(m.Record("r", "family", "prompt"), m.Sampling(), completions=[m.Completion("text", "stop")])
    parcel = codec.pack(group, arrays, id="w", route=["a", "b"], reply_to="me", deadline_s=3.0)
    return [
        [bytes(part) for part in codec.encode(body, "worker/0", parcel.frames if codec.works_of(body) else ())]
        for body in (
            m.Hello("worker/0", "boot", ["a"], 3, held=[m.Held(1, "w", 0)]),
            m.Beat("boot", 3, 0.5, [1, 2], {"rate": 1.0}),
            m.Submit("r", [parcel.work]),
            m.Done("r", 2**33, [parcel.work], "because"),
            m.Fail("r", 1, "error"),
            m.Publish("r", "t", {"a": [1, {"b": None}]}),
        )
    ]


def tolerant(parts: list[bytes]) -> None:
    """Reads a message as the hub and then an actor would. Anything but success or a WireError fails the test."""
    try:
        _, _, received = codec.decode_from_worker(parts)
        for parcel in received:
            codec.unpack(parcel)
    except codec.WireError:
        pass


def test_a_message_with_one_byte_changed_is_read_or_refused() -> None:
    source = random.Random(1)
    for parts in samples():
        for index, part in enumerate(parts):
            for position in range(len(part)):
                for value in {0, 0x80, 0xC1, 0xDF, 0xFF, part[position] ^ 1, source.randrange(256)}:
                    broken = bytearray(part)
                    broken[position] = value
                    tolerant([*parts[:index], bytes(broken), *parts[index + 1 :]])


def test_a_message_cut_anywhere_is_read_or_refused() -> None:
    for parts in samples():
        for index, part in enumerate(parts):
            for length in range(len(part)):
                refused([*parts[:index], part[:length], *parts[index + 1 :]], ".")
        for count in range(len(parts)):
            refused(parts[:count], ".")


@given(st.lists(st.binary(max_size=200), max_size=5), st.booleans())
@settings(max_examples=300, deadline=None)
def test_random_bytes_are_refused(parts: list[bytes], honest_header: bool) -> None:
    if honest_header and len(parts) > 1:
        parts[0] = header(parts[2:])
    tolerant(parts)
