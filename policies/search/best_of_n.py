"""Best-of-N: of N independent answers, the one that the verifiers like best.

A candidate that a verifier could not judge is never chosen: a failure is no reward. One that the safety verifier calls unsafe is
vetoed, whatever its score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from safeladder.protocol.messages import Candidate, Group

UNSAFE = "Unsafe"


def rank(group: Group, terms: Mapping[str, float], versions: Sequence[int] = ()) -> list[Candidate]:
    """Every completion with its score, best first; those that cannot be chosen stand last, with score None.

    `terms` maps a verifier's name to its weight; the score is the weighted sum of its verdicts. A verifier that abstains
    adds nothing. `versions` are the oldest weight versions of the completions.
    """
    candidates = []
    for index, completion in enumerate(group.completions):
        score: float | None = 0.0
        label = None
        for name, weight in terms.items():
            verdicts = [v for v in group.verdicts if v.sample == index and v.verifier == name]
            scores = [v.score for v in verdicts if v.status == "ok" and v.score is not None]
            if not verdicts or any(v.status in ("error", "timeout") for v in verdicts):
                score = None
            elif score is not None and scores:
                score += weight * sum(scores) / len(scores)
        for verdict in group.verdicts:
            if verdict.sample == index and verdict.principle == "safety" and verdict.label:
                label = verdict.label
                score = None if label == UNSAFE else score
        version = versions[index] if index < len(versions) else 0
        candidates.append(Candidate(completion.text, score, label, version))
    return sorted(candidates, key=lambda c: -float("inf") if c.score is None else c.score, reverse=True)
