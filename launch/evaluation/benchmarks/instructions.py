"""Benchmarks scored by the constraints that an answer keeps: prompt-level, all or nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from safeladder.launch.config import ConfigError
from safeladder.launch.evaluation.benchmarks.base import Benchmark, Line
from safeladder.launch.evaluation.suite import Columns, Outcome, share
from safeladder.protocol.messages import Record

KEPT: Final = "constraints"


class IfEval(Benchmark):
    """IFEval (arXiv 2311.07911): rows with `prompt`, `instruction_id_list`, `kwargs`. strict: every constraint kept. How our rule differs
    from IFEval's own code: docs/verifiers.md."""

    name = "ifeval"

    @classmethod
    def item(cls, line: Line) -> Iterator[Record]:
        names = ("instruction_id_list", "kwargs")
        if not all(isinstance(line.fields.get(name), list) for name in names):
            raise ConfigError(f"{line.where}: fields `instruction_id_list` and `kwargs` must be lists")
        given = [{k: v for k, v in (each or {}).items() if v is not None} for each in line.fields["kwargs"]]
        extra = {"instruction_id_list": line.fields["instruction_id_list"], "kwargs": given}
        yield cls.record(line, line.text("prompt"), label="instruction", id=line.maybe("key"), extra=extra)

    def judged_by(self, record: Record) -> tuple[str, ...]:
        return ("instruction",)

    def columns(self, outcomes: Sequence[Outcome]) -> Columns:
        yield "strict", share(outcomes, lambda outcome: outcome.goodness("instruction") == 1.0)


class MmIfEval(Benchmark):
    """MM-IFEval: rows with `question` or `instruction`, `image` and `constraints` (each with a `value`). The benchmark judges constraints
    one by one; here (ours) a judge for the role `constraints` says whether all are kept."""

    name = "mm_ifeval"

    @classmethod
    def item(cls, line: Line) -> Iterator[Record]:
        constraints = line.fields.get("constraints")
        if not isinstance(constraints, list) or not constraints:
            raise ConfigError(f"{line.where}: field `constraints` is no list of constraints")
        wanted = [str(each.get("value", each)) if isinstance(each, dict) else str(each) for each in constraints]
        yield cls.record(
            line,
            "\n".join([line.text("question", "instruction"), *wanted]),
            label="instruction",
            id=line.maybe("id"),
            reference="\n".join(wanted),
            extra={"images": line.images("image")},
        )

    def judged_by(self, record: Record) -> tuple[str, ...]:
        return (KEPT,)

    def columns(self, outcomes: Sequence[Outcome]) -> Columns:
        yield "strict", share(outcomes, lambda outcome: outcome.label(KEPT) == "All kept")
