"""Edited chains as training data: task records, a line each, whose `extra.segments` say who wrote what. **Ours.**

    {"id": "...", "label": "edited", "prompt": "...", "language": "en", "extra": {
       "prefix": "<think>", "segments": [{"text": "...", "own": true}, {"text": "...", "own": false}], "ended": true,
       "accepted": true, "edits": [...]}}

`own` is false for what a person or a strategy wrote: the model reads it, and it stands in no loss. `actors/demonstrator.py` makes training
groups of such records.
"""

from __future__ import annotations

import dataclasses
from itertools import groupby
from typing import Any, Final

import msgspec

from safeladder.policies.search.edits.session import Session
from safeladder.protocol import messages as m

LABEL: Final = "edited"


def record(session: Session, system: str | None, prefix: str, language: str) -> m.Record:
    """The chain as it stands. `system`, `prefix`: what the policy was shown before it."""
    segments = [
        {"text": "".join(step.text for step in steps), "own": own}
        for own, steps in groupby(session.steps, lambda step: step.author == "policy")
    ]
    extra: dict[str, Any] = {
        "prefix": prefix,
        "segments": segments,
        "ended": session.answer is not None,
        "accepted": session.accepted,
        "edits": [dataclasses.asdict(edit) for edit in session.edits],
    }
    if system is not None:
        extra["system"] = system
    if session.question.turns:
        extra["turns"] = msgspec.to_builtins(session.question.turns)
    return m.Record(
        id=f"{session.id}/{session.revision}",
        label=LABEL,
        prompt=session.question.text,
        language=language,
        source="session",
        extra=extra,
    )


def lines(records: list[m.Record]) -> bytes:
    """As a task file."""
    return b"".join(msgspec.json.encode(each) + b"\n" for each in records)
