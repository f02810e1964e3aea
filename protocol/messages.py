"""Every message that crosses a process boundary, as `msgspec.Struct`s with named fields.

A ZeroMQ multipart message is `[header][body][raw frame]...`: a msgpack `Header`, a msgpack `Body` (a map whose key
`type` names the struct), then one frame for each array that the body's works describe, in order. Arrays never travel
as lists.

Three kinds of struct live here:

* payloads  what a work carries: `Group` (a prompt and its completions), `Question`, `Answer`, `End`, `Skipped`.
* `Work`    the unit that is queued, leased and handed on: an id, an itinerary and one payload.
* bodies    what a worker and the hub say to each other: `Hello`, `Lease`, `Done`, ...

Evolution is additive: a new field has a default and stands last, a tag is never reused. `tests/protocol/golden/` holds
encoded messages of earlier schemas that must stay readable. `SCHEMA` names the exact schema; peers with another one
are refused at the handshake.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

SCHEMA_VERSION: Final = 1

# Bounds. A message that breaks one is refused before anything is allocated for it.
MAX_HEADER_BYTES: Final = 4096
MAX_BODY_BYTES: Final = 16 * 2**20
MAX_FRAME_BYTES: Final = 64 * 2**20
MAX_FRAMES: Final = 256
MAX_MESSAGE_BYTES: Final = 256 * 2**20
MAX_DIMENSIONS: Final = 4

Name = Annotated[str, Meta(min_length=1, max_length=200)]
Text = Annotated[str, Meta(max_length=1_000_000)]
Lane = Literal["interactive", "evaluation", "training"]
LANES: Final[tuple[Lane, ...]] = ("interactive", "evaluation", "training")  # in order of precedence

# dtypes that may travel, and their item sizes in bytes; bfloat16 travels as its uint16 bits
DTYPES: Final = {"uint8": 1, "int32": 4, "int64": 8, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
DType = Literal["uint8", "int32", "int64", "float16", "bfloat16", "float32", "float64"]


class Array(Struct, frozen=True):
    """Describes one raw little-endian, C-ordered frame of a work."""

    name: Name
    dtype: DType
    shape: Annotated[list[Annotated[int, Meta(ge=0, le=2**40)]], Meta(max_length=MAX_DIMENSIONS)]


# ----------------------------------------------------------------------------------------------------- payloads


class Record(Struct, omit_defaults=True):
    """One task, as it stands in a task file. `label` is the family, which decides the route and the reward."""

    id: Name
    label: Name
    prompt: Text
    reference: str | list[str] | None = None
    language: Name = "en"
    category: str | None = None
    choices: list[str] | None = None
    source: str | None = None
    extra: dict[str, Any] = {}


class Sampling(Struct, omit_defaults=True):
    """How completions are drawn. `seed` and the sample's index decide every token, whatever else is in the batch."""

    samples: Annotated[int, Meta(ge=1, le=1024)] = 1
    max_new_tokens: Annotated[int, Meta(ge=1, le=2**20)] = 64
    temperature: Annotated[float, Meta(ge=0.0, le=100.0)] = 1.0
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    top_k: Annotated[int, Meta(ge=0)] = 0  # 0: off
    min_p: Annotated[float, Meta(ge=0.0, lt=1.0)] = 0.0
    stop: Annotated[list[str], Meta(max_length=16)] = []
    seed: int = 0


class Completion(Struct, omit_defaults=True):
    """One sampled answer. Its tokens stand in the group's arrays; `text` is what verifiers read."""

    text: Text
    finish: Literal["stop", "length", "abort", "error"]
    error: str | None = None


class Verdict(Struct, omit_defaults=True):
    """What one verifier says of one completion (or of one step of it).

    `score` is a number in [`low`, `high`] when `status` is "ok", and None otherwise: abstain, timeout and error are
    statuses and never scores.
    """

    sample: Annotated[int, Meta(ge=0)]  # index into Group.completions
    verifier: Name
    version: Name
    principle: Name  # safety, value, knowledge, helpfulness, rules, process
    status: Literal["ok", "abstain", "timeout", "error"]
    target: Literal["answer", "thought", "step"] = "answer"
    step: int | None = None
    label: str | None = None
    score: float | None = None
    low: float = 0.0
    high: float = 1.0
    confidence: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    rationale: str | None = None
    error: str | None = None
    seconds: float = 0.0


class Group(Struct, tag="group", omit_defaults=True):
    """A prompt and its completions: what goes from the feeder through generator, verifiers and reference to the learner.

    Arrays of the work that carries it, each added by the role named (P prompt tokens, K samples, N = sum of lengths):

    =====================  ===========  ====  =======================================================================
    prompt_ids             int32        [P]   generator; whoever submits the group may give them: then exactly these are continued
    lengths                int32        [K]   generator; tokens of each completion, in order of `completions`
    completion_ids         int32        [N]   generator; all completions, one after the other
    behaviour_logprobs     float32      [N]   generator; ln of the probability with which each token was sampled
    versions               int32        [N]   generator; the weight version that sampled each token
    reference_logprobs     float32      [N]   reference
    own                    uint8        [N]   searcher; 1: sampled by the policy, 0: written by an environment; missing: all sampled
    nodes                  int32        [N]   searcher; the step of a searched tree that each token belongs to, numbered within the group
    =====================  ===========  ====  =======================================================================

    A group that waits for a generator with completions is partly generated: those with finish "abort" are to be continued
    from the tokens they have, the others are complete.
    """

    record: Record
    sampling: Sampling
    sequence: int = 0  # order of admission, from 0; the learner trains in this order
    min_version: int = 0  # the oldest weights that may sample it
    system: str | None = None
    prefix: str = ""  # assistant text that the completions continue
    completions: list[Completion] = []
    verdicts: list[Verdict] = []


class Turn(Struct, omit_defaults=True):
    """One earlier turn of a conversation."""

    role: Literal["user", "assistant"]
    content: Text


class Question(Struct, tag="question", omit_defaults=True):
    """A user's question to the searcher.

    `candidates` is the N of best-of-N. `strategy` is a name of `policies/search`, empty for the searcher's own default, with
    `options` of its own. `tokens`, `calls` and `seconds` bound what the search may spend; None is the searcher's limit.
    `begun` is text of the answer that stands already, a thought that a person has edited for instance. `images` are shown with `text`:
    references (`protocol/images.py`) to the run's store.
    """

    text: Text
    system: str | None = None
    candidates: Annotated[int, Meta(ge=1, le=256)] = 4
    max_new_tokens: Annotated[int, Meta(ge=1, le=2**20)] = 128
    temperature: float = 0.8
    seed: int = 0
    strategy: Annotated[str, Meta(max_length=200)] = ""
    options: dict[str, Any] = {}
    tokens: Annotated[int, Meta(ge=1)] | None = None
    calls: Annotated[int, Meta(ge=1)] | None = None
    seconds: Annotated[float, Meta(gt=0)] | None = None
    turns: Annotated[list[Turn], Meta(max_length=1000)] = []
    begun: Text = ""
    images: Annotated[list[dict[str, Any]], Meta(max_length=16)] = []


class Candidate(Struct, omit_defaults=True):
    text: Text
    score: float | None
    label: str | None = None
    version: int = 0


class Answer(Struct, tag="answer", omit_defaults=True):
    """The searcher's answer, with every complete answer that it weighed, best first.

    `tree` is the whole search, a map a node as `policies/search/tree.py` writes it; `notes` are what the strategy did (`kind`, `step`,
    `reason`); `spent` has tokens, calls and seconds; `context` is the kind of question that the router saw.
    """

    text: Text
    strategy: Name
    candidates: list[Candidate] = []
    seconds: float = 0.0
    note: str | None = None
    tree: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    spent: dict[str, float] = {}
    ended: str = ""
    context: str = ""
    confidence: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    sources: list[dict[str, Any]] = []


class End(Struct, tag="end"):
    """End of stream: the source will submit nothing after sequence `total - 1`."""

    total: Annotated[int, Meta(ge=0)]


class Skipped(Struct, tag="skipped"):
    """Takes the place of a work that ended before the last stop of its route, so that the last stop can account for it."""

    sequence: int
    reason: str


class Document(Struct, tag="document"):
    """A payload of a user's own: `kind` says which, `data` is any msgpack map."""

    kind: Name
    data: dict[str, Any] = {}


Payload = Group | Question | Answer | End | Skipped | Document


class Work(Struct, omit_defaults=True):
    """The unit that queues hold, leases cover and itineraries move.

    `id` is the key of idempotence: the hub accepts one id once. `route[stop]` is the queue in which the work waits;
    data moves forward only. With `reply_to` it is a call: its last output returns to the worker of that name.
    """

    id: Name
    route: Annotated[list[Name], Meta(min_length=1, max_length=64)]
    payload: msgspec.Raw
    stop: Annotated[int, Meta(ge=0, le=64)] = 0
    lane: Lane = "training"
    sequence: int = 0
    arrays: Annotated[list[Array], Meta(max_length=MAX_FRAMES)] = []
    reply_to: str | None = None
    deadline_s: float | None = None  # seconds from acceptance; a call that outlives it is answered with an error


# ----------------------------------------------------------------------------------------------- worker -> hub


class Header(Struct):
    """First frame of every message. `frames` and `bytes` describe the raw frames after the body and must match."""

    schema: Annotated[str, Meta(max_length=64)]
    sender: Annotated[str, Meta(max_length=200)]
    frames: Annotated[int, Meta(ge=0, le=MAX_FRAMES)] = 0
    bytes: Annotated[int, Meta(ge=0, le=MAX_MESSAGE_BYTES)] = 0


class Held(Struct):
    """A lease that a worker still holds when it says hello again."""

    lease: int
    work: Name
    stop: int


class Hello(Struct, tag="hello"):
    """Introduces a worker. `credit` is how many leases it can hold at once; `boot` is new for each process start.

    `collects` says that the worker keeps leases together until a later commit (the learner), so that its death tells
    nothing about any one of them and counts as no attempt.
    """

    name: Name
    boot: Name
    queues: Annotated[list[Name], Meta(max_length=64)]
    credit: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    role: str = ""
    pid: int = 0
    host: str = ""
    held: list[Held] = []
    collects: bool = False


class Beat(Struct, tag="beat"):
    """Sign of life of the transport thread, with the role code's own `progress` counter.

    Renews the leases that it names. `busy_s` is how long the role's code has been in its current piece of work
    without progress, 0 when idle.
    """

    boot: Name
    progress: int = 0
    busy_s: float = 0.0
    leases: list[int] = []
    metrics: dict[str, float] = {}


class Credit(Struct, tag="credit"):
    """Sets (not adds) the number of leases that the sender can hold at once."""

    credit: Annotated[int, Meta(ge=0, le=1_000_000)]


class Submit(Struct, tag="submit"):
    """New works, acknowledged together once they are in the journal."""

    request: Name
    works: Annotated[list[Work], Meta(min_length=1, max_length=MAX_FRAMES)]


class Done(Struct, tag="done"):
    """Closes a lease and hands on its outputs in one step.

    No output before the last stop ends the work there, with `ended` as the reason.
    """

    request: Name
    lease: int
    outputs: Annotated[list[Work], Meta(max_length=MAX_FRAMES)] = []
    ended: str | None = None


class Fail(Struct, tag="fail"):
    """Gives a lease back. `retry`: queue it again at this stop, up to the limit of attempts. `restart`: from its first stop.

    `returned` says that nothing is wrong with the work (the worker is stopping): the attempt does not count.
    `partial` is what the work has become so far: same id, route and stop, new payload and arrays. It takes the place of the
    work in its queue, in the step that closes the lease. Not together with `restart`, or where nothing is queued again.
    """

    request: Name
    lease: int
    error: Annotated[str, Meta(max_length=100_000)]
    retry: bool = True
    restart: bool = False
    returned: bool = False
    partial: Work | None = None


class Publish(Struct, tag="publish"):
    """Sets the latest value of a topic, which every worker is told of, late joiners included."""

    request: Name
    topic: Name
    value: dict[str, Any]


class Query(Struct, tag="query"):
    """Asks the hub: "status", "dead", or "workers"."""

    request: Name
    what: Literal["status", "dead", "workers"]


class Command(Struct, tag="command"):
    """Tells the hub: "requeue" dead letters (all, or `argument`'s id), "exited" (worker `argument` is gone),
    "close" (grant no lease any more), "stop" (end the hub's process)."""

    request: Name
    what: Literal["requeue", "exited", "close", "stop"]
    argument: str | None = None


class Bye(Struct, tag="bye"):
    """The worker leaves in order; whatever it still holds goes back."""

    reason: str = ""


# ----------------------------------------------------------------------------------------------- hub -> worker


class Welcome(Struct, tag="welcome"):
    """Answers a hello. `state` holds the latest value of every topic; `beat_s` is the pace of beats that the hub expects."""

    hub_boot: int
    run: str
    beat_s: float
    lease_s: float
    state: dict[str, dict[str, Any]] = {}
    kept: list[int] = []  # leases named in the hello that still stand


class Refused(Struct, tag="refused"):
    """The hub will not work with this peer; `reason` says why, by name. `retry`: it may be different later."""

    reason: str
    retry: bool = False


class Lease(Struct, tag="lease"):
    """Hands out a work under a fencing token that only grows: the answer to an older token of the same work is refused."""

    lease: int
    work: Work
    lease_s: float
    attempt: int = 1


class Ack(Struct, tag="ack"):
    """Settles a request. accepted: durable. duplicate: it already was. stale: the lease had moved on. refused: see `detail`."""

    request: Name
    status: Literal["accepted", "duplicate", "stale", "refused"]
    detail: str = ""


class Pong(Struct, tag="pong"):
    """Answers a beat. A `hub_boot` that changed tells the worker to say hello again."""

    hub_boot: int
    revoked: list[int] = []  # leases named in the beat that do not stand


class Notice(Struct, tag="notice"):
    """A topic has a new value."""

    topic: Name
    value: dict[str, Any]


class Reply(Struct, tag="reply"):
    """Ends a call: the work as its route left it, or an error."""

    call: Name
    work: Work | None = None
    error: str | None = None


class Report(Struct, tag="report"):
    """Answers a query or a command."""

    request: Name
    value: dict[str, Any]


class Problem(Struct, tag="problem"):
    """The hub could not read or carry out a message; it goes on serving."""

    reason: str


FromWorker = Hello | Beat | Credit | Submit | Done | Fail | Publish | Query | Command | Bye
FromHub = Welcome | Refused | Lease | Ack | Pong | Notice | Reply | Report | Problem
Body = FromWorker | FromHub


def json_schema() -> dict[str, Any]:
    """The wire as one JSON Schema: what a foreign actor is written against. Holds the schema's name as `x-schema`."""
    return {**_described(), "x-schema": SCHEMA}


def _described() -> dict[str, Any]:
    (header, body, payload), components = msgspec.json.schema_components(
        [Header, Body, Payload], schema_hook=_raw_schema, ref_template="#/$defs/{name}"
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "SafeLadder wire",
        "version": SCHEMA_VERSION,
        "properties": {"header": header, "body": body, "payload": payload},
        "$defs": components,
    }


def _raw_schema(kind: type) -> dict[str, Any]:
    """`Work.payload` is carried unread: any payload."""
    if kind is msgspec.Raw:
        return {"description": "one of `payload`"}
    raise NotImplementedError(kind)


def _name_schema() -> str:
    """Of the structure alone: prose may be corrected, and Python's versions indent docstrings differently."""
    canonical = msgspec.json.encode(_without_prose(_described()), order="deterministic")
    return f"{SCHEMA_VERSION}:{hashlib.blake2b(canonical, digest_size=8).hexdigest()}"


def _without_prose(schema: Any) -> Any:
    if isinstance(schema, dict):
        # a field may be called "description" as well: its schema is a map, prose is a string
        return {
            key: _without_prose(value)
            for key, value in schema.items()
            if key != "description" or isinstance(value, dict)
        }
    return [_without_prose(entry) for entry in schema] if isinstance(schema, list) else schema


SCHEMA: Final = _name_schema()
