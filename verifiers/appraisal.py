"""What a verifier's verdicts on labelled rows are worth. Statuses without a score are counted, and stand in no figure."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from safeladder.protocol.messages import Verdict
from safeladder.verifiers.contract import run
from safeladder.verifiers.judging import Judge
from safeladder.verifiers.measure import Decisions, Figures, LengthBias, Numbers, figures, length_bias, slices
from safeladder.verifiers.reading import decision, goodness, probability
from safeladder.verifiers.rows import Polarity, Row

TOLERANCE: Final = 1e-3  # of the score's range: floating-point sums depend on the padding of a batch


@dataclass(frozen=True)
class Appraisal:
    """The figures of one label field. by: language, category and source -> value -> figures."""

    field: str
    polarity: Polarity
    unlabelled: int
    without_score: Mapping[str, int]  # labelled rows by a status other than ok
    all: Figures
    by: Mapping[str, Mapping[str, Figures]]
    length: LengthBias

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "field": self.field,
            "positive_is": self.polarity,
            "unlabelled": self.unlabelled,
            "without_score": dict(self.without_score),
            "all": self.all.plain(),
            "by": {column: {value: each.plain() for value, each in parts.items()} for column, parts in self.by.items()},
            "length": {key: None if value != value else value for key, value in asdict(self.length).items()},
        }


@dataclass(frozen=True)
class Columns:
    """Labelled rows with a score: truth [N] of 0 and 1, P(positive) [N], decisions [N]."""

    rows: Sequence[Row]
    truth: Numbers
    probability: Numbers
    said: Decisions


def columns(rows: Sequence[Row], verdicts: Sequence[Verdict], polarity: Polarity) -> Columns:
    """Rows without truth, and verdicts without score, are left out."""
    kept = [(r, v) for r, v in zip(rows, verdicts, strict=True) if r.truth is not None and v.status == "ok"]
    return Columns(
        rows=[row for row, _ in kept],
        truth=np.array([row.truth for row, _ in kept], np.float64),
        probability=np.array([probability(verdict, polarity) for _, verdict in kept], np.float64),
        said=np.array([decision(verdict, polarity) for _, verdict in kept], np.bool_),
    )


def appraise(field: str, polarity: Polarity, rows: Sequence[Row], verdicts: Sequence[Verdict]) -> Appraisal:
    """The figures of the rows whose label field is `field`."""
    own = [(row, verdict) for row, verdict in zip(rows, verdicts, strict=True) if row.field == field]
    kept = columns([row for row, _ in own], [verdict for _, verdict in own], polarity)
    groups = {
        "language": [row.record.language for row in kept.rows],
        "category": [row.record.category for row in kept.rows],
        "source": [row.record.source or row.where.rpartition(":")[0] for row in kept.rows],
    }
    length = np.array([len(row.text) for row in kept.rows], np.float64)
    return Appraisal(
        field=field,
        polarity=polarity,
        unlabelled=sum(row.truth is None for row, _ in own),
        without_score=Counter(v.status for r, v in own if r.truth is not None and v.status != "ok"),
        all=figures(kept.truth, kept.probability, kept.said),
        by=slices(kept.truth, kept.probability, groups, kept.said),
        length=length_bias(kept.truth, kept.probability, length),
    )


@dataclass(frozen=True)
class Order:
    """Rows judged again in other orders and batches. changed: whose status or label differed, or whose score by more than `TOLERANCE`."""

    rows: int
    changed: int
    largest_difference: float  # of scores, as a share of their range


def order_invariance(
    judge: Judge,
    rows: Sequence[Row],
    verdicts: Sequence[Verdict],
    count: int = 32,
    timeout_s: float = 600.0,
    seed: int = 0,
) -> Order:
    """Judges up to `count` rows again: reversed and in one batch, shuffled in batches of seven, and each alone.

    Nothing is read from the verdict file here. Rows that failed the first time are left out.
    """
    able = [index for index, verdict in enumerate(verdicts) if verdict.status in ("ok", "abstain")]
    chosen = random.Random(seed).sample(able, min(count, len(able)))
    changed: set[int] = set()
    largest = 0.0
    for order, size in ((chosen[::-1], len(chosen)), (chosen, 7), (sorted(chosen), 1)):
        for start in range(0, len(order), max(1, size)):
            part = order[start : start + size]
            items = [rows[index].item(sample) for sample, index in enumerate(part)]
            for index, again in zip(part, run([judge.verifier], items, timeout_s), strict=True):
                first = verdicts[index]
                apart = abs(goodness(first) - goodness(again)) if first.status == again.status == "ok" else 0.0
                largest = max(largest, apart)
                if (first.status, first.label) != (again.status, again.label) or apart > TOLERANCE:
                    changed.add(index)
    return Order(len(chosen), len(changed), largest)
