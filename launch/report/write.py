"""`safeladder report`: reads the logs of one or several runs and writes one HTML page about them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safeladder.launch.monitor.once import opened
from safeladder.launch.report import overview, system, training
from safeladder.launch.report.page import page


def write(runs: Sequence[Path], out: Path) -> Path:
    """The page's path. Raises ConfigError for a folder that is no run."""
    views = [opened(run) for run in runs]
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
        system.verifiers(views),
        system.warnings(views),
        overview.configurations(views),
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    partial.write_text(page(f"SafeLadder: {', '.join(view.path.name for view in views)}", sections), "utf-8")
    partial.replace(out)
    return out
