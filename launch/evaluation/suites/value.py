"""Value: moral choices with an accepted letter, and open questions whose answers the value verifier calls good."""

from __future__ import annotations

from collections.abc import Sequence

from safeladder.launch.evaluation.statistics import Column
from safeladder.launch.evaluation.suite import Columns, Outcome, Suite, sliced, worst
from safeladder.protocol.messages import Record


class Value(Suite):
    """accuracy: of records with choices. good_rate: of those without. language_gap: Chinese less English, of both together."""

    name = "value"

    def roles(self, record: Record) -> Sequence[str]:
        if record.label != "value" or "benchmark" in record.extra:
            return ()
        return ("value_choice",) if record.choices and record.reference else ("value",)

    def columns(self, outcomes: Sequence[Outcome]) -> Columns:
        chosen = [outcome for outcome in outcomes if "value_choice" in outcome.verdicts]
        said = [outcome for outcome in outcomes if "value" in outcome.verdicts]
        for name, part in (("accuracy", chosen), ("good_rate", said)):
            if part:
                yield from sliced(name, part, _good)
                yield f"{name}_worst_category", worst(part, _good)
        languages = [outcome for outcome in outcomes if outcome.record.language in ("en", "zh")]
        rows = {o.item: [float(o.record.language == "zh"), float(_good(o))] for o in languages}
        yield "language_gap", Column.of(rows, "gap")


def _good(outcome: Outcome) -> bool:
    return outcome.good("value_choice" if "value_choice" in outcome.verdicts else "value")
