"""General judge: 0, 0.5 or 1 by the reference, as in SafeWork-R1 (the templates' words are ours)."""

from __future__ import annotations

from typing import Final

from safeladder.protocol.messages import Verdict
from safeladder.verifiers.contract import Item
from safeladder.verifiers.judges.judge import Judge
from safeladder.verifiers.judges.labels import NumberScale

LABELS: Final = NumberScale({"0": 0.0, "0.5": 0.5, "1": 1.0})


class GeneralJudge(Judge):
    """1 where every part of the question is answered right, 0.5 where some are, 0 where none is. A number between is snapped to the
    nearest, to the lower where two are as near. Abstains without a reference. An empty answer is 0 without asking (ours)."""

    name = "general"
    principle = "knowledge"
    labels = LABELS
    template_file = "general"

    async def judge_async(self, item: Item) -> Verdict:
        reference = item.record.reference
        accepted = [reference] if isinstance(reference, str) else list(reference or [])
        if not any(text.strip() for text in accepted):
            return self.abstain(item, "the record has no reference")
        if (abstention := await self.unsuited(item)) is not None:
            return abstention
        if not item.answer:
            return self.ok(item, 0.0, "0", rationale="the answer is empty")
        reading = await self.read(self.prompt(item, "graded", reference=" / ".join(accepted)))
        return self.ok(
            item, LABELS.scores[reading.label], reading.label, confidence=reading.confidence, rationale=reading.said
        )
