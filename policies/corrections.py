"""Importance weights and filters that answer for the distance between the policy that sampled and the one that learns.

ln rho = ln proximal - ln behaviour, per token. It is not zero for two reasons: the tokens are older than the learner's
weights, and the engine does not compute exactly what the learner computes. Decoupled PPO (arXiv 2110.00641; AReaL, arXiv
2505.24298) multiplies the loss of each token by rho; a *weight* rule bounds that factor, a *filter* leaves tokens out.

All are constants of the gradient. None touches the denominator of the loss: what is left out stays counted. Statistics are
those of the policy's own tokens (`kept`). One weight rule is chosen, since two would count the ratio twice; filters add up.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

import torch
from torch import Tensor

from safeladder.policies.aggregation import MAX_LOG_RATIO, mean_by_sequence, over_tokens, sum_by_sequence

Rule = TypeVar("Rule", bound=Callable[..., Tensor])


@dataclass(frozen=True)
class Ratios:
    """What a rule sees of some whole sequences; tensors are [N], flat, one sequence after the other."""

    log_ratio: Tensor  # ln rho, detached, clamped to +-20
    advantages: Tensor
    lengths: Sequence[int]  # [S], N in all
    kept: Tensor  # bool

    def mean(self) -> Tensor:
        """[N]: mean ln rho of the sequence that a token belongs to."""
        return over_tokens(mean_by_sequence(self.log_ratio, self.kept, self.lengths), self.lengths)

    def total(self) -> Tensor:
        """[N]: summed ln rho of the sequence that a token belongs to, clamped to +-20."""
        total = sum_by_sequence(self.log_ratio, self.kept, self.lengths)
        return over_tokens(total.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO), self.lengths)


def log_ratios(proximal: Tensor, behaviour: Tensor) -> Tensor:
    """ln rho [N], detached and clamped to +-20."""
    return (proximal - behaviour).detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def whole_batch(rule: Rule) -> Rule:
    """Marks a rule that must see all sequences of a batch at once, for which the step makes a forward of its own."""
    rule.whole_batch = True  # type: ignore[attr-defined]
    return rule


# ------------------------------------------------------------------------------------------------------- weights


def off(ratios: Ratios) -> Tensor:
    """Every weight is 1: right when behaviour and proximal are the same policy, biased otherwise."""
    return torch.ones_like(ratios.log_ratio)


def token_truncate(ratios: Ratios, *, cap: float = 2.0, low: float = 0.0) -> Tensor:
    """w = min(rho, cap): truncated importance sampling per token (TIS). `low` raises smaller weights to it (slime: 0.5)."""
    return ratios.log_ratio.exp().clamp(low, cap)


@whole_batch
def token_truncate_normalised(ratios: Ratios, *, cap: float = 2.0, low: float = 0.0) -> Tensor:
    """`token_truncate` divided by its mean over the batch's kept tokens: the gradient's scale stays as ages grow."""
    return _over_mean(token_truncate(ratios, cap=cap, low=low), ratios.kept)


def token_mask(ratios: Ratios, *, low: float = 0.5, high: float = 5.0) -> Tensor:
    """w = rho inside [low, high], 0 outside: the window of IcePop (arXiv 2510.18855). Drops, never clips.

    The bounds are OpenRLHF's defaults.
    """
    ratio = ratios.log_ratio.exp()
    return torch.where((ratio >= low) & (ratio <= high), ratio, 0.0)


def sequence_truncate(ratios: Ratios, *, cap: float = 2.0) -> Tensor:
    """w = min(product of the sequence's rho, cap). Unbiased but for the cap; its variance grows with the length."""
    return ratios.total().exp().clamp(max=cap)


@whole_batch
def sequence_truncate_normalised(ratios: Ratios, *, cap: float = 2.0) -> Tensor:
    """`sequence_truncate` divided by its mean over the batch's sequences, those without a kept token aside."""
    weights = sequence_truncate(ratios, cap=cap)
    if not bool(ratios.kept.any()):
        return weights
    present = sum_by_sequence(torch.ones_like(weights), ratios.kept, ratios.lengths) > 0
    return weights / mean_by_sequence(weights, ratios.kept, ratios.lengths)[present].mean().clamp(min=1e-12)


def sequence_mask(ratios: Ratios, *, cap: float = 2.0) -> Tensor:
    """w = product of the sequence's rho where that is at most cap, else 0 (Seq-MIS): hard rejection."""
    weight = ratios.total().exp()
    return torch.where(weight <= cap, weight, 0.0)


def geometric_truncate(ratios: Ratios, *, cap: float = 2.0) -> Tensor:
    """w = min(geometric mean of the sequence's rho, cap): a long thought is not punished for its length."""
    return ratios.mean().exp().clamp(max=cap)


def geometric_mask(ratios: Ratios, *, cap: float = 2.0) -> Tensor:
    """w = geometric mean of the sequence's rho where that is at most cap, else 0."""
    weight = ratios.mean().exp()
    return torch.where(weight <= cap, weight, 0.0)


WEIGHTS: Final[dict[str, Callable[..., Tensor]]] = {
    "off": off,
    "token_truncate": token_truncate,
    "token_truncate_normalised": token_truncate_normalised,
    "token_mask": token_mask,
    "sequence_truncate": sequence_truncate,
    "sequence_truncate_normalised": sequence_truncate_normalised,
    "sequence_mask": sequence_mask,
    "geometric_truncate": geometric_truncate,
    "geometric_mask": geometric_mask,
}


# ------------------------------------------------------------------------------------------- filters: True stays


def veto(ratios: Ratios, *, threshold: float = 1e-4) -> Tensor:
    """Leaves out a sequence with any rho below `threshold`; 0 vetoes nothing.

    One token that the learner finds all but impossible says that the sequence is not of its policy at all; truncation
    from above does not see it.
    """
    impossible = (ratios.log_ratio.exp() < threshold).to(ratios.log_ratio.dtype)
    return over_tokens(sum_by_sequence(impossible, ratios.kept, ratios.lengths), ratios.lengths) == 0


def geometric(ratios: Ratios, *, low: float = 0.999, high: float = 1.001) -> Tensor:
    """Keeps sequences whose geometric mean of rho lies in [low, high]: a filter that does not see length.

    low = 0 bounds it from above alone.
    """
    if not 0 <= low <= high or high == 0:
        raise ValueError(f"geometric needs 0 <= low <= high, high above 0, not {low} and {high}")
    mean = ratios.mean()
    bottom = math.log(low) if low else -math.inf
    return (mean >= bottom) & (mean <= math.log(high))


def k2(ratios: Ratios, *, high: float = 2.0, aggregate: Literal["token", "mean", "max", "sum"] = "token") -> Tensor:
    """Keeps tokens, or sequences by their mean, largest or summed value, where (ln rho)^2 / 2 is at most `high`.

    Usual: 1.5 to 3 for tokens and the largest, 2 to 2.5 for the mean, 2.5 to 4 for the sum (verl's rollout correction).
    """
    distance = ratios.log_ratio.square() / 2
    if aggregate == "token":
        return distance <= high
    if aggregate == "max":
        above = (distance > high).to(distance.dtype)
        return over_tokens(sum_by_sequence(above, ratios.kept, ratios.lengths), ratios.lengths) == 0
    reduce = mean_by_sequence if aggregate == "mean" else sum_by_sequence
    return over_tokens(reduce(distance, ratios.kept, ratios.lengths), ratios.lengths) <= high


def k3(ratios: Ratios, *, high: float = 0.01) -> Tensor:
    """Keeps sequences where the mean of rho - 1 - ln rho, an estimate of KL(behaviour || proximal), is at most `high`."""
    distance = torch.expm1(ratios.log_ratio) - ratios.log_ratio
    return over_tokens(mean_by_sequence(distance, ratios.kept, ratios.lengths), ratios.lengths) <= high


def opsm(ratios: Ratios, *, delta: float = 1e-4) -> Tensor:
    """Leaves out tokens with A < 0 of a sequence whose mean of ln behaviour - ln proximal exceeds `delta` (slime).

    The policy has moved away from such a sequence already; pushing it further costs stability and teaches nothing.
    """
    return ~((ratios.advantages < 0) & (-ratios.mean() > delta))


@whole_batch
def m2po(ratios: Ratios, *, threshold: float = 0.04) -> Tensor:
    """Leaves out the fewest tokens, largest (ln rho)^2 first, with which the mean of the rest is below `threshold`.

    M2PO (arXiv 2510.01161). If no number of tokens is enough, the one with the smallest (ln rho)^2 stays. Among equal
    values the earlier token goes first.
    """
    moments = torch.where(ratios.kept, ratios.log_ratio.double().square(), 0.0)
    order = torch.argsort(moments, descending=True, stable=True)
    order = order[ratios.kept[order]]
    stays = torch.ones_like(ratios.kept)
    if not len(order):
        return stays
    means = moments[order].flip(0).cumsum(0).flip(0) / torch.arange(len(order), 0, -1, device=moments.device)
    below = torch.nonzero(means < threshold)
    drop = int(below[0]) if len(below) else len(order) - 1
    stays[order[:drop]] = False
    return stays


FILTERS: Final[dict[str, Callable[..., Tensor]]] = {
    "veto": veto,
    "geometric": geometric,
    "k2": k2,
    "k3": k3,
    "opsm": opsm,
    "m2po": m2po,
}


# --------------------------------------------------------------------------------------------------- diagnostics


@dataclass(frozen=True)
class Diagnostics:
    """How far behaviour was from proximal over some kept tokens.

    ess: effective share of the tokens, (sum w)^2 / (N sum w^2), in [0, 1], of the weights as used. behaviour_kl: mean of
    -ln rho, the k1 estimate of KL(behaviour || proximal); mismatch: mean of rho - 1 - ln rho, its k3 estimate, >= 0.
    log_ratio_max: the largest |ln rho|. perplexity_ratio: behaviour's perplexity over proximal's, e^(-behaviour_kl). chi2_token,
    chi2_sequence: mean of rho^2 - 1, rho of tokens and of whole sequences. above, below: shares of tokens with rho above
    the cap and below 1 / cap. truncated, masked: shares of tokens whose weight was lowered to the cap, and 0.
    """

    ess: float = 1.0
    behaviour_kl: float = 0.0
    mismatch: float = 0.0
    log_ratio_max: float = 0.0
    perplexity_ratio: float = 1.0
    chi2_token: float = 0.0
    chi2_sequence: float = 0.0
    above: float = 0.0
    below: float = 0.0
    truncated: float = 0.0
    masked: float = 0.0


def cap_of(rule: Callable[..., Tensor]) -> float:
    """The cap that a weight rule is bound to, for `diagnose`; 2 for a rule without one."""
    option = inspect.signature(rule).parameters.get("cap")
    return float(option.default) if option is not None and isinstance(option.default, (int, float)) else 2.0


def diagnose(ratios: Ratios, weights: Tensor, cap: float = 2.0) -> Diagnostics:
    """Diagnostics of tokens with these final weights [N]; the neutral ones where no token is kept.

    cap is that of the rule that made the weights. A normalised rule moves its cap: none of its tokens counts as truncated.
    """
    kept = ratios.kept
    if not bool(kept.any()):
        return Diagnostics()
    log_ratio, weights = ratios.log_ratio.double()[kept], weights.detach().double()[kept]
    ratio, squares = log_ratio.exp(), weights.square().sum()
    masked = weights == 0
    # Truncation leaves the cap itself, up to the rounding of float32, of a ratio above it, whichever the rule is about.
    largest = torch.maximum(torch.maximum(ratios.log_ratio, ratios.mean()), ratios.total()).double()[kept].exp()
    truncated = ((weights - cap).abs() <= 1e-6 * cap) & (largest > cap * (1 + 1e-6))
    counts = sum_by_sequence(torch.ones_like(ratios.log_ratio), kept, ratios.lengths)
    totals = sum_by_sequence(ratios.log_ratio.double(), kept, ratios.lengths)[counts > 0]
    return Diagnostics(
        ess=float(weights.sum().square() / (weights.numel() * squares)) if bool(squares > 0) else 0.0,
        behaviour_kl=float(-log_ratio.mean()),
        mismatch=float((torch.expm1(log_ratio) - log_ratio).mean()),
        log_ratio_max=float(log_ratio.abs().max()),
        perplexity_ratio=float(log_ratio.mean().exp()),
        chi2_token=float(torch.expm1(2 * log_ratio).mean()),
        chi2_sequence=float(torch.expm1(2 * totals.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)).mean()),
        above=float((ratio > cap).double().mean()),
        below=float((ratio < 1 / cap).double().mean()),
        truncated=float(truncated.double().mean()),
        masked=float(masked.double().mean()),
    )


def _over_mean(weights: Tensor, kept: Tensor) -> Tensor:
    return weights / weights[kept].mean().clamp(min=1e-12) if bool(kept.any()) else weights
