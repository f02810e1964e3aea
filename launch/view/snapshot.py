"""A run at one moment, as plain data: what `top` shows, and what `top --once --json` prints."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import yaml
from msgspec import Struct

from safeladder.launch.view.advice import Warned
from safeladder.launch.view.process import WAITING, ProcessView
from safeladder.launch.view.series import newest
from safeladder.launch.view.state import RunView

WINDOW_S: Final = 60.0  # over which rates and shares of time are taken
RECENT_STEPS: Final = 50  # of the histogram of ages
TRAINING: Final = (
    *("reward_mean", "unsafe_rate", "kl", "entropy", "ess", "clip_fraction", "masked", "truncated", "behaviour_kl"),
    *("loss", "grad_norm", "learning_rate", "truncated_ratio", "age_mean", "staleness_max", "tokens_per_s", "step_s", "wait_s"),
)  # fmt: skip
_GONE: Final = ("finished", "exited", "failed", "not started")


class Role(Struct):
    """A process. busy: share of the last minute at work, and rates over the last minute; of its life where it has ended.

    doing: in words; queue: works that wait in its queues. None where the logs, or the hub of a live run, do not tell.
    """

    process: str
    state: str
    why: str
    version: float | None
    queue: int | None
    credit: int | None
    leases: int | None
    tokens_per_s: float | None
    works_per_s: float | None
    busy: float | None
    doing: str
    restarts: int


class Snapshot(Struct):
    """at: ISO 8601, UTC. staleness[k]: groups of the last 50 steps trained at age k.

    training, families, channels: the newest measured figures; constraints: multiplier, cost, limit and margin of each.
    """

    run: str
    live: bool
    state: str
    reason: str
    at: str
    elapsed_s: float
    step: int
    steps: int | None
    version: float | None
    dead: int | None
    roles: list[Role]
    training: dict[str, float | None]
    families: dict[str, float | None]
    channels: dict[str, float | None]
    constraints: dict[str, dict[str, float | None]]
    staleness: list[int]
    warnings: list[Warned]
    unreadable_lines: int


def configuration(run: Path) -> dict[str, Any]:
    """RUN/config.yaml as it stands, also one of another version of this package; {} where there is none to read."""
    try:
        found = yaml.safe_load((run / "config.yaml").read_text())
    except (FileNotFoundError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def suppliers(config: dict[str, Any]) -> dict[str, list[str]]:
    """Role -> the roles from which its work comes, by the routes of all families. A route begins at the feeder."""
    found: dict[str, list[str]] = {}
    families = (config.get("recipe") or {}).get("families") or {}
    for family in families.values():
        route = ["feeder", *(family.get("route") or [])]
        for before, role in itertools.pairwise(route):
            if before not in found.setdefault(role, []):
                found[role].append(before)
    if "learner" in found:
        found["feeder"] = ["learner"]  # admission goes on when the learner has taken what was admitted
    return found


def snapshot(
    view: RunView,
    routes: dict[str, list[str]],
    moment: float | None = None,
    live: bool = False,
    status: dict[str, Any] | None = None,
) -> Snapshot:
    """moment: None for the end of the log. status: the hub's own answer (`live.py`), else what it logged last."""
    begin, end = view.span
    at = end if moment is None else moment
    if status is None:
        status = _told(view, at)
    rows = view.rows_until(moment)
    values = {name: newest(view.steps.column(name)[:rows]) for name in TRAINING}
    return Snapshot(
        run=view.path.name,
        live=live,
        state=view.run_state if moment is None or at >= end else "replay",
        reason=view.run_reason,
        at=datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds"),
        elapsed_s=round(at - begin, 1),
        step=int(view.steps.steps[rows - 1]) if rows else 0,
        steps=view.steps_asked,
        version=newest(view.steps.column("published")[:rows]),
        dead=(status or {}).get("dead"),
        roles=[_role(view, process, routes, moment, at, status) for process in _ordered(view, routes)],
        training=values,
        families=_named(view, "family:", rows),
        channels=_named(view, "channel:", rows),
        constraints=_constraints(view, rows),
        staleness=view.ages(rows, RECENT_STEPS),
        warnings=view.warnings.until(moment),
        unreadable_lines=view.unreadable,
    )


def _told(view: RunView, at: float) -> dict[str, Any]:
    """What the hub had logged of itself by a moment, in the shape of its own answer."""
    workers = {
        name: {"queues": process.queues, "credit": process.credits.at(at), "leases": leases}
        for name, process in view.processes.items()
        if (leases := process.leases.at(at)) is not None
    }
    waiting = {queue: int(depth) for queue, changes in view.waiting.items() if (depth := changes.at(at)) is not None}
    return {"waiting": waiting, "workers": workers, "dead": view.dead}


def _named(view: RunView, prefix: str, rows: int) -> dict[str, float | None]:
    return {name[len(prefix) :]: newest(view.steps.column(name)[:rows]) for name in view.steps.names(prefix)}


def _constraints(view: RunView, rows: int) -> dict[str, dict[str, float | None]]:
    names = [name.partition(":")[2] for name in view.steps.names("multiplier:")]
    kinds = ("multiplier", "cost", "limit", "margin")
    return {name: {kind: newest(view.steps.column(f"{kind}:{name}")[:rows]) for kind in kinds} for name in names}


def _ordered(view: RunView, routes: dict[str, list[str]]) -> list[ProcessView]:
    """Along the routes, then the others."""
    order = ["feeder"]
    while fresh := [role for role, before in routes.items() if role not in order and set(before) & set(order)]:
        order += sorted(fresh, key=lambda role: (role == "learner", len(routes[role])))
    place = {role: index for index, role in enumerate(order)}
    return sorted(view.processes.values(), key=lambda p: (p.role == "learner", place.get(p.role, len(order)), p.name))


def _role(
    view: RunView, process: ProcessView, routes: dict[str, list[str]], moment: float | None, at: float, status: dict[str, Any]
) -> Role:  # fmt: skip
    state, why = process.state(moment)
    gone = state in _GONE
    if gone and process.ended is not None:  # then of its whole life
        at = min(at, process.ended)
    since = max(at - WINDOW_S, process.began or at) if not gone else process.began or at
    busy = process.busy_share(since, at)
    worker = (status.get("workers") or {}).get(process.name, {})
    queues = worker.get("queues") or []
    waiting = [status["waiting"][queue] for queue in queues if queue in (status.get("waiting") or {})]
    span = max(at - since, 1e-9)
    return Role(
        process=process.name,
        state=state,
        why=why,
        version=process.version.at(moment),
        queue=sum(waiting) if waiting else None,
        credit=process.credit if worker.get("credit") is None else int(worker["credit"]),
        leases=None if worker.get("leases") is None else int(worker["leases"]),
        tokens_per_s=round(process.tokens.total(since, at) / span, 1) if process.tokens.total(0, at) else None,
        works_per_s=round(process.works.total(since, at) / span, 3) if process.works.total(0, at) else None,
        busy=None if busy is None else round(busy, 3),
        doing="" if gone else _doing(process, worker, waiting, busy, since, at, routes),
        restarts=process.restarts,
    )


def _doing(
    process: ProcessView,
    worker: dict[str, Any],
    waiting: list[int],
    busy: float | None,
    since: float,
    at: float,
    routes: dict[str, list[str]],
) -> str:
    """Busy, or for whom it waits: the roles from which its work comes."""
    before = " or ".join(routes.get(process.role, [])) or "work"
    waited = process.activities[WAITING].total(since, at) if WAITING in process.activities else 0.0
    leases = int(worker.get("leases") or 0)
    if "busy_s" in worker and process.role != "learner":
        if worker["busy_s"] > 0 or leases:
            return f"busy {worker['busy_s']:.1f} s, {leases} leases"
        return "about to take work" if any(waiting) else f"waits for {before}"
    if busy is None:
        return f"holds {leases} groups" if leases else ""
    if waited > 0.5 * (at - since) or busy < 0.05:
        return f"waits for {before}"
    return "busy" if busy > 0.8 else f"busy {busy:.0%}, else waits for {before}"
