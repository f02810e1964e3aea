"""One evaluation: answers, then judgements, then measures.

    records -> suites choose -> answers (responses.jsonl) -> verdicts (verdicts.jsonl) -> columns (columns.jsonl) -> report.json

The first two files are appended to as things are done, so whatever ends the process, a second call goes on where it was: what has an
answer is not asked again, what has a verdict is not judged again. Answers are drawn on one asyncio loop, as many at once as the
respondent takes; judging follows when all are there, batch by batch.
"""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import msgspec

from safeladder.launch import tasks
from safeladder.launch.config import ConfigError
from safeladder.launch.evaluation import benchmarks, validity
from safeladder.launch.evaluation.answering import Respondent, Task, respondent
from safeladder.launch.evaluation.judging import Asked, Judges
from safeladder.launch.evaluation.settings import Settings
from safeladder.launch.evaluation.statistics import Column, Measure
from safeladder.launch.evaluation.store import Response, ResponseFile, digest_of
from safeladder.launch.evaluation.suite import SUITES, Outcome, Suite, create
from safeladder.launch.terminal import counting
from safeladder.protocol.images import ImageError
from safeladder.protocol.messages import Record, Verdict
from safeladder.verifiers.judging import VerdictFile
from safeladder.verifiers.rows import Row


@dataclass(frozen=True)
class Report:
    """suite -> measure -> figure. `columns`: what each is made of, for comparing. `real`: whether a model has answered. `failed`: suite ->
    outcomes without an answer or without a needed score. folder: where it was written."""

    settings: Settings
    suites: Mapping[str, Mapping[str, Measure]]
    columns: Mapping[str, Mapping[str, Column]]
    real: bool
    failed: Mapping[str, int]
    folder: Path | None

    def plain(self) -> dict[str, dict[str, dict[str, float | int | None]]]:
        """What report.json holds: {suite: {measure: {value, low, high, n}}}."""
        return {name: {key: m.plain() for key, m in found.items()} for name, found in self.suites.items()}


@dataclass(frozen=True)
class Work:
    """A suite with the tasks that it has chosen."""

    suite: Suite
    tasks: Sequence[Task]


def evaluate(settings: Settings, stream: TextIO | None = None) -> Report:
    """Runs or goes on with the evaluation. Progress goes to `stream`, stderr by default.

    Raises ConfigError for settings that cannot be followed, ModelError for a policy that is not there, EngineError or RemoteError
    for one that does not start. What fails for a record alone is counted.
    """
    stream = stream or sys.stderr
    works = _chosen(settings)
    folder = Path(settings.out).expanduser() if settings.out else None
    roles = sorted({role for work in works for task in work.tasks for role in work.suite.roles(task.record)})
    judges = Judges(settings, roles)
    every = {task.item: task for work in works for task in work.tasks}
    with ExitStack() as stack:
        store = stack.enter_context(VerdictFile(folder / "verdicts.jsonl" if _made(folder) and folder else None))
        responses: dict[str, Response] = {}
        real = True
        if every:
            answering = respondent(settings)
            real = answering.real
            path = folder / "responses.jsonl" if folder else None
            known = stack.enter_context(ResponseFile(path, digest_of(answering.identity())))
            responses = asyncio.run(answers(answering, list(every.values()), known, stream))
        verdicts = _verdicts(works, responses, judges, store, stream)
        columns, failed = _columns(works, responses, verdicts)
        if settings.labelled:
            columns["judge_validity"] = validity.columns(settings, store, stream)
    suites = {name: {key: c.measure() for key, c in found.items()} for name, found in columns.items()}
    report = Report(settings, suites, columns, real, failed, folder)
    if folder is not None:
        write(report, folder)
    return report


def _made(folder: Path | None) -> bool:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    return folder is not None


# -------------------------------------------------------------------------------------------------------- choosing


def _chosen(settings: Settings) -> list[Work]:
    """Suites with their tasks. Without names: all that find a record. Raises ConfigError where a named one finds none."""
    records = _records(settings)
    names = settings.suites or list(SUITES)
    suites = [*create(names, settings), *benchmarks.suites(settings)]
    works = []
    for suite in suites:
        try:
            own = [Task(r, s) for r in suite.records(records) for s in range(settings.answering.samples)]
            unique = list({task.item: task for task in own}.values())
        except ImageError as error:
            raise ConfigError(f"records: {error}") from error
        if unique:
            works.append(Work(suite, unique))
        elif suite.name in settings.suites:
            raise ConfigError(f"suites: {suite.name!r} finds nothing to measure among {len(records)} records")
    if not works and not settings.labelled:
        raise ConfigError(f"suites: none finds anything to measure among {len(records)} records")
    return works


def _records(settings: Settings) -> list[Record]:
    found: list[Record] = []
    for source in settings.records:
        found += spread(tasks.read([source]), settings.limit)
    for name, place in settings.benchmarks.items():
        found += spread(benchmarks.read(name, Path(place).expanduser()), settings.limit)
    return found


def spread(records: Sequence[Record], limit: int | None) -> list[Record]:
    """Up to `limit` of them, evenly spread: sets are sorted, and the first rows would be about a few things alone."""
    if limit is None or limit >= len(records):
        return list(records)
    return [records[index * len(records) // limit] for index in range(limit)]


# ------------------------------------------------------------------------------------------------------- answering


async def answers(
    answering: Respondent, tasks: Sequence[Task], known: ResponseFile, stream: TextIO
) -> dict[str, Response]:
    """item -> answer. What has one without an error is not asked again."""
    open_ = [task for task in tasks if (found := known.get(task.item)) is None or found.error is not None]
    with counting("answers", len(tasks), stream) as done:
        done(len(tasks) - len(open_))
        if open_:
            await answering.start()
            try:
                await _each(open_, answering, known, done)
            finally:
                await answering.stop()
    return {task.item: response for task in tasks if (response := known.get(task.item)) is not None}


async def _each(tasks: Sequence[Task], answering: Respondent, known: ResponseFile, done: Callable[[int], None]) -> None:
    waiting = iter(tasks)

    async def work() -> None:
        for task in waiting:  # one iterator for all workers: each task is taken once
            response = await answering.answer(task)
            known.add(task.item, task.record.id, response)
            done(1)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(answering.concurrency, len(tasks))):
            group.create_task(work())


# --------------------------------------------------------------------------------------------------------- judging


def _verdicts(
    works: Sequence[Work], responses: Mapping[str, Response], judges: Judges, store: VerdictFile, stream: TextIO
) -> dict[tuple[str, str], Verdict]:
    asked: dict[tuple[str, str, bytes], Asked] = {}
    for work in works:
        for task in work.tasks:
            response = responses.get(task.item)
            if response is None or response.error is not None:
                continue
            row = Row(task.record, response.text, task.record.id)
            for role in work.suite.roles(task.record):
                name = _judged(task, role)
                asked[name, role, row.digest()] = Asked(name, role, row)
    with counting("judgements", len(asked), stream) as done:
        return judges.judge(list(asked.values()), store, done)


def _judged(task: Task, role: str) -> str:
    """Names a judgement: two records that look the same to the policy may have different references."""
    return f"{task.item}/{digest_of([task.record.label, task.record.reference, task.record.extra])}/{role}"


def _columns(
    works: Sequence[Work], responses: Mapping[str, Response], verdicts: Mapping[tuple[str, str], Verdict]
) -> tuple[dict[str, dict[str, Column]], dict[str, int]]:
    """suite -> measure -> column, and suite -> how many outcomes are in none; a column without items is left out."""
    columns: dict[str, dict[str, Column]] = {}
    failed: dict[str, int] = {}
    for work in works:
        whole, lost = [], {}
        for task in work.tasks:
            roles = work.suite.roles(task.record)
            given = {r: verdicts[_judged(task, r), r] for r in roles if (_judged(task, r), r) in verdicts}
            outcome = Outcome(task.item, task.record, responses.get(task.item, Response()), given, task.sample)
            lost[task.item] = 0.0 if all(outcome.told(role) for role in roles) else 1.0
            if not lost[task.item]:
                whole.append(outcome)
        found = {name: column for name, column in work.suite.columns(whole) if column.rows}
        columns[work.suite.name] = {**found, "failed": Column.of(lost)}
        failed[work.suite.name] = int(sum(lost.values()))
    return columns, failed


# --------------------------------------------------------------------------------------------------------- writing


def write(report: Report, folder: Path) -> None:
    """report.json, columns.jsonl, settings.json; each appears whole."""
    lines = [
        msgspec.json.encode({"suite": suite, "measure": name, **column.record()})
        for suite, found in report.columns.items()
        for name, column in found.items()
    ]
    _replace(folder / "columns.jsonl", b"".join(line + b"\n" for line in lines))
    about: dict[str, Any] = {"settings": dataclasses.asdict(report.settings), "real": report.real}
    _replace(folder / "settings.json", msgspec.json.format(msgspec.json.encode(about)) + b"\n")
    _replace(folder / "report.json", msgspec.json.format(msgspec.json.encode(report.plain())) + b"\n")


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.rename(path)
