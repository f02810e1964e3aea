"""A teacher: whoever `safeladder evaluate` can ask, on an engine here or behind an OpenAI-compatible address, asked for thoughts and
answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import msgspec

from safeladder.launch.demonstrations.gates import Demonstration
from safeladder.launch.evaluation.answering import Task, respondent
from safeladder.launch.evaluation.run import answers
from safeladder.launch.evaluation.settings import Settings
from safeladder.launch.evaluation.store import ResponseFile, digest_of
from safeladder.protocol.messages import Record
from safeladder.verifiers.contract import CLOSE, OPEN

SYSTEM = (
    "Think before you answer, inside <think> and </think>: say what is asked, weigh risks and doubts, and check what you conclude. "
    "After </think> give the final answer in the language of the question."
)


@dataclass
class Teacher:
    """ask: as of `safeladder evaluate`; policy, endpoint, engine, answering, system, prefix and shots count here. system None: `SYSTEM`."""

    ask: Settings = field(default_factory=Settings)


def taught(records: Sequence[Record], teacher: Teacher, output: Path, stream: TextIO) -> Iterator[Demonstration]:
    """A demonstration an answer. Answers are kept in OUTPUT.answers.jsonl, so that what was asked once is not asked again.

    A record that the teacher failed on is left out and counted in the progress; one that was cut at the limit too.
    """
    ask = teacher.ask
    ask.system = SYSTEM if ask.system is None else ask.system
    asked = [Task(record, sample) for record in records for sample in range(ask.answering.samples)]
    answering = respondent(ask)
    prefix = ask.prefix or ""
    output.parent.mkdir(parents=True, exist_ok=True)
    with ResponseFile(output.with_suffix(".answers.jsonl"), digest_of(answering.identity())) as known:
        found = asyncio.run(answers(answering, asked, known, stream))
    for task in asked:
        response = found.get(task.item)
        if response is None or response.error is not None or response.finish != "stop":
            continue
        text = response.text if response.text.lstrip().startswith((OPEN, prefix or OPEN)) else prefix + response.text
        name = task.record.id if ask.answering.samples == 1 else f"{task.record.id}#{task.sample}"
        yield Demonstration(msgspec.structs.replace(task.record, id=name), _closed(text))


def _closed(text: str) -> str:
    """A model that opens its thought in the chat template gives text without the tag."""
    return text if OPEN in text or CLOSE not in text else OPEN + text
