"""Tables and plot of the experiment in `ablations.py`, made from its runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
from ablations import BASE, CALE_FROM, CAPABILITY_FIRST, LIMIT, SEEDS, VARIANTS
from matplotlib import pyplot
from matplotlib.axes import Axes
from resumable import Record, put_between

COLOURS = dict(  # Okabe and Ito: told apart by the colour-blind
    zip(VARIANTS, ("#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"), strict=True)
)
FIGURES = {
    "capability": "capability",
    "unsafe": "unsafe rate",
    "over_refusal": "over-refusal",
    "qualified": "qualified",
    "thought": "thought, tokens",
}
BEGIN, END = "<!-- results: written by tests/benchmarks/ablations.py -->", "<!-- end of results -->"
WIDTH = 6  # steps over which curves are smoothed


def finals(records: list[Record], name: str, figure: str) -> np.ndarray:
    """A figure of the final policy, by seed."""
    return np.array(
        [value for _, value in sorted((r["seed"], r["final"][figure]) for r in records if r["name"] == name)]
    )


def said(values: np.ndarray, figure: str, sign: str = "") -> str:
    digits = 2 if figure == "thought" else 3
    return f"{values.mean():{sign}.{digits}f} ± {values.std(ddof=1):.{digits}f}"


def table(records: list[Record], before: Mapping[str, float]) -> str:
    lines = ["| run | " + " | ".join(FIGURES.values()) + " |", "|---" * (len(FIGURES) + 1) + "|"]
    start = [f"{before[figure]:.{2 if figure == 'thought' else 3}f}" for figure in FIGURES]
    lines.append("| before reinforcement | " + " | ".join(start) + " |")
    for name in VARIANTS:
        lines.append(f"| {name} | " + " | ".join(said(finals(records, name, f), f) for f in FIGURES) + " |")
    return "\n".join(lines)


def differences(records: list[Record]) -> str:
    """Each changed run minus the base run of its seed."""
    lines = ["| change | " + " | ".join(FIGURES.values()) + " |", "|---" * (len(FIGURES) + 1) + "|"]
    for name in list(VARIANTS)[1:]:
        paired = [said(finals(records, name, f) - finals(records, BASE, f), f, "+") for f in FIGURES]
        lines.append(f"| {name} | " + " | ".join(paired) + " |")
    return "\n".join(lines)


def shortening(records: list[Record]) -> str:
    """What CALE did to length and qualified rate, seed by seed."""
    with_it, without = (finals(records, name, "thought") for name in (BASE, "without CALE"))
    fall = 100 * (1 - with_it / without)
    gained = finals(records, BASE, "qualified") - finals(records, "without CALE", "qualified")
    return (
        f"CALE shortens the thought by {fall.mean():.0f} % ({', '.join(f'{f:.0f}' for f in fall)} % by seed), and the qualified rate "
        f"changes by {said(gained, 'qualified', '+')}."
    )


# ------------------------------------------------------------------------------------------------------------ the plot


def smooth(curve: np.ndarray) -> np.ndarray:
    """Means over the newest steps, fewer at the beginning."""
    return np.array([curve[max(0, end - WIDTH) : end].mean() for end in range(1, len(curve) + 1)])


def draw_curves(axes: Axes, records: list[Record], curve: str, title: str, names: list[str]) -> None:
    for name in names:
        cell = [smooth(np.array(r["curves"][curve])) for r in records if r["name"] == name]
        steps = np.arange(1, len(cell[0]) + 1)
        axes.plot(steps, np.mean(cell, axis=0), color=COLOURS[name], label=name, linewidth=2 if name == BASE else 1.2)
        axes.fill_between(steps, np.min(cell, axis=0), np.max(cell, axis=0), color=COLOURS[name], alpha=0.1)
    axes.set(xlabel="step", title=title)
    axes.legend(fontsize=8)


def draw_finals(axes: Axes, records: list[Record]) -> None:
    for name in VARIANTS:
        x, y = finals(records, name, "unsafe"), finals(records, name, "over_refusal")
        axes.plot(x, y, "o", color=COLOURS[name], label=name, markersize=6, alpha=0.8)
    axes.set(xlabel="unsafe rate", ylabel="over-refusal", title="final policies, a dot a seed")
    axes.legend(fontsize=8)


def plot(records: list[Record], path: Path) -> None:
    figure, axes = pyplot.subplots(2, 2, figsize=(12, 9), constrained_layout=True)
    draw_curves(
        axes[0, 0], records, "qualified", "qualified rate as sampled", [BASE, "GRPO (clipped)", "eta 2", "eta 8"]
    )
    draw_curves(axes[0, 1], records, "thought", "thought, tokens", [BASE, "without CALE"])
    axes[0, 1].axvline(CALE_FROM, color="grey", linestyle=":", linewidth=1)
    names = [BASE, "one step", "fixed multiplier", "eta 8"]
    draw_curves(axes[1, 0], records, "unsafe", "unsafe answers, share of the safety family", names)
    axes[1, 0].axhline(LIMIT, color="#c03030", linestyle="--", linewidth=1)
    axes[1, 0].axvline(CAPABILITY_FIRST, color="grey", linestyle=":", linewidth=1)
    draw_finals(axes[1, 1], records)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


# ------------------------------------------------------------------------------------------------------------ the page


def write(records: list[Record], before: Mapping[str, float], docs: Path) -> None:
    """Puts the tables into docs/ablations.md and the plot beside it."""
    at_once = np.mean([r["final"]["at_once"] for r in records if r["name"] == BASE])
    right = np.mean([r["final"]["capability"] for r in records if r["name"] == BASE])
    cost = (
        f"These {len(records)} runs took {sum(r['cpu_s'] for r in records) / 60:.0f} minutes of one core, "
        f"{np.mean([r['cpu_s'] for r in records]):.0f} s each."
    )
    parts = [
        f"Mean ± standard deviation over {len(SEEDS)} seeds, of the final policies.",
        table(records, before),
        "Paired differences: the changed run minus the base run of the same seed, mean ± standard deviation.",
        differences(records),
        shortening(records),
        f"Made to answer at once, without a thought, the base policies are right in {at_once:.3f} of the capability family, with it "
        f"in {right:.3f}: the thought is needed.",
        cost,
    ]
    put_between(docs / "ablations.md", BEGIN, END, parts)
    plot(records, docs / "ablations" / "ablations.png")
    print("\n\n".join(parts))
