"""Benchmarks scored by the letter that an answer chooses."""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from safeladder.launch.config import ConfigError
from safeladder.launch.evaluation.benchmarks.base import Benchmark, Line, letter
from safeladder.launch.evaluation.suite import Columns, Outcome, sliced
from safeladder.launch.evaluation.suites.general import correct
from safeladder.protocol.messages import Record

_CHOICE: Final = re.compile(r"(?<![a-zA-Z])([A-H])\s*[．.、]\s*")


class ChoiceBenchmark(Benchmark):
    """accuracy, also by category. An item without choices is matched against its reference."""

    def judged_by(self, record: Record) -> tuple[str, ...]:
        return ("choice",) if record.choices else ("match",)

    def columns(self, outcomes: Sequence[Outcome]) -> Columns:
        yield from sliced("accuracy", outcomes, correct)


class Wmdp(ChoiceBenchmark):
    """Rows with `question`, `choices` and the index `answer`. Here knowing less is safer; accuracy is still what is reported."""

    name = "wmdp"

    @classmethod
    def item(cls, line: Line) -> Iterator[Record]:
        choices, place = line.fields.get("choices"), line.fields.get("answer")
        if not isinstance(choices, list) or not isinstance(place, int) or not 0 <= place < len(choices):
            raise ConfigError(f"{line.where}: field `answer` is not the place of one of `choices`")
        yield cls.record(
            line,
            line.text("question"),
            label="knowledge_rule",
            category=line.stem,
            choices=choices,
            reference=letter(place),
        )


class Mmmu(ChoiceBenchmark):
    """Rows with `question`, `options` (a list, or one written as Python), `answer`, `image_1` to `image_7`, `subfield`."""

    name = "mmmu"

    @classmethod
    def item(cls, line: Line) -> Iterator[Record]:
        options = _listed(line, "options")
        answer = line.fields.get("answer")
        yield cls.record(
            line,
            line.text("question"),
            label="knowledge_rule",
            category=line.maybe("subfield", "subject"),
            id=line.maybe("id"),
            choices=options or None,
            reference=answer if options else [answer] if isinstance(answer, str) else answer,
            extra={"images": line.images("image", *(f"image_{number}" for number in range(1, 8)))},
        )


class Gpqa(ChoiceBenchmark):
    """GPQA-Diamond: rows with `Question`, `Correct Answer`, `Incorrect Answer 1` to `3`. The order of the choices is drawn from the
    question alone, so that it is the same in every run."""

    name = "gpqa"

    @classmethod
    def item(cls, line: Line) -> Iterator[Record]:
        question, right = line.text("Question"), line.text("Correct Answer")
        choices = [right, *(line.text(f"Incorrect Answer {number}") for number in (1, 2, 3))]
        random.Random(question).shuffle(choices)
        yield cls.record(
            line,
            question,
            label="knowledge_rule",
            category=line.maybe("High-level domain"),
            choices=choices,
            reference=letter(choices.index(right)),
        )


class GaokaoMm(ChoiceBenchmark):
    """Rows with `question` (its choices written in it as "A．..."), `answer` (a list of letters) and `picture`. A single letter is chosen;
    of several letters all must be said together."""

    name = "gaokao_mm"
    language = "zh"

    @classmethod
    def item(cls, line: Line) -> Iterator[Record]:
        answer = line.fields.get("answer")
        letters = "".join(map(str, answer)) if isinstance(answer, list) else line.text("answer")
        stem, choices = _split(line.text("question"))
        single = len(letters) == 1 and choices
        yield cls.record(
            line,
            stem if single else line.text("question"),
            label="knowledge_rule",
            category=line.maybe("category", "keywords") or line.stem,
            choices=choices if single else None,
            reference=letters if single else [letters],
            extra={"images": line.images("picture", "image")},
        )


def _split(question: str) -> tuple[str, list[str]]:
    """The question without its choices, and these in order; no choices where they are not A, B, C, ... one after the other."""
    found = list(_CHOICE.finditer(question))
    if len(found) < 2 or [each[1] for each in found] != [letter(place) for place in range(len(found))]:
        return question, []
    ends = [*(each.start() for each in found[1:]), len(question)]
    choices = [question[each.end() : end].strip() for each, end in zip(found, ends, strict=True)]
    return question[: found[0].start()].strip(), choices


def _listed(line: Line, name: str) -> list[Any]:
    value = line.fields.get(name)
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            raise ConfigError(f"{line.where}: field `{name}` is no list") from None
    if not isinstance(value, list | None):
        raise ConfigError(f"{line.where}: field `{name}` is no list")
    return value or []
