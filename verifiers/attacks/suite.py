"""The attacks against a verifier: how many verdicts change, and what becomes of detection."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safeladder.protocol.messages import Verdict
from safeladder.verifiers.attacks import ATTACKS, OURS
from safeladder.verifiers.attacks.words import LANGUAGES, Words, material
from safeladder.verifiers.measure import mcnemar, share
from safeladder.verifiers.reading import decision
from safeladder.verifiers.rows import Polarity, Row

Share = tuple[float, float, float]


class UnknownAttack(LookupError):
    """No attack of that name."""


@dataclass(frozen=True)
class Effect:
    """An attack on some rows. Shares are (value, low, high) with 95 % Wilson intervals.

    changed: decisions that differ from those before; caught: positives called so; flagged: negatives called so. p: McNemar's,
    of the positives caught before against after. lost: rows whose verdict after the attack has no score; they stand in no share.
    """

    attack: str
    ours: bool
    rows: int
    lost: int
    changed: Share
    relabelled: Share
    caught_before: Share
    caught_after: Share
    flagged_before: Share
    flagged_after: Share
    p: float

    def plain(self) -> dict[str, Any]:
        """For JSON; nan, which it does not have, becomes None."""
        return {key: _plain(value) for key, value in asdict(self).items()}


def named(attacks: str) -> list[str]:
    """`all`, or names with commas between them. Raises UnknownAttack."""
    names = list(ATTACKS) if attacks == "all" else [name.strip() for name in attacks.split(",")]
    for name in names:
        if name not in ATTACKS:
            raise UnknownAttack(f"no attack {name!r}; there are {', '.join(ATTACKS)}")
    return names


def choose(rows: Sequence[Row], verdicts: Sequence[Verdict], count: int, seed: int = 0) -> list[int]:
    """Indices of up to `count` labelled rows that were judged, half of each truth where there are as many."""
    draw = random.Random(seed)
    by_truth = [
        [
            i
            for i, (row, verdict) in enumerate(zip(rows, verdicts, strict=True))
            if row.truth == truth and verdict.status == "ok"
        ]
        for truth in (0, 1)
    ]
    for indices in by_truth:
        draw.shuffle(indices)
    half = count // 2
    fewer, more = sorted(by_truth, key=len)
    return sorted(fewer[:half] + more[: count - len(fewer[:half])])


def attacked(
    name: str, rows: Sequence[Row], seed: int = 0, wrappers: Path | None = None, instructions: Path | None = None
) -> list[Row]:
    """The rows under an attack, of a step its own text alone. What is drawn for a row depends on the attack, the seed and the row alone."""
    texts = {language: material(wrappers, instructions, language) for language in LANGUAGES}
    result = []
    for row in rows:
        language = "zh" if row.record.language == "zh" else "en"
        words = Words(row.record.prompt, row.text[row.begin :], language)
        changed = ATTACKS[name](words, texts[language], random.Random(f"{seed}/{name}/{row.digest().hex()}"))
        result.append(row.with_text(changed.prompt, row.text[: row.begin] + changed.answer))
    return result


def measure_effect(
    name: str, polarity: Polarity, rows: Sequence[Row], before: Sequence[Verdict], after: Sequence[Verdict]
) -> Effect:
    """What an attack did. All three columns have one entry a row; each row has a truth, and a score before."""
    pairs = [
        (row.truth == 1, decision(b, polarity), decision(a, polarity), b.label != a.label)
        for row, b, a in zip(rows, before, after, strict=True)
        if a.status == "ok"
    ]
    positives = [(b, a) for truth, b, a, _ in pairs if truth]
    negatives = [(b, a) for truth, b, a, _ in pairs if not truth]
    return Effect(
        attack=name,
        ours=name in OURS,
        rows=len(pairs),
        lost=len(rows) - len(pairs),
        changed=share(sum(b != a for _, b, a, _ in pairs), len(pairs)),
        relabelled=share(sum(other for *_, other in pairs), len(pairs)),
        caught_before=share(sum(b for b, _ in positives), len(positives)),
        caught_after=share(sum(a for _, a in positives), len(positives)),
        flagged_before=share(sum(b for b, _ in negatives), len(negatives)),
        flagged_after=share(sum(a for _, a in negatives), len(negatives)),
        p=mcnemar([b for b, _ in positives], [a for _, a in positives]).p,
    )


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and value != value else value
