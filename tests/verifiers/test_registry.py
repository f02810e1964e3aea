"""Verifiers by name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from safeladder.verifiers.registry import RULES, BadOptions, UnknownVerifier, create, find
from safeladder.verifiers.rules.boxed import BoxedRule


@pytest.mark.parametrize("name", list(RULES))
def test_a_built_in_verifier_is_called_what_the_registry_calls_it(name: str) -> None:
    assert find(name).name == name
    assert create(name).principle == "rules"


def test_a_verifier_of_ones_own_is_named_by_its_path() -> None:
    assert isinstance(create("safeladder.verifiers.rules.boxed:BoxedRule", {"last_number": False}), BoxedRule)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("boxd", "did you mean 'boxed'"),
        ("safeladder.verifiers.rules.boxed:BoxdRule", "did you mean 'BoxedRule'"),
        ("no_such_module:X", "cannot import"),
        ("safeladder.verifiers.contract:Item", "not a subclass"),
        ("safeladder.verifiers.contract:Verifier", "does not set name"),
    ],
)
def test_an_unknown_verifier_is_refused_with_a_hint(name: str, hint: str) -> None:
    with pytest.raises(UnknownVerifier, match=hint):
        create(name)


@pytest.mark.parametrize(
    ("name", "options", "hint"),
    [
        ("boxed", {"last_numbr": True}, "did you mean 'last_number'"),
        ("boxed", {"last_number": "yes"}, "bool"),
        ("format", {"anything": 1}, "unknown option 'anything'"),
        ("language", {"x": 1}, "known are none"),
        ("length", {"max_characters": 10, "buffer": 20}, "buffer"),
        ("repetition", {"threshold": 1.0}, "threshold"),
        ("match", {"mode": "fuzzy"}, "fuzzy"),
    ],
)
def test_bad_options_are_refused_with_a_hint(name: str, options: dict[str, object], hint: str) -> None:
    with pytest.raises(BadOptions, match=hint):
        create(name, options)


def test_a_process_of_rules_never_imports_torch() -> None:
    rules = list(RULES)
    code = (
        "import sys; from safeladder.verifiers.registry import create\n"
        f"[create(name) for name in {rules}]\n"
        "assert 'torch' not in sys.modules and 'sympy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
