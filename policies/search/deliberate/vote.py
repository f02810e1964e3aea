"""One answer out of several trajectories: the one whose trajectories are together the most certain, or none.

Answer = argmax_a of the sum of the confidences of those that answer a (reference for it: Deliberative Searcher, arXiv 2507.16727, where 4
trajectories so weighed equal 16 with a plain majority). Its confidence is that sum over the number of all trajectories (ours): those
that answer otherwise, or not at all, count against it. An answer is given only with a confidence above zeta.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from safeladder.policies.search.deliberate.grammar import CERTAIN


@dataclass(frozen=True, slots=True)
class Ballot:
    """What one trajectory came to. `answer` None: nothing that may be given. `confidence`: 0 to 10."""

    answer: str | None
    confidence: int = 0


@dataclass(frozen=True, slots=True)
class Vote:
    """`chosen`: the trajectory whose answer won, None where none answered. `confidence`: of the answer, in [0, 10].

    `abstained`: the answer is not to be given.
    """

    chosen: int | None
    confidence: float
    abstained: bool


def vote(ballots: Sequence[Ballot], key: Callable[[str], str], zeta: int = CERTAIN) -> Vote:
    """Of equal answers (equal `key`) the most certain one stands for all; of equal sums the earlier answer wins."""
    copies: dict[str, list[int]] = defaultdict(list)
    for place, ballot in enumerate(ballots):
        if ballot.answer is not None:
            copies[key(ballot.answer)].append(place)
    if not copies:
        return Vote(None, 0.0, True)
    winners = max(copies.values(), key=lambda places: sum(ballots[place].confidence for place in places))
    chosen = max(winners, key=lambda place: ballots[place].confidence)
    confidence = sum(ballots[place].confidence for place in winners) / len(ballots)
    return Vote(chosen, confidence, confidence <= zeta)
