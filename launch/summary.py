"""What a run came to, computed from its files: `summary.json` for programs, a short table for people."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from typing import Any, TextIO

import msgspec
from rich.table import Table

from safeladder.launch.config import ConfigError
from safeladder.launch.events import Event, Tail
from safeladder.launch.rundir import RunDirectory
from safeladder.launch.supervisor import Outcome
from safeladder.launch.terminal import console

PER_STEP = ("reward_mean", "unsafe_rate", "loss", "kl", "staleness_max", "tokens", "step_s", "families")


def write(run: RunDirectory, outcome: Outcome, seconds: float) -> dict[str, Any]:
    """Writes RUN/summary.json; also after a failure, with what there is."""
    report = compute(run, outcome, seconds)
    partial = run.summary.with_suffix(".partial")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    partial.replace(run.summary)
    return report


def load(run: RunDirectory) -> dict[str, Any]:
    """Raises ConfigError where there is none."""
    try:
        return msgspec.json.decode(run.summary.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        raise ConfigError(f"{run.path} has no summary.json: the run has not ended, or is no run") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{run.summary} is damaged: {error}") from None


def compute(run: RunDirectory, outcome: Outcome, seconds: float) -> dict[str, Any]:
    """The summary as a map. `wire.share`: part of the processes' lifetimes spent on encoding and sockets."""
    tail = Tail(run.path / "logs")
    events = list(tail.read())
    steps = surviving_steps(events)
    ages = Counter(age for step in steps for age in step.get("staleness", []))
    return {
        "run": run.path.name,
        "exit": {"code": outcome.code, "reason": outcome.reason},
        "seconds": round(seconds, 3),
        "steps": len(steps),
        "versions_published": len({event["published"] for event in events if _is_step(event) and "published" in event}),
        "staleness": {
            "max": max((step["staleness_max"] for step in steps if "staleness_max" in step), default=None),
            "histogram": {str(age): ages[age] for age in sorted(ages)},
        },
        "tokens": sum(step.get("tokens", 0) for step in steps),
        "per_step": [{"step": step["step"], **{key: step.get(key) for key in PER_STEP}} for step in steps],
        "restarts": sum(record.restarts for record in outcome.processes),
        "processes": [{**dataclasses.asdict(record), "restarts": record.restarts} for record in outcome.processes],
        "wire": _wire(events),
        "torn_log_lines": tail.torn,
    }


def surviving_steps(events: Iterable[Event]) -> list[Event]:
    """`step.completed` events in order of steps. A step made again after a roll-back counts as made last."""
    history: list[Event] = []
    for event in events:
        if _is_step(event):
            while history and history[-1]["step"] >= event["step"]:
                history.pop()
            history.append(event)
    return history


def show(report: dict[str, Any], stream: TextIO) -> None:
    """A short table: how it ended, what was trained, what each process went through."""
    out = console(stream)
    first, last = (report["per_step"] or [{}])[0], (report["per_step"] or [{}])[-1]
    facts = [
        f"{report['steps']} steps in {report['seconds']:.1f} s",
        f"reward {_number(first.get('reward_mean'))} -> {_number(last.get('reward_mean'))}",
        f"unsafe {_number(first.get('unsafe_rate'))} -> {_number(last.get('unsafe_rate'))}",
        f"staleness at most {_number(report['staleness']['max'])}",
        f"wire {_number(report['wire']['share'], percent=True)}",
    ]
    out.print(f"{report['run']}: {report['exit']['reason']} ({', '.join(facts)})", markup=False)
    troubled = [process for process in report["processes"] if _troubled(process)]
    if troubled:
        table = Table("process", "restarts", "ended", "last words", box=None)
        for process in troubled:
            reasons = Counter(end["reason"] for end in process["exits"] if end["code"] != 0)
            said = next((end["tail"][-1] for end in reversed(process["exits"]) if end["code"] and end["tail"]), "")
            ended = ", ".join(f"{reason} x{count}" if count > 1 else reason for reason, count in reasons.items())
            table.add_row(process["name"], str(process["restarts"]), ended, said[:100])
        out.print(table)


def _troubled(process: dict[str, Any]) -> bool:
    return process["restarts"] > 0 or any(end["code"] != 0 for end in process["exits"])


def _is_step(event: Event) -> bool:
    return event.get("event") == "step.completed" and isinstance(event.get("step"), int)


def _wire(events: Iterable[Event]) -> dict[str, Any]:
    """Seconds on the wire of every process that ended in order, and their share of those processes' lifetimes."""
    born: dict[Any, datetime] = {}
    spent: dict[str, float] = {}
    lived = 0.0
    for event in events:
        key = (event.get("role"), event.get("replica"), event.get("pid"))
        if event.get("event") == "process.started" and event.get("role") != "launcher":
            born[key] = datetime.fromisoformat(event["ts"])
        elif event.get("event") == "process.finished" and "wire_s" in event and key in born:
            name = f"{event['role']}/{event['replica']}"
            spent[name] = round(spent.get(name, 0.0) + event["wire_s"], 4)
            lived += (datetime.fromisoformat(event["ts"]) - born[key]).total_seconds()
    total = round(sum(spent.values()), 4)
    return {"seconds": total, "share": round(total / lived, 5) if lived > 0 else None, "processes": spent}


def _number(value: float | None, percent: bool = False) -> str:
    if value is None:
        return "-"
    return f"{value:.2%}" if percent else f"{value:g}" if isinstance(value, int) else f"{value:.3f}"
