"""Health rules: each is provoked once on events of a run's own shapes, and is silent on a healthy run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from events_of import Event, line, status, step, trained, worker

from safeladder.launch.health import Finding, Health


def findings(events: Iterable[Event]) -> list[Finding]:
    health = Health()
    found = [finding for event in events for finding in health.note(event)]
    for finding in found:
        line("health.warning", role="launcher", **vars(finding))  # of the catalogue's form
        assert finding.advice
    return found


def only(events: Iterable[Event]) -> tuple[str, str, str]:
    """Told once, however long it lasts."""
    [finding] = findings(events)
    return finding.rule, finding.subject, finding.found


def healthy() -> list[Event]:
    events = []
    for n in range(1, 61):
        events += [trained(n, {"length": [0.1 * n, 0.2], "judge": [0.0, 1.0]}), step(n, at=10.0 * n)]
        size = 1e9 + 1e6 * (n % 5)
        events.append(status(10.0 * n, workers={"generator/0": worker("generator", metrics={"rss_bytes": size})}))
        events.append(judged({"judge": ["ok"] * 4}))
    return events


def judged(statuses: dict[str, list[str]]) -> Event:
    verdicts = {name: {"statuses": s, "scores": [0.5] * len(s), "versions": ["1"]} for name, s in statuses.items()}
    return line("group.judged", role="rules", id="00000001-task", verdicts=verdicts)


def test_a_healthy_run_breaks_no_rule() -> None:
    assert findings(healthy()) == []


def test_mismatch_drift_is_told_by_the_alarm_and_by_the_mean_mismatch() -> None:
    alarm = {"version": 3, "reason": "mean |difference| 0.2 above 0.005", "advice": "x"}
    figures = {"tokens": 64, "mean": 0.2, "worst": 1.0, "outside": 0.5}
    rule, _, found = only([step(1), step(2), line("drift.alarm", role="learner", step=2, **alarm, **figures), step(3)])
    assert (rule, found) == ("mismatch_drift", alarm["reason"])
    assert only([step(n, mismatch=0.3) for n in range(1, 9)])[0] == "mismatch_drift"


def test_ess_collapse() -> None:
    rule, _, found = only([*(step(n) for n in range(1, 6)), *(step(n, ess=0.05) for n in range(6, 20))])
    assert rule == "ess_collapse" and "0.24" in found  # the first mean of five below 0.3: 1, 0.05 x 4


def test_length_bias_needs_enough_samples_and_several_steps() -> None:
    assert findings([step(n, selection_bias=0.5, samples=8) for n in range(1, 20)]) == []
    assert findings([step(n, selection_bias=0.5 if n % 2 else 0.0) for n in range(1, 20)]) == []
    assert only([step(n, selection_bias=0.5) for n in range(1, 20)])[0] == "length_bias"


def test_a_dead_channel_and_a_dead_family_are_named() -> None:
    events = []
    for n in range(1, 15):
        events += [trained(n, {"judge": [1.0, 1.0, None], "length": [0.1 * n, 0.0, 0.0]}), step(n)]
    assert only(events) == ("dead_channel", "verifier judge", "every score was 1 over 10 steps")
    rule, subject, _ = only([step(n, families={"safety": 0.25, "normal": 0.1 * n}) for n in range(1, 15)])
    assert (rule, subject) == ("dead_channel", "family safety")


def test_a_failing_verifier_is_named_by_its_verdicts_and_by_what_is_left_out() -> None:
    events = [judged({"judge": ["ok", "ok", "ok", "timeout"], "length": ["ok"] * 4}) for _ in range(8)]
    rule, subject, found = only(events)
    assert (rule, subject) == ("verifier_errors", "verifier judge") and found.startswith("25% of its last 16")
    assert only([step(n, unjudged_samples=20) for n in range(1, 9)])[:2] == ("verifier_errors", "")


@pytest.mark.parametrize(("margin", "broken"), [(-0.1, True), (0.1, False)])
def test_a_saturated_multiplier_is_told_only_where_its_constraint_is_broken(margin: float, broken: bool) -> None:
    row: dict[str, Any] = {"multiplier": 5.0, "cost": 0.2 - margin, "error": 0.0, "limit": 0.2, "margin": margin}
    row |= {"episodes": 64, "saturated": True}
    found = findings([step(n, constraints={"unsafe": row}) for n in range(1, 9)])
    assert [(f.rule, f.subject) for f in found] == [("multiplier_saturation", "constraint unsafe")] * broken


def test_a_leak_is_named_within_minutes_and_loading_is_none() -> None:
    def sizes(of: Any) -> list[Event]:
        return [
            status(at, workers={"custom/0": worker("custom", pid=9, metrics={"rss_bytes": of(at)})})
            for at in range(0, 900, 2)
        ]

    assert findings(sizes(lambda at: 4e9 if at > 30 else 1e8)) == []
    rule, subject, found = only(sizes(lambda at: 1e9 + 5e6 * at))
    assert (rule, subject) == ("memory_growth", "custom/0") and "steadily" in found


def test_a_finding_is_told_again_when_it_comes_back_and_a_roll_back_is_no_new_evidence() -> None:
    bad, good = {"ess": 0.1}, {"ess": 1.0}
    events = [step(n, **bad) for n in range(1, 6)] + [step(n, **good) for n in range(6, 12)]
    assert [f.rule for f in findings([*events, *(step(n, **bad) for n in range(12, 17))])] == ["ess_collapse"] * 2
    assert findings([step(n, **bad) for n in (1, 2, 3, 4, 3, 4, 3, 4)]) == []
