"""Importance weights that answer for the distance between the policy that sampled and the policy that learns.

ln rho = ln proximal - ln behaviour, per token. It is not zero for two reasons: the tokens are older than the learner's
weights, and the engine does not compute exactly what the learner computes. Decoupled PPO (arXiv 2110.00641;
AReaL, arXiv 2505.24298) multiplies the loss of each token by rho; the rules here bound that weight.

Weights are constants of the gradient. A rule never touches the denominator of the loss: what it masks stays counted.
A rule is one function `(log_ratio [N], low, cap) -> weights [N]`, entered in `CORRECTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from safeladder.policies.objectives import MAX_LOG_RATIO, over_tokens

Rule = Callable[[Tensor, float, float], Tensor]


def log_ratios(proximal: Tensor, behaviour: Tensor) -> Tensor:
    """ln rho [N], detached and clamped to +-20."""
    return (proximal - behaviour).detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


# --------------------------------------------------------------------------------------------------------- rules


def off(log_ratio: Tensor, low: float, cap: float) -> Tensor:
    """Every weight is 1: right when behaviour and proximal are the same policy, biased otherwise."""
    return torch.ones_like(log_ratio)


def token_truncate(log_ratio: Tensor, low: float, cap: float) -> Tensor:
    """w = min(rho, cap): truncated importance sampling per token. `low` is not used."""
    return log_ratio.exp().clamp(max=cap)


def token_mask(log_ratio: Tensor, low: float, cap: float) -> Tensor:
    """w = rho inside [low, cap], 0 outside: the window of IcePop (arXiv 2510.18855). Drops, never clips."""
    ratio = log_ratio.exp()
    return torch.where((ratio >= low) & (ratio <= cap), ratio, 0.0)


CORRECTIONS: Final[dict[str, Rule]] = {"off": off, "token_truncate": token_truncate, "token_mask": token_mask}


def veto(log_ratio: Tensor, sample_lengths: Sequence[int], threshold: float) -> Tensor:
    """Which tokens [N] stay: all of a sequence, or none if any of its ratios is below `threshold` (1e-4 is usual).

    One token that the learner finds all but impossible says that the sequence is not of its policy at all; truncation
    from above does not see it. A threshold of 0 vetoes nothing.
    """
    impossible = log_ratio.exp() < threshold
    dropped = [bool(part.any()) for part in torch.split(impossible, list(sample_lengths))]
    return ~over_tokens(torch.tensor(dropped, dtype=torch.bool, device=log_ratio.device), sample_lengths)


# --------------------------------------------------------------------------------------------------- diagnostics


@dataclass(frozen=True)
class Diagnostics:
    """How far behaviour was from proximal over some tokens.

    ess: effective share of the tokens, (sum w)^2 / (N sum w^2), in [0, 1], of the weights as used.
    log_ratio_mean: mean ln rho; minus it is the k1 estimate of KL(behaviour || proximal).
    log_ratio_max: the largest |ln rho|.
    mismatch: mean of rho - 1 - ln rho, the k3 estimate of KL(behaviour || proximal), >= 0.
    truncated, masked: shares of tokens whose weight was lowered, and set to 0.
    """

    ess: float = 1.0
    log_ratio_mean: float = 0.0
    log_ratio_max: float = 0.0
    mismatch: float = 0.0
    truncated: float = 0.0
    masked: float = 0.0


def diagnose(log_ratio: Tensor, weights: Tensor) -> Diagnostics:
    """Diagnostics of tokens with these ln rho [N] and final weights [N]; the neutral ones for no token."""
    if log_ratio.numel() == 0:
        return Diagnostics()
    log_ratio, weights = log_ratio.detach().double(), weights.detach().double()
    ratio = log_ratio.exp()
    squares = weights.square().sum()
    masked = weights == 0
    # A weight equals its ratio up to the rounding of float32 unless a rule lowered it.
    truncated = ~masked & (weights < ratio * (1 - 1e-5))
    return Diagnostics(
        ess=float(weights.sum().square() / (weights.numel() * squares)) if bool(squares > 0) else 0.0,
        log_ratio_mean=float(log_ratio.mean()),
        log_ratio_max=float(log_ratio.abs().max()),
        mismatch=float((torch.expm1(log_ratio) - log_ratio).mean()),
        truncated=float(truncated.double().mean()),
        masked=float(masked.double().mean()),
    )
