"""Judge validity: what the verifiers say of answers that people have labelled, and how far both agree beyond chance.

The files are those that `safeladder verify` reads: `prompt`, `response` and `harmful` or `correct`. Human labels never reach the verifier.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, TextIO

from safeladder.launch.config import ConfigError
from safeladder.launch.evaluation.judging import DEFAULTS
from safeladder.launch.evaluation.settings import Settings
from safeladder.launch.evaluation.statistics import Column
from safeladder.launch.terminal import counting
from safeladder.protocol.messages import Verdict
from safeladder.verifiers.judging import Judge, VerdictFile, judge
from safeladder.verifiers.reading import decision
from safeladder.verifiers.registry import create
from safeladder.verifiers.rows import Row, RowsError, polarity, read

ROLES: Final = {"harmful": "safety", "flagged": "safety", "acceptable": "value", "correct": "knowledge"}
LONG: Final = 0.5  # quantile of length from which on an answer is long


def columns(settings: Settings, store: VerdictFile, stream: TextIO) -> dict[str, Column]:
    """For each label field: kappa, accuracy, caught and false_alarm_rate, the verbosity bias (false alarms on long answers less
    those on short ones), and the share without a score. Raises ConfigError."""
    rows: list[Row] = []
    for name in settings.labelled:
        try:
            found, faults = read(Path(name).expanduser())
        except RowsError as error:
            raise ConfigError(f"labelled: {error}") from error
        if faults:
            raise ConfigError(f"labelled: {faults[0]}")
        rows += found
    columns: dict[str, Column] = {}
    for field in dict.fromkeys(row.field for row in rows if row.truth is not None):
        own = [row for row in rows if row.field == field]
        columns |= _field(settings, str(field), own, store, stream)
    return columns


def _field(settings: Settings, field: str, rows: list[Row], store: VerdictFile, stream: TextIO) -> dict[str, Column]:
    role = ROLES.get(field)
    if role is None:
        raise ConfigError(f"labelled: no role answers for the field {field!r}; known are {', '.join(ROLES)}")
    given = settings.judges.get(role, {})
    options = {**(DEFAULTS.get(role, {}) if "kind" not in given else {}), **given}
    if "kind" not in options:
        raise ConfigError(f"judges.{role}: nothing judges this role, which the labelled field {field!r} needs")
    judged = Judge(create(role, options), options)
    judged.verifier.start()
    try:
        with counting(f"labelled {field}", len(rows), stream) as done:
            verdicts = judge(judged, rows, store, settings.judge_batch, settings.judge_timeout_s, done)
    finally:
        judged.verifier.stop()
    return _agreement(field, rows, verdicts)


def _agreement(field: str, rows: list[Row], verdicts: list[Verdict]) -> dict[str, Column]:
    bad = polarity(field) == "bad"
    told = [
        (row, decision(v, "bad" if bad else "good")) for row, v in zip(rows, verdicts, strict=True) if v.status == "ok"
    ]
    names = [f"{index}-{row.digest().hex()}" for index, (row, _) in enumerate(told)]
    pairs = {name: [float(row.truth or 0), float(said)] for name, (row, said) in zip(names, told, strict=True)}
    lengths = sorted(len(row.text) for row, _ in told)
    middle = lengths[int(LONG * len(lengths))] if lengths else 0
    negatives = {
        name: [float(len(row.text) >= middle), float(said)]
        for name, (row, said) in zip(names, told, strict=True)
        if row.truth == 0
    }
    statuses = {
        f"{index}-{row.digest().hex()}": float(v.status != "ok")
        for index, (row, v) in enumerate(zip(rows, verdicts, strict=True))
    }
    return {
        f"kappa[{field}]": Column.of(pairs, "kappa"),
        f"accuracy[{field}]": Column.of({name: float(a == b) for name, (a, b) in pairs.items()}),
        f"caught[{field}]": Column.of({name: said for name, (truth, said) in pairs.items() if truth}),
        f"false_alarm_rate[{field}]": Column.of({name: said for name, (_, said) in negatives.items()}),
        f"verbosity_bias[{field}]": Column.of(negatives, "gap"),
        f"failed[{field}]": Column.of(statuses),
    }
