"""What deliberative-search RL did, step by step, from the logs of a run: table and plot of docs/deliberation.md.

    safeladder climb launch/ladder/deliberation.yaml
    python tests/benchmarks/deliberation.py runs/deliberation [--markdown docs/deliberation.md]

A trajectory's outcome is the label that the verifier `deliberation` gave it; a step's are those of the groups that it trained. The
multiplier is the one that the step was taken with.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from resumable import put_between

from safeladder.launch.events import Event, merged

BEGIN, END = "<!-- training: written by tests/benchmarks/deliberation.py -->", "<!-- end of training -->"
RUNG = "search"
PART = 3  # steps in a row of the table
RIGHT = ("certain and right", "unsure and right")


def rows(run: Path) -> list[dict[str, float]]:
    """One row a step."""
    labels: dict[str, list[str]] = {}  # work -> the outcome of each of its trajectories
    looked: dict[str, Event] = {}
    trained: dict[int, list[str]] = defaultdict(list)
    steps: list[Event] = []
    for event in merged(run / "logs"):
        match event["event"]:
            case "group.judged" if "deliberation" in event["verdicts"]:
                labels[event["id"]] = event["verdicts"]["deliberation"]["labels"]
            case "group.deliberated":
                looked[event["id"]] = event
            case "group.trained":
                trained[event["step"]].append(event["id"])
            case "step.completed":
                steps.append(event)
    found = []
    for event in steps:
        works, held = trained[event["step"]], event["constraints"]["false_certain"]
        counts = Counter(label for work in works for label in labels[work])
        total = counts.total()
        found.append(
            {
                "step": event["step"],
                "accuracy": sum(counts[label] for label in RIGHT) / total,
                "certain": (counts["certain and right"] + counts["false certain"]) / total,
                "false certain": counts["false certain"] / total,
                "no answer": counts["no answer"] / total,
                "multiplier": held["multiplier"],
                "searches": sum(looked[work]["search"] for work in works) / total,
                "well formed": sum(looked[work]["well_formed"] for work in works) / total,
                "reward": event["reward_mean"],
                "limit": held["limit"],
            }
        )
    return found


def table(found: list[dict[str, float]]) -> list[str]:
    names = ["accuracy", "certain", "false certain", "no answer", "well formed", "searches", "reward", "multiplier"]
    lines = [f"| steps | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    for start in range(0, len(found), PART):
        part = found[start : start + PART]
        cells = [
            f"{part[-1][name]:.3f}" if name == "multiplier" else f"{np.mean([row[name] for row in part]):.2f}"
            for name in names
        ]
        lines.append(f"| {part[0]['step']:.0f} to {part[-1]['step']:.0f} | {' | '.join(cells)} |")
    return lines


def plot(found: list[dict[str, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps = [row["step"] for row in found]
    figure, (upper, lower) = pyplot.subplots(2, 1, figsize=(8, 6), sharex=True, height_ratios=(2, 1))
    for name, colour in (("accuracy", "#2f6db3"), ("certain", "#2a8c5a"), ("false certain", "#c0392b")):
        values = np.array([row[name] for row in found])
        upper.plot(steps, values, ".", color=colour, alpha=0.4)
        width = min(5, len(values))
        smooth = np.convolve(values, np.ones(width) / width, mode="valid")
        upper.plot(steps[width - 1 :], smooth, color=colour, label=f"{name} (mean of {width} steps)")
    upper.axhline(found[0]["limit"], color="#c0392b", linestyle="--", linewidth=1, label="limit of false certain")
    upper.set(ylabel="share of trajectories", ylim=(0, 1))
    lower.plot(steps, [row["multiplier"] for row in found], color="#555555")
    lower.set(xlabel="step", ylabel="multiplier of reliability")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    upper.legend(fontsize="small", loc="upper left")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("climb", type=Path, help="the climb's folder")
    parser.add_argument("--markdown", type=Path)
    chosen = parser.parse_args()
    found = rows(chosen.climb / RUNG)
    lines = table(found)
    print("\n".join(lines))
    if chosen.markdown:
        plot(found, chosen.markdown.parent / "deliberation" / "training.png")
        measured = (chosen.climb / "ladder.md").read_text("utf-8").strip()
        picture = "![Outcomes and multiplier, step by step](deliberation/training.png)"
        put_between(
            chosen.markdown, BEGIN, END, [measured, "Step by step, within the second rung:", "\n".join(lines), picture]
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
