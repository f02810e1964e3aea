"""What goes into an optimizer step and what comes out of it. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TrainingGroup:
    """One prompt and its K completions, as the learner assembled them. P prompt tokens, n_k tokens of completion k."""

    id: str
    prompt_ids: NDArray[np.int32]  # [P]
    completion_ids: list[NDArray[np.int32]]  # K of [n_k]
    behaviour: list[NDArray[np.float32]]  # K of [n_k], ln probabilities as sampled
    versions: list[NDArray[np.int32]]  # K of [n_k]
    rewards: NDArray[np.float64]  # [K]; not read where invalid
    valid: NDArray[np.bool_]  # [K]
    reference: list[NDArray[np.float32]] | None = None  # K of [n_k]

    def __post_init__(self) -> None:
        count = len(self.completion_ids)
        lengths = [len(tokens) for tokens in self.completion_ids]
        columns: dict[str, Sequence[NDArray[Any]] | None] = {
            "behaviour": self.behaviour,
            "versions": self.versions,
            "reference": self.reference,
        }
        for name, column in columns.items():
            if column is not None and [len(values) for values in column] != lengths:
                raise ValueError(f"group {self.id}: {name} does not have the lengths of the completions, {lengths}")
        if self.rewards.shape != (count,) or self.valid.shape != (count,):
            raise ValueError(f"group {self.id}: rewards and valid must be [{count}], one entry a completion")


@dataclass(frozen=True)
class StepReport:
    """What a step did. Means are over the completion tokens that went through the forward, unless noted.

    loss = policy_loss + reference_kl * kl, aggregated as configured; kl is 0 without a reference. entropy: mean -ln pi
    of the sampled tokens, an estimate in nats. grad_norm: before clipping. ess, mismatch and the like: `Diagnostics`.
    tokens: completion tokens of the whole batch; trained_tokens: those that went through the forward; prompt_tokens:
    each prompt once. seconds: by phase.
    """

    step: int
    learning_rate: float
    loss: float
    policy_loss: float
    kl: float
    entropy: float
    grad_norm: float
    clip_fraction: float
    ess: float
    mismatch: float
    log_ratio_mean: float
    log_ratio_max: float
    truncated_fraction: float
    masked_fraction: float
    groups: int
    sequences: int
    valid_sequences: int
    zero_spread_groups: int
    tokens: int
    trained_tokens: int
    prompt_tokens: int
    packs: int
    seconds: dict[str, float]
