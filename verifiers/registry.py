"""Verifiers by name: the built-in ones, and a user's own as `my_package.my_module:MyVerifier`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import msgspec

from safeladder.protocol.naming import nearest
from safeladder.verifiers.contract import Verifier
from safeladder.verifiers.judges.models import known

# Named by path, so that asking for one rule imports that rule alone (and no torch).
RULES: dict[str, str] = {
    "format": "safeladder.verifiers.rules.format:FormatRule",
    "language": "safeladder.verifiers.rules.language:LanguageRule",
    "length": "safeladder.verifiers.rules.length:LengthRule",
    "repetition": "safeladder.verifiers.rules.repetition:RepetitionRule",
    "boxed": "safeladder.verifiers.rules.boxed:BoxedRule",
    "choice": "safeladder.verifiers.rules.choice:ChoiceRule",
    "boxed_format": "safeladder.verifiers.rules.boxed_format:BoxedFormatRule",
    "match": "safeladder.verifiers.rules.match:MatchRule",
    "instruction": "safeladder.verifiers.rules.instruction:InstructionRule",
    "deliberation": "safeladder.verifiers.rules.deliberation:DeliberationRule",
    "reliability": "safeladder.verifiers.rules.deliberation:ReliabilityRule",
    "visual_focus": "safeladder.verifiers.rules.visual_focus:VisualFocusRule",
}
# Small trained heads that come with the package.
HEADS: dict[str, str] = {
    "safety": "safeladder.verifiers.safety:SafetyVerifier",
    "value": "safeladder.verifiers.value:ValueVerifier",
    "grounded": "safeladder.verifiers.grounded:GroundedVerifier",
}
# What `safeladder train-verifier` makes; each needs the folder that it wrote.
TRAINED: dict[str, str] = {
    "cost": "safeladder.verifiers.cost:CostVerifier",
    "value_model": "safeladder.verifiers.value_model:ValueModelVerifier",
}
# Generative judges. Each needs a model, or the address of one.
JUDGES: dict[str, str] = {
    "safety_judge": "safeladder.verifiers.judges.safety:SafetyJudge",
    "value_judge": "safeladder.verifiers.judges.value:ValueJudge",
    "knowledge_judge": "safeladder.verifiers.judges.knowledge:KnowledgeJudge",
    "normal_judge": "safeladder.verifiers.judges.normal:NormalJudge",
    "general_judge": "safeladder.verifiers.judges.general:GeneralJudge",
    "guard": "safeladder.verifiers.judges.guards:Guard",
}


# A judge by a public benchmark's labels, for evaluation; its option `rubric` names which.
RUBRIC: dict[str, str] = {"rubric": "safeladder.verifiers.judges.rubric:Rubric"}


BUILT_IN: dict[str, str] = {**RULES, **HEADS, **TRAINED, **JUDGES, **RUBRIC}


class UnknownVerifier(LookupError):
    """No verifier of that name, or the path does not lead to one."""


class BadOptions(ValueError):
    """A verifier's options hold an unknown name or a value of the wrong type."""


def create(name: str, options: Mapping[str, Any] | None = None) -> Verifier:
    """The verifier called `name`, with its options checked strictly. The option `kind` names the verifier where `name` is another,
    such as that of a second one of its kind.

    Raises UnknownVerifier or BadOptions, each naming the nearest known name.
    """
    given = dict(options or {})
    name = given.pop("kind", name)
    kind = find(name)
    if (released := known(name)) and "remote" not in given:
        given = released[1] | given
    return kind(_options(name, kind, given))


def signature(name: str, options: Mapping[str, Any] | None = None) -> str:
    """What the verdicts of the verifier that `create` would make are signed with. Raises UnknownVerifier."""
    given = dict(options or {})
    kind = find(given.get("kind", name))
    return kind.signature(given.get("name"))


def find(name: str) -> type[Verifier]:
    """The class behind a built-in name, a released model's, or a `module:Class` path. Raises UnknownVerifier."""
    released = known(name)
    path = BUILT_IN.get(released[0] if released else name, name)
    module_name, colon, class_name = path.partition(":")
    if not colon:
        raise UnknownVerifier(
            f"no verifier {name!r}{nearest(name, BUILT_IN)}; "
            "or a path of your own such as my_package.my_module:MyVerifier"
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UnknownVerifier(f"verifier {name!r}: cannot import {module_name!r}: {error}") from error
    kind = getattr(module, class_name, None)
    if kind is None:
        raise UnknownVerifier(
            f"verifier {name!r}: {module_name!r} holds no {class_name!r}{nearest(class_name, vars(module))}"
        )
    if not (isinstance(kind, type) and issubclass(kind, Verifier)):
        raise UnknownVerifier(
            f"verifier {name!r}: {class_name!r} is not a subclass of safeladder.verifiers.contract.Verifier"
        )
    if missing := [
        field for field in ("name", "version", "principle") if not isinstance(getattr(kind, field, None), str)
    ]:
        raise UnknownVerifier(f"verifier {name!r}: {class_name!r} does not set {', '.join(missing)}")
    return kind


def _options(name: str, kind: type[Verifier], given: dict[str, Any]) -> Any:
    known = {field.name for field in fields(kind.Options)}
    for key in given:
        if key not in known:
            raise BadOptions(f"verifier {name!r}: unknown option {key!r}{nearest(key, known)}")
    try:
        return msgspec.convert(given, kind.Options)
    except (msgspec.ValidationError, ValueError) as error:  # ValueError: the options' own __post_init__
        raise BadOptions(f"verifier {name!r}: {error}") from None
