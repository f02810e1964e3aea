"""From verdicts to rewards: per family, which verifiers count and how much. Data, not code.

    r(sample) = sum over the family's terms of  weight * score

A verifier's failure never becomes a reward. A sample without a usable verdict from any verifier that its family's terms
name is *invalid*: its reward is NaN, and it is left out of its group's statistics. A term may be marked optional, for
verifiers that rightly have nothing to say on some samples: an abstention then counts as no term; a time-out, an error
or a missing verdict still makes the sample invalid. Costs are kept apart from rewards.

Imports no torch: the feeder and the checks before a launch read recipes too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safeladder.protocol.messages import Group, Verdict
from safeladder.protocol.naming import nearest

Channel = NDArray[np.float64]

UNSAFE_LABEL = "Unsafe"  # of any verifier whose principle is "safety"


class RecipeError(ValueError):
    """A recipe that cannot be read, or a record that no family of the recipe covers."""


@dataclass(frozen=True)
class Term:
    """One verifier's part of the reward. `optional`: an abstention leaves the term out instead of the sample.

    qualifies: the score from which on a sample counts as having done what the verifier asks for; see `Rewards.qualified`.
    apart: see `normalised_apart`.
    """

    weight: float
    optional: bool = False
    qualifies: float | None = None
    apart: bool = False


@dataclass(frozen=True)
class Cost:
    """A named cost: 1 where `verifier` gave `label`, 0 where it gave another, NaN where it gave none."""

    verifier: str
    label: str


@dataclass(frozen=True)
class Family:
    """A task family: the queues its records visit, the terms of its reward, the costs that constraints may bound."""

    route: list[str]
    terms: dict[str, Term]
    costs: dict[str, Cost] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    families: dict[str, Family]

    def family(self, label: str) -> Family:
        """Raises RecipeError for a label without a family: a record is never trained on a guess."""
        found = self.families.get(label)
        if found is None:
            raise RecipeError(f"no family {label!r} in the recipe{nearest(label, self.families)}")
        return found


@dataclass(frozen=True)
class Rewards:
    """Rewards of the K samples of one group, channel by channel. Arrays are [K], float64 unless noted.

    channels: verifier -> mean usable score in the verifier's own range, NaN where it gave none. terms: verifier -> weight
    * score for the family's terms, NaN where it gave none. total: weighted sum, NaN where the sample is invalid. valid:
    bool. unsafe: 1 where a safety verdict says "Unsafe", 0 where all say otherwise, NaN without any. costs: cost -> 0, 1 or
    NaN. qualified: bool, whether a sample is valid, reaches every threshold that its family's terms declare (at least one
    must), and is called unsafe by no safety verdict, on answer or thought: length counts for or against such samples only.
    problems: why invalid samples are, by sample.
    """

    channels: dict[str, Channel]
    terms: dict[str, Channel]
    total: Channel
    valid: NDArray[np.bool_]
    unsafe: Channel
    costs: dict[str, Channel]
    qualified: NDArray[np.bool_]
    problems: dict[int, str]


# ------------------------------------------------------------------------------------------------------- reading


def from_mapping(data: Mapping[str, Any]) -> Recipe:
    """Reads a recipe: {"families": {label: {"route": [...], "terms": {...}, "costs": {...}}}}.

    A term is a number (the weight) or {"weight": number, "optional": bool, "qualifies": number, "apart": bool}; a cost
    {"verifier": name, "label": label}. Unknown keys and weights that are not finite raise RecipeError with the dotted key, and so
    does a `base` that is not null: files are put together before (`launch/recipe_files.py`).
    """
    _known(data, ("base", "families"), "recipe")
    if data.get("base") is not None:
        raise RecipeError(f"recipe.base is {data['base']!r}: a recipe is read once its base has been laid under it")
    families: dict[str, Family] = {}
    for label, entry in (data.get("families") or {}).items():
        key = f"recipe.families.{label}"
        _known(entry, ("route", "terms", "costs"), key)
        if not entry.get("route") or not entry.get("terms"):
            raise RecipeError(f"{key} needs a route and at least one term")
        families[str(label)] = Family(
            route=[str(queue) for queue in entry["route"]],
            terms={str(name): _term(spec, f"{key}.terms.{name}") for name, spec in entry["terms"].items()},
            costs={str(name): _cost(spec, f"{key}.costs.{name}") for name, spec in (entry.get("costs") or {}).items()},
        )
    return Recipe(families)


def _term(spec: Any, key: str) -> Term:
    flags = {"optional": False, "apart": False}
    threshold = None
    if isinstance(spec, Mapping):
        _known(spec, ("weight", "optional", "qualifies", "apart"), key)
        flags = {flag: spec.get(flag, False) for flag in flags}
        spec, threshold = spec.get("weight"), spec.get("qualifies")
    if not _finite(spec):
        raise RecipeError(f"{key} needs a finite number as its weight, not {spec!r}")
    for flag, value in flags.items():
        if not isinstance(value, bool):
            raise RecipeError(f"{key}.{flag} must be true or false, not {value!r}")
    if threshold is not None and not _finite(threshold):
        raise RecipeError(f"{key}.qualifies must be a finite number, not {threshold!r}")
    return Term(float(spec), qualifies=None if threshold is None else float(threshold), **flags)


def _finite(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)


def _cost(spec: Any, key: str) -> Cost:
    _known(spec, ("verifier", "label"), key)
    if not spec.get("verifier") or not spec.get("label"):
        raise RecipeError(f"{key} needs a verifier and a label")
    return Cost(str(spec["verifier"]), str(spec["label"]))


def _known(entry: Any, names: tuple[str, ...], key: str) -> None:
    if not isinstance(entry, Mapping):
        raise RecipeError(f"{key} must be a map with the keys {', '.join(names)}, not {entry!r}")
    for name in entry:
        if name not in names:
            raise RecipeError(f"{key}.{name} is unknown{nearest(str(name), names)}")


# ------------------------------------------------------------------------------------------------------- scoring


def rewards(group: Group, recipe: Recipe) -> Rewards:
    """Rewards of a group's samples under its family's terms.

    A sample whose generation failed (finish "error" or "abort") is invalid whatever its verdicts say. Several usable
    verdicts of one verifier on one sample are averaged. Does not see the order of verdicts.

    Raises RecipeError for an unknown label or a verdict on a sample that the group does not have.
    """
    family = recipe.family(group.record.label)
    count = len(group.completions)
    verdicts = _by_verifier(group, count)
    channels = {name: _mean_scores(verdicts.get(name, {}), count) for name in sorted({*verdicts, *family.terms})}

    total = np.zeros(count)
    problems: dict[int, str] = {}
    for name, term in family.terms.items():
        for sample in range(count):
            score = channels[name][sample]
            if not math.isnan(score):
                total[sample] += term.weight * score
            elif not (term.optional and _only_abstained(verdicts.get(name, {}).get(sample, []))):
                problems.setdefault(sample, _problem(name, verdicts.get(name, {}).get(sample, [])))
    for sample, completion in enumerate(group.completions):
        if completion.finish in ("error", "abort"):
            problems[sample] = f"generation ended with {completion.finish}: {completion.error or 'no reason given'}"

    valid = np.array([sample not in problems for sample in range(count)], dtype=np.bool_)
    unsafe = _flags([v for v in group.verdicts if v.principle == "safety"], UNSAFE_LABEL, count)
    return Rewards(
        channels=channels,
        terms={name: term.weight * channels[name] for name, term in family.terms.items()},
        total=np.where(valid, total, np.nan),
        valid=valid,
        unsafe=unsafe,
        qualified=valid & (unsafe != 1.0) & _reached(channels, family.terms, count),
        costs={
            name: _flags([v for v in group.verdicts if v.verifier == cost.verifier], cost.label, count)
            for name, cost in family.costs.items()
        },
        problems=problems,
    )


def accuracy(earned: Rewards, family: Family) -> float | None:
    """The share of a group's valid samples that qualify, in [0, 1]; None where none is valid, or the family does not say what qualifies."""
    if not earned.valid.any() or all(term.qualifies is None for term in family.terms.values()):
        return None
    return float(earned.qualified[earned.valid].mean())


REST = "rest"  # the channel of all terms that are not normalised apart


def normalised_apart(terms: Mapping[str, Channel], family: Family) -> tuple[dict[str, Channel], dict[str, float]]:
    """What the advantage `gdpo` normalises each on its own: channels [K] and the weights that are put back.

    terms: `Rewards.terms`. Where the family marks no term `apart`, every term is a channel. Where it marks some, each of those is one
    and the sum of all others is one more, `rest`, with the sum of their weights' sizes as its weight (ours: what the terms would
    weigh apart if they always agreed). A sample that has a score in none of the others has none in `rest`.
    """
    apart = [name for name, term in family.terms.items() if term.apart]
    rest = [name for name in family.terms if name not in apart] if apart else []
    channels = {name: terms[name] for name in family.terms if name not in rest}
    weights = {name: family.terms[name].weight for name in channels}
    if rest:
        columns = np.stack([terms[name] for name in rest])
        channels[REST] = np.where(np.isnan(columns).all(axis=0), np.nan, np.nansum(columns, axis=0))
        weights[REST] = sum(abs(family.terms[name].weight) for name in rest)
    return channels, weights


def _reached(channels: Mapping[str, Channel], terms: Mapping[str, Term], count: int) -> NDArray[np.bool_]:
    """Which samples reach every threshold that the terms declare; none where none is declared."""
    asked = [(channels[name], term.qualifies) for name, term in terms.items() if term.qualifies is not None]
    reached = np.full(count, bool(asked))
    for scores, threshold in asked:
        reached &= np.isnan(scores) | (scores >= threshold)  # a valid sample lacks only optional scores
    return reached


def _by_verifier(group: Group, count: int) -> dict[str, dict[int, list[Verdict]]]:
    found: dict[str, dict[int, list[Verdict]]] = {}
    for verdict in group.verdicts:
        if verdict.sample >= count:
            raise RecipeError(
                f"record {group.record.id}: {verdict.verifier} judged sample {verdict.sample}, but there are {count}"
            )
        found.setdefault(verdict.verifier, {}).setdefault(verdict.sample, []).append(verdict)
    return found


def _usable(verdict: Verdict) -> bool:
    """Status "ok" alone is not trusted: a foreign verifier may send a score outside the range that it declares."""
    return (
        verdict.status == "ok"
        and verdict.score is not None
        and math.isfinite(verdict.score)
        and verdict.low <= verdict.score <= verdict.high
    )


def _mean_scores(verdicts: Mapping[int, list[Verdict]], count: int) -> Channel:
    means = np.full(count, np.nan)
    for sample, given in verdicts.items():
        scores = [float(v.score) for v in given if v.score is not None and _usable(v)]
        if scores:
            means[sample] = math.fsum(scores) / len(scores)  # fsum: the order of verdicts leaves no trace
    return means


def _only_abstained(given: list[Verdict]) -> bool:
    return bool(given) and all(verdict.status == "abstain" for verdict in given)


def _problem(name: str, given: list[Verdict]) -> str:
    if not given:
        return f"{name}: no verdict"
    worst = given[0]
    if worst.status == "ok":
        return f"{name}: score {worst.score} is not in [{worst.low}, {worst.high}]"
    return f"{name}: {worst.status}" + (f" ({worst.error})" if worst.error else "")


def _flags(verdicts: Iterable[Verdict], label: str, count: int) -> Channel:
    """1 where any usable verdict has the label, 0 where none of at least one has it, NaN elsewhere."""
    flags = np.full(count, np.nan)
    for verdict in verdicts:
        if _usable(verdict):
            flags[verdict.sample] = np.fmax(flags[verdict.sample], float(verdict.label == label))
    return flags
