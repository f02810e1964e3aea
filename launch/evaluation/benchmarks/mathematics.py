"""Benchmarks scored by the equality of a final answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from safeladder.launch.config import ConfigError
from safeladder.launch.evaluation.benchmarks.base import Benchmark, Line, letter
from safeladder.launch.evaluation.suite import Columns, Outcome, sliced
from safeladder.launch.evaluation.suites.general import correct
from safeladder.protocol.messages import Record

BOXED = "\nPut the final answer in \\boxed{}."


class AnswerBenchmark(Benchmark):
    """accuracy: the boxed (or last) answer equals the reference."""

    def judged_by(self, record: Record) -> tuple[str, ...]:
        return ("choice",) if record.choices else ("boxed",)

    def columns(self, outcomes: Sequence[Outcome]) -> Columns:
        yield from sliced("accuracy", outcomes, correct)


class Math500(AnswerBenchmark):
    """Rows with `problem`, `answer`, `subject`, `level`, `unique_id`."""

    name = "math_500"

    @classmethod
    def item(cls, line: Line) -> Iterator[Record]:
        yield cls.record(
            line,
            line.text("problem") + BOXED,
            label="general_rule",
            category=line.maybe("subject"),
            id=line.maybe("unique_id"),
            reference=line.text("answer"),
        )


class OlympiadBench(AnswerBenchmark):
    """Rows with `question`, `final_answer` (a list), `subfield`, `image_1` ...; proofs, which have no final answer, are left out."""

    name = "olympiadbench"

    @classmethod
    def item(cls, line: Line) -> Iterator[Record]:
        answers = line.fields.get("final_answer")
        if not isinstance(answers, list) or not answers:
            return
        context = line.maybe("context")
        question = line.text("question") + BOXED
        yield cls.record(
            line,
            f"{context}\n{question}" if context else question,
            label="general_rule",
            category=line.maybe("subfield"),
            id=line.maybe("id"),
            language="zh" if line.maybe("language") in ("Chinese", "zh") else "en",
            reference=", ".join(str(answer).strip("$") for answer in answers),
            extra={"images": line.images("image", *(f"image_{number}" for number in range(1, 6)))},
        )


class MathVista(AnswerBenchmark):
    """Rows with `question`, `answer`, `image`, and `choices` for multiple choice, where the answer is one of their texts."""

    name = "mathvista"

    @classmethod
    def item(cls, line: Line) -> Iterator[Record]:
        choices, answer = line.fields.get("choices") or None, line.text("answer")
        if choices is not None and answer not in choices:
            raise ConfigError(f"{line.where}: the answer is none of the choices")
        yield cls.record(
            line,
            line.text("question") + ("" if choices else BOXED),
            label="general_rule",
            id=line.maybe("pid", "key"),
            choices=choices,
            reference=letter(choices.index(answer)) if choices else answer,
            extra={"images": line.images("decoded_image" if "decoded_image" in line.fields else "image")},
        )
