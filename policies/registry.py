"""From names in a configuration to rules: how every registry of `policies/` is read.

A rule is one function whose options are keyword-only parameters with defaults; the default is the vetted value. In a
configuration it stands as `name: {option: value}`, and a name of the form `module:function` is a rule of the user's own,
with the same parameters as those of the registry. A misspelt name or option, or a value of another type, is refused.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from safeladder.protocol.naming import nearest

Rules = Mapping[str, Mapping[str, Any]]


class RuleError(ValueError):
    """A rule that does not exist, or options that it does not take."""


def bind(kind: str, registry: Mapping[str, Callable[..., Any]], name: str, options: Mapping[str, Any]) -> Any:
    """The rule `name` of `registry` with its options set; `kind` says in errors what was looked for.

    The result is a `functools.partial` that takes the rule's positional parameters; `rule_of` finds the function behind it.
    Raises RuleError.
    """
    rule = _own(kind, name) if ":" in name else registry.get(name)
    if rule is None:
        raise RuleError(f"unknown {kind} {name!r}{nearest(name, registry)}")
    types = typing.get_type_hints(rule)
    known = [p.name for p in inspect.signature(rule).parameters.values() if p.kind is p.KEYWORD_ONLY]
    chosen = {}
    for option, value in options.items():
        if option not in known:
            raise RuleError(f"{kind} {name!r} has no option {option!r}{nearest(option, known)}")
        try:
            chosen[option] = msgspec.convert(value, types.get(option, Any))
        except msgspec.ValidationError as error:
            raise RuleError(f"{kind} {name!r}, option {option!r}: {error}") from None
    return functools.partial(rule, **chosen)


def bind_one(kind: str, registry: Mapping[str, Callable[..., Any]], rules: Rules, default: str) -> Any:
    """The one rule that `rules` names, or `default` when it names none. Raises RuleError for several."""
    if len(rules) > 1:
        raise RuleError(f"there can be one {kind} only, not {', '.join(rules)}")
    name, options = next(iter(rules.items()), (default, {}))
    return bind(kind, registry, name, options)


def bind_all(kind: str, registry: Mapping[str, Callable[..., Any]], rules: Rules) -> dict[str, Any]:
    """Every rule that `rules` names, in the order given."""
    return {name: bind(kind, registry, name, options) for name, options in rules.items()}


def rule_of(bound: Any) -> Callable[..., Any]:
    """The function behind a bound rule, with the attributes that it carries."""
    return typing.cast(Callable[..., Any], bound.func if isinstance(bound, functools.partial) else bound)


def _own(kind: str, name: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    try:
        rule = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise RuleError(f"{kind} {name!r} cannot be imported: {error}") from error
    if not callable(rule):
        raise RuleError(f"{kind} {name!r} is a {type(rule).__name__}, not a function")
    return typing.cast(Callable[..., Any], rule)
