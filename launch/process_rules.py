"""Health rules about processes: their memory, the weights they hold, the answers they give. As those of `health.py`, which runs them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import fmean

from safeladder.launch.events import Event, seconds
from safeladder.launch.seen import BURST, Finding, Seen


def memory_growth(
    seen: Seen, window_s: float = 300.0, warmup_s: float = 60.0, factor: float = 1.3, least_bytes: float = 256 * 2**20
) -> Iterator[Finding]:
    """A process that grows and grows: slowly, in five equal parts of the window, each larger than the one before in its mean; or fast."""
    advice = "it will be killed when memory is used up; its works will go to others. If the actor is yours, it keeps something"
    for (name, pid), column in sorted(seen.memory.items()):
        if fast := _bursting(seen.bursts.get((name, pid), ()), least_bytes):
            yield Finding("memory_growth", name, fast, advice)
            continue
        rows = [(at, size) for at, size in column if at >= column[0][0] + warmup_s and at >= column[-1][0] - window_s]
        if not rows or rows[-1][0] - rows[0][0] < window_s / 2:
            continue
        parts = [fmean(size for _, size in rows[len(rows) * k // 5 : len(rows) * (k + 1) // 5]) for k in range(5)]
        rises = all(before < after for before, after in pairwise(parts))
        first, last = parts[0], parts[-1]
        if rises and last > factor * first and last - first > least_bytes:
            minutes = (rows[-1][0] - rows[0][0]) / 60
            yield Finding("memory_growth", name, f"{_mib(first, last)} in {minutes:.0f} min, and steadily", advice)


def _bursting(
    column: Sequence[tuple[float, float]], least_bytes: float, factor: float = 1.1, lasting: float = 0.5
) -> str:
    """What a fast leak looks like: `BURST` rises in a row that do not become less. lasting: the last rise over the largest.

    What a process takes once, for its first works, its optimizer or a cache, comes in fewer rises, or in ever smaller ones.
    """
    rises = [after - before for (_, before), (_, after) in pairwise(column)]
    if len(rises) < BURST or min(rises) <= 0 or rises[-1] < lasting * max(rises):
        return ""
    (begin, first), (end, last) = column[0], column[-1]
    if last <= factor * first or last - first <= least_bytes:
        return ""
    return f"{_mib(first, last)} in {end - begin:.0f} s, {(last - first) / (end - begin) / 2**20:.0f} MiB each second"


def _mib(first: float, last: float) -> str:
    return f"from {first / 2**20:.0f} to {last / 2**20:.0f} MiB"


def unattested_weights(seen: Seen, refusals: int = 3) -> Iterator[Finding]:
    """A generator whose engine does not compute what the learner does, or that can take no publication. One refusal may be a publication
    that was retired before it could be read."""
    for name, event in sorted(seen.unattested.items()):
        differs = (
            "nothing could be compared" if event["mean"] is None else f"the mean difference is {event['mean']:.3g} nats"
        )
        yield Finding(
            "unattested_weights",
            name,
            f"version {event['version']} was not attested: on the learner's probe {differs}, {event['tolerance']:g} may be",
            "the process ends and is started again, and nothing of that version is trained on. If it comes again: compare the engine's "
            "dtype and version with the learner's; raise weights.canary_tolerance only if the difference is rounding",
        )
    for name, events in sorted(seen.refused.items()):
        if len(events) >= refusals and name not in seen.unattested:
            yield Finding(
                "unattested_weights",
                name,
                f"{len(events)} versions in a row were refused, the last one {events[-1]['version']}: {events[-1]['error']}",
                "it samples with old weights: is the folder of publications readable there, is weights.key the run's, is weights.keep low?",
            )


def late_answers(seen: Seen, within_s: float = 60.0) -> Iterator[Finding]:
    """Works done twice, because who did them was taken for gone, or did not care that its lease was."""
    found: dict[str, list[Event]] = {}
    for event in seen.late:
        if seen.now - seconds(event) <= within_s:
            found.setdefault(event["name"], []).append(event)
    for name, events in sorted(found.items()):
        yield Finding(
            "late_answers",
            name,
            f"it answered {events[-1]['work']} after its lease was lost ({len(events)} such answers in {within_s:.0f} s): refused, and "
            "nothing counts twice, but the work was done twice",
            "was the process stopped, its machine asleep, the network cut? Else raise hub.silence_s. An actor of your own must let "
            "go of what `revoked` names",
        )
