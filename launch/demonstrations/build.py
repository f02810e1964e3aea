"""`safeladder build-sft`: demonstrations from files or a teacher, through the gates, to a file that the first rung learns from.

files with completions, tasks answered by a teacher -> gates -> cap of cells -> OUTPUT.jsonl, OUTPUT.rejected.jsonl, OUTPUT.report.json, .md
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import msgspec

from safeladder.actors.demonstrator import COMPLETION
from safeladder.launch import tasks
from safeladder.launch.config import ConfigError, parse, typed
from safeladder.launch.demonstrations.acts import Diversity, acts, capped, cell, entropy
from safeladder.launch.demonstrations.gates import Demonstration, GateOptions, Gates
from safeladder.launch.demonstrations.teacher import Teacher, taught
from safeladder.launch.terminal import console
from safeladder.protocol.messages import Record
from safeladder.verifiers.contract import OPEN


@dataclass
class Build:
    """files: records with a `completion`. tasks: records that the teacher answers. evaluation: sets of which nothing may be learned.
    output: a .jsonl to write. gates: what passes. cap: the largest share that a cell of family, language and difficulty may have."""

    output: str = "demonstrations.jsonl"
    files: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    teacher: Teacher | None = None
    evaluation: list[str] = field(default_factory=list)
    gates: GateOptions = field(default_factory=GateOptions)
    cap: float | None = field(default=None, metadata={"above": 0.0, "high": 1.0})


@dataclass(frozen=True)
class Built:
    """rejected: (demonstration, gate, reason). capped: kept out by the cap alone."""

    kept: Sequence[Demonstration]
    rejected: Sequence[tuple[Demonstration, str, str]]
    warnings: dict[str, int]
    diversity: Diversity
    capped: int

    def report(self) -> dict[str, Any]:
        by_gate = Counter(gate for _, gate, _ in self.rejected)
        reasons = Counter(f"{gate}: {reason.partition(' as ')[0]}" for _, gate, reason in self.rejected)
        return {
            "read": len(self.kept) + len(self.rejected) + self.capped,
            "kept": len(self.kept),
            "rejected": dict(by_gate),
            "reasons": dict(reasons.most_common()),
            "capped": self.capped,
            "warnings": self.warnings,
            "diversity": self.diversity.plain(),
        }


def load(file: Path | None, overrides: Sequence[str]) -> Build:
    """From a YAML file, or none, and `key=value`s on top. Raises ConfigError naming the key and the nearest known one."""
    origin = "build-sft" if file is None else str(file)
    return typed(parse(file, overrides), Build, origin)


def build(request: Build, stream: TextIO) -> Built:
    """Writes the files. Raises ConfigError where there is nothing to read or nothing is left."""
    rows = list(_read(request, stream))
    if not rows:
        raise ConfigError("build-sft: neither files nor tasks with a teacher give a demonstration")
    held_out = [record.prompt for record in tasks.read(request.evaluation)] if request.evaluation else []
    gates = Gates(request.gates, held_out)
    rejected: list[tuple[Demonstration, str, str]] = []
    out = console(stream)
    for name, gate in gates:
        reasons = gate(rows) if rows else []
        rejected += [(row, name, why) for row, why in zip(rows, reasons, strict=True) if why is not None]
        rows = [row for row, why in zip(rows, reasons, strict=True) if why is None]
        out.print(f"{name}: {len(rows)} pass", markup=False)
    kept = _capped(rows, request.cap)
    if not kept:
        raise ConfigError(
            f"build-sft: no demonstration is left of {len(rejected)}; the first went at the gate {rejected[0][1:]}"
        )
    diversity = Diversity.of([row.record for row in kept], [row.item.thought for row in kept])
    built = Built(kept, rejected, gates.warnings, diversity, len(rows) - len(kept))
    _write(request, built)
    return built


def _read(request: Build, stream: TextIO) -> Iterator[Demonstration]:
    for record in tasks.read(request.files) if request.files else ():
        given = record.extra.get(COMPLETION)
        if not isinstance(given, str):
            raise ConfigError(f"build-sft: files: record {record.id!r} has no field `{COMPLETION}` with a text")
        yield Demonstration(record, given if given.lstrip().startswith(OPEN) else OPEN + given)
    if request.tasks:
        if request.teacher is None:
            raise ConfigError("build-sft: tasks need a `teacher` to answer them")
        yield from taught(tasks.read(request.tasks), request.teacher, Path(request.output), stream)


def _capped(rows: Sequence[Demonstration], cap: float | None) -> list[Demonstration]:
    if cap is None:
        return list(rows)
    thoughts = [row.item.thought for row in rows]
    cells = [cell(row.record, thought) for row, thought in zip(rows, thoughts, strict=True)]
    entropies = [entropy(Counter(acts(thought))) for thought in thoughts]
    return [rows[index] for index in capped(cells, entropies, cap)]


# ----------------------------------------------------------------------------------------------------------- writing


def _write(request: Build, built: Built) -> None:
    output = Path(request.output).expanduser()
    output.parent.mkdir(parents=True, exist_ok=True)
    _replace(output, b"".join(line(row.record, row.text) for row in built.kept))
    lines = [line(row.record, row.text, gate=gate, reason=why) for row, gate, why in built.rejected]
    _replace(output.with_suffix(".rejected.jsonl"), b"".join(lines))
    report = built.report()
    _replace(output.with_suffix(".report.json"), json.dumps(report, indent=1, ensure_ascii=False).encode() + b"\n")
    _replace(output.with_suffix(".report.md"), markdown(report).encode())


def line(record: Record, text: str, **more: str) -> bytes:
    """A line as `data.tasks` reads it: what stands in `extra` are fields of the line."""
    plain = msgspec.to_builtins(record)
    extra = {**record.extra, COMPLETION: text, **more}
    return msgspec.json.encode({**{k: v for k, v in plain.items() if k != "extra"}, **extra}) + b"\n"


def markdown(report: dict[str, Any]) -> str:
    diversity = report["diversity"]
    lines = ["# Demonstrations", "", "| | records |", "|---|---:|"]
    lines += [f"| read | {report['read']} |"]
    lines += [f"| kept out by {gate} | {count} |" for gate, count in report["rejected"].items()]
    lines += [f"| kept out by the cap of cells | {report['capped']} |", f"| kept | {report['kept']} |", ""]
    lines += [f"* {count}: {what}" for what, count in {**report["reasons"], **report["warnings"]}.items()]
    lines += [
        "",
        f"Acts: entropy {diversity['entropy_bits']} bits of at most 3.32, {diversity['mean_entropy_bits']} in a record; "
        f"coverage {diversity['coverage']:.0%}. Found by rules of words (ours).",
        "",
        "| act | sentences |",
        "|---|---:|",
        *(f"| {act} | {count} |" for act, count in diversity["acts"].items()),
        "",
        "| family / language / difficulty | records | entropy | coverage |",
        "|---|---:|---:|---:|",
        *(
            f"| {name} | {c['records']} | {c['entropy']} | {c['coverage']:.0%} |"
            for name, c in diversity["cells"].items()
        ),
    ]
    return "\n".join([*lines, ""])


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)
