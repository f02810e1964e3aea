"""Rules for the known ways in which such training goes wrong unseen, as pure functions over the stream of events.

A rule looks at what `Seen` has kept and gives findings, each with what was seen and what to do; it takes its bounds as arguments.
`Health` runs them and tells each finding once while it lasts. The bounds are ours, except where a line names a source. Here are
the rules about the training; those about processes stand in `process_rules.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import fmean
from typing import Any, Final

from safeladder.launch.events import Event
from safeladder.launch.process_rules import late_answers, memory_growth, unattested_weights
from safeladder.launch.seen import Finding, Seen

__all__ = ["RULES", "Finding", "Health", "Seen"]


# ------------------------------------------------------------------------------------------------------------- the rules


def mismatch_drift(seen: Seen, steps: int = 5, mismatch: float = 0.1) -> Iterator[Finding]:
    """The engine samples from another policy than the learner has. mismatch: k3 estimate of KL(behaviour || proximal), nats."""
    advice = (
        "compare the generators' dtype and engine version with the learner's, look for weights.refused and weights.loaded in their "
        "logs, restart them; lower staleness.eta or learner.learning_rate if the weights are the same"
    )
    recent = seen.last(steps)
    if seen.alarms and seen.steps and seen.steps[-1]["step"] - seen.alarms[-1]["step"] < steps:
        yield Finding("mismatch_drift", "", str(seen.alarms[-1]["reason"]), advice)
    elif recent and (mean := fmean(step["mismatch"] for step in recent)) > mismatch:
        yield Finding("mismatch_drift", "", f"mismatch {mean:.3g} nats over {steps} steps, {mismatch:g} may be", advice)


def ess_collapse(seen: Seen, steps: int = 5, least: float = 0.3) -> Iterator[Finding]:
    """The correction rests on a few tokens. least: effective share of the tokens, 0 to 1."""
    recent = seen.last(steps)
    if recent and (mean := fmean(step["ess"] for step in recent)) < least:
        yield Finding(
            "ess_collapse",
            "",
            f"effective share {mean:.2f} of the tokens over {steps} steps, {least:g} should be",
            "the batch is too far off-policy: lower staleness.eta, learner.epochs or learner.minibatches, or truncate the weights",
        )


def length_bias(seen: Seen, steps: int = 3, most: float = 0.1, samples: int = 200) -> Iterator[Finding]:
    """What is trained is not as long as what was drawn. most: KL in nats; samples: fewer trained say nothing."""
    recent = seen.last(steps)
    values = [step["selection_bias"] for step in recent if step["selection_bias"] is not None]
    if recent and len(values) == steps and min(values) > most and sum(s["samples"] for s in seen.steps) >= samples:
        yield Finding(
            "length_bias",
            "",
            f"KL(lengths trained || lengths drawn) {values[-1]:.3g} nats over {steps} steps, {most:g} may be",
            "long completions are lost on the way: raise staleness.eta or use staleness.policy pace, look at the reasons of "
            "group.dropped and at truncated_ratio",
        )


def dead_channel(seen: Seen, steps: int = 10) -> Iterator[Finding]:
    """A verifier, or a whole family, that says the same of everything teaches nothing."""
    advice = "look at its verdicts (safeladder why ID): is the verifier broken, the task too easy or too hard, the range too narrow?"
    for name, column in sorted(seen.channels.items()):
        recent = list(column)[-steps:]
        if len(recent) == steps and min(low for low, _ in recent) == max(high for _, high in recent):
            found = f"every score was {recent[0][0]:g} over {steps} steps"
            yield Finding("dead_channel", f"verifier {name}", found, advice)
    for label, rewards in sorted(seen.families.items()):
        means = list(rewards)[-steps:]
        if len(means) == steps and min(means) == max(means):
            found = f"the mean reward was {means[-1]:g} in each of {steps} steps"
            yield Finding("dead_channel", f"family {label}", found, advice)


def verifier_errors(seen: Seen, most: float = 0.1, verdicts: int = 16, steps: int = 5) -> Iterator[Finding]:
    """Failed verdicts leave samples out, and not at random. most: share of a verifier's verdicts, or of samples unjudged."""
    advice = "see verdict.failed in the pool's log for the error; raise its timeout_s, give it replicas, or repair what it asks"
    for name, column in sorted(seen.verdicts.items()):
        recent = list(column)[-4 * verdicts :]
        if len(recent) >= verdicts and (share := fmean(recent)) > most:
            found = f"{share:.0%} of its last {len(recent)} verdicts failed, {most:.0%} may"
            yield Finding("verifier_errors", f"verifier {name}", found, advice)
    last = seen.last(steps)
    total = sum(step["samples"] for step in last)
    if total and (share := sum(step["unjudged_samples"] for step in last) / total) > most:
        found = f"{share:.0%} of the samples of {steps} steps had no reward, {most:.0%} may"
        yield Finding("verifier_errors", "", found, advice)


def multiplier_saturation(seen: Seen, steps: int = 5) -> Iterator[Finding]:
    """A constraint that is broken although its multiplier cannot rise any more."""
    recent = seen.last(steps)
    for name in recent[-1]["constraints"] if recent else ():
        rows = [step["constraints"].get(name) for step in recent]
        if all(row and row["saturated"] and row["margin"] is not None and row["margin"] < 0 for row in rows):
            row = rows[-1]
            yield Finding(
                "multiplier_saturation",
                f"constraint {name}",
                f"multiplier at its bound {row['multiplier']:g} for {steps} steps, cost {row['cost']:g} above {row['limit']:g}",
                f"the limit cannot be held as it is: raise constraints.{name}.maximum or its limit, or look whether the cost can fall",
            )


RULES: Final[Sequence[Callable[[Seen], Iterator[Finding]]]] = (
    mismatch_drift,
    ess_collapse,
    length_bias,
    dead_channel,
    verifier_errors,
    multiplier_saturation,
    memory_growth,
    unattested_weights,
    late_answers,
)


class Health:
    """Runs the rules over the stream."""

    def __init__(self) -> None:
        self.seen = Seen()
        self.lasting: dict[tuple[str, str], Finding] = {}

    def note(self, event: Event) -> list[Finding]:
        """Takes an event in; what is found now and was not before it."""
        if not self.seen.note(event):
            return []
        found = {(f.rule, f.subject): f for rule in RULES for f in rule(self.seen)}
        fresh = [finding for key, finding in found.items() if key not in self.lasting]
        self.lasting = found
        return fresh

    @property
    def step(self) -> dict[str, Any]:
        """`step`, where one was made."""
        return {"step": self.seen.steps[-1]["step"]} if self.seen.steps else {}
