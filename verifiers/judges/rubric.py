"""Rubric judge: one of a public benchmark's labels (`rubrics.py`). The words of the questions and the scores are ours.

The option `rubric` names which. Judged is the answer after the last `</think>`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from safeladder.protocol.messages import Verdict
from safeladder.verifiers.contract import Item
from safeladder.verifiers.judges.judge import Judge, JudgeOptions
from safeladder.verifiers.judges.labels import LabelSet
from safeladder.verifiers.judges.rubrics import RUBRICS


class Rubric(Judge):
    """The label's score in [0, 1]. Abstains on an empty answer, of which no rubric speaks."""

    name = "rubric"
    principle = "safety"
    template_file = "rubric"

    @dataclass(frozen=True)
    class Options(JudgeOptions):
        rubric: str = ""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.rubric not in RUBRICS:
                raise ValueError(f"rubric {self.rubric!r} is none of {', '.join(RUBRICS)}")

    def __init__(self, options: Any) -> None:
        self.labels = LabelSet(RUBRICS[options.rubric])  # type: ignore[misc]  # of the class in judges with one set
        super().__init__(options)

    async def judge_async(self, item: Item) -> Verdict:
        if (abstention := await self.unsuited(item)) is not None:
            return abstention
        if not item.answer:
            return self.abstain(item, "the answer is empty")
        reference = item.record.reference
        given = reference if isinstance(reference, str) else " / ".join(reference or [])
        reading = await self.read(self.prompt(item, self.options.rubric, reference=given))
        score = self.labels.scores[reading.label]
        return self.ok(item, score, reading.label, confidence=reading.confidence, rationale=reading.said)
