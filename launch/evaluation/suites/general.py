"""General ability: boxed mathematics, multiple choice, exact match against accepted answers, instructions with checkable constraints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from safeladder.launch.evaluation.suite import Columns, Outcome, Suite, over_samples, share, sliced
from safeladder.protocol.messages import Record

MATHEMATICS: Final = ("general_rule", "geo3k_rule", "gsm8k_rule")
KNOWLEDGE: Final = ("knowledge", "knowledge_rule", "general")
INSTRUCTIONS: Final = ("instruction", "muldimif")


class General(Suite):
    """accuracy of all, and by family, category, language and source. Partial scores count as right from one half on."""

    name = "general"

    def roles(self, record: Record) -> Sequence[str]:
        return () if "benchmark" in record.extra else accuracy_roles(record)

    def columns(self, outcomes: Sequence[Outcome]) -> Columns:
        yield from sliced("accuracy", outcomes, correct)
        yield "cut_rate", share(outcomes, lambda outcome: outcome.response.finish == "length")
        yield from over_samples("accuracy", outcomes, correct)


def accuracy_roles(record: Record) -> Sequence[str]:
    """The one rule that reads this record's kind of answer; none where it has nothing to be compared with."""
    if record.label in INSTRUCTIONS:
        return ("instruction",)
    if record.reference is None or record.label not in (*MATHEMATICS, *KNOWLEDGE):
        return ()
    if record.choices:
        return ("choice",)
    return ("boxed",) if record.label in MATHEMATICS else ("match",)


def correct(outcome: Outcome) -> bool:
    return outcome.right is True
