"""What of each event is decoded. Fields that the reader does not use are passed over; one that is missing has its default.

A figure is None where the run did not measure it. Units are the log's: seconds, tokens, shares between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Struct

from safeladder.launch.view.judged import Columns


class Line(Struct, gc=False):
    """Who said it and when (`ts`: UTC, ISO 8601)."""

    ts: str
    role: str = ""
    replica: int = 0

    @property
    def process(self) -> str:
        return f"{self.role}/{self.replica}"

    @property
    def at(self) -> float:
        """Seconds since the epoch. Raises ValueError for what is no time."""
        minute = _minutes.get(self.ts[:17])
        return (_minute(self.ts[:17]) if minute is None else minute) + float(self.ts[17:23])


_minutes: dict[str, float] = {}  # the few minutes that neighbouring lines share


def _minute(begin: str) -> float:
    if len(_minutes) > 1000:
        _minutes.clear()
    found = _minutes[begin] = datetime.fromisoformat(begin + "00+00:00").timestamp()
    return found


class Generated(Line, gc=False):
    """`group.generated`. seconds: from the first to the last token of the group; versions: oldest and newest weights in it."""

    id: str = ""
    tokens: int = 0
    seconds: float = 0.0
    versions: list[int] = []


class Loaded(Line, gc=False):
    """`weights.loaded`, `engine.started`, `learner.ready`. seconds is None where it was not measured."""

    version: int | None = None
    seconds: float | None = None


class Saved(Line, gc=False):
    """`checkpoint.committed`."""

    step: int = 0
    seconds: float = 0.0


class Handled(Line, gc=False):
    """`work.handled`, which processes write at the level debug."""

    id: str = ""
    seconds: float = 0.0


class Hop(Struct, gc=False):
    """A row of `work.hops`. at: on the hub's monotonic clock. by: the worker that had the work for `service_s`."""

    at: float
    do: str = ""
    by: str = ""
    service_s: float = 0.0


class Hops(Line, gc=False):
    """`work.hops`, from the hub."""

    mono_ns: int = 0
    rows: list[Hop] = []


class JudgedGroup(Line):
    """`group.judged` of a verifier pool."""

    id: str = ""
    verdicts: dict[str, Columns] = {}


class Texts(Line):
    """`group.texts`, which a run writes only when asked to (`logs.texts`)."""

    id: str = ""
    prompt: str = ""
    answers: list[str] = []


class Worker(Struct):
    """Of `hub.status`, as the hub knows a worker. busy_s: in its present piece of work, without progress."""

    queues: list[str] = []
    credit: int = 0
    leases: int = 0
    busy_s: float = 0.0


class Status(Line):
    """`hub.status`, from the hub. The shape is that of the hub's answer to the query `status`."""

    waiting: dict[str, int] = {}
    workers: dict[str, Worker] = {}
    leased: int | None = None
    dead: int | None = None


class Change(Line):
    """A process begins, gets ready or ends. name: of whom the launcher speaks, else the speaker is meant."""

    event: str = ""
    name: str | None = None
    reason: str | None = None
    error: str | None = None
    code: int | None = None
    handled: int | None = None
    credit: int | None = None
    wire_s: float | None = None
    starts: int | None = None

    @property
    def about(self) -> str:
        return self.name or self.process


class RunChange(Line):
    """`run.started`, `run.draining`, `run.stopping`, `run.finished`, `run.killed`."""

    event: str = ""
    reason: str | None = None
    code: int | None = None


class Constraint(Struct, gc=False):
    """Of `step.completed`: margin = limit - cost."""

    multiplier: float | None = None
    cost: float | None = None
    limit: float | None = None
    margin: float | None = None
    saturated: bool = False


class Step(Line):
    """`step.completed` of the learner. `kind` marks the steps of a verifier's training, which are none of the run's."""

    step: int = -1
    kind: str | None = None
    steps: int | None = None
    version: float | None = None
    published: float | None = None
    wait_s: float | None = None
    publish_s: float | None = None
    step_s: float | None = None
    tokens_per_s: float | None = None
    staleness_max: float | None = None
    age_mean: float | None = None
    selection_bias: float | None = None
    reward_mean: float | None = None
    reward_std: float | None = None
    unsafe_rate: float | None = None
    samples: float | None = None
    truncated_ratio: float | None = None
    learning_rate: float | None = None
    loss: float | None = None
    kl: float | None = None
    entropy: float | None = None
    grad_norm: float | None = None
    clip_fraction: float | None = None
    groups: float | None = None
    sequences: float | None = None
    tokens: float | None = None
    ess: float | None = None
    behaviour_kl: float | None = None
    mismatch: float | None = None
    truncated: float | None = None
    masked: float | None = None
    staleness: list[int] = []
    dropped: dict[str, int] = {}
    families: dict[str, float | None] = {}
    channels: dict[str, float | None] = {}
    constraints: dict[str, Constraint] = {}


_FIRST, _LAST = (Step.__struct_fields__.index(name) for name in ("version", "masked"))
FIGURES = Step.__struct_fields__[_FIRST : _LAST + 1]  # one number a step


def figures(step: Step) -> tuple[float | None, ...]:
    """In the order of `FIGURES`."""
    return msgspec.structs.astuple(step)[_FIRST : _LAST + 1]


def decoder(kind: type[Line]) -> Callable[[bytes], Any]:
    """Raises msgspec.DecodeError for a line of another shape."""
    return msgspec.json.Decoder(kind).decode
