"""`safeladder report`: reads the logs of one or several runs and writes one HTML page about them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safeladder.launch.report import overview, system, training, verdicts
from safeladder.launch.report.page import page
from safeladder.launch.top.once import opened


def write(runs: Sequence[Path], out: Path, texts: bool = False) -> Path:
    """The page's path. texts: with examples of prompts and answers, where the runs have logged them.

    Raises ConfigError for a folder that is no run.
    """
    views = [opened(run, texts) for run in runs]
    for view in views:
        view.read()
    sections = [
        overview.overview(views),
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
