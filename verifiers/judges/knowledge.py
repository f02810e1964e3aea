"""Knowledge judge: is the answer right by the reference, as in SafeWork-R1 (the templates' words are ours).

    s = (p(TRUE) + 1 - p(FALSE)) / 2

with p restricted to the two words, where s is p(TRUE), or over the whole vocabulary. A free reply is worth 1 or 0; an empty answer 0.

The penalty on low confidence is ours: the paper names it and gives no formula. With the policy's confidence c in its answer,

    step      r = s (1 - eta [c < c0])
    smooth    r = s ((1 - eta) + eta sigmoid((c - c0) / T))

so that a wrong answer (s = 0) gains nothing by any confidence, and a right one is worth most when it was not a guess.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final, Literal

from safeladder.protocol.messages import Verdict
from safeladder.verifiers.contract import Item
from safeladder.verifiers.judges.judge import Judge, JudgeOptions, Reading
from safeladder.verifiers.judges.labels import LabelSet

LABELS: Final = LabelSet(
    {"TRUE": 1.0, "FALSE": 0.0}, {"TRUE": ("正确", "真"), "FALSE": ("错误", "不正确", "假")}, ended=False
)
_STATED = re.compile(r"(?:confidence|置信度|信心)\W{0,5}(\d+(?:\.\d+)?)\s*(%|/\s*10\b|/\s*100\b)?", re.IGNORECASE)


class KnowledgeJudge(Judge):
    """A score in [0, 1]. Abstains without a reference.

    vocabulary: what p is normalised over, the two words (`restricted`) or all tokens (`full`). confidence: whose c the penalty takes,
    `none` (no penalty), `tokens` (`Item.certainty`), or `stated` in the answer out of 10 or as a percentage (unstated: 0).
    penalty, eta, threshold (c0), temperature (T): see above.
    """

    name = "knowledge"
    principle = "knowledge"
    labels = LABELS
    template_file = "knowledge"

    @dataclass(frozen=True)
    class Options(JudgeOptions):
        vocabulary: Literal["restricted", "full"] = "restricted"
        confidence: Literal["none", "tokens", "stated"] = "none"
        penalty: Literal["step", "smooth"] = "step"
        eta: float = 0.5
        threshold: float = 0.5
        temperature: float = 0.1

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.vocabulary == "full" and not self.restricted:
                raise ValueError("vocabulary `full` needs an engine that gives probabilities")
            if not (0.0 <= self.eta <= 1.0 and 0.0 <= self.threshold <= 1.0 and self.temperature > 0.0):
                raise ValueError("eta and threshold lie in [0, 1], temperature is above 0")

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.reads_certainty = options.confidence == "tokens"

    async def judge_async(self, item: Item) -> Verdict:
        reference = item.record.reference
        accepted = [reference] if isinstance(reference, str) else list(reference or [])
        if not any(text.strip() for text in accepted):
            return self.abstain(item, "the record has no reference")
        if (abstention := await self.unsuited(item)) is not None:
            return abstention
        if not item.answer:
            return self.ok(item, 0.0, "FALSE", rationale="the answer is empty")
        reading = await self.read(self.prompt(item, "graded", reference=" / ".join(accepted)))
        score = self._score(reading)
        label = "TRUE" if score >= 0.5 else "FALSE"
        return self.ok(
            item, score * self._kept(item), label, confidence=max(score, 1.0 - score), rationale=reading.said
        )

    def _score(self, reading: Reading) -> float:
        if reading.logprobs is None or reading.probabilities is None:
            return LABELS.scores[reading.label]
        if self.options.vocabulary == "full":
            right, wrong = (math.exp(min(0.0, reading.logprobs[label])) for label in ("TRUE", "FALSE"))
            return (right + 1.0 - wrong) / 2.0
        return reading.probabilities["TRUE"]

    def _kept(self, item: Item) -> float:
        """What the penalty leaves of the score, in [1 - eta, 1]. Raises ValueError without log-probabilities to tell c from."""
        if self.options.confidence == "none":
            return 1.0
        c = item.certainty if self.options.confidence == "tokens" else stated_confidence(item.answer)
        if c is None:
            raise ValueError("the completion came without log-probabilities, so the policy's confidence is not known")
        return kept(c, self.options.penalty, self.options.eta, self.options.threshold, self.options.temperature)


def kept(c: float, penalty: str, eta: float, threshold: float, temperature: float) -> float:
    """The factor in [1 - eta, 1] that the penalty leaves at confidence c; it never falls as c rises."""
    if penalty == "step":
        return 1.0 - eta * (c < threshold)
    return (1.0 - eta) + eta * (0.5 * (1.0 + math.tanh((c - threshold) / (2.0 * temperature))))  # tanh: no overflow


def stated_confidence(answer: str) -> float:
    """The last confidence that an answer states, in [0, 1]: out of 10, or of 100 where it says so; 0 where it states none."""
    found = _STATED.findall(answer)
    if not found:
        return 0.0
    number, unit = found[-1]
    value = float(number) / (100.0 if unit == "%" or unit.endswith("100") else 10.0)
    return value if 0.0 <= value <= 1.0 else 0.0
