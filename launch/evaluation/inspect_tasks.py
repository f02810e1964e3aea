"""The suites as tasks of `inspect_ai`: the same records, verifiers and scoring rules, under its models, logs and viewer.

    inspect eval safeladder/suite -T name=safety -T records=mine.jsonl --model openai/gpt-4.1

Needs the extra `inspect`. A sample's score is a map of the suite's shares for this one answer; inspect takes their means. Measures that are
no mean over answers (calibration, pairs, the worst category) are left to `safeladder evaluate`. A verifier that gives no score makes
the sample an error of inspect's, never a score.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    ContentImage,
    ContentText,
)
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import TaskState, generate

from safeladder.launch.evaluation.answering import Prompting, question
from safeladder.launch.evaluation.judging import Asked, Judges
from safeladder.launch.evaluation.run import works_of
from safeladder.launch.evaluation.settings import load
from safeladder.launch.evaluation.statistics import SHARE
from safeladder.launch.evaluation.store import Response
from safeladder.launch.evaluation.suite import Outcome, Suite
from safeladder.protocol.images import images
from safeladder.protocol.messages import Record
from safeladder.verifiers.judging import VerdictFile
from safeladder.verifiers.rows import Row


class NoScore(RuntimeError):
    """A verifier has failed, or abstained, after all tries."""


@task
def suite(name: str, settings: str = "{}", **more: Any) -> Task:
    """One suite. settings: further `key=value`s of `safeladder evaluate`, with semicolons between; `records` and the like may be
    given as arguments of their own."""
    overrides = [part for part in settings.strip("{}").split(";") if part]
    overrides += [f"{key}={value if key != 'records' else [value]}" for key, value in more.items()]
    given = load(None, [*overrides, f"suites=[{name}]"])
    (work,) = works_of(given)
    records = [task.record for task in work.tasks]
    judges = Judges(given, sorted({role for record in records for role in work.suite.roles(record)}))
    prompting = Prompting(given.system, "", tuple((shot.user, shot.assistant) for shot in given.shots or []))
    samples = [
        Sample(id=record.id, input=_messages(record, prompting), target=_target(record), metadata={"place": place})
        for place, record in enumerate(records)
    ]
    return Task(MemoryDataset(samples, name), solver=generate(), scorer=shares(work.suite, records, judges))


@scorer(metrics={"*": [mean(), stderr()]})
def shares(suite: Suite, records: Sequence[Record], judges: Judges) -> Scorer:
    """The suite's shares of one answer."""

    async def score(state: TaskState, target: Target) -> Score:
        record = records[state.metadata["place"]]
        text = state.output.completion
        if not text.strip():
            raise NoScore("the model said nothing")
        roles = suite.roles(record)
        asked = [Asked(record.id, role, Row(record, text, record.id)) for role in roles]
        found = await asyncio.to_thread(judges.judge, asked, VerdictFile(), lambda count: None)
        outcome = Outcome(record.id, record, Response(text), {role: found[record.id, role] for role in roles})
        if failed := [role for role in roles if not outcome.told(role)]:
            raise NoScore(f"{failed[0]} gave no score")
        values = {
            measure: column.rows[0][0]
            for measure, column in suite.columns([outcome])
            if column.statistic == SHARE and column.rows and "[" not in measure
        }
        return Score(value=values, answer=text)

    return score


def _messages(record: Record, prompting: Prompting) -> list[ChatMessage]:
    messages: list[ChatMessage] = []
    if system := prompting.system_of(record):
        messages.append(ChatMessageSystem(content=system))
    for user, assistant in prompting.turns(record):
        messages += [ChatMessageUser(content=user), ChatMessageAssistant(content=assistant)]
    shown = [ContentImage(image=image.url) for image in images(record)]
    messages.append(
        ChatMessageUser(content=[*shown, ContentText(text=question(record))] if shown else question(record))
    )
    return messages


def _target(record: Record) -> str | list[str]:
    return record.reference or ""
