"""The sections of a run's configuration: types, vetted defaults, bounds.

`cluster.yaml` is the page to read: it says why each value is what it is. `config.py` reads files into these classes
and ignores nothing: an unknown key, a wrong type or a value out of bounds is refused. Units stand in the names (`_s`
seconds).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from omegaconf import MISSING


def _bounded(default: Any, low: float | None = None, high: float | None = None, above: float | None = None) -> Any:
    """A field with inclusive bounds `low` and `high`, or an exclusive lower one; `config.load` holds values to them."""
    return field(default=default, metadata={"low": low, "high": high, "above": above})


@dataclass
class Run:
    """name: the run's folder under `directory`; empty: the time of the start. seed: decides data order and sampling.

    record: keep what the learner is handed, for `safeladder replay`; at most `record_max_bytes` of it.
    """

    name: str = ""
    directory: str = "runs"
    seed: int = 7
    record: bool = False
    record_max_bytes: int = _bounded(4 * 2**30, low=4096)


@dataclass
class Restart:
    """At most `max` restarts in any `per_s` seconds; the wait before each doubles from `backoff_s` up to 30 s."""

    max: int = _bounded(5, low=0)
    per_s: float = _bounded(300.0, above=0)
    backoff_s: float = _bounded(0.5, low=0)


@dataclass
class Hub:
    """bind: "ipc" or "tcp://host:port". durability: see `protocol/journal.py`. keys: folder of CURVE keys."""

    bind: str = "ipc"
    durability: Literal["ids", "full", "memory"] = "ids"
    keys: str | None = None
    lease_s: float = _bounded(30.0, above=0)
    beat_s: float = _bounded(1.0, above=0)
    silence_s: float = _bounded(10.0, above=0)
    max_attempts: int = _bounded(3, low=1)
    max_depth: int = _bounded(100_000, low=1)
    adopt_grace_s: float = _bounded(3.0, low=0)
    fsync: bool = True
    restart: Restart = field(default_factory=lambda: Restart(max=20))


@dataclass
class Shot:
    """A worked example put before every prompt."""

    user: str = ""
    assistant: str = ""


@dataclass
class Lora:
    """Low-rank adapters (`policies/lora.py`). targets: ends of layer names; empty: every linear layer but the head."""

    rank: int = _bounded(32, low=1)
    alpha: float = _bounded(32.0, above=0)
    targets: list[str] = field(default_factory=list)
    seed: int = 0


@dataclass
class Policy:
    """model: embedded, tiny, a folder or a hub id. prefix: text every completion continues. cache: folder of models.

    lora: train adapters in place of all weights; generators get the merged weights either way. freeze_vision: of a model that sees,
    vision tower and projector stay as they are.
    """

    model: str = "embedded"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    system: str | None = None
    shots: list[Shot] = field(default_factory=list)
    prefix: str = ""
    cache: str | None = None
    lora: Lora | None = None
    freeze_vision: bool = True


@dataclass
class CurriculumSection:
    """What comes next depends on what was made of it before (`launch/curriculum.py`).

    low, high: running group accuracy within which a record stays in the pool; revisit: share of turns in which others are tried again.
    smoothing: weight of the newest accuracy. block: groups planned at once. reweight: how many times its quota a family may get that
    seldom reaches a step; 1: off.
    """

    low: float = _bounded(0.1, low=0, high=1)
    high: float = _bounded(0.9, low=0, high=1)
    revisit: float = _bounded(0.1, low=0, high=1)
    smoothing: float = _bounded(0.5, above=0, high=1)
    block: int = _bounded(64, low=1)
    reweight: float = _bounded(4.0, low=1)


@dataclass
class Columns:
    """Of parquet files and data sets, which have columns of their own: field of a record -> the column with it; what is not named has the
    field's own name. label, language: of every record where there is no such column.
    """

    fields: dict[str, str] = field(default_factory=dict)
    label: str | None = None
    language: str | None = None


@dataclass
class Data:
    """tasks: JSON-lines files, `embedded`, parquet files, or `hf:NAME#SPLIT` (`launch/readers.py`). families: share of each label,
    empty: as found. epochs: None: endless. curriculum: null: the order follows from the seed alone.

    serve: "tcp://host:port" where the feeder serves the images of records to hosts that do not see the run's folder.
    """

    tasks: list[str] = field(default_factory=lambda: ["embedded"])
    columns: Columns = field(default_factory=Columns)
    families: dict[str, float] = field(default_factory=dict)
    epochs: int | None = _bounded(None, low=1)
    shuffle: bool = True
    curriculum: CurriculumSection | None = None
    serve: str | None = None


@dataclass
class Sampling:
    """How completions are drawn; the learner uses the same `temperature`. top_k = 0, top_p = 1, min_p = 0 are off."""

    samples: int = _bounded(4, low=1, high=1024)
    max_new_tokens: int = _bounded(64, low=1, high=2**20)
    temperature: float = _bounded(1.0, low=0, high=100)
    top_p: float = _bounded(1.0, above=0, high=1)
    top_k: int = _bounded(0, low=0)
    min_p: float = _bounded(0.0, low=0, high=0.999)
    stop: list[str] = field(default_factory=list)


@dataclass
class LazyStart:
    """When a length term begins: once the named curves move less than their tolerance, see `policies/lazy_start.py`.

    tolerances: `reward`, `qualified` or the name of a cost -> how much it may move between two half windows.
    """

    tolerances: dict[str, float] = field(default_factory=lambda: {"reward": 0.05})
    window: int = _bounded(40, low=2)
    ramp_steps: int = _bounded(40, low=0)
    min_steps: int = _bounded(0, low=0)


@dataclass
class Learner:
    """steps: batches of the run. batch: groups a step. The rest is read by `policies/options.py`.

    A rule is written `name: {option: value}`, or `name` alone; an empty one means the default named there.

    dynamic_sampling: groups without any spread are replaced by others. max_uninformative: so many of them between two
    steps end the run; None: 64 * batch.
    """

    steps: int = _bounded(10, low=1)
    batch: int = _bounded(4, low=1)
    dynamic_sampling: bool = False
    max_uninformative: int | None = _bounded(None, low=1)
    checkpoint_every: int = _bounded(5, low=1)
    keep_checkpoints: int = _bounded(2, low=1)
    learning_rate: float = _bounded(1e-5, above=0)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = _bounded(0.01, low=0)
    max_gradient_norm: float = _bounded(1.0, above=0)
    warmup_steps: int = _bounded(0, low=0)
    advantage: dict[str, dict[str, Any]] = field(default_factory=dict)
    length_rewards: dict[str, dict[str, Any]] = field(default_factory=dict)
    length_advantage: dict[str, dict[str, Any]] = field(default_factory=dict)
    objective: dict[str, dict[str, Any]] = field(default_factory=dict)
    aggregation: Literal["token_mean", "sequence_mean", "group_token_mean", "constant"] = "token_mean"
    max_completion_tokens: int | None = _bounded(None, low=1)
    correction: dict[str, dict[str, Any]] = field(default_factory=dict)
    filters: dict[str, dict[str, Any]] = field(default_factory=dict)
    proximal: Literal["auto", "recompute", "interpolate", "behaviour"] = "auto"
    epochs: int = _bounded(1, low=1)
    minibatches: int = _bounded(1, low=1)
    reference_kl: float = _bounded(0.001, low=0)
    kl_kind: Literal["k1", "k2", "k3"] = "k3"
    token_budget: int = _bounded(1024, low=1)
    lazy_start: LazyStart | None = None
    head_tokens: int | None = _bounded(None, low=1)
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    activation_checkpointing: bool = False


@dataclass
class Constraint:
    """A limit on the mean of a cost that the recipe names; its fields are those of `policies/constraints.py`."""

    limit: float = MISSING
    method: Literal["dual", "multiplicative", "lagrangian", "pid", "fixed"] = "dual"
    init: float = _bounded(1.0, low=0)
    rate: float = _bounded(0.1, low=0)
    minimum: float = _bounded(1e-3, low=0)
    maximum: float = _bounded(5.0, above=0)
    window: int = _bounded(128, low=1)
    min_episodes: int = _bounded(16, low=1)
    delay: int = _bounded(0, low=0)
    fresh_only: bool = False
    proportional: float = _bounded(0.1, low=0)
    integral: float = _bounded(0.01, low=0)
    derivative: float = _bounded(0.01, low=0)
    smoothing: float = _bounded(0.95, low=0)
    derivative_delay: int = _bounded(10, low=1)
    acts_on: str | None = None


@dataclass
class Staleness:
    """eta: age in versions that a token may have when trained. max_in_flight: groups admitted and not yet trained.

    window: of policy `windowed`, one more than the groups that may pass a straggler; None: half of what eta allows.
    """

    policy: Literal["pace", "drop", "wait", "windowed"] = "pace"
    eta: int = _bounded(1, low=0)
    max_in_flight: int = _bounded(16, low=1)
    window: int | None = _bounded(None, low=1)


@dataclass
class DriftAlarm:
    """What engine and learner may differ by on equal weights (`policies/drift.py`); None: as usual for `policy.dtype`."""

    mean: float | None = _bounded(None, above=0)
    outside: float | None = _bounded(None, low=0, high=1)


@dataclass
class Weights:
    """home: `auto` = shared memory where there is room, or a folder. keep: publications that stay readable.

    dtype: what is published; None: `policy.dtype`. delta: publish what changed, and all of it every `full_every`-th time.
    serve: "tcp://host:port" where the learner serves its publications to hosts that do not see `home`. canary: generators
    take work for a version only after a probe; canary_tolerance: mean |difference| in nats, None: by type.
    """

    home: str = "auto"
    keep: int = _bounded(3, low=2)
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    delta: bool = False
    full_every: int = _bounded(10, low=2)
    serve: str | None = None
    canary: bool = True
    canary_tolerance: float | None = _bounded(None, above=0)
    drift: DriftAlarm = field(default_factory=DriftAlarm)


@dataclass
class Term:
    """A verifier's weight in a family's reward. optional: an abstention counts as nothing and leaves the sample in.

    qualifies: score from which on a sample counts as qualified (`policies/recipe.py`), for rules about length. apart: the
    advantage `gdpo` normalises this term on its own and those not so marked in one; where none is marked, each on its own.
    """

    weight: float = 1.0
    optional: bool = False
    qualifies: float | None = None
    apart: bool = False


@dataclass
class Cost:
    """The share of samples to which `verifier` gives `label`."""

    verifier: str = ""
    label: str = ""


@dataclass
class Family:
    """route: queues a record of this label visits, in order, the learner's last. terms: verifier -> weight or Term.

    Without a route in the file: the pools that run the terms' verifiers, see `recipe_files.implied_route`.
    """

    route: list[str] = field(default_factory=list)
    terms: dict[str, Term] = field(default_factory=dict)
    costs: dict[str, Cost] = field(default_factory=dict)


@dataclass
class Recipe:
    """base: a recipe of `launch/recipes/` or a file, laid under `families`; None once `config.load` has done so."""

    base: str | None = None
    families: dict[str, Family] = field(default_factory=dict)


@dataclass
class Pool:
    """A pool of equal processes: an `actor` ("module:Class") of ours or a `command` that speaks the wire by itself.

    queues: what it consumes; empty means the pool's own name. credit: works held at once by one replica. stall_s: busy
    without progress for that long is taken for stuck. start_s: time to load. python: another interpreter. options:
    checked by the actor's `Options`.
    """

    actor: str | None = None
    command: list[str] | None = None
    replicas: int = _bounded(1, low=0)
    device: str = "cpu"
    threads: int = _bounded(1, low=1)
    credit: int = _bounded(1, low=0, high=1_000_000)
    queues: list[str] = field(default_factory=list)
    restart: Restart = field(default_factory=Restart)
    stall_s: float = _bounded(600.0, above=0)
    start_s: float = _bounded(300.0, above=0)
    python: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Logs:
    """Of each process: a segment is closed at `max_bytes`, `keep` closed ones stay; the oldest is removed, and what it told with it.

    texts: prompts, answers and what judges said are logged too (`group.texts`, rationales in `group.judged`).
    """

    max_bytes: int = _bounded(256 * 2**20, low=4096)
    keep: int = _bounded(16, low=1)
    texts: bool = False


@dataclass
class Watch:
    """What the launcher makes of the run's events beside its logs (`launch/export/`, docs/exports.md).

    metrics_port: where it answers Prometheus; 0: any free port, which its log tells. sinks: built-in names or "module:Class",
    each with =TARGET behind it where it shall not go to RUN/export/.
    """

    metrics_port: int | None = _bounded(None, low=0, high=65535)
    metrics_host: str = "127.0.0.1"
    sinks: list[str] = field(default_factory=list)


@dataclass
class Config:
    """The whole file. Made by `load`, which checks it; a field changed by hand afterwards is not checked again."""

    run: Run = field(default_factory=Run)
    hub: Hub = field(default_factory=Hub)
    policy: Policy = field(default_factory=Policy)
    data: Data = field(default_factory=Data)
    sampling: Sampling = field(default_factory=Sampling)
    learner: Learner = field(default_factory=Learner)
    constraints: dict[str, Constraint] = field(default_factory=dict)
    staleness: Staleness = field(default_factory=Staleness)
    weights: Weights = field(default_factory=Weights)
    recipe: Recipe = field(default_factory=Recipe)
    pools: dict[str, Pool] = field(default_factory=dict)
    logs: Logs = field(default_factory=Logs)
    watch: Watch = field(default_factory=Watch)
