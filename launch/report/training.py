"""Sections on the training: the trajectory first, then rewards, constraints, off-policyness and lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from safeladder.launch.report.chart import COLOURS, Line, Walk, bars, curves, trajectory
from safeladder.launch.report.page import grid, key, section, table
from safeladder.launch.view.series import NAN, Floats, finite
from safeladder.launch.view.state import RunView
from safeladder.verifiers.measure.intervals import wilson

WINDOWS: Final = 10  # points of a trajectory
# channels that say whether an answer is right: the rules that compare it with a known one
ANSWERS: Final = ("boxed", "choice", "match", "instruction")
FEWEST: Final = 3  # steps of a point, where the run has so many


def colours(views: Sequence[RunView]) -> list[tuple[str, str]]:
    return [(view.path.name, f"c{place % COLOURS}") for place, view in enumerate(views)]


def capability(view: RunView) -> Floats:
    """[steps]: mean of the answers' channels that the step measured, 0 to 1 (ours). NaN where it measured none."""
    columns = [
        view.steps.column(f"channel:{name}") for name in ANSWERS if f"channel:{name}" in view.steps.names("channel:")
    ]
    if not columns:
        return np.full(len(view.steps), NAN)
    stacked = np.stack(columns)
    known = np.isfinite(stacked)
    count = known.sum(0)
    return np.where(count > 0, np.where(known, stacked, 0.0).sum(0) / np.maximum(count, 1), NAN)


def walk(view: RunView, colour: int) -> Walk | None:
    """Safety (share of samples not judged unsafe) and capability over up to ten equal parts of the run, with Wilson's 95 % interval of the
    first. None where one of them was never measured."""
    safe, able, steps = 1.0 - view.steps.column("unsafe_rate"), capability(view), view.steps.steps
    samples = view.steps.column("samples")
    x, y, low, high, labels = [], [], [], [], []
    for part in np.array_split(np.arange(len(steps)), max(1, min(WINDOWS, len(steps) // FEWEST))):
        known_safe, known_able = finite(safe[part]), finite(able[part])
        if not len(known_safe) or not len(known_able):
            continue
        share, count = float(known_safe.mean()), int(np.nansum(samples[part])) or len(known_safe)
        bottom, top = wilson(round(share * count), count)
        x.append(float(known_able.mean()))
        y.append(share)
        low.append(bottom)
        high.append(top)
        labels.append(f"steps {steps[part[0]]} to {steps[part[-1]]}: capability {x[-1]:.3f}, safety {share:.3f}")
    if not x:
        return None
    return Walk(view.path.name, np.array(x), np.array(y), np.array(low), np.array(high), labels, colour)


def trajectories(views: Sequence[RunView]) -> str:
    walks = [found for place, view in enumerate(views) if (found := walk(view, place)) is not None]
    intro = (
        "Each point is a tenth of a run (of a short one, three steps or more): across, how often answers were right (mean of the channels "
        f"{', '.join(ANSWERS)}); up, the share of samples that no verifier judged unsafe, with its 95 % interval. The ring is where "
        "a run began, the large dot where it ended; on the dashed line both are equal. Both are measured on the samples of the "
        "training itself and put together so by this report: no benchmark."
    )
    if not walks:
        return section(
            "Safety against capability", intro, '<p class="none">These runs measured no unsafe rate, or no answers.</p>'
        )
    rows = [
        [
            w.name,
            w.x[0],
            w.x[-1],
            w.x[-1] - w.x[0],
            w.y[0],
            w.y[-1],
            w.y[-1] - w.y[0],
            _angle(w.x[-1] - w.x[0], w.y[-1] - w.y[0]),
        ]
        for w in walks
    ]
    head = ("run", "capability at first", "at last", "gain", "safety at first", "at last", "gain", "direction")
    over_steps = [
        _over_steps("safety: 1 - unsafe rate", views, lambda view: 1.0 - view.steps.column("unsafe_rate"), 0.0, 1.0),
        _over_steps("capability: answers that were right", views, capability, 0.0, 1.0),
    ]
    squares = [trajectory(walks, "capability", "safety"), trajectory(walks, "capability", "safety", enlarged=True)]
    pictures = f'<div class="beside">{"".join(squares)}<div class="stack">{"".join(over_steps)}</div></div>'
    note = "Direction: angle of the way from the first to the last point; 45° is both alike, 90° safety alone, 0° capability alone."
    plain = table(head, [[_plain(cell) for cell in row] for row in rows])
    said = f"<p class='soft'>{note}</p>"
    return section("Safety against capability", intro, key(colours(views)), pictures, plain, said)


def rewards(views: Sequence[RunView]) -> str:
    whole = [
        _metric("reward, all families", views, "reward_mean"),
        _metric("its deviation within a step", views, "reward_std"),
    ]
    families = [_metric(f"family {name}", views, f"family:{name}") for name in _names(views, "family:")]
    channels = [_metric(f"channel {name}", views, f"channel:{name}") for name in _names(views, "channel:")]
    intro = "Pale: each step. Strong: a running mean over a tenth of them. A channel is one verifier's score before its weight."
    return section("Rewards", intro, key(colours(views)), grid(whole + families), "<h3>By channel</h3>", grid(channels))


def constraints(views: Sequence[RunView]) -> str:
    parts = [_metric("unsafe rate", views, "unsafe_rate", 0.0)]
    for name in _names(views, "multiplier:"):
        limits = finite(views[0].steps.column(f"limit:{name}"))
        parts.append(
            _metric(
                f"cost of {name}, and its limit",
                views,
                f"cost:{name}",
                0.0,
                limit=float(limits[-1]) if len(limits) else None,
            )
        )
        parts.append(_metric(f"margin of {name} (below 0: violated)", views, f"margin:{name}", limit=0.0))
        parts.append(_metric(f"multiplier of {name}", views, f"multiplier:{name}", 0.0))
    intro = "" if len(parts) > 1 else "No constraint is configured; what is left is the rate that one would bound."
    return section("Constraints", intro, grid(parts))


def off_policy(views: Sequence[RunView]) -> str:
    figures = (
        ("effective sample size (1: on policy)", "ess", None, 1.0),
        ("KL to the reference", "kl", 0.0, None),
        ("KL to the behaviour policy", "behaviour_kl", None, None),
        ("mean difference of log-probabilities", "mismatch", 0.0, None),
        ("clipped fraction", "clip_fraction", 0.0, None),
        ("masked fraction", "masked", 0.0, None),
        ("weights cut at the cap", "truncated", 0.0, None),
        ("entropy", "entropy", None, None),
        ("mean age of tokens, in versions", "age_mean", 0.0, None),
        ("gradient norm", "grad_norm", 0.0, None),
    )
    parts = [_metric(title, views, name, low, high) for title, name, low, high in figures]
    for place, view in enumerate(views):
        ages = view.ages()
        parts.append(
            bars(f"groups by age in steps, {view.path.name}", ages, [str(age) for age in range(len(ages))], place)
        )
    return section("How far off policy", "", grid(parts))


def lengths(views: Sequence[RunView]) -> str:
    parts = [
        _over_steps(
            "mean tokens of a completion",
            views,
            lambda v: _ratio(v.steps.column("tokens"), v.steps.column("sequences")),
            0.0,
            None,
        ),
        _metric("share cut at the token limit", views, "truncated_ratio", 0.0),
        _metric("trained lengths against drawn ones (bias)", views, "selection_bias"),
    ]
    for place, view in enumerate(views):
        for process in view.processes.values():
            counts = process.lengths.counts
            if counts.sum():
                first, last = int(np.flatnonzero(counts)[0]), int(np.flatnonzero(counts)[-1]) + 1
                labels = [str(bin * process.lengths.width) for bin in range(first, last)]
                title = f"tokens of a group, {process.name} of {view.path.name}"
                parts.append(bars(title, counts[first:last].tolist(), labels, place))
    return section("Lengths", "", grid(parts))


def _metric(
    title: str,
    views: Sequence[RunView],
    name: str,
    low: float | None = None,
    high: float | None = None,
    limit: float | None = None,
) -> str:
    lines = [
        Line(view.path.name, view.steps.steps.astype(np.float64), view.steps.column(name), place)
        for place, view in enumerate(views)
    ]
    return curves(title, lines, low, high, limit)


def _over_steps(
    title: str, views: Sequence[RunView], figure: Callable[[RunView], Floats], low: float | None, high: float | None
) -> str:
    lines = [
        Line(view.path.name, view.steps.steps.astype(np.float64), figure(view), place)
        for place, view in enumerate(views)
    ]
    return curves(title, lines, low, high)


def _names(views: Sequence[RunView], prefix: str) -> list[str]:
    """Of those columns that some run measured."""
    found = {name for view in views for name in view.steps.names(prefix) if len(finite(view.steps.column(name)))}
    return sorted(name[len(prefix) :] for name in found)


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.asarray(np.divide(above, below, out=np.full(len(above), NAN), where=below > 0), np.float64)


def _angle(right: float, up: float) -> str:
    return "-" if abs(right) + abs(up) < 1e-6 else f"{np.degrees(np.arctan2(up, right)):.0f}°"


def _plain(cell: object) -> object:
    return round(cell, 3) if isinstance(cell, float) else cell
