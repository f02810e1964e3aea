"""Does an engine compute what the learner does? A probe of known tokens, scored by both, says it for each publication.

The learner scores the probe with the very weights that it publishes and puts the log-probabilities into the manifest; an engine that
has loaded the version scores it too, and takes work only when the two agree. This finds weights that were not loaded, not
loaded everywhere (a head that kept its old copy), or loaded into another model; a change too small to move a log-probability by
the tolerance it does not find. The probe, and the tolerances, are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers import PreTrainedModel

from safeladder.policies.scoring import completion_logprobs
from safeladder.policies.weights.manifest import Probe

# Ordinary text of two languages, digits among it: what it says does not matter, only that nobody samples it.
TEXTS: Final = (
    ("The bridge over the river was closed for", " two weeks in March, and people crossed by boat."),
    ("今天的天气很好，", "我们一起去公园散步。"),
    ("17 + 25 =", " 42, and 42 - 25 = 17."),
)
MOST_TOKENS: Final = 16  # of one completion: the probe costs an engine one short prefill each time

# Mean |difference| in nats per token that rounding may make, for the coarsest type that takes part. SmolLM2-135M in float32 measured
# 2e-5 from its own weights and 0.18 from those rounded to bfloat16: there the probe finds gross errors only. One token may differ
# by WORST times that.
TOLERANCES: Final = {"float32": 2e-3, "float16": 2e-2, "bfloat16": 4e-1}
WORST: Final = 10.0


def texts(tokenizer: Any) -> list[Probe]:
    """The probe in the tokens of a model, not scored yet. Tokens of a text differ between tokenizers, never for one."""

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    return [Probe(ids(prompt), ids(completion)[:MOST_TOKENS]) for prompt, completion in TEXTS]


def score(model: PreTrainedModel, probes: Sequence[Probe]) -> list[Probe]:
    """The probes with what `model` makes of them, in the model's own type. Of a sharded model, a collective."""
    pairs = [(probe.prompt_ids, probe.completion_ids) for probe in probes]
    with torch.no_grad():
        scored = completion_logprobs(model, pairs)
    return [
        Probe(probe.prompt_ids, probe.completion_ids, logprobs.double().tolist())
        for probe, logprobs in zip(probes, scored, strict=True)
    ]


@dataclass(frozen=True)
class Attestation:
    """How far an engine's log-probabilities are from the manifest's. mean, worst: |difference|, nats per token."""

    tokens: int
    mean: float
    worst: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """False also for a probe without tokens, and for anything that is not a number."""
        return self.tokens > 0 and self.mean <= self.tolerance and self.worst <= WORST * self.tolerance

    def __str__(self) -> str:
        return (
            f"log-probabilities of {self.tokens} known tokens differ from the learner's by {self.mean:.2g} on average and "
            f"{self.worst:.2g} at most, {self.tolerance:.2g} and {WORST * self.tolerance:.2g} may be"
        )


def compare(probes: Sequence[Probe], found: Sequence[Sequence[float]], tolerance: float) -> Attestation:
    """found: the engine's log-probabilities, a list for each probe. Raises ValueError when the lengths are not the same."""
    differences = [
        abs(expected - given)
        for probe, logprobs in zip(probes, found, strict=True)
        for expected, given in zip(probe.logprobs, logprobs, strict=True)
    ]
    if not all(map(math.isfinite, differences)):
        return Attestation(len(differences), math.inf, math.inf, tolerance)
    mean = math.fsum(differences) / max(1, len(differences))
    return Attestation(len(differences), mean, max(differences, default=0.0), tolerance)


def tolerance(*dtypes: str) -> float:
    """What rounding may make where numbers of all these types take part."""
    return max(TOLERANCES[dtype] for dtype in dtypes)
