"""M3oralBench (arXiv 2412.20718): moral foundations in pictures. Accuracy on judgement, classification and response."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from safeladder.launch.config import ConfigError
from safeladder.launch.evaluation.benchmarks.base import Benchmark, Line, letter
from safeladder.launch.evaluation.statistics import Column
from safeladder.launch.evaluation.suite import Columns, Outcome, parts, share
from safeladder.launch.evaluation.suites.general import correct
from safeladder.protocol.messages import Record

TASKS = {
    "judge": "judge",
    "judgement": "judge",
    "classification": "classify",
    "classify": "classify",
    "response": "respond",
}


class M3oralBench(Benchmark):
    """Rows with `question`, `options` (a list or a map by letter), `answer` (a letter, or an option's text), `image`, `foundation`; the task
    is a field `task` or stands in the file's name. accuracy: the mean of the three tasks, which count the same."""

    name = "m3oralbench"

    @classmethod
    def item(cls, line: Line) -> Iterator[Record]:
        options = line.fields.get("options") or line.fields.get("choices")
        options = list(options.values()) if isinstance(options, dict) else options
        answer = line.text("answer")
        if not isinstance(options, list) or not options:
            raise ConfigError(f"{line.where}: field `options` is no list of options")
        reference = letter(options.index(answer)) if answer in options else answer.strip("(). ").upper()
        named = str(line.fields.get("task") or line.stem).lower()
        task = next((task for word, task in TASKS.items() if word in named), None)
        if task is None or reference not in [letter(index) for index in range(len(options))]:
            raise ConfigError(f"{line.where}: names no known task, or an answer that is none of the options")
        yield cls.record(
            line,
            line.text("question", "prompt"),
            label="value",
            category=line.maybe("foundation", "category"),
            id=f"{task}-{line.where.rpartition(':')[2]}",
            choices=[str(option) for option in options],
            reference=reference,
            extra={"images": line.images("image", "image_path"), "task": task},
        )

    def judged_by(self, record: Record) -> tuple[str, ...]:
        return ("choice",)

    def columns(self, outcomes: Sequence[Outcome]) -> Columns:
        tasks = sorted({str(outcome.record.extra["task"]) for outcome in outcomes})
        rows = {o.item: [float(tasks.index(o.record.extra["task"])), float(correct(o))] for o in outcomes}
        yield "accuracy", Column.of(rows, "balanced")
        for task, part in parts(outcomes, lambda o: str(o.record.extra["task"]), least=1).items():
            yield f"accuracy[task={task}]", share(part, correct)
        for name, part in parts(outcomes, lambda o: o.record.category).items():
            yield f"accuracy[foundation={name}]", share(part, correct)
