"""`safeladder report`: reads the logs of one or several runs and writes one HTML page about them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safeladder.launch.ladder.state import is_climb, load
from safeladder.launch.report import overview, system, training, verdicts
from safeladder.launch.report.coevolution import coevolution
from safeladder.launch.report.page import page
from safeladder.launch.top.once import opened


def write(runs: Sequence[Path], out: Path, texts: bool = False) -> Path:
    """The page's path. texts: with examples of prompts and answers, where the runs have logged them.

    A climb's folder stands for the runs of its rungs, and the page begins with the climb. Raises ConfigError for a folder that is neither.
    """
    climbs = [(folder, load(folder)) for folder in runs if is_climb(folder)]
    rungs = {folder: [folder / name for name in climb.rungs] for folder, climb in climbs}
    views = [opened(run, texts) for folder in runs for run in rungs.get(folder, [folder])]
    for view in views:
        view.read()
    sections = [
        overview.overview(views),
        *(coevolution(climb) for _, climb in climbs),
        training.trajectories(views),
        training.rewards(views),
        training.constraints(views),
        training.off_policy(views),
        training.lengths(views),
        system.throughput(views),
        system.timelines(views),
        system.slowest(views),
        verdicts.agreement(views),
        *([verdicts.examples(views)] if texts else []),
        system.warnings(views),
        overview.configurations(views),
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    partial.write_text(page(f"SafeLadder: {', '.join(view.path.name for view in views)}", sections), "utf-8")
    partial.replace(out)
    return out
