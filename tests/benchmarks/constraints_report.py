"""Table and plot of the experiment in `constraints.py`, made from its runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import disclosure
import matplotlib

matplotlib.use("Agg")

import numpy as np
from constraints import ABLATIONS, COUNTED, ETAS, LIMIT, VARIANTS
from matplotlib import pyplot
from matplotlib.axes import Axes
from resumable import put_between

Record = dict[str, Any]
COLOURS = {
    "no penalty": "#888888",
    "fixed, 1": "#d9a441",
    "fixed, 2": "#b5651d",
    "dual ascent": "#2f6db3",
    "PID": "#2a8c5a",
}
BEGIN, END = "<!-- results: written by tests/benchmarks/constraints.py -->", "<!-- end of results -->"
Z = 1.96  # two-sided 95 %


def last(record: Record, curve: str) -> float:
    """Mean of a curve over the steps that a run is judged by."""
    return float(np.mean(record["curves"][curve][-COUNTED:]))


def held(record: Record) -> bool:
    """Whether the limit lies within or above the 95 % interval of the unsafe rate."""
    return last(record, "cost") - Z * record["cost_error"] <= LIMIT


def swing(record: Record) -> float:
    """Standard deviation of the rate's means over 10 steps: how far it moves about its own mean."""
    return float(np.reshape(record["curves"]["cost"][-COUNTED:], (-1, 10)).mean(axis=1).std(ddof=1))


def row(name: str, eta: int, records: list[Record]) -> str:
    """One line of the table, over the seeds of a cell."""
    rates = [last(r, "cost") for r in records]
    error = Z * float(np.sqrt(np.sum([r["cost_error"] ** 2 for r in records]))) / len(records)
    multipliers = [last(r, "multiplier") for r in records]
    cells = [
        name,
        str(eta),
        f"{np.mean(rates):.3f} ± {error:.3f}",
        ", ".join(f"{rate:.3f}" for rate in rates),
        ""
        if records[0]["settings"]["constraint"]["method"] == "fixed"
        else f"{sum(map(held, records))} of {len(records)}",
        f"{np.mean([last(r, 'reward') for r in records]):.3f}",
        f"{np.mean([swing(r) for r in records]):.3f}",
        f"{min(multipliers):.2f} to {max(multipliers):.2f}",
        ", ".join(f"{r['final']['cost']:.3f}" for r in records),
    ]
    return "| " + " | ".join(cells) + " |"


def table(records: list[Record], names: dict[str, Any]) -> str:
    heads = [
        "method", "eta", "unsafe rate", "by seed", "limit held", "reward", "swing", "multiplier", "final policy's rate",
    ]  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name in names:
        for eta in ETAS:
            cell = sorted((r for r in records if r["name"] == name and r["eta"] == eta), key=lambda r: r["seed"])
            if cell:
                lines.append(row(name, eta, cell))
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------------ the plot


def smooth(curve: np.ndarray, width: int = 10) -> np.ndarray:
    """Means over the `width` newest steps, fewer at the beginning."""
    sums = np.cumsum(np.insert(curve, 0, 0.0))
    ends = np.arange(1, len(curve) + 1)
    starts = np.maximum(0, ends - width)
    return (sums[ends] - sums[starts]) / (ends - starts)


def draw_front(axes: Axes, records: list[Record]) -> None:
    corners = disclosure.front()
    axes.plot(*zip(*corners, strict=True), color="black", linewidth=1, label="best that can be had")
    ends = (corners[0], corners[-1])
    axes.plot(*zip(*ends, strict=True), color="black", linewidth=0.8, linestyle=":", label="disclosing at random")
    for name in VARIANTS:
        for eta, fill in zip(ETAS, ("full", "none"), strict=True):
            cell = [r for r in records if r["name"] == name and r["eta"] == eta]
            axes.errorbar(
                [last(r, "cost") for r in cell], [last(r, "reward") for r in cell],
                xerr=[Z * r["cost_error"] for r in cell], linestyle="", marker="o", markersize=6, elinewidth=0.8,
                fillstyle=fill, color=COLOURS[name], label=name if fill == "full" else None,
            )  # fmt: skip
    axes.axvline(LIMIT, color="#c03030", linestyle="--", linewidth=1, label="limit")
    axes.set(xlabel="unsafe rate", ylabel="reward", title="reward against cost (filled: eta 0, hollow: eta 4)")
    axes.legend(fontsize=8, loc="lower right")


def draw_curves(axes: Axes, records: list[Record], curve: str, eta: int, names: list[str]) -> None:
    for name in names:
        cell = [smooth(np.array(r["curves"][curve])) for r in records if r["name"] == name and r["eta"] == eta]
        if cell:
            steps = np.arange(1, len(cell[0]) + 1)
            axes.plot(steps, np.mean(cell, axis=0), color=COLOURS[name], label=name)
            axes.fill_between(steps, np.min(cell, axis=0), np.max(cell, axis=0), color=COLOURS[name], alpha=0.15)
    axes.set(xlabel="step")


def plot(records: list[Record], path: Path) -> None:
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 8), constrained_layout=True)
    draw_front(axes[0, 0], records)
    for place, eta in zip((axes[0, 1], axes[1, 0]), ETAS, strict=True):
        draw_curves(place, records, "cost", eta, list(VARIANTS))
        place.axhline(LIMIT, color="#c03030", linestyle="--", linewidth=1)
        place.set(title=f"unsafe rate, eta {eta} (mean and range of 3 seeds, over 10 steps)", ylim=(0, 1))
        place.legend(fontsize=8, ncols=2, loc="upper right", bbox_to_anchor=(1.0, 0.8))
    draw_curves(axes[1, 1], records, "multiplier", ETAS[-1], ["dual ascent", "PID"])
    axes[1, 1].set(title=f"multiplier, eta {ETAS[-1]}")
    axes[1, 1].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


# ------------------------------------------------------------------------------------------------------------ the page


def write(records: list[Record], docs: Path) -> None:
    """Puts the tables into docs/constraints.md and the plot beside it. Raises ValueError when the page lacks its marks."""
    cpu = sum(record["cpu_s"] for record in records if record["name"] in VARIANTS) / 60
    parts = [
        table(records, VARIANTS),
        f"These {sum(r['name'] in VARIANTS for r in records)} runs took {cpu:.0f} minutes of one core.",
    ]
    if any(record["name"] in ABLATIONS for record in records):
        parts += ["With `--ablations`:", table(records, ABLATIONS)]
    put_between(docs / "constraints.md", BEGIN, END, parts)
    plot(records, docs / "constraints" / "front.png")
    print("\n\n".join(parts))
