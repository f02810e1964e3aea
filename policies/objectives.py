"""Policy objectives as per-token losses, their aggregation to one number, and the penalty towards the reference policy.

All tensors are flat: the N completion tokens of some sequences, one sequence after the other. Three policies meet here:
*behaviour* sampled the tokens, *proximal* is the policy at the start of the step (its ratio to behaviour is the weight
that `corrections.py` makes), *current* is being differentiated.

An objective is one function with the form of `clipped`, entered in `OBJECTIVES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, Protocol

import torch
from torch import Tensor

MAX_LOG_RATIO: Final = 20.0  # e^20 is still far from the float32 range; beyond it a ratio carries no information

Aggregation = Literal["token_mean", "sequence_mean", "constant"]
KLKind = Literal["k1", "k2", "k3"]


class Objective(Protocol):
    """Per-token losses [N] from [N] tensors. Only `logprobs` carries a gradient."""

    def __call__(
        self,
        logprobs: Tensor,
        proximal: Tensor,
        advantages: Tensor,
        weights: Tensor,
        low: float = 0.2,
        high: float = 0.2,
        dual: float | None = None,
    ) -> Tensor: ...


# ---------------------------------------------------------------------------------------------------- objectives


def clipped(
    logprobs: Tensor,
    proximal: Tensor,
    advantages: Tensor,
    weights: Tensor,
    low: float = 0.2,
    high: float = 0.2,
    dual: float | None = None,
) -> Tensor:
    """The decoupled clipped objective: w * max(-r A, -clip(r, 1 - low, 1 + high) A), r = current / proximal.

    PPO (arXiv 1707.06347), eq. 7, with the asymmetric range of DAPO (arXiv 2503.14476) and the decoupling of
    Hilton et al. (arXiv 2110.00641): clipping is around the proximal policy, the weight w = proximal /
    behaviour answers for staleness and is a constant of the gradient. `dual` (> 1) bounds the loss of a negative
    advantage at -dual * A (arXiv 1912.09729).

    logprobs, proximal, advantages, weights: [N], natural logarithms, advantages already spread over the tokens.
    Returns losses [N]; a lower loss is better.
    """
    if dual is not None and dual <= 1.0:
        raise ValueError(f"dual clip must be above 1, not {dual}: below it would cut ratios inside the clip range")
    ratio = _ratio(logprobs, proximal)
    losses = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1.0 - low, 1.0 + high))
    if dual is not None:
        losses = torch.where(advantages < 0, torch.minimum(losses, -advantages * dual), losses)
    return weights.detach() * losses


OBJECTIVES: Final[dict[str, Objective]] = {"clipped": clipped}


def clip_fraction(logprobs: Tensor, proximal: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """Share of tokens [0, 1] whose policy gradient the clip removes; 0 for no token at all."""
    ratio = _ratio(logprobs.detach(), proximal)
    outside = ((advantages > 0) & (ratio > 1.0 + high)) | ((advantages < 0) & (ratio < 1.0 - low))
    return outside.float().sum() / max(1, outside.numel())


def _ratio(logprobs: Tensor, proximal: Tensor) -> Tensor:
    return torch.exp((logprobs - proximal.detach()).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO))


# --------------------------------------------------------------------------------------------------- aggregation


def denominator(sample_lengths: Sequence[int], mode: Aggregation, max_tokens: int | None = None) -> float:
    """What a whole batch's losses are divided by, from the lengths of *all* its completions.

    Computed before anything is masked or skipped, so that a sequence that is left out never changes the gradient of
    another.

    token_mean     number of completion tokens: each token weighs the same (DAPO, arXiv 2503.14476)
    sequence_mean  number of completions: each completion weighs the same (GRPO, arXiv 2402.03300, eq. 3)
    constant       completions * `max_tokens`: neither length nor batch content matters (Dr. GRPO, arXiv 2503.20783)

    Returns at least 1, so that an empty batch divides nothing by zero.
    """
    if mode == "token_mean":
        return float(max(1, sum(sample_lengths)))
    if mode == "sequence_mean":
        return float(max(1, len(sample_lengths)))
    if mode == "constant":
        if not max_tokens or max_tokens < 1:
            raise ValueError('aggregation "constant" needs max_tokens >= 1, the longest completion that may be sampled')
        return float(max(1, len(sample_lengths)) * max_tokens)
    raise ValueError(f"unknown aggregation {mode!r}; known: token_mean, sequence_mean, constant")


def aggregate(
    losses: Tensor, mask: Tensor, sample_lengths: Sequence[int], mode: Aggregation, denominator: float
) -> Tensor:
    """Sums per-token losses [N] of some sequences and divides by the batch's `denominator`.

    Additive over sequences: the sum over the packs of a batch, each with the same batch-wide denominator, is the loss
    of the batch, and so are the gradients. Mode "sequence_mean" also divides each token by the original length of its
    sequence.

    mask: [N], 0 leaves a token out (whatever its loss, infinite included); sample_lengths: lengths that sum to N.
    """
    if losses.numel() != sum(sample_lengths):
        raise ValueError(f"{losses.numel()} losses for sequences of {list(sample_lengths)} tokens")
    kept = torch.where(mask.bool(), losses * mask, 0.0)
    if mode == "sequence_mean":
        lengths = torch.tensor(sample_lengths, dtype=losses.dtype, device=losses.device)
        kept = kept / over_tokens(lengths, sample_lengths)
    return kept.sum() / denominator


def over_tokens(values: Tensor, sample_lengths: Sequence[int]) -> Tensor:
    """Repeats one value a sequence [S] over the tokens of the sequence [N]."""
    repeats = torch.tensor(sample_lengths, dtype=torch.int64, device=values.device)
    return values.repeat_interleave(repeats, output_size=sum(sample_lengths))


# ---------------------------------------------------------------------------------------------- reference penalty


def reference_kl(logprobs: Tensor, reference: Tensor, kind: KLKind = "k3") -> Tensor:
    """Per-token estimates [N] of KL(current || reference) on tokens drawn from the current policy.

    With d = ln reference - ln current: k1 = -d, k2 = d^2 / 2, k3 = e^d - 1 - d (J. Schulman, "Approximating KL
    divergence", 2020). k1 and k3 have the right mean; k2 and k3 are never negative. Used as a loss term they differ:
    the expected gradient of k2 is that of KL(current || reference), of k3 that of KL(reference || current), of k1 zero.

    d is clamped to +-20.
    """
    difference = (reference.detach() - logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if kind == "k1":
        return -difference
    if kind == "k2":
        return difference.square() / 2
    if kind == "k3":
        return torch.expm1(difference) - difference
    raise ValueError(f"unknown KL estimator {kind!r}; known: k1, k2, k3")
