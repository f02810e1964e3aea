"""Advantages of the K samples of one prompt, from their rewards alone: no critic.

Every estimator has one form, `(rewards [K], valid [K] bool) -> [K]`, and keeps three promises:

* statistics are those of the valid samples; an invalid sample gets 0 and its reward (NaN included) is never read;
* a group with fewer than two valid samples, or whose valid rewards are all equal, gets exactly 0 everywhere;
* the estimator does not see order: permuting the samples permutes the advantages.

Sums are taken in float64 and returned in the rewards' dtype, so that a shift of all rewards leaves no residue.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

Estimator = Callable[[Tensor, Tensor], Tensor]


def grpo(rewards: Tensor, valid: Tensor, normalise_std: bool = True, epsilon: float = 1e-6) -> Tensor:
    """Reward minus the group's mean, in units of the group's spread.

    A_i = (R_i - mean R) / (std R + epsilon), std with K - 1 in the denominator: GRPO (arXiv 2402.03300). Without
    `normalise_std` the division is left out, see `dr_grpo`.

    rewards: [K], any real; valid: [K] bool. Returns [K]. Raises ValueError when the shapes do not fit or a valid reward
    is not finite.
    """
    scores = _valid_scores(rewards, valid)
    if not _has_spread(scores):
        return torch.zeros_like(rewards)
    centred = scores - scores.mean()
    if normalise_std:
        centred = centred / (scores.std(correction=1) + epsilon)
    return _scatter(centred, rewards, valid)


def dr_grpo(rewards: Tensor, valid: Tensor) -> Tensor:
    """Reward minus the group's mean: A_i = R_i - mean R (Dr. GRPO, arXiv 2503.20783).

    Leaves out the division by the spread, which gives prompts that are nearly solved or nearly hopeless more weight.
    The same paper divides the summed loss by a constant: aggregation "constant".
    """
    return grpo(rewards, valid, normalise_std=False)


def rloo(rewards: Tensor, valid: Tensor) -> Tensor:
    """Reward minus the mean of the others: A_i = R_i - 1/(n-1) sum_{j != i} R_j (arXiv 2402.14740).

    n is the number of valid samples. The baseline of a sample does not contain the sample, so the gradient is unbiased.
    """
    scores = _valid_scores(rewards, valid)
    if not _has_spread(scores):
        return torch.zeros_like(rewards)
    count = scores.numel()
    return _scatter((scores - scores.mean()) * (count / (count - 1)), rewards, valid)


ADVANTAGES: Final[dict[str, Estimator]] = {"grpo": grpo, "dr_grpo": dr_grpo, "rloo": rloo}


def _valid_scores(rewards: Tensor, valid: Tensor) -> Tensor:
    if rewards.dim() != 1 or rewards.shape != valid.shape:
        raise ValueError(
            f"rewards {tuple(rewards.shape)} and valid {tuple(valid.shape)} must both be [K], one entry a sample"
        )
    if valid.dtype != torch.bool:
        raise ValueError(f"valid must be bool, not {valid.dtype}")
    scores = rewards[valid].double()
    if not bool(torch.isfinite(scores).all()):
        raise ValueError(f"a valid sample's reward is not finite: {rewards.tolist()} with valid {valid.tolist()}")
    return scores


def _has_spread(scores: Tensor) -> bool:
    """Exact equality is asked for: the mean of equal numbers may round away from them, and 1/std would blow that up."""
    return scores.numel() >= 2 and bool(scores.max() > scores.min())


def _scatter(advantages: Tensor, rewards: Tensor, valid: Tensor) -> Tensor:
    spread = torch.zeros_like(rewards)
    spread[valid] = advantages.to(rewards.dtype)
    return spread
