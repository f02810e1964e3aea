"""Who waits for whom: each known fault is named as what it is, and a standstill is told within its bound, once."""

from __future__ import annotations

from typing import Any

import pytest
from events_of import START, line, status, step, worker

from safeladder.launch.standstill import QUIET_S, START_S, Standstill
from safeladder.launch.waits import Layout, diagnose

LAYOUT = Layout(
    [["generator", "rules", "learner"]], {q: [f"{q}/0"] for q in ("feeder", "generator", "rules", "learner")}
)
OLDEST = {"id": "00000001-task", "queue": "rules", "holder": "rules/0", "seconds": 30.0, "attempts": 1}

FAULTS: list[tuple[str, str, str, dict[str, Any]]] = [
    (
        "a dead verifier pool",
        "missing",
        "no process takes from 'rules', where 3 works wait: rules/0 should",
        {"waiting": {"rules": 3}, "leased": 2, "workers": {"rules/0": worker("other")}},
    ),
    (
        "a stuck generator",
        "stuck",
        "generator/0 has made no progress for 42 s with the 4 works it holds",
        {"leased": 4, "workers": {"generator/0": worker("generator", leases=4, busy_s=42.0, progress_s=42.0)}},
    ),
    (
        "a stopped generator",
        "stuck",
        "generator/0 holds 4 works and has not been heard of for 8 s",
        {"leased": 4, "workers": {"generator/0": worker("generator", leases=4, heard_s=8.0)}},
    ),
    (
        "a learner without credit for what it waits for",
        "credit",
        "raise pools.learner.credit",
        {"waiting": {"learner": 2}, "leased": 4, "workers": {"learner/0": worker("learner", leases=4)}},
    ),
    (
        "a learner slower than its generators",
        "computing",
        "learner/0 computes, and the others wait for it; 2 works wait",
        {"waiting": {"learner": 2}, "leased": 4, "workers": {"learner/0": worker("learner", leases=4, progress_s=9.0)}},
    ),
    (
        "an admission that waits for a learner that waits for a group",
        "cycle",
        "feeder -> learner -> rules -> generator -> feeder; 2 works are held at the end",
        {"leased": 2, "workers": {"learner/0": worker("learner", leases=2)}},
    ),
    (
        "a work that its holder has forgotten",
        "cycle",
        "rules/0 holds '00000001-task' for 30 s and does not work on it",
        {"leased": 1, "oldest": [OLDEST], "workers": {"rules/0": worker("rules", leases=1)}},
    ),
    ("a feeder that admits nothing", "starved", "all wait for feeder to admit some", {}),
    (
        "a generator that loads",
        "computing",
        "generator/0 is loading",
        {"waiting": {"generator": 8}, "workers": {"generator/0": worker("generator", credit=0)}},
    ),
]


@pytest.mark.parametrize(("kind", "said", "seen"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_fault_is_named_in_plain_words(kind: str, said: str, seen: dict[str, Any]) -> None:
    found = diagnose(status(**seen), LAYOUT)
    assert (found.kind, said in found.cause) == (kind, True), found.cause
    assert len(found.waits) >= 4


def test_a_blocked_journal_and_a_silent_hub_go_before_all_else() -> None:
    assert "No space left" in diagnose(status(), LAYOUT, blocked="No space left on device").cause
    found = diagnose(status(), LAYOUT, silent_s=12.0)
    assert (found.kind, "nothing for 12 s" in found.cause) == ("blocked", True)


def test_who_waits_is_told_for_every_pool_and_the_oldest_work() -> None:
    seen = {"waiting": {"rules": 1}, "oldest": [OLDEST], "workers": {"rules/0": worker("rules", busy_s=0.4, leases=1)}}
    said = diagnose(status(**seen), LAYOUT).waits
    assert said == [
        "feeder/0 waits for learner to account for groups",
        "generator/0 waits for works from feeder, holds 0 of 4; 0 works wait for it",
        "rules/0 computes for 0.5 s, holds 1 of 4; 1 work waits for it",
        "learner/0 waits for works from rules, holds 0 of 4; 0 works wait for it",
        "00000001-task is with rules/0 for 30.0 s",
    ]


# --------------------------------------------------------------------------------------------------------- standstill

CYCLE = {"leased": 2, "workers": {"learner/0": worker("learner", leases=2)}}
STUCK = {"leased": 4, "workers": {"generator/0": worker("generator", leases=4, busy_s=42.0, progress_s=42.0)}}


class Watched:
    """A detector, and a run that moves until `moves` and then has the status `seen` for ever."""

    def __init__(self, seen: dict[str, Any], moves: int = 20, pause: int = 2) -> None:
        self.detector = Standstill(LAYOUT)
        self.told: list[tuple[float, str, dict[str, Any]]] = []
        self.detector.note(line("run.started", role="launcher", directory="d", endpoint="e", resumed=False))
        for at in range(0, 400, 2):
            if at <= moves:
                self.detector.note(status(at, done=1 + at // pause, **(seen if pause > 2 else {})))
            else:
                self.detector.note(status(at, done=1 + moves // pause, **seen))
            for now in (at + 0.5, at + 1.5):
                self.look(now)

    def look(self, now: float) -> None:
        self.told += [(now, name, fields) for name, fields in self.detector.look(START + now)]


def test_a_standstill_is_told_once_within_its_bound_and_its_end_too() -> None:
    watched = Watched(CYCLE)
    [(at, name, fields)] = watched.told
    assert name == "run.stalled" and fields["kind"] == "cycle"
    assert 20 + QUIET_S < at <= 20 + QUIET_S + 3
    line("run.stalled", role="launcher", **fields)  # of the catalogue's form
    watched.detector.note(status(400, done=99))
    watched.look(400.5)
    assert watched.told[-1][1] == "run.moving" and watched.told[-1][2]["seconds"] == pytest.approx(380, abs=2)


def test_a_run_that_moves_is_never_told_to_stand_still() -> None:
    assert Watched({}, moves=400).told == []


def test_who_computes_for_long_gets_three_times_the_longest_pause_so_far() -> None:
    """The first long pause is told, as nobody can know; from then on ten seconds are usual."""
    told = Watched(STUCK, moves=60, pause=10).told
    assert [name for _, name, _ in told] == ["run.stalled", "run.moving", "run.stalled"]
    (first, _, _), _, (last, _, fields) = told
    assert first < 20 and fields["kind"] == "stuck" and 60 + 3 * 10 < last <= 60 + 3 * 10 + 3


def test_loading_at_the_start_has_a_longer_bound() -> None:
    [(at, _, _)] = Watched(CYCLE | {"counters": {"accepted": 8}}, moves=-1).told
    assert START_S < at <= START_S + 3


def test_works_that_wait_for_nobody_are_told_although_others_move() -> None:
    detector, told = Standstill(LAYOUT), []
    for at in range(0, 40, 2):
        gone = {"waiting": {"rules": at}, "leased": 1, "workers": {"rules/0": worker("other")}} if at >= 20 else {}
        detector.note(status(at, done=1 + at, **gone))
        told += [(at, fields) for _, fields in detector.look(START + at + 0.5)]
    [(at, fields)] = told
    assert fields["kind"] == "missing" and 20 + QUIET_S <= at <= 20 + QUIET_S + 4


def test_a_blocked_journal_is_told_although_the_hub_gives_no_status() -> None:
    detector = Standstill(LAYOUT)
    for at in range(0, 10, 2):
        detector.note(status(at, done=1 + at))
    detector.note(line("journal.blocked", 9.0, error="No space left on device", retry_s=1.0))
    [(_, fields)] = detector.look(START + 8 + QUIET_S + 1)
    assert fields["kind"] == "blocked" and "No space left" in fields["cause"]


def test_a_run_that_is_ending_is_not_told_to_stand_still() -> None:
    detector = Standstill(LAYOUT)
    for at in range(0, 10, 2):
        detector.note(status(at, done=1 + at))
    detector.note(step(1, 9.0))
    detector.note(line("run.draining", 9.5, role="launcher", reason="done"))
    assert list(detector.look(START + 100)) == []
