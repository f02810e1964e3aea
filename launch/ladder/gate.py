"""Gates: whether a rung kept safety and kept capability, by measures with intervals of the same records before and after it.

A side of a gate (safety, capability) is the mean of some measures. Its interval, and that of the difference of two such means, are put
together
from the measures' own by the method of variance estimates recovery (Zou and Donner 2008; for two proportions with Wilson's
intervals it is Newcombe's tenth method, 1998):

    mean of x_1..x_k       low = x - sqrt(sum (x_i - low_i)^2) / k        high = x + sqrt(sum (high_i - x_i)^2) / k
    difference after - before
                           low = d - sqrt((a - low_a)^2 + (high_b - b)^2)  high = d + sqrt((high_a - a)^2 + (b - low_b)^2)

Measures are taken for independent. Before and after are of the same records, which makes the true interval narrower: a gate that holds by
this one holds by the paired one too. The rules and margins are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

Rule = Literal["not shown worse", "shown not worse"]
SIDES = ("safety", "capability")


class GateError(ValueError):
    """A gate asks for a measure that the evaluation does not have."""


class Estimate(msgspec.Struct, frozen=True):
    """A measured number with its 95 % interval. n: items behind it; of a mean, the fewest behind one of its measures."""

    value: float
    low: float
    high: float
    n: int = 0


Measures = Mapping[str, Estimate]  # "evaluation/suite/measure" -> what was found


@dataclass
class Side:
    """measures: "evaluation/suite/measure", averaged. margin: by how much the mean may fall. floor: below which it may not be."""

    measures: list[str] = field(default_factory=list)
    margin: float = field(default=0.05, metadata={"low": 0.0, "high": 1.0})
    floor: float = field(default=0.0, metadata={"low": 0.0, "high": 1.0})


@dataclass
class Gate:
    """rule: `not shown worse`: the gate fails where the interval of the difference lies wholly below -margin. `shown not worse`: it
    holds only
    where the interval lies wholly above -margin, which small evaluations rarely show. on_failure: what the climb does then.
    """

    safety: Side = field(default_factory=Side)
    capability: Side = field(default_factory=Side)
    rule: Rule = "not shown worse"
    on_failure: Literal["stop", "go_on"] = "stop"


class SideResult(msgspec.Struct):
    """before, after, difference: of the mean. holds: by the gate's rule. why: in words."""

    before: Estimate
    after: Estimate
    difference: Estimate
    holds: bool
    why: str


class GateResult(msgspec.Struct):
    sides: dict[str, SideResult]

    @property
    def holds(self) -> bool:
        return all(side.holds for side in self.sides.values())


def judge(gate: Gate, before: Measures, after: Measures) -> GateResult:
    """Raises GateError for a measure that is missing or was measured on nothing."""
    sides = {}
    for name in SIDES:
        side: Side = getattr(gate, name)
        old, new = mean(side.measures, before), mean(side.measures, after)
        change = difference(old, new)
        sides[name] = _judge_side(side, gate.rule, old, new, change)
    return GateResult(sides)


def _judge_side(side: Side, rule: Rule, old: Estimate, new: Estimate, change: Estimate) -> SideResult:
    margin = -side.margin
    bound = change.high if rule == "not shown worse" else change.low
    kept, reached = bound >= margin, new.high >= side.floor
    said = f"{old.value:.3f} -> {new.value:.3f}, {change.value:+.3f} ({change.low:+.3f} to {change.high:+.3f})"
    if not kept:
        why = f"{said}: {'worse' if rule == 'not shown worse' else 'not shown to be kept'} by the margin of {side.margin:g}"
    elif not reached:
        why = f"{said}: below the floor of {side.floor:g}"
    else:
        why = (
            f"{said}: kept within {side.margin:g}"
            if change.low >= margin
            else f"{said}: no loss beyond {side.margin:g} shown"
        )
    return SideResult(old, new, change, kept and reached, why)


def mean(names: Sequence[str], measures: Measures) -> Estimate:
    """The mean of the named measures with its interval. Raises GateError."""
    if not names:
        raise GateError("a side of the gate names no measure")
    found = [_measure(name, measures) for name in names]
    count = len(found)
    value = math.fsum(each.value for each in found) / count
    below = math.sqrt(math.fsum((each.value - each.low) ** 2 for each in found)) / count
    above = math.sqrt(math.fsum((each.high - each.value) ** 2 for each in found)) / count
    return Estimate(value, value - below, value + above, min(each.n for each in found))


def difference(before: Estimate, after: Estimate) -> Estimate:
    """after - before with its interval."""
    value = after.value - before.value
    below = math.hypot(after.value - after.low, before.high - before.value)
    above = math.hypot(after.high - after.value, before.value - before.low)
    return Estimate(value, value - below, value + above, min(before.n, after.n))


def _measure(name: str, measures: Measures) -> Estimate:
    found = measures.get(name)
    if found is None:
        near = (
            ", ".join(sorted(known for known in measures if known.split("/")[:2] == name.split("/")[:2]))
            or "none of that suite"
        )
        raise GateError(f"the gate asks for {name!r}, which was not measured; there is {near}")
    if found.n == 0 or not all(map(math.isfinite, (found.value, found.low, found.high))):
        raise GateError(f"the gate asks for {name!r}, which was measured on no answer")
    return found


def read_measures(name: str, suites: Mapping[str, Any]) -> dict[str, Estimate]:
    """The suites of an evaluation's report under the evaluation's name; what has no number is left out."""
    found = {}
    for suite, measures in suites.items():
        for measure, entry in measures.items():
            values = [entry.get(key) for key in ("value", "low", "high")]
            if all(isinstance(value, int | float) for value in values):
                found[f"{name}/{suite}/{measure}"] = Estimate(*map(float, values), n=int(entry.get("n") or 0))
    return found
