"""Table and plot of the experiment in `staleness.py`, made from its runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from resumable import put_between
from staleness import COUNTED, ETAS, RULES, UNBOUNDED

Record = dict[str, Any]
COLOURS = {  # Okabe and Ito: told apart by the colour-blind
    "naive PPO": "#d55e00",
    "decoupled PPO": "#0072b2",
    "TIS": "#009e73",
    "CISPO": "#cc79a7",
    "CPGD": "#e69f00",
}
BEGIN, END = "<!-- results: written by tests/benchmarks/staleness.py -->", "<!-- end of results -->"


def label(eta: int) -> str:
    return "unbounded" if eta == UNBOUNDED else str(eta)


def late(record: Record) -> float:
    """Mean reward of the answers sampled in the last steps."""
    return float(np.mean(record["curves"]["reward"][-COUNTED:]))


def cell(records: list[Record], name: str, eta: int, figure: Any = late) -> np.ndarray:
    """A figure of every seed of a cell, by seed."""
    found = sorted((r["seed"], figure(r)) for r in records if r["name"] == name and r["eta"] == eta)
    return np.array([value for _, value in found])


def spread(records: list[Record]) -> float:
    """Standard deviation between seeds, pooled over all cells with eta <= 4 and a correction."""
    cells = [cell(records, name, eta) for name in RULES if name != "naive PPO" for eta in ETAS if 0 <= eta <= 4]
    return float(np.sqrt(np.mean([values.var(ddof=1) for values in cells if len(values) > 1])))


def table(records: list[Record]) -> str:
    lines = [
        "| rule | " + " | ".join(f"eta {label(eta)}" for eta in ETAS) + " | eta 4 against its eta 0 |",
        "|---" * (len(ETAS) + 2) + "|",
    ]
    for name in RULES:
        cells = [cell(records, name, eta) for eta in ETAS]
        shown = [f"{values.mean():.3f} ± {values.std(ddof=1):.3f}" for values in cells]
        fresh, old = cells[0], cells[ETAS.index(4)]
        error = np.sqrt(fresh.var(ddof=1) / len(fresh) + old.var(ddof=1) / len(old))
        lines.append(f"| {name} | " + " | ".join(shown) + f" | {old.mean() - fresh.mean():+.3f} ± {error:.3f} |")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------------ the plot


def draw_ages(axes: Axes, records: list[Record]) -> None:
    for number, name in enumerate(RULES):
        cells = [cell(records, name, eta) for eta in ETAS]
        places = np.arange(len(ETAS)) + (number - 2) * 0.07
        low, high = ([getattr(values, which)() for values in cells] for which in ("min", "max"))
        means = [values.mean() for values in cells]
        axes.errorbar(
            places, means, yerr=[np.subtract(means, low), np.subtract(high, means)], color=COLOURS[name], label=name,
            marker="o", markersize=5, capsize=2, linewidth=1.4,
        )  # fmt: skip
    axes.set_xticks(range(len(ETAS)), [label(eta) for eta in ETAS])
    axes.set(
        xlabel="eta, age of the samples in steps",
        ylabel=f"reward, last {COUNTED} steps",
        title="mean and range of 3 seeds",
    )
    axes.legend(fontsize=8, loc="lower left")


def draw_curves(axes: Axes, records: list[Record], eta: int) -> None:
    for name in RULES:
        curves = [r["curves"]["reward"] for r in records if r["name"] == name and r["eta"] == eta]
        mean = np.mean(curves, axis=0)
        smooth = np.array([mean[max(0, end - 5) : end].mean() for end in range(1, len(mean) + 1)])
        axes.plot(np.arange(1, len(mean) + 1), smooth, color=COLOURS[name], label=name, linewidth=1.4)
    axes.set(xlabel="step", ylabel="reward (over 5 steps)", title=f"eta {label(eta)}", ylim=(0.3, 1.0))


def plot(records: list[Record], path: Path) -> None:
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 8), constrained_layout=True)
    draw_ages(axes[0, 0], records)
    for place, eta in zip((axes[0, 1], axes[1, 0], axes[1, 1]), (0, 4, 8), strict=True):
        draw_curves(place, records, eta)
    axes[0, 1].legend(fontsize=8, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


# ------------------------------------------------------------------------------------------------------------ the page


def write(records: list[Record], docs: Path) -> None:
    """Puts the table into docs/staleness.md and the plot beside it. Raises ValueError when the page lacks its marks."""
    said = (
        f"Reward ± standard deviation over the seeds; in the last column ± is the standard error of the difference. These "
        f"{len(records)} runs took {sum(r['cpu_s'] for r in records) / 60:.0f} minutes of one core. Between seeds a corrected run at "
        f"eta <= 4 varies by {spread(records):.3f} (pooled standard deviation). "
        f"{sum(bool(r['broke']) for r in records)} runs ended before their last step."
    )
    put_between(docs / "staleness.md", BEGIN, END, [table(records), said])
    plot(records, docs / "staleness" / "ages.png")
    print(table(records), said, sep="\n\n")
