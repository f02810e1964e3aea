"""Instruction: the answer keeps the constraints that its record carries, of the kinds of IFEval (arXiv 2311.07911).

A record carries them in `extra`, as `constraints: [{kind: "keywords:existence", keywords: [...]}, ...]`, or as the public IFEval
file does, `instruction_id_list` and `kwargs` in step. The kinds stand in `constraints_of_words.py` and `constraints_of_form.py`.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal

import msgspec

from safeladder.protocol.messages import Record, Verdict
from safeladder.protocol.naming import nearest
from safeladder.verifiers.contract import Item, Verifier
from safeladder.verifiers.rules import constraints_of_form, constraints_of_words
from safeladder.verifiers.rules.constraints_of_words import Check
from safeladder.verifiers.rules.tongues import known

KINDS: Final[dict[str, Check]] = {**constraints_of_words.KINDS, **constraints_of_form.KINDS}


class ConstraintError(ValueError):
    """A constraint that cannot be read: the message names it, and what would be right."""


@dataclass(frozen=True)
class Constraint:
    kind: str
    arguments: Mapping[str, Any]

    def kept(self, text: str, loose: bool = False) -> bool:
        """Whether the text keeps it. Loose: whether one of IFEval's eight readings does, see `readings`."""
        return any(KINDS[self.kind](reading, **self.arguments) for reading in (readings(text) if loose else [text]))


class InstructionRule(Verifier):
    """1 when the answer keeps every constraint of its record, else 0; with `score: share` the share that it keeps.

    The label names the kinds that are broken. An empty answer keeps nothing. Abstains on records without constraints. A
    constraint that cannot be read is an error that names it, and never a score: what it asks for is unknown.
    """

    name = "instruction"
    version = "1"
    principle = "rules"

    @dataclass(frozen=True)
    class Options:
        mode: Literal["strict", "loose"] = "strict"
        score: Literal["all", "share"] = "all"

    def judge_one(self, item: Item) -> Verdict:
        constraints = constraints_of(item.record)  # its ConstraintError is the verdict's error
        if not constraints:
            return self.abstain(item, "the record has no constraints")
        loose = self.options.mode == "loose"
        broken = [c.kind for c in constraints if not item.answer or not c.kept(item.answer, loose)]
        share = 1.0 - len(broken) / len(constraints)
        score = share if self.options.score == "share" else float(not broken)
        return self.ok(item, score, "broken: " + ", ".join(dict.fromkeys(broken)) if broken else "all kept")


def readings(text: str) -> Iterator[str]:
    """IFEval's loose readings: without the first line, the last, both; each as it is and without asterisks; none empty."""
    lines = text.split("\n")
    for kept in (lines, lines[1:], lines[:-1], lines[1:-1]):
        reading = "\n".join(kept).strip()
        for variant in (reading, reading.replace("*", "")):
            if variant:
                yield variant


def constraints_of(record: Record) -> list[Constraint]:
    """The record's constraints, both spellings together, checked. Raises ConstraintError."""
    entries: list[tuple[str, Any, Any]] = []
    for index, entry in enumerate(_list(record, "constraints")):
        if not isinstance(entry, Mapping):
            raise ConstraintError(f"constraints[{index}] must be a map with a kind, not {entry!r}")
        arguments = {name: value for name, value in entry.items() if name != "kind"}
        entries.append((f"constraints[{index}]", entry.get("kind"), arguments))
    kinds, arguments_of = _list(record, "instruction_id_list"), _list(record, "kwargs")
    if len(arguments_of) not in (0, len(kinds)):
        raise ConstraintError(f"kwargs has {len(arguments_of)} entries, instruction_id_list {len(kinds)}")
    for index, kind in enumerate(kinds):
        entries.append((f"instruction_id_list[{index}]", kind, arguments_of[index] if arguments_of else {}))
    return [_read(*entry) for entry in entries]


def _list(record: Record, name: str) -> list[Any]:
    found = record.extra.get(name)
    if found is None:
        return []
    if not isinstance(found, list):
        raise ConstraintError(f"{name} must be a list, not {found!r}")
    return found


def _read(place: str, kind: Any, given: Any) -> Constraint:
    if not isinstance(kind, str) or kind not in KINDS:
        raise ConstraintError(f"{place}: no constraint of kind {kind!r}{nearest(str(kind), KINDS)}")
    place = f"{place} ({kind})"
    if not isinstance(given, Mapping | None):
        raise ConstraintError(f"{place}: arguments must be a map, not {given!r}")
    types, needed = _signature(kind)
    arguments = {}
    for name, value in (given or {}).items():
        if value is None:  # the public file's tables name every argument of every kind
            continue
        if name not in types:
            raise ConstraintError(f"{place}: unknown argument {name!r}; it takes {', '.join(types) or 'none'}")
        try:
            arguments[name] = msgspec.convert(_whole(value), types[name])
        except msgspec.ValidationError as error:
            raise ConstraintError(f"{place}: {name}: {error}") from None
    if missing := sorted(needed - set(arguments)):
        raise ConstraintError(f"{place}: needs {', '.join(missing)}")
    if kind == "language:response_language" and not known(arguments["language"]):
        raise ConstraintError(f"{place}: the language {arguments['language']!r} cannot be told by this rule")
    return Constraint(kind, arguments)


def _whole(value: Any) -> Any:
    """3.0 as 3: tables with gaps hold their whole numbers as floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


@cache
def _signature(kind: str) -> tuple[dict[str, Any], frozenset[str]]:
    """The types of a kind's arguments, and the names of those that must be given."""
    parameters = list(inspect.signature(KINDS[kind]).parameters.values())[1:]
    hints = typing.get_type_hints(KINDS[kind], include_extras=True)
    needed = frozenset(p.name for p in parameters if p.default is inspect.Parameter.empty)
    return {p.name: hints[p.name] for p in parameters}, needed
