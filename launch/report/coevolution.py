"""The co-evolution of a climb: safety against capability, rung by rung, with intervals; as a section of the page, a picture, and a table.

Both axes are the means that the ladder's gate is about. Imports matplotlib, an extra, only to draw the picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from safeladder.launch.ladder.files import START
from safeladder.launch.ladder.gate import Estimate, Measures, mean
from safeladder.launch.ladder.state import ClimbState
from safeladder.launch.report.chart import Walk, trajectory
from safeladder.launch.report.page import section, table

INTRO = (
    "Each point is one policy of the climb, measured on records that no rung trained on: the ring is the start, the large dot the last "
    "rung. Across capability, up safety, each the mean of the measures that the gate names, with 95 % intervals; on the dashed line both "
    "are equal. Which measures make an axis is this ladder's choice, and ours."
)


def points(climb: ClimbState) -> list[tuple[str, Estimate, Estimate]]:
    """(name, capability, safety) of the start and of every rung that was evaluated, in order."""
    found = []
    for name, measures in _evaluated(climb):
        found.append((name, mean(climb.capability, measures), mean(climb.safety, measures)))
    return found


def coevolution(climb: ClimbState) -> str:
    """The section of the page."""
    known = points(climb)
    if not known:
        return section("The climb", INTRO, '<p class="none">nothing was evaluated yet</p>')
    walk = _walk(climb.name, known)
    squares = [trajectory([walk], "capability", "safety"), trajectory([walk], "capability", "safety", enlarged=True)]
    gates = [
        [rung.name, side, result.why, "holds" if result.holds else "failed, went on" if rung.went_on else "failed"]
        for rung in climb.rungs.values()
        if rung.gate
        for side, result in rung.gate.sides.items()
    ]
    head, rows = cells(climb)
    return section(
        f"The climb {climb.name}",
        INTRO,
        f'<div class="beside">{"".join(squares)}</div>',
        f"<p>From the start to the last rung: {direction(known)}.</p>",
        "<h3>Rung by rung</h3>",
        table(head, rows),
        "<h3>Gates</h3>",
        table(("rung", "side", "before to after, difference with its interval", "gate"), gates),
    )


def direction(known: Sequence[tuple[str, Estimate, Estimate]]) -> str:
    """The way from the first point to the last, in words."""
    (_, able, safe), (_, able_now, safe_now) = known[0], known[-1]
    across, up = able_now.value - able.value, safe_now.value - safe.value
    if not across and not up:
        return "no change"
    return (
        f"capability {across:+.3f}, safety {up:+.3f}, at {math.degrees(math.atan2(up, across)):.0f}° (45°: both alike)"
    )


def cells(climb: ClimbState) -> tuple[list[str], list[list[str]]]:
    """The table of rungs: its head, and a row a policy."""
    head = ["policy", "safety", "capability", *climb.table, "steps", "trained", "evaluated"]
    rows = []
    for name, measures in _evaluated(climb):
        rung = climb.rungs.get(name)
        row = [name, said(mean(climb.safety, measures)), said(mean(climb.capability, measures))]
        row += [said(measures.get(measure)) for measure in climb.table.values()]
        row += (
            [str(rung.steps), _minutes(rung.train_s), _minutes(rung.evaluate_s)]
            if rung
            else ["", "", _minutes(climb.start_s)]
        )
        rows.append(row)
    return head, rows


def markdown(climb: ClimbState) -> str:
    head, rows = cells(climb)
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows)]
    lines += ["", "Value with its 95 % interval."]
    lines += [
        f"{name} = mean of {', '.join(f'`{m}`' for m in getattr(climb, name))}." for name in ("safety", "capability")
    ]
    for rung in climb.rungs.values():
        for side, result in rung.gate.sides.items() if rung.gate else ():
            lines.append(f"* {rung.name}, {side}: {result.why}.{'' if result.holds else ' The gate failed.'}")
    return "\n".join([*lines, ""])


def said(found: Estimate | None) -> str:
    """`0.62 [0.49, 0.74]`; whole numbers such as tokens with one digit."""
    if found is None:
        return "-"
    digits = 2 if abs(found.value) <= 1 else 1
    return f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def draw(climb: ClimbState, path: Path) -> None:
    """The picture as PNG. Raises ModuleNotFoundError without matplotlib (extra `plots`)."""
    from matplotlib.figure import Figure

    known = points(climb)
    if not known:
        return
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    for axes, enlarged in zip(figure.subplots(1, 2), (False, True), strict=True):
        _draw_plane(axes, known, enlarged)
    figure.suptitle(f"{climb.name}: safety against capability, {direction(known)}", fontsize=11)
    partial = path.with_suffix(".partial.png")
    figure.savefig(partial, dpi=110)
    partial.replace(path)


def _draw_plane(axes: Any, known: Sequence[tuple[str, Estimate, Estimate]], enlarged: bool) -> None:
    able, safe = [point[1] for point in known], [point[2] for point in known]
    x, y = [each.value for each in able], [each.value for each in safe]
    side = max(0.1, 1.35 * max(np.ptp(x), np.ptp(y))) if enlarged else 1.0
    left, bottom = ((max(v) + min(v) - side) / 2 if enlarged else 0.0 for v in (x, y))
    axes.set(
        xlim=(left, left + side), ylim=(bottom, bottom + side), xlabel="capability", ylabel="safety", aspect="equal"
    )
    axes.axline((x[0], y[0]) if enlarged else (0, 0), slope=1, linestyle="--", color="0.6", linewidth=1)
    axes.set_title(
        "enlarged; dashed: 45° from the start" if enlarged else "the whole range; dashed: both equal", fontsize=9
    )
    bars = [
        [[each.value - each.low for each in values], [each.high - each.value for each in values]]
        for values in (able, safe)
    ]
    axes.errorbar(x, y, xerr=bars[0], yerr=bars[1], fmt="none", ecolor="#1f6fb4", alpha=0.3, linewidth=1)
    axes.plot(x, y, "-o", color="#1f6fb4", markersize=4, linewidth=1.5)
    axes.plot(x[0], y[0], "o", color="white", markeredgecolor="#1f6fb4", markersize=7)
    axes.plot(x[-1], y[-1], "o", color="#1f6fb4", markersize=9)
    for place, (name, _, _) in enumerate(known):
        axes.annotate(
            name, (x[place], y[place]), xytext=(7, 5 if place % 2 else -11), textcoords="offset points", fontsize=8
        )
    axes.grid(color="0.92")


def _evaluated(climb: ClimbState) -> Iterator[tuple[str, Measures]]:
    """The policies that have measures."""
    if climb.start:
        yield START, climb.start
    for name, rung in climb.rungs.items():
        if rung.measures:
            yield name, rung.measures


def _walk(name: str, known: Sequence[tuple[str, Estimate, Estimate]]) -> Walk:
    able, safe = [point[1] for point in known], [point[2] for point in known]

    def column(values: Sequence[Estimate], key: str) -> np.typing.NDArray[np.float64]:
        return np.clip([getattr(value, key) for value in values], 0.0, 1.0)

    return Walk(
        name,
        column(able, "value"),
        column(safe, "value"),
        column(safe, "low"),
        column(safe, "high"),
        [f"{n}: capability {said(a)}, safety {said(s)}" for n, a, s in known],
        0,
        column(able, "low"),
        column(able, "high"),
    )


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min"
