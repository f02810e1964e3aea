"""The reward of a deliberation, and what it is held to (Deliberative Searcher, arXiv 2507.16727; the constants as reported there).

    r = r_format (0.1 r_format + 0.9 r_accuracy + lambda r_reliability)
    r_reliability = 1 when right and certain, or wrong and not certain; certain is a confidence above zeta = 5

The constraint is P(wrong and certain) <= epsilon; lambda follows its violation g by lambda <- clip(lambda exp(eta g)), which is the
method `multiplicative` of `policies/constraints.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from safeladder.policies.search.deliberate.grammar import CERTAIN

FORMAT, ACCURACY = 0.1, 0.9

Quadrant = Literal["certain and right", "false certain", "unsure and right", "unsure and wrong"]
FALSE_CERTAIN: Final[Quadrant] = "false certain"


@dataclass(frozen=True, slots=True)
class Channels:
    """`format`, `accuracy`, `reliability` in [0, 1]; `quadrant`: which of the four outcomes it is."""

    format: float
    accuracy: float
    reliability: float
    quadrant: Quadrant

    def reward(self, multiplier: float = 0.0) -> float:
        """In [0, 1 + multiplier]. `multiplier`: lambda >= 0."""
        return self.format * (FORMAT * self.format + ACCURACY * self.accuracy + multiplier * self.reliability)


def judged(well_formed: bool, accuracy: float, right: bool, confidence: int, zeta: int = CERTAIN) -> Channels:
    """The channels of a trajectory that gave an answer. `confidence` is 0 to 10, `accuracy` in [0, 1]."""
    certain = confidence > zeta
    if certain:
        quadrant: Quadrant = "certain and right" if right else FALSE_CERTAIN
    else:
        quadrant = "unsure and right" if right else "unsure and wrong"
    return Channels(float(well_formed), accuracy, float(certain == right), quadrant)
