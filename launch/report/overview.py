"""Sections that name the runs: what each came to, how they are configured, and in what they differ."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any, Final

import numpy as np

from safeladder.launch.report.page import details, section, table
from safeladder.launch.view.series import finite
from safeladder.launch.view.snapshot import configuration
from safeladder.launch.view.state import RunView

ABSENT: Final = "not set"


def overview(views: Sequence[RunView]) -> str:
    rows: list[list[object]] = []
    for view in views:
        begin, end = view.span
        unsafe = finite(view.steps.column("unsafe_rate"))
        rows.append(
            [
                view.path.name,
                f"{view.run_state} ({view.run_reason})" if view.run_reason else view.run_state,
                datetime.fromtimestamp(begin, UTC).strftime("%Y-%m-%d %H:%M UTC") if begin else "-",
                f"{(end - begin) / 60:.1f} min",
                len(view.steps),
                _change(view.steps.column("reward_mean")),
                _change(view.steps.column("unsafe_rate")) if len(unsafe) else "-",
                round(float(np.nansum(view.steps.column("tokens")))),
                sum(process.restarts for process in view.processes.values()),
                f"{view.lines} ({view.unreadable} unreadable)",
            ]
        )
    head = (
        "run",
        "ended",
        "began",
        "lasted",
        "steps",
        "reward",
        "unsafe rate",
        "tokens trained",
        "restarts",
        "log lines",
    )
    names = ", ".join(view.path.name for view in views)
    note = "Reward and unsafe rate: mean of the first tenth of the steps, and of the last."
    return f'<h1>{escape(names)}</h1><p class="soft">SafeLadder report</p>{table(head, rows)}<p class="soft">{note}</p>'


def configurations(views: Sequence[RunView]) -> str:
    flat = [flattened(configuration(view.path)) for view in views]
    parts = []
    if len(views) > 1:
        parts.append(
            "<h3>What differs</h3>" + table(("setting", *(view.path.name for view in views)), differences(flat))
        )
    for view, settings in zip(views, flat, strict=True):
        parts.append(
            details(f"All settings of {view.path.name}", table(("setting", "value"), sorted(settings.items())))
        )
    return section("Configuration", "", *parts)


def flattened(settings: Any, prefix: str = "") -> dict[str, str]:
    """`a.b.c` -> value, as text. Lists are values."""
    if not isinstance(settings, dict) or not settings:
        return {prefix: "{}" if settings == {} else str(settings)} if prefix else {}
    found: dict[str, str] = {}
    for name, value in settings.items():
        found |= flattened(value, f"{prefix}.{name}" if prefix else str(name))
    return found


def differences(flat: Sequence[dict[str, str]]) -> list[list[str]]:
    """A row a setting in which not all runs agree: its name, and its value in each."""
    names = sorted({name for settings in flat for name in settings})
    rows = [[name, *(settings.get(name, ABSENT) for settings in flat)] for name in names]
    return [row for row in rows if len(set(row[1:])) > 1]


def _change(values: np.typing.NDArray[np.float64]) -> str:
    known = finite(values)
    if not len(known):
        return "-"
    part = max(1, len(known) // 10)
    return f"{known[:part].mean():.3f} → {known[-part:].mean():.3f}"
