"""Strategies by name: ours, and one's own as `my_package.my_module:MyStrategy`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

import msgspec

from safeladder.policies.search.base import Strategy
from safeladder.protocol.naming import nearest

STRATEGIES: Final = {
    "best_of_n": "safeladder.policies.search.best_of_n:BestOfN",
    "greedy": "safeladder.policies.search.greedy:Greedy",
    "beam": "safeladder.policies.search.beam:Beam",
    "dvts": "safeladder.policies.search.dvts:Dvts",
    "lookahead": "safeladder.policies.search.lookahead:Lookahead",
    "mcts": "safeladder.policies.search.mcts:Mcts",
    "intervene": "safeladder.policies.search.intervene:Intervene",
}
DELIBERATE: Final = "deliberate"  # no step-level strategy, but chosen like one: see deliberate/answers.py


class UnknownStrategy(LookupError):
    """No strategy of that name, or an option that it does not have; says what there is."""


def create(name: str, options: Mapping[str, Any] | None = None) -> Strategy:
    """The strategy `name` with `options`, checked strictly. Raises UnknownStrategy naming the nearest known one."""
    module_name, colon, class_name = STRATEGIES.get(name, name).partition(":")
    if not colon:
        known = (*STRATEGIES, DELIBERATE)
        raise UnknownStrategy(f"no strategy {name!r}{nearest(name, known)}")
    try:
        kind = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise UnknownStrategy(f"strategy {name!r}: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, Strategy)):
        raise UnknownStrategy(f"strategy {name!r}: {class_name!r} is no Strategy")
    options_known = {field.name for field in fields(kind.Options)}
    for key in options or {}:
        if key not in options_known:
            raise UnknownStrategy(f"strategy {name!r}: unknown option {key!r}{nearest(key, options_known)}")
    try:
        return kind(msgspec.convert(dict(options or {}), kind.Options))
    except msgspec.ValidationError as error:
        raise UnknownStrategy(f"strategy {name!r}: {error}") from None
