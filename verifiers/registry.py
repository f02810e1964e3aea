"""Verifiers by name: the built-in ones, and a user's own as `my_package.my_module:MyVerifier`."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import msgspec

from safeladder.verifiers.contract import Verifier

# Named by path, so that asking for one rule imports that rule alone (and no torch).
BUILT_IN: dict[str, str] = {
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
    "safety": "safeladder.verifiers.safety:SafetyVerifier",
}


class UnknownVerifier(LookupError):
    """No verifier of that name, or the path does not lead to one."""


class BadOptions(ValueError):
    """A verifier's options hold an unknown name or a value of the wrong type."""


def create(name: str, options: Mapping[str, Any] | None = None) -> Verifier:
    """The verifier called `name`, with its options checked strictly.

    Raises UnknownVerifier or BadOptions, each naming the nearest known name.
    """
    kind = find(name)
    return kind(_options(name, kind, dict(options or {})))


def find(name: str) -> type[Verifier]:
    """The class behind a built-in name or a `module:Class` path. Raises UnknownVerifier."""
    path = BUILT_IN.get(name, name)
    module_name, colon, class_name = path.partition(":")
    if not colon:
        raise UnknownVerifier(
            f"no verifier {name!r}{_nearest(name, BUILT_IN)}; known: {', '.join(sorted(BUILT_IN))}, "
            "or a path of your own such as my_package.my_module:MyVerifier"
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UnknownVerifier(f"verifier {name!r}: cannot import {module_name!r}: {error}") from error
    kind = getattr(module, class_name, None)
    if kind is None:
        raise UnknownVerifier(
            f"verifier {name!r}: {module_name!r} holds no {class_name!r}{_nearest(class_name, vars(module))}"
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
            options = ", ".join(sorted(known)) or "none"
            raise BadOptions(f"verifier {name!r}: unknown option {key!r}{_nearest(key, known)}; options: {options}")
    try:
        return msgspec.convert(given, kind.Options)
    except (msgspec.ValidationError, ValueError) as error:  # ValueError: the options' own __post_init__
        raise BadOptions(f"verifier {name!r}: {error}") from None


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""
