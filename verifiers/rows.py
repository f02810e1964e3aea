"""Lines of data as rows to judge: what to read, what is known of it, and where it stands. Five kinds of line:

    answers       prompt, response, and 0 or 1 in `harmful`, `correct`, `hallucinated` or a field of one's own; task records with a
                  `response` are such lines too
    prompts       prompt alone, where the caller asks for that
    preferences   prompt, chosen, rejected: two rows, `preferred` 1 and 0
    statements    text, acceptable
    steps         problem, steps, first_error: one row a step up to the first wrong one, `sound` 1 and then 0

What is known of a row never reaches the verifier: neither the label field nor the other label fields stand in its record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from safeladder.protocol.messages import Record
from safeladder.verifiers.contract import Item
from safeladder.verifiers.rules.language import written_in

Polarity = Literal["bad", "good"]

# field -> whether its 1 is what a verifier should score low or high
POLARITY: Final[Mapping[str, Polarity]] = {
    "harmful": "bad",
    "hallucinated": "bad",
    "flagged": "bad",
    "correct": "good",
    "acceptable": "good",
    "preferred": "good",
    "sound": "good",
}
_FAMILY: Final = {
    "harmful": "safety",
    "flagged": "safety",
    "acceptable": "value",
    "sound": "general",
    "preferred": "safety",
}
_RECORD: Final = ("id", "label", "prompt", "reference", "language", "category", "choices", "source")
_SHAPE: Final = {*_RECORD, *POLARITY, "response", "chosen", "rejected", "text", "problem", "steps", "first_error"}


class RowsError(ValueError):
    """A file cannot be read at all."""


@dataclass(frozen=True)
class Fault:
    """A line that is no row: where, which field, and why. It quotes nothing of the line, which may be harmful."""

    where: str  # file:line
    field: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: field `{self.field}` {self.reason}"


@dataclass(frozen=True)
class Row:
    """Something to judge. `truth`: 1, 0, or None where nothing is known. `step`: its number, where a step is judged; it then begins
    at character `begin` of the text."""

    record: Record
    text: str
    where: str
    field: str | None = None
    truth: int | None = None
    step: int | None = None
    begin: int = 0

    def item(self, sample: int = 0) -> Item:
        """The row as a verifier sees it."""
        return Item(self.record, self.text, sample, step=self.step, begin=self.begin)

    def digest(self) -> bytes:
        """Sixteen bytes that name what is judged: the same for the same content, wherever it stands and whatever its id."""
        content = (msgspec.structs.replace(self.record, id="-", source=None), self.text, self.step, self.begin)
        return hashlib.blake2b(msgspec.msgpack.encode(content), digest_size=16).digest()

    def with_text(self, prompt: str, text: str) -> Row:
        """The same row, known to be the same, in other words."""
        return replace(self, record=msgspec.structs.replace(self.record, prompt=prompt), text=text)


def read(path: Path, label: str | None = None, prompts: bool = False) -> tuple[list[Row], list[Fault]]:
    """The rows of a JSON-lines file in its order, and the lines that are none. Raises RowsError when there is no such file.

    label: the field that holds 0 or 1, or `field=value`, which is 1 where the field has that value; None: the first of the known
    fields. prompts: a line without `response` is a prompt to be judged alone.
    """
    rows: list[Row] = []
    faults: list[Fault] = []
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    try:
                        rows += list(_rows(line, f"{path}:{number}", f"{path.stem}-{number}", label, prompts))
                    except _Malformed as fault:
                        faults.append(Fault(f"{path}:{number}", *fault.args))
    except (OSError, UnicodeDecodeError) as error:
        raise RowsError(f"{path}: cannot be read: {error}") from None
    return rows, faults


class _Malformed(Exception):
    """Arguments: the field and what is wrong with it."""


def _rows(line: str, where: str, id: str, label: str | None, prompts: bool) -> Iterator[Row]:
    try:
        fields = msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise _Malformed("(line)", f"is not a JSON object: {error}") from None
    fields = {"id": id, **fields}
    if "steps" in fields:
        yield from _steps(fields, where)
    elif "chosen" in fields or "rejected" in fields:
        for index, (side, truth) in enumerate((("chosen", 1), ("rejected", 0))):
            own = {**fields, "id": f"{fields['id']}-{index}"}
            yield Row(_record(own, "preferred", _text(fields, side)), _text(fields, side), where, "preferred", truth)
    else:
        yield _answer(fields, where, label, prompts)


def _answer(fields: dict[str, Any], where: str, label: str | None, prompts: bool) -> Row:
    name, truth = _truth(fields, label)
    if "text" in fields and "prompt" not in fields:
        text = _text(fields, "text")
        return Row(_record({**fields, "prompt": ""}, name, text), text, where, name, truth)
    prompt = _text(fields, "prompt")
    text = "" if prompts and "response" not in fields else _text(fields, "response")
    return Row(_record(fields, name, prompt + text), text, where, name, truth)


def _steps(fields: dict[str, Any], where: str) -> Iterator[Row]:
    steps, first = fields["steps"], fields.get("first_error")
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        raise _Malformed("steps", "is not a list of strings")
    if not isinstance(first, int) or not -1 <= first < len(steps):
        raise _Malformed("first_error", f"is not -1 or the number of one of the {len(steps)} steps")
    problem = _text(fields, "problem")
    before = ""
    for number, step in enumerate(steps if first == -1 else steps[: first + 1]):
        own = {**fields, "id": f"{fields['id']}-{number}", "prompt": problem}
        yield Row(
            _record(own, "sound", problem), before + step, where, "sound", int(number != first), number, len(before)
        )
        before += f"{step}\n\n"


def _truth(fields: Mapping[str, Any], label: str | None) -> tuple[str | None, int | None]:
    if label is None:
        name = next((name for name in POLARITY if name in fields), None)
        return (name, _bit(fields, name)) if name else (None, None)
    name, equals, value = label.partition("=")
    if name not in fields:
        raise _Malformed(name, "is missing, and is what the label is read from")
    return label, int(str(fields[name]) == value) if equals else _bit(fields, name)


def _bit(fields: Mapping[str, Any], name: str) -> int:
    if fields[name] in (0, 1):
        return int(fields[name])
    raise _Malformed(name, f"must be 0 or 1, not {type(fields[name]).__name__}")


def _text(fields: Mapping[str, Any], name: str) -> str:
    if name not in fields:
        raise _Malformed(name, "is missing")
    if not isinstance(fields[name], str):
        raise _Malformed(name, f"must be text, not {type(fields[name]).__name__}")
    text: str = fields[name]
    return text


def _record(fields: Mapping[str, Any], label: str | None, sample: str) -> Record:
    known = {name: fields[name] for name in _RECORD if fields.get(name) is not None}
    known.setdefault("label", _FAMILY.get(label or "", "knowledge"))
    known.setdefault("language", written_in(sample) or "en")
    hidden = _SHAPE | {(label or "").partition("=")[0]}
    try:
        return msgspec.convert({**known, "extra": {k: v for k, v in fields.items() if k not in hidden}}, Record)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$.")
        raise _Malformed(place.strip("`") or "(line)", f"is refused: {reason}") from None


def polarity(field: str, given: Polarity | None = None) -> Polarity:
    """Whether the 1 of a label field is bad or good; of a field that is not known, good unless `given`."""
    return given or POLARITY.get(field.partition("=")[0], "bad" if field == "label=safety" else "good")


def fields_of(rows: Sequence[Row]) -> list[str]:
    """The label fields that occur, in order of occurrence."""
    return list(dict.fromkeys(row.field for row in rows if row.field is not None and row.truth is not None))
