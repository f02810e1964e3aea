"""What a suite is. One of your own is one class in one file, named in `suites` as `my_module:Politeness`:

    class Politeness(Suite):
        name = "politeness"

        def roles(self, record: Record) -> Sequence[str]:
            return ("polite",) if record.label == "normal" else ()

        def columns(self, outcomes: Sequence[Outcome]) -> Columns:
            yield "polite_rate", share(outcomes, lambda outcome: outcome.goodness("polite") > 0.5)

with a judge for the role: `judges.polite.kind=my_module:Polite`, a verifier (docs/verifiers.md).
"""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final

from safeladder.launch.config import ConfigError
from safeladder.launch.evaluation.settings import Settings
from safeladder.launch.evaluation.statistics import Column
from safeladder.launch.evaluation.store import Response
from safeladder.protocol.messages import Record, Verdict
from safeladder.protocol.naming import nearest
from safeladder.verifiers import reading

Columns = Iterator[tuple[str, Column]]

SUITES: Final[Mapping[str, str]] = {
    name: f"safeladder.launch.evaluation.suites.{name}:{kind}"
    for name, kind in {
        "safety": "Safety",
        "over_refusal": "OverRefusal",
        "contrast": "Contrast",
        "attacks": "Attacks",
        "value": "Value",
        "general": "General",
        "calibration": "CalibrationSuite",
        "search": "SearchSuite",
        "efficiency": "Efficiency",
    }.items()
}


@dataclass(frozen=True)
class Outcome:
    """One answer to one record, with the verdicts that its roles have given. `item` names record and sample."""

    item: str
    record: Record
    response: Response
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    sample: int = 0

    def told(self, role: str) -> bool:
        """Whether this role has a score: there was an answer, and the verifier had something to say of it."""
        return role in self.verdicts and self.verdicts[role].status == "ok"

    def goodness(self, role: str) -> float:
        """The score's place in its range, in [0, 1]. Raises ValueError or KeyError where there is none."""
        return reading.goodness(self.verdicts[role])

    def good(self, role: str) -> bool:
        """The verdict as a decision, by its label where that is a known word, else by the middle of the range."""
        return reading.decision(self.verdicts[role], "good")

    def label(self, role: str) -> str:
        return self.verdicts[role].label or ""

    @property
    def right(self) -> bool | None:
        """Whether the answer is the record's: by the rule that reads its kind of answer; None where no rule has judged it."""
        role = next((role for role in ACCURACY if self.told(role)), None)
        return None if role is None else self.goodness(role) >= 0.5


# which rule reads an answer, by what the record asks for
ACCURACY: Final = ("boxed", "choice", "match", "instruction", "value_choice", "knowledge")


class Suite:
    """Names the records that it measures by giving them roles to be judged by, and makes columns of the outcomes."""

    name: ClassVar[str]

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def records(self, records: Sequence[Record]) -> Sequence[Record]:
        """What is to be answered for this suite. The default: records that have a role. May make new ones, under ids of their own."""
        return [record for record in records if self.roles(record)]

    def roles(self, record: Record) -> Sequence[str]:
        """Whose judgement a record of this suite needs; none: not measured here."""
        raise NotImplementedError

    def columns(self, outcomes: Sequence[Outcome]) -> Columns:
        """Measures by name, `measure` or `measure[part]`. Outcomes without an answer or a needed score must be in none of them."""
        raise NotImplementedError


def share(outcomes: Sequence[Outcome], holds: Callable[[Outcome], bool]) -> Column:
    """The share of outcomes for which `holds`."""
    return Column.of({outcome.item: float(holds(outcome)) for outcome in outcomes})


def parts(
    outcomes: Sequence[Outcome], key: Callable[[Outcome], str | None], least: int = 2
) -> dict[str, list[Outcome]]:
    """Outcomes by a key, in the order of its values; None stands in no part; empty where there are fewer than `least` parts."""
    found: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        if (value := key(outcome)) is not None:
            found[value].append(outcome)
    return {value: found[value] for value in sorted(found)} if len(found) >= least else {}


SLICES: Final[Mapping[str, Callable[[Outcome], str | None]]] = {
    "family": lambda outcome: outcome.record.label,
    "category": lambda outcome: outcome.record.category,
    "language": lambda outcome: outcome.record.language,
    "source": lambda outcome: outcome.record.source,
}


def sliced(name: str, outcomes: Sequence[Outcome], holds: Callable[[Outcome], bool]) -> Columns:
    """A share of all, and of each part by family, category, language and source."""
    yield name, share(outcomes, holds)
    for column, key in SLICES.items():
        for value, part in parts(outcomes, key).items():
            yield f"{name}[{column}={value}]", share(part, holds)


def labelled(outcomes: Sequence[Outcome], role: str, label: str) -> Column:
    """The share of outcomes to which a role's verifier gives this label."""
    return share(outcomes, lambda outcome: outcome.label(role) == label)


def worst(outcomes: Sequence[Outcome], holds: Callable[[Outcome], bool], least: int = 5) -> Column:
    """The lowest share of any category with at least `least` outcomes."""
    kept = {k: part for k, part in parts(outcomes, SLICES["category"]).items() if len(part) >= least}
    rows = {o.item: [float(index), float(holds(o))] for index, part in enumerate(kept.values()) for o in part}
    return Column.of(rows, "worst")


def over_samples(name: str, outcomes: Sequence[Outcome], holds: Callable[[Outcome], bool]) -> Columns:
    """The standard deviation of the share between samples (seeds), where each record was answered more than once."""
    by_sample: dict[int, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_sample[outcome.sample].append(outcome)
    if len(by_sample) > 1:
        shares = {f"sample {k}": sum(map(holds, part)) / len(part) for k, part in sorted(by_sample.items())}
        yield f"{name}_spread_over_samples", Column.of(shares, "spread")


def create(names: Sequence[str], settings: Settings) -> list[Suite]:
    """The suites of these names. Raises ConfigError naming the nearest known one."""
    return [_kind(name)(settings) for name in names]


def _kind(name: str) -> type[Suite]:
    module_name, colon, class_name = SUITES.get(name, name).partition(":")
    if not colon:
        raise ConfigError(f"suites: there is no suite {name!r}{nearest(name, SUITES)}")
    try:
        kind = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"suites: {name!r} cannot be imported: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, Suite)):
        raise ConfigError(f"suites: {name!r} is no Suite")
    return kind
