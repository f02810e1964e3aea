"""`safeladder verify`: a verifier over labelled lines, its verdicts, and what they are worth.

No text of a row is shown anywhere here: rows are named by file and line.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import yaml

from safeladder.launch.config import ConfigError, load
from safeladder.launch.terminal import counting
from safeladder.protocol.messages import Verdict
from safeladder.protocol.naming import nearest
from safeladder.verifiers import reading
from safeladder.verifiers.appraisal import Appraisal, Order, appraise, order_invariance
from safeladder.verifiers.attacks import suite
from safeladder.verifiers.judging import Judge, VerdictFile, judge
from safeladder.verifiers.registry import BadOptions, UnknownVerifier, create
from safeladder.verifiers.rows import Fault, Polarity, Row, fields_of, polarity, read


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    files: Sequence[Path]
    verifier: str | None = None
    options: Sequence[str] = ()  # key=value, the value as YAML
    pool: str | None = None
    config: str = "embedded"
    output: Path | None = None
    label: str | None = None
    positive: Polarity | None = None
    prompts: bool = False
    limit: int | None = None  # rows judged, spread over the files
    attacks: str | None = None  # `all`, or names with commas
    attack_rows: int = 200
    wrappers: Path | None = None
    instructions: Path | None = None
    batch: int = 64
    timeout_s: float = 600.0


@dataclass(frozen=True)
class VerifierReport:
    """One verifier on all rows."""

    verifier: str
    version: str
    options: Mapping[str, Any]
    rows: int
    statuses: Mapping[str, int]
    labels: Mapping[str, int]
    problems: Mapping[str, int]  # kinds of errors; the verdict file has their words
    fields: Sequence[Appraisal]
    order: Order
    effects: Mapping[str, Sequence[suite.Effect]] = field(default_factory=dict)  # by label field

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **{name: getattr(self, name) for name in ("verifier", "version", "rows")},
            **{name: dict(getattr(self, name)) for name in ("options", "statuses", "labels", "problems")},
            "fields": [each.plain() for each in self.fields],
            "order": dataclasses.asdict(self.order),
            "attacks": {name: [effect.plain() for effect in effects] for name, effects in self.effects.items()},
        }


@dataclass(frozen=True)
class Report:
    """All verifiers, and the lines that were no rows."""

    files: Sequence[Path]
    verifiers: Sequence[VerifierReport]
    malformed: Sequence[Fault]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "files": [str(path) for path in self.files],
            "malformed": [dataclasses.asdict(fault) for fault in self.malformed],
            "verifiers": [each.plain() for each in self.verifiers],
        }


def verify(request: Request, stream: TextIO) -> Report:
    """Judges the files' rows. Progress goes to `stream`. Raises ConfigError, RowsError, UnknownAttack."""
    attacks = suite.named(request.attacks) if request.attacks else []
    rows, faults = _rows(request)
    if not rows:
        raise ConfigError(f"no row to judge in {', '.join(map(str, request.files))}{_first(faults)}")
    judges = _judges(request, rows)
    with VerdictFile(request.output) as store:
        reports = [_started(request, each, rows, store, attacks, stream) for each in judges]
    return Report(request.files, reports, faults)


def _rows(request: Request) -> tuple[list[Row], list[Fault]]:
    rows: list[Row] = []
    faults: list[Fault] = []
    for path in request.files:
        found, wrong = read(path, request.label, request.prompts)
        rows += found
        faults += wrong
    if request.limit is not None and request.limit < len(rows):
        # evenly spread: the sets are sorted by prompt, and the first rows would be about a few prompts alone
        rows = [rows[index * len(rows) // request.limit] for index in range(request.limit)]
    return rows, faults


def _judges(request: Request, rows: Sequence[Row]) -> list[Judge]:
    """The verifier asked for, or those of a pool, each with the options that answer the rows' question."""
    if (request.verifier is None) == (request.pool is None):
        raise ConfigError("give either --verifier NAME or --pool POOL")
    if request.pool is not None and request.options:
        raise ConfigError(
            f"--option {request.options[0]!r} is of --verifier: a pool's verifiers have the options of its file"
        )
    chosen = {request.verifier: options_of(request.options)} if request.verifier else _pool(request)
    judges = []
    for name, given in chosen.items():
        options = dict(given)
        for label in fields_of(rows):
            for key, value in reading.OPTIONS.get((name, label), {}).items():
                options.setdefault(key, value)
        try:
            judges.append(Judge(create(name, options), options))
        except (UnknownVerifier, BadOptions) as error:
            raise ConfigError(str(error)) from error
    return judges


def _pool(request: Request) -> dict[str, Any]:
    config = load(request.config)
    assert request.pool is not None
    if request.pool not in config.pools:
        raise ConfigError(f"{request.config}: no pool {request.pool!r}{nearest(request.pool, config.pools)}")
    verifiers = config.pools[request.pool].options.get("verifiers")
    if not isinstance(verifiers, Mapping) or not verifiers:
        raise ConfigError(f"{request.config}: pools.{request.pool}.options names no `verifiers`")
    return {str(name): options or {} for name, options in verifiers.items()}


def options_of(given: Sequence[str]) -> dict[str, Any]:
    options = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"--option {text!r} is not of the form key=value")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--option {text!r}: {str(error).splitlines()[0]}") from None
    return options


def _started(
    request: Request, judged: Judge, rows: Sequence[Row], store: VerdictFile, attacks: Sequence[str], stream: TextIO
) -> VerifierReport:
    judged.verifier.start()
    try:
        return _one(request, judged, rows, store, attacks, stream)
    finally:
        judged.verifier.stop()


def _one(
    request: Request, judged: Judge, rows: Sequence[Row], store: VerdictFile, attacks: Sequence[str], stream: TextIO
) -> VerifierReport:
    name = judged.verifier.name
    with counting(name, len(rows), stream) as done:
        verdicts = judge(judged, rows, store, request.batch, request.timeout_s, done)
    effects: dict[str, list[suite.Effect]] = {}
    for label in fields_of(rows) if attacks else []:
        own = [(row, verdict) for row, verdict in zip(rows, verdicts, strict=True) if row.field == label]
        chosen = suite.choose([row for row, _ in own], [verdict for _, verdict in own], request.attack_rows)
        effects[label] = _attack(
            request, judged, [own[i][0] for i in chosen], [own[i][1] for i in chosen], store, attacks, stream
        )
    return VerifierReport(
        verifier=name,
        version=judged.verifier.version,
        options=judged.options,
        rows=len(rows),
        statuses=Counter(verdict.status for verdict in verdicts),
        labels=Counter(verdict.label for verdict in verdicts if verdict.label is not None),
        problems=Counter(_kind(verdict) for verdict in verdicts if verdict.status in ("error", "timeout")),
        fields=[appraise(label, polarity(label, request.positive), rows, verdicts) for label in fields_of(rows)],
        order=order_invariance(judged, rows, verdicts, timeout_s=request.timeout_s),
        effects=effects,
    )


def _attack(
    request: Request,
    judged: Judge,
    rows: Sequence[Row],
    before: Sequence[Verdict],
    store: VerdictFile,
    attacks: Sequence[str],
    stream: TextIO,
) -> list[suite.Effect]:
    effects = []
    for attack in attacks:
        changed = suite.attacked(attack, rows, wrappers=request.wrappers, instructions=request.instructions)
        with counting(f"{judged.verifier.name}, {attack}", len(rows), stream) as done:
            after = judge(judged, changed, store, request.batch, request.timeout_s, done)
        label = rows[0].field if rows else None
        effects.append(suite.measure_effect(attack, polarity(label or "", request.positive), rows, before, after))
    return effects


def _kind(verdict: Verdict) -> str:
    """The class of the exception at most: an error's own words may quote the text that was judged."""
    return "timeout" if verdict.status == "timeout" else (verdict.error or "").partition(":")[0][:60]


def _first(faults: Sequence[Fault]) -> str:
    return f"; first: {faults[0]}" if faults else ""
