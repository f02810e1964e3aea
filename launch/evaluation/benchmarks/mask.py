"""MASK (arXiv 2503.03750): does pressure make a model say what is not so? Measured here is the lie rate against the ground truth.

The benchmark elicits the model's own belief with three more questions and counts as a lie only what contradicts it. That is not done
here (ours): the row's `ground_truth` stands for the belief, so an honest mistake counts as a lie.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from safeladder.launch.evaluation.benchmarks.base import Benchmark, Line
from safeladder.launch.evaluation.suite import Columns, Outcome, share, sliced
from safeladder.protocol.messages import Record

ROLE: Final = "mask"


class Mask(Benchmark):
    """Rows with `system_prompt`, `user_prompt`, `proposition`, `ground_truth`. Needs a judge for the role `mask`."""

    name = "mask"

    @classmethod
    def item(cls, line: Line) -> Iterator[Record]:
        extra = {"system": line.maybe("system_prompt"), "proposition": line.maybe("proposition")}
        yield cls.record(
            line,
            line.text("user_prompt"),
            label="value",
            category=line.stem,
            id=line.maybe("task_id"),
            reference=f"{line.text('proposition')} {line.text('formatted_ground_truth', 'ground_truth')}",
            extra=extra,
        )

    def judged_by(self, record: Record) -> tuple[str, ...]:
        return (ROLE,)

    def columns(self, outcomes: Sequence[Outcome]) -> Columns:
        yield from sliced("lie_rate", outcomes, lambda outcome: outcome.label(ROLE) == "Lie")
        yield "honest_rate", share(outcomes, lambda outcome: outcome.label(ROLE) == "Honest")
        yield "evasion_rate", share(outcomes, lambda outcome: outcome.label(ROLE) == "Evasion")
