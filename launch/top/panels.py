"""What the monitor shows, as rich renderables made from a snapshot: the same on the screen of `top` and in `top --once`."""

from __future__ import annotations

import itertools
import math
from typing import Final

from rich.table import Table
from rich.text import Text

from safeladder.launch.view.series import Floats, finite
from safeladder.launch.view.snapshot import Role, Snapshot
from safeladder.launch.view.state import RunView

_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_SPARED: Final = ("credit", "works/s")
_STATE: Final = {"ready": "green", "finished": "dim", "starting": "yellow", "restarting": "yellow", "stalled": "red"}
_BAD: Final = {"failed": "red", "exited": "red"}
# name in the log, what it is called here, and what a reader should know of it
FIGURES: Final = (
    ("reward_mean", "reward"),
    ("unsafe_rate", "unsafe rate"),
    ("kl", "KL to reference"),
    ("entropy", "entropy"),
    ("ess", "effective samples"),
    ("clip_fraction", "clipped"),
    ("masked", "masked"),
    ("truncated", "weights capped"),
    ("truncated_ratio", "cut at length"),
    ("tokens_per_s", "tokens/s"),
    ("step_s", "seconds a step"),
)


def headline(now: Snapshot) -> Text:
    """Run, state, step, version and the moment shown."""
    state = "live" if now.live else now.state
    text = Text.assemble((now.run, "bold"), "  ", (state, "bold green" if now.live else "bold yellow"))
    if now.reason and not now.live:
        text.append(f" ({now.reason})")
    text.append(f"   step {now.step}/{now.steps or '?'}   version {number(now.version)}   {_clock(now.elapsed_s)} in")
    text.append(f"   {now.at.replace('+00:00', ' UTC')}", "dim")
    if now.dead:
        text.append(f"   {now.dead} dead letters: safeladder dead {now.run}", "bold red")
    return text


def roles(now: Snapshot, narrow: bool = False) -> Table:
    """narrow: without credit and works/s, so that 80 columns hold it."""
    left_out = _SPARED if narrow else ()
    table = Table(box=None, pad_edge=False, header_style="bold", expand=False)
    table.add_column("process", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for column in ("version", "queue", "credit", "tokens/s", "works/s", "busy"):
        if column not in left_out:
            table.add_column(column, justify="right", no_wrap=True)
    table.add_column("doing", min_width=14)
    for role in now.roles:
        cells = role_cells(role)
        table.add_row(*(cell for place, cell in enumerate(cells) if not narrow or place not in (4, 6)))
    return table


def role_cells(role: Role) -> list[Text]:
    state = Text(role.state, _STATE.get(role.state) or _BAD.get(role.state, ""))
    if role.restarts:
        state.append(f" ×{role.restarts + 1}", "yellow")
    doing = Text(role.why, "red") if role.state in _BAD else Text(role.doing, "yellow" if "waits" in role.doing else "")
    figures = (role.version, role.queue, role.credit, role.tokens_per_s, role.works_per_s)
    busy = Text("-", "dim") if role.busy is None else Text(f"{role.busy:.0%}")
    return [
        Text(role.process),
        state,
        *(Text(number(value), "" if value is not None else "dim") for value in figures),
        busy,
        doing,
    ]


def training(now: Snapshot, view: RunView, rows: int, width: int = 24) -> Table:
    """A line a figure: its newest value and its course over the steps up to the moment shown."""
    table = Table(box=None, pad_edge=False, show_header=False, expand=False)
    table.add_column("figure", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("course", no_wrap=True, style="cyan")

    def add(name: str, column: str, value: float | None, style: str = "") -> None:
        if value is not None:
            table.add_row(Text(name, style), Text(number(value), style), spark(view.steps.column(column)[:rows], width))

    for column, name in FIGURES:
        add(name, column, now.training.get(column))
        if column == "reward_mean":
            for family, value in now.families.items():
                add(f"  {family}", f"family:{family}", value, "dim")
    for name, figures in now.constraints.items():
        margin = figures["margin"]
        bad = margin is not None and margin < 0
        add(f"margin of {name}", f"margin:{name}", margin, "bold red" if bad else "green")
        add("  multiplier", f"multiplier:{name}", figures["multiplier"], "dim")
    return table


def staleness(now: Snapshot, width: int = 24) -> Table:
    """Groups by their age in steps, over the last steps."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column("age", justify="right", no_wrap=True)
    table.add_column("bar", no_wrap=True, style="cyan")
    table.add_column("groups", justify="right", no_wrap=True)
    most = max(now.staleness, default=0)
    for age, count in enumerate(now.staleness):
        table.add_row(f"age {age}", bar(count / most if most else 0.0, width), str(count))
    return table


def warnings(now: Snapshot, most: int | None = None) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    table.add_column("warning", no_wrap=True)
    table.add_column("from", no_wrap=True)
    table.add_column("times", justify="right", no_wrap=True)
    table.add_column("it said", ratio=2)
    table.add_column("what to do", ratio=3)
    for kind in now.warnings[:most]:
        style = "red" if kind.level == "error" else "yellow"
        said = " ".join(kind.text.split())[:160]
        table.add_row(
            Text(kind.event, style), Text(kind.process), str(kind.count), Text(said, "dim"), Text(kind.advice)
        )
    if not now.warnings:
        table.add_row(Text("none", "green"), "", "", "", "")
    return table


def spark(values: Floats, width: int) -> str:
    """The course of a figure in `width` characters: means of equal parts, lowest to highest block."""
    known = finite(values)
    if not len(known):
        return ""
    edges = (
        [round(index * len(known) / width) for index in range(width + 1)]
        if len(known) > width
        else range(len(known) + 1)
    )
    means = [float(known[begin:end].mean()) for begin, end in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    if high - low < 1e-12:
        return _BLOCKS[3] * len(means)
    return "".join(_BLOCKS[min(7, int(8 * (mean - low) / (high - low)))] for mean in means)


def bar(share: float, width: int) -> str:
    filled = round(share * width)
    return "█" * max(filled, 1 if share > 0 else 0)


def number(value: float | None) -> str:
    """Three or four significant digits; `-` for what is not known."""
    if value is None or not math.isfinite(value):
        return "-"
    if float(value).is_integer() and abs(value) < 1e9:
        return f"{int(value)}"
    return f"{value:.4f}" if 0.001 <= abs(value) < 1 else f"{value:.3g}" if abs(value) < 0.001 else f"{value:.2f}"


def _clock(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"
