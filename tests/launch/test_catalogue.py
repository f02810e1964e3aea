"""The catalogue of events is what the code says: every event, with its fields, and the page made from it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from safeladder.launch.catalogue import EVENTS, Field, markdown, problems

ROOT = Path(__file__).parents[2]
PACKAGES = ("actors", "launch", "policies", "protocol", "verifiers")
SAYING = {"debug", "info", "warning", "error", "exception", "critical", "log", "_event"}
NAME = re.compile(r"[a-z]+\.[a-z_]+")
CHOSEN = {"process.started", "process.restarted"}  # in the supervisor, by the number of starts


def sayings() -> Iterator[tuple[str, str, set[str], bool]]:
    """Every event in the code: where, name, keywords, and whether further fields are spread into it."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not (
                    isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in SAYING
                ):
                    continue
                where = f"{path.relative_to(ROOT)}:{node.lineno}"
                for first in node.args[: 2 if node.func.attr == "log" else 1]:
                    if isinstance(first, ast.Constant) and NAME.fullmatch(str(first.value)):
                        names = {keyword.arg for keyword in node.keywords if keyword.arg}
                        yield where, str(first.value), names, any(k.arg is None for k in node.keywords)


SAYINGS = list(sayings())


def test_every_event_in_the_code_stands_in_the_catalogue_with_its_fields() -> None:
    assert len(SAYINGS) > 80
    wrong = []
    for where, name, keywords, spread in SAYINGS:
        if name not in EVENTS:
            wrong.append(f"{where}: {name} is not in launch/event_table.py")
            continue
        fields = EVENTS[name].fields
        if unknown := keywords - set(fields) - {"exc_info"}:
            wrong.append(f"{where}: {name} has no field {sorted(unknown)}")
        required = {field.name for field in fields.values() if not field.optional}
        if not spread and (missing := required - keywords):
            wrong.append(f"{where}: {name} lacks {sorted(missing)}")
    assert not wrong, "\n".join(wrong)


def test_nothing_stands_in_the_catalogue_that_nobody_says() -> None:
    assert set(EVENTS) - {name for _, name, _, _ in SAYINGS} - CHOSEN == set()


def test_the_page_is_what_the_catalogue_prints() -> None:
    page = (ROOT / "docs" / "events.md").read_text(encoding="utf-8")
    assert page == markdown(), "run: safeladder events --markdown > docs/events.md"


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("int", [0, -3], [1.0, True, "1", None]),
        ("float|null", [1, 0.5, None], [True, "x", []]),
        ("list[float|null]", [[], [1, None, 0.5]], [[True], ["x"], None]),
        ("bool", [True], [1]),
        ("map", [{}], [[]]),
        ("any", [object()], []),
    ],
)
def test_a_value_is_held_to_the_type_of_its_field(kind: str, good: list[object], bad: list[object]) -> None:
    field = Field.parse("x?", f"{kind} s: something")
    assert (field.type, field.unit, field.optional) == (kind, "s", True)
    assert all(field.fits(value) for value in good)
    assert not any(field.fits(value) for value in bad)


def test_a_line_of_another_form_is_told_of() -> None:
    head = {
        "ts": "t",
        "mono_ns": 1,
        "level": "info",
        "run": "r",
        "role": "hub",
        "replica": 0,
        "boot": "b",
        "pid": 1,
        "seq": 0,
    }
    good = {**head, "event": "weights.served", "endpoint": "tcp://x"}
    assert list(problems(good)) == []
    assert list(problems({**good, "endpoint": 3})) == ["weights.served.endpoint is 3, not str"]
    assert list(problems({**good, "more": 3})) == ["weights.served has an unknown field 'more'"]
    assert list(problems({**head, "event": "weights.served"})) == ["weights.served lacks endpoint"]
    assert list(problems({**head, "event": "no.such"})) == ["unknown event 'no.such'"]
