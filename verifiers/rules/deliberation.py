"""Deliberation: the reward of a trajectory that searches, reads, states a confidence and answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from safeladder.policies.search.deliberate import grammar
from safeladder.policies.search.deliberate.reward import Channels, judged
from safeladder.protocol.messages import Record, Verdict
from safeladder.verifiers.contract import Item, Verifier
from safeladder.verifiers.rules.match import exact_match, f1, normalise, says


@dataclass(frozen=True)
class ReadingOptions:
    """mode: when an answer is right: it says the reference (`contains`), is it (`exact`), or overlaps by `f1` of 0.5 or more.

    longest: characters of an answer; a longer one is wrong, because listing everything would say the reference too (ours).
    zeta: a confidence above it counts as certain.
    """

    mode: Literal["contains", "exact", "f1"] = "contains"
    longest: int = 200
    zeta: int = grammar.CERTAIN


class DeliberationRule(Verifier):
    """r_format (0.1 r_format + 0.9 r_accuracy + reliability * r_reliability), over 1 + reliability; the quadrant as label.

    The adaptive lambda of the method is a constraint's multiplier (docs/deliberation.md); `reliability` is a fixed one in its place, for
    comparison. The division, the reference's own suggestion, keeps the score in [0, 1]. The labels are `certain and right`,
    `false certain`, `unsure and right`, `unsure and wrong`, and `no answer` for a text without an answer and a confidence, whose score
    is 0. Abstains without a reference: correctness is judged by rules here, by a model in the paper.
    """

    name = "deliberation"
    version = "1"
    principle = "rules"

    @dataclass(frozen=True)
    class Options(ReadingOptions):
        reliability: float = 0.0

        def __post_init__(self) -> None:
            if not 0 <= self.reliability < float("inf"):
                raise ValueError(f"reliability must be finite and >= 0, not {self.reliability}")

    def judge_one(self, item: Item) -> Verdict:
        accepted = references(item.record)
        if not accepted:
            return self.abstain(item, "the record has no reference")
        transcript = grammar.parse(item.text)
        why = "; ".join(transcript.faults[:3]) or None
        channels = _channels(transcript, accepted, self.options)
        if channels is None or transcript.confidence is None:
            return self.ok(item, 0.0, "no answer", rationale=why)
        score = channels.reward(self.options.reliability) / (1.0 + self.options.reliability)
        confidence = transcript.confidence / grammar.MOST
        return self.ok(item, score, channels.quadrant, confidence=confidence, rationale=why)


class ReliabilityRule(Verifier):
    """r_format r_reliability: 1 for a well-formed trajectory that is right and certain or wrong and unsure.

    Labels: reliable, unreliable.
    """

    name = "reliability"
    version = "1"
    principle = "rules"

    @dataclass(frozen=True)
    class Options(ReadingOptions):
        pass

    def judge_one(self, item: Item) -> Verdict:
        accepted = references(item.record)
        if not accepted:
            return self.abstain(item, "the record has no reference")
        channels = _channels(grammar.parse(item.text), accepted, self.options)
        score = 0.0 if channels is None else channels.format * channels.reliability
        return self.ok(item, score, "reliable" if score == 1.0 else "unreliable")


def references(record: Record) -> list[str]:
    """The accepted answers of a record; empty where there is none."""
    given = [record.reference] if isinstance(record.reference, str) else (record.reference or [])
    return [text for text in given if normalise(text)]


def accuracy(answer: str, accepted: list[str], options: ReadingOptions) -> float:
    """In [0, 1]; an answer is right from 0.5 on."""
    if len(answer) > options.longest:
        return 0.0
    if options.mode == "f1":
        return max(f1(answer, text) for text in accepted)
    if options.mode == "exact":
        return float(any(exact_match(answer, text) for text in accepted))
    return float(any(says(normalise(answer), normalise(text)) for text in accepted))


def _channels(transcript: grammar.Transcript, accepted: list[str], options: ReadingOptions) -> Channels | None:
    """None where the text gives no answer with a confidence."""
    answer, confidence = transcript.answer, transcript.confidence
    if answer is None or confidence is None:
        return None
    share = accuracy(answer, accepted, options)
    return judged(transcript.well_formed, share, share >= 0.5, confidence, options.zeta)
