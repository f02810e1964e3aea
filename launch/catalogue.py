"""The catalogue of events: what each `noun.verb` in a run's logs means, which fields it has, who says it. `EVENTS` is the table.

It is enforced: a test scans the code for events that are not in it, and another holds the logs of a real run to it. `docs/events.md`
is this table printed (`safeladder events --markdown`). Actors of users may say events of their own; readers pass over them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from safeladder.launch import event_table

HEADER: Final = {
    "ts": "str: when, UTC, milliseconds",
    "mono_ns": "int ns: the same on this machine's monotonic clock",
    "level": "str: debug, info, warning or error",
    "event": "str: the event's name",
    "run": "str: the run's name",
    "role": "str: the pool, or `hub`, `launcher`, `POOL-rank`",
    "replica": "int: which process of the pool",
    "boot": "str: new for each process start",
    "pid": "int: of the process",
    "seq": "int: number of the line; a gap proves a lost one",
    "dropped_lines?": "int: lines lost before this one",
    "exception?": "str: a traceback",
    "exc_info?": "any: what a library gave as such",
    "logger?": "str: the library that said it",
}

_FIELD: Final = re.compile(r"(?P<type>[a-z|\[\]]+)(?: (?P<unit>[^:]+))?: (?P<meaning>.+)", re.DOTALL)
_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "bool": (bool,),
    "map": (dict,),
    "list": (list,),
    "null": (type(None),),
}


@dataclass(frozen=True)
class Field:
    """type: such as `int`, `float|null`, `list[str]`, `map`, `any`. optional: may be missing."""

    name: str
    type: str
    unit: str
    meaning: str
    optional: bool

    @classmethod
    def parse(cls, key: str, text: str) -> Field:
        """`name?` and `TYPE UNIT: meaning`, unit and question mark where there are any. Raises ValueError for another form."""
        match = _FIELD.fullmatch(text)
        if match is None:
            raise ValueError(f"field {key!r}: {text!r} is not of the form `TYPE UNIT: meaning`")
        unit = match["unit"] or ""
        return cls(key.rstrip("?"), match["type"], unit, match["meaning"], key.endswith("?"))

    def fits(self, value: Any) -> bool:
        return any(_is(value, kind) for kind in _alternatives(self.type))


@dataclass(frozen=True)
class Event:
    """open: has fields beside the named ones, whose names depend on what it tells of."""

    name: str
    said_by: str
    meaning: str
    fields: dict[str, Field]
    open: bool = False


def _alternatives(kind: str) -> list[str]:
    """Splits at the bars that are not within brackets."""
    return re.split(r"\|(?![^\[]*\])", kind)


def _is(value: Any, kind: str) -> bool:
    if kind == "any":
        return True
    if kind.startswith("list["):
        return isinstance(value, list) and all(any(_is(v, k) for k in _alternatives(kind[5:-1])) for v in value)
    if isinstance(value, bool) and kind != "bool":
        return False
    return isinstance(value, _TYPES[kind])


def _build(rows: Mapping[str, tuple[str, str, Mapping[str, str]]]) -> dict[str, Event]:
    events = {}
    for name, (said_by, meaning, given) in rows.items():
        fields = [Field.parse(key, text) for key, text in given.items() if key != event_table.MORE]
        events[name] = Event(name, said_by, meaning, {f.name: f for f in fields}, event_table.MORE in given)
    return events


EVENTS: Final = _build(event_table.TABLE)
HEAD: Final = {field.name: field for field in (Field.parse(key, text) for key, text in HEADER.items())}


def problems(line: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a line of a log, by the catalogue. Nothing where it is as it should be."""
    event = EVENTS.get(str(line.get("event")))
    if event is None:
        yield f"unknown event {line.get('event')!r}"
        return
    known = {**HEAD, **event.fields}
    for name, field in known.items():
        if name not in line:
            if not field.optional:
                yield f"{event.name} lacks {name}"
        elif not field.fits(line[name]):
            yield f"{event.name}.{name} is {line[name]!r}, not {field.type}"
    if not event.open:
        yield from (f"{event.name} has an unknown field {name!r}" for name in line if name not in known)


def markdown() -> str:
    """The page `docs/events.md`."""
    parts = [_INTRODUCTION, "", "## Every line", "", *_table(HEAD.values())]
    for noun, events in _by_noun().items():
        parts += ["", f"## {noun}"]
        for event in events:
            parts += ["", f"### `{event.name}`", "", f"{event.meaning} Said by: {event.said_by}."]
            if event.fields:
                parts += ["", *_table(event.fields.values())]
            if event.open:
                parts += ["", "Further fields depend on what it tells of."]
    return "\n".join(parts) + "\n"


_INTRODUCTION: Final = """# Events

What the processes of a run write to `RUN/logs/ROLE-I.jsonl`, one JSON object a line. Made by `safeladder events --markdown`
from `launch/event_table.py`; do not edit it here. A field with `?` may be missing."""


def _by_noun() -> dict[str, list[Event]]:
    nouns: dict[str, list[Event]] = {}
    for name in sorted(EVENTS):
        nouns.setdefault(name.partition(".")[0], []).append(EVENTS[name])
    return nouns


def _table(fields: Any) -> list[str]:
    rows = ["| field | type | unit | meaning |", "|---|---|---|---|"]
    for field in fields:
        shown = field.type.replace("|", " or ")
        rows.append(f"| `{field.name}`{'?' if field.optional else ''} | {shown} | {field.unit} | {field.meaning} |")
    return rows
