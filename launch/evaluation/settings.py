"""What an evaluation is of, on what, and how: the file or the `key=value`s of `safeladder evaluate`, or an object made in a program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from safeladder.launch.config import ConfigError, parse, typed
from safeladder.launch.sections import Shot

PLAIN: Final = "plain"


def _bounded(default: Any, **bounds: float) -> Any:
    """A field with the bounds `low`, `high` (inclusive) or `above`, to which `config.typed` holds it."""
    return field(default=default, metadata=bounds)


@dataclass
class Endpoint:
    """A model behind an OpenAI-compatible `address` (up to and without /chat/completions), in the place of a policy here.

    key_env: the environment variable with the key. timeout_s: of one request. deadline_s: of one answer, with all its tries and the
    pauses between them. images: whether the model takes them. body: further fields of every request.
    """

    address: str = ""
    model: str = ""
    key_env: str | None = None
    timeout_s: float = _bounded(120.0, above=0)
    deadline_s: float = _bounded(600.0, above=0)
    tries: int = _bounded(5, low=1)
    backoff_s: float = _bounded(1.0, low=0)
    concurrency: int = _bounded(8, low=1)
    images: bool = False
    body: dict[str, Any] = field(default_factory=dict)


@dataclass
class EngineSection:
    """`name`: of `policies/engines`, or module:Class. `options`: the engine's own."""

    name: str = "transformers"
    dtype: str = "float32"
    device: str = "cpu"
    max_sequences: int = _bounded(16, low=1)
    max_tokens: int = _bounded(16_384, low=1)
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Answering:
    """How answers are drawn. samples: of each record; more than one shows how much chance is in a figure. temperature 0 is greedy.

    step_tokens, max_steps, seconds, veto, delimiters: of a search. certainty: asks the engine how likely each plain answer was, one more
    forward pass, for the suite `calibration`. deadline_s: of one answer by an engine.
    """

    samples: int = _bounded(1, low=1, high=1024)
    max_new_tokens: int = _bounded(256, low=1)
    temperature: float = _bounded(0.0, low=0)
    top_p: float = _bounded(1.0, above=0, high=1)
    stop: list[str] = field(default_factory=list)
    step_tokens: int = _bounded(64, low=1)
    max_steps: int = _bounded(16, low=1)
    seconds: float | None = _bounded(None, above=0)
    veto: float = _bounded(0.1, low=0, high=0.999)
    delimiters: list[str] = field(default_factory=lambda: ["\n\n"])
    certainty: bool = False
    deadline_s: float = _bounded(600.0, above=0)


@dataclass
class Settings:
    """One evaluation.

    policy: a model's name, a model folder, a checkpoint, or a run (its newest checkpoint, under its own system message, prefix and shots
    unless they are given here). endpoint: a remote model instead; `policy` is then only what the table calls it.
    records: record files, or `embedded`, which is also what stands for nothing at all. benchmarks: name of `benchmarks/` -> the public
    file or folder. labelled: answers with human labels, for the judges' validity. suites: names of `suite.SUITES` or module:Class;
    empty: all that find something to measure.
    strategy: plain, deliberate, or a name of `policies/search` (intervention is `intervene`), with `options` of its own; corpus: what
    `deliberate` searches. judges: role -> options of the verifier that plays it, `kind` naming another one. judge_tries: how often a
    judgement that failed is asked for again. templates: jailbreak wrappers for the suite `attacks`, or `encodings` for those alone.
    limit: records of each source, evenly spread. out: the folder of the results, with which a second evaluation goes on; None:
    nothing is kept.
    """

    policy: str = "embedded"
    endpoint: Endpoint | None = None
    records: list[str] = field(default_factory=list)
    benchmarks: dict[str, str] = field(default_factory=dict)
    labelled: list[str] = field(default_factory=list)
    suites: list[str] = field(default_factory=list)
    strategy: str = PLAIN
    options: dict[str, Any] = field(default_factory=dict)
    corpus: list[str] = field(default_factory=list)
    judges: dict[str, dict[str, Any]] = field(default_factory=dict)
    judge_tries: int = _bounded(3, low=1)
    judge_timeout_s: float = _bounded(600.0, above=0)
    judge_batch: int = _bounded(32, low=1)
    templates: str | None = None
    system: str | None = None
    prefix: str | None = None
    shots: list[Shot] | None = None
    answering: Answering = field(default_factory=Answering)
    engine: EngineSection = field(default_factory=EngineSection)
    cache: str | None = None
    limit: int | None = _bounded(None, low=1)
    seed: int = 0
    out: str | None = None

    def __post_init__(self) -> None:
        if not self.records and not self.benchmarks and not self.labelled:
            self.records = ["embedded"]


def load(file: Path | None, overrides: Sequence[str]) -> Settings:
    """From a YAML file, or none, and `key=value`s on top. Raises ConfigError naming the key and the nearest known one."""
    origin = "evaluate" if file is None else str(file)
    raw = parse(file, overrides)
    settings = typed(raw, Settings, origin)
    if settings.endpoint is not None and not (settings.endpoint.address and settings.endpoint.model):
        raise ConfigError(f"{origin}: endpoint: needs an `address` and a `model`")
    return settings
