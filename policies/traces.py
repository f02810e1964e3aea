"""What a step made of each completion, for the log: its advantage, its correction, and how much of the loss it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from safeladder.policies.batch import TrainingGroup
from safeladder.policies.loss import Sample


@dataclass(frozen=True)
class Trace:
    """One group, an entry a completion [K].

    advantages: mean over the policy's own tokens. corrections: mean importance weight over them in the first epoch, None for a
    completion that did not go through the forward. loss_weights: coefficient of the completion's summed loss times the sum of those
    weights, so what its advantage counts in the whole update; 0 where it did not count.
    """

    advantages: list[float]
    corrections: list[float | None]
    loss_weights: list[float]


def traces(
    batch: Sequence[TrainingGroup],
    samples: Sequence[Sample],
    weights: Mapping[tuple[int, int], Tensor],
    shares: Mapping[tuple[int, int], float],
) -> list[Trace]:
    """One a group of the batch. weights: by (group, completion), [n]; shares: what its summed loss is multiplied by."""
    found = [Trace([], [], []) for _ in batch]
    for sample in samples:
        trace, key, own = found[sample.place], (sample.place, sample.index), sample.kept
        total = float(weights[key][own].double().sum()) if key in weights else None
        count = max(1, int(own.sum()))
        trace.advantages.append(short(float(sample.advantages[own].double().sum()) / count))
        trace.corrections.append(None if total is None else short(total / count))
        trace.loss_weights.append(0.0 if total is None else short(total * shares.get(key, 0.0)))
    return found


def short(value: float) -> float:
    """Five digits: enough to read, and a log line is mostly numbers."""
    return float(f"{value:.5g}")
