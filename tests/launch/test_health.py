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


def test_a_fast_leak_is_named_within_ten_seconds_and_what_is_taken_at_once_is_none() -> None:
    def sizes(of: Any) -> list[Event]:
        rows = ((at, {"custom/0": worker("custom", pid=9, metrics={"rss_bytes": of(at)})}) for at in range(0, 60, 2))
        return [status(at, workers=workers) for at, workers in rows]

    def named(of: Any) -> list[tuple[int, str]]:
        health = Health()
        return [(int(at), f.found) for at, event in enumerate(sizes(of)) for f in health.note(event)]

    [(index, found)] = named(lambda at: 2e9 + 1e8 * max(0, at - 31))
    assert 2 * index - 31 <= 10 and "MiB each second" in found
    assert named(lambda at: 2e9 + 3e9 * (at > 31)) == []
    assert named(lambda at: 2e9 + 4e9 * (1 - 0.5 ** max(0, (at - 31) / 2))) == []  # ever less, as caches fill
    assert named(lambda at: 2e9 + 1e8 * at if at < 10 else 3e9) == []  # its first works


def test_weights_that_were_not_attested_are_told_until_the_process_has_proved_others() -> None:
    figures = {"tokens": 64, "worst": 2.0, "tolerance": 0.002}
    bad = line("weights.attested", role="generator", version=7, passed=False, mean=1.0, **figures)
    good = line("weights.attested", role="generator", version=8, passed=True, mean=0.0, **figures)
    rule, subject, found = only([bad])
    assert (rule, subject) == ("unattested_weights", "generator/0") and "version 7 was not attested" in found
    assert len(findings([bad, good, bad])) == 2
    refused = [line("weights.refused", role="generator", version=n, error="was altered") for n in (1, 2, 3)]
    assert findings(refused[:2]) == [] and only(refused)[2].startswith(
        "3 versions in a row were refused, the last one 3"
    )
    assert findings([*refused[:2], line("weights.loaded", role="generator", version=3), refused[2]]) == []


def test_a_late_answer_is_told_of_whom_and_which_work_until_there_was_none_for_a_minute() -> None:
    late = [line("answer.refused", at, name="rules/0", work="00000003-task") for at in (1.0, 200.0)]
    found = findings([late[0], status(2.0), status(100.0), late[1]])
    assert [(f.rule, f.subject) for f in found] == [("late_answers", "rules/0")] * 2
    assert "it answered 00000003-task after its lease was lost" in found[0].found


def test_a_finding_is_told_again_when_it_comes_back_and_a_roll_back_is_no_new_evidence() -> None:
    bad, good = {"ess": 0.1}, {"ess": 1.0}
    events = [step(n, **bad) for n in range(1, 6)] + [step(n, **good) for n in range(6, 12)]
    assert [f.rule for f in findings([*events, *(step(n, **bad) for n in range(12, 17))])] == ["ess_collapse"] * 2
    assert findings([step(n, **bad) for n in (1, 2, 3, 4, 3, 4, 3, 4)]) == []
