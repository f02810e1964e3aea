"""`safeladder who-waits` and `safeladder health`: what the logs of a run say now, or said at its end."""

from __future__ import annotations

from collections.abc import Iterator

from safeladder.launch.config import ConfigError, load_resolved
from safeladder.launch.events import merged, seconds
from safeladder.launch.health import Finding, Health
from safeladder.launch.rundir import RunDirectory
from safeladder.launch.standstill import Standstill
from safeladder.launch.waits import Layout, Waits


def who_waits(run: RunDirectory, now: float | None) -> Waits:
    """The wait graph as of `now` (seconds since 1970); None: as of the last line. Raises ConfigError without a hub's word."""
    run.info()
    standstill, last = Standstill(Layout.of(load_resolved(run.config))), 0.0
    for event in merged(run.path / "logs", "[hl]*.jsonl"):  # hub, launcher, and what else begins so
        standstill.note(event)
        last = max(last, seconds(event) if event.get("event") == "hub.status" else 0.0)
    waits = standstill.waits(last if now is None else now)
    if waits is None:
        raise ConfigError(f"{run.path}: its hub has not said anything yet")
    return waits


def health(run: RunDirectory) -> Iterator[tuple[float, int | None, Finding, bool]]:
    """What the rules find over the whole of a run: when, after which step, what, and whether it lasts to the end."""
    run.info()
    watching = Health()
    found: list[tuple[float, int | None, Finding]] = []
    for event in merged(run.path / "logs"):
        found += [(seconds(event), watching.step.get("step"), finding) for finding in watching.note(event)]
    newest = {(finding.rule, finding.subject): at for at, _, finding in found}
    for at, step, finding in found:
        key = (finding.rule, finding.subject)
        yield at, step, finding, key in watching.lasting and newest[key] == at
