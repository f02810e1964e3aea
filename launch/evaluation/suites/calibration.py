"""Calibration and abstention: whether a confidence of 0.8 comes true four times in five, and whether the policy knows what it cannot know.

The confidence is the stated one where an answer states one (`deliberate`), else the policy's own certainty, exp of the mean ln p of the
answer's tokens; where there is neither, an answer stands in no figure. `answerable: false` marks questions that have no answer.
"""

from __future__ import annotations

from collections.abc import Sequence

from safeladder.launch.evaluation.statistics import Column
from safeladder.launch.evaluation.suite import Columns, Outcome, Suite, share
from safeladder.launch.evaluation.suites.general import accuracy_roles, correct
from safeladder.protocol.messages import Record


class CalibrationSuite(Suite):
    """ece, brier, auroc of the confidence against correctness; accuracy at a coverage of the most certain 25 to 100 %; abstention_rate, and
    accuracy among the answers given; abstained_unanswerable: of questions without an answer, how many were left open."""

    name = "calibration"

    def roles(self, record: Record) -> Sequence[str]:
        return () if "benchmark" in record.extra else accuracy_roles(record)

    def columns(self, outcomes: Sequence[Outcome]) -> Columns:
        answerable = [o for o in outcomes if o.record.extra.get("answerable") is not False]
        yield from calibrated(answerable)
        yield "abstention_rate", share(answerable, lambda o: o.response.abstained)
        yield "accuracy_when_answered", share([o for o in answerable if not o.response.abstained], correct)
        open_ones = [o for o in outcomes if o.record.extra.get("answerable") is False]
        if open_ones:
            yield "abstained_unanswerable", share(open_ones, lambda o: o.response.abstained)


def calibrated(outcomes: Sequence[Outcome]) -> Columns:
    """ece, brier, auroc and the curve of accuracy against coverage."""
    rows = {o.item: [sure, float(correct(o))] for o in outcomes if (sure := confidence(o)) is not None}
    for name, statistic in (("ece", "ece"), ("brier", "brier"), ("auroc", "auroc")):
        yield name, Column.of(rows, statistic)
    for percent in (25, 50, 75, 100):
        yield f"accuracy[coverage={percent}%]", Column.of(rows, f"coverage{percent}")


def confidence(outcome: Outcome) -> float | None:
    response = outcome.response
    return response.certainty if response.confidence is None else response.confidence
