"""Deliberative search: accuracy, and how far the stated confidence can be relied on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Final

from safeladder.launch.evaluation.statistics import Column
from safeladder.launch.evaluation.suite import Columns, Outcome, Suite, share, sliced
from safeladder.launch.evaluation.suites.calibration import calibrated
from safeladder.launch.evaluation.suites.general import correct
from safeladder.policies.search.deliberate import grammar
from safeladder.policies.search.deliberate.vote import Ballot, vote
from safeladder.protocol.messages import Record
from safeladder.verifiers.rules.match import normalise, says

VOTES: Final = (4, 16)


class SearchSuite(Suite):
    """accuracy; false_certain: wrong with a confidence above zeta; certain_precision: right among the certain; reliability: certain and
    right, or unsure and wrong; ece, brier, coverage; mean searches and reads of an answer, all its trajectories together; and of answers
    with enough trajectories, the vote weighed by confidence and the plain majority."""

    name = "search"

    def roles(self, record: Record) -> Sequence[str]:
        return ("match",) if record.label == "search" and record.reference is not None else ()

    def columns(self, outcomes: Sequence[Outcome]) -> Columns:
        yield from sliced("accuracy", outcomes, correct)
        stated = [o for o in outcomes if o.response.confidence is not None]
        yield "false_certain", share(stated, lambda o: certain(o) and not correct(o))
        yield "certain_precision", share([o for o in stated if certain(o)], correct)
        yield "reliability", share(stated, lambda o: certain(o) == correct(o))
        yield from calibrated(outcomes)
        for name in ("searches", "reads"):
            counts = {o.item: o.response.spent[name] for o in outcomes if name in o.response.spent}
            yield f"{name}_mean", Column.of(counts, "mean")
        for count in VOTES:
            voted = [o for o in outcomes if len(o.response.ballots) >= count]
            if voted:
                for name, choose in (("weighted", _weighted), ("majority", _majority)):
                    right = {o.item: float(_accepted(o, choose(o, count))) for o in voted}
                    yield f"{name}@{count}", Column.of(right)


def certain(outcome: Outcome) -> bool:
    return (outcome.response.confidence or 0.0) * grammar.MOST > grammar.CERTAIN


def _weighted(outcome: Outcome, count: int) -> str | None:
    ballots = [Ballot(answer, sure) for answer, sure in outcome.response.ballots[:count]]
    chosen = vote(ballots, normalise).chosen
    return None if chosen is None else ballots[chosen].answer


def _majority(outcome: Outcome, count: int) -> str | None:
    """The most frequent answer, the earlier of equals."""
    given = [answer for answer, _ in outcome.response.ballots[:count] if answer is not None]
    copies: dict[str, list[str]] = defaultdict(list)
    for answer in given:
        copies[normalise(answer)].append(answer)
    if not copies:
        return None
    winner = Counter({key: len(same) for key, same in copies.items()}).most_common(1)[0][0]
    return copies[winner][0]


def _accepted(outcome: Outcome, answer: str | None) -> bool:
    """Whether the answer contains an accepted one, normalised: what the rule `match` asks for."""
    accepted = outcome.record.reference
    wanted = [accepted] if isinstance(accepted, str) else list(accepted or [])
    return answer is not None and any(says(normalise(answer), normalise(each)) for each in wanted if normalise(each))
