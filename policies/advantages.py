"""Advantages: how much better a completion, or a token, was than what the policy gives on the same prompt.

Every estimator has one form, `(batch: Sequence[Scores], *, options) -> list[Tensor]`, one tensor a group: [K], one
number a completion, or, where marked with `per_token`, [sum n_k], one a token. It sees the whole batch, because some of
them scale by it, and keeps three promises:

* an invalid completion gets 0, and neither its reward (NaN included) nor anything else of it is read;
* without spread there is exactly 0. Most compare within a group: one with fewer than two valid completions, or whose
  valid rewards (for `gdpo`: channels) are all equal, gets 0 whatever the rest of the batch holds. The REINFORCE++ pair
  compare with the batch, and give 0 where its valid rewards are all equal. GAE, V-trace and `ones` compare no rewards;
* it does not see order: permuting completions or groups permutes the advantages.

Sums are taken in float64 and returned in the rewards' dtype, so that a shift of all rewards leaves no residue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import torch
from torch import Tensor

from safeladder.policies.scores import Dense, Scores, has_spread, scatter
from safeladder.policies.token_advantages import (
    Estimator,
    gae,
    is_per_token,
    per_token,
    reinforce_plus_plus,
    vtrace,
    whitened,
)
from safeladder.policies.tree_advantages import tree

__all__ = ["ADVANTAGES", "Dense", "Estimator", "Scores", "is_per_token", "per_token"]


def grpo(batch: Sequence[Scores], *, normalise_std: bool = True, epsilon: float = 1e-6) -> list[Tensor]:
    """Reward minus the group's mean, in units of the group's spread.

    A_i = (R_i - mean R) / (std R + epsilon), std with K - 1 in the denominator: GRPO (arXiv 2402.03300). Without
    `normalise_std` the division is left out, see `dr_grpo`.
    """
    return [scatter(_normalised(s.valid_rewards(), epsilon if normalise_std else None), s) for s in batch]


def dr_grpo(batch: Sequence[Scores]) -> list[Tensor]:
    """Reward minus the group's mean: A_i = R_i - mean R (Dr. GRPO, arXiv 2503.20783).

    Leaves out the division by the spread, which gives prompts that are nearly solved or nearly hopeless more weight.
    The same paper divides the summed loss by a constant: aggregation "constant".
    """
    return grpo(batch, normalise_std=False)


def rloo(batch: Sequence[Scores]) -> list[Tensor]:
    """Reward minus the mean of the others: A_i = R_i - 1/(n-1) sum_{j != i} R_j (arXiv 2402.14740).

    n is the number of valid samples. The baseline of a sample does not contain the sample, so the gradient is unbiased.
    """
    advantages = []
    for scores in batch:
        rewards = scores.valid_rewards()
        count = rewards.numel()
        advantages.append(scatter(_normalised(rewards) * (count / max(1, count - 1)), scores))
    return advantages


def reinforce_plus_plus_baseline(batch: Sequence[Scores]) -> list[Tensor]:
    """Reward minus the group's mean, whitened over the batch: the variant with baseline of arXiv 2501.03262.

    The statistics of the batch are taken over its tokens: a completion counts as often as it has own tokens, for which
    `lengths` or the column `dense.kept` are needed. Their mean need not be 0, so a group without spread gets the same
    small number throughout, and exactly 0 only where no group has any spread.
    """
    centred = [_normalised(s.valid_rewards()) for s in batch]
    counts = [s.own_tokens()[s.valid] for s in batch]
    if not batch:
        return []
    parts = torch.split(whitened(torch.cat(centred), torch.cat(counts)), [part.numel() for part in centred])
    return [scatter(part, scores) for part, scores in zip(parts, batch, strict=True)]


def cpgd(
    batch: Sequence[Scores], *, weight: Literal["equal", "std", "clip_filter"] = "std", cap: float = 3.0
) -> list[Tensor]:
    """A_i = w(x) (R_i - mean R), the weighted advantage of CPGD (arXiv 2505.12504).

    equal: w = 1. std: w = 1 / (std R + 1e-6), the same as GRPO's. clip_filter: w = min(cap, prompts of the batch /
    prompts with spread), the same for every prompt: it makes up for those that give no gradient. A prompt without a
    valid completion is not counted.
    """
    if weight not in ("equal", "std", "clip_filter"):
        raise ValueError(f"weight must be equal, std or clip_filter, not {weight!r}")
    rewards = [s.valid_rewards() for s in batch]
    factor = 1.0
    if weight == "clip_filter":
        prompts = sum(row.numel() > 0 for row in rewards)
        factor = min(cap, prompts / max(1, sum(has_spread(row) for row in rewards)))
    epsilon = 1e-6 if weight == "std" else None
    return [scatter(factor * _normalised(row, epsilon), s) for row, s in zip(rewards, batch, strict=True)]


def gdpo(batch: Sequence[Scores], *, epsilon: float = 1e-6) -> list[Tensor]:
    """Every reward term normalised in its group on its own, then summed, then scaled over the batch.

    A_i = sum_c |w_c| (R_ic - mean_i R_ic) / (std_i R_ic + epsilon), divided by the standard deviation of A over all
    valid completions of the batch: GDPO (arXiv 2601.05242). A term that varies little is heard as loudly as one that
    varies much. A channel holds weighted scores, so the sign of its weight is in it; its size, which normalising
    removes, is put back from `Scores.channel_weights` (1 where not named). The mean over the batch needs no
    subtraction: each term sums to 0 in each group.

    A completion that has no score in a channel (NaN) is left out of that channel's mean and spread and gets 0 from it,
    what a completion at the mean would get: neither credit nor blame. A channel with fewer than two scores in a group,
    or without spread there, adds nothing in that group. `rewards` is read nowhere.

    Raises ValueError for a group that has valid completions and no channels.
    """
    totals = [_sum_of_channels(scores, epsilon) for scores in batch]
    everything = torch.cat(totals) if totals else torch.zeros(0)
    scale = float(everything.std(correction=1)) + epsilon if has_spread(everything) else 1.0
    return [scatter(total / scale, scores) for total, scores in zip(totals, batch, strict=True)]


def opo(batch: Sequence[Scores]) -> list[Tensor]:
    """A_i = R_i - sum_j n_j R_j / sum_j n_j: the baseline weighted by length of OPO (arXiv 2505.23585).

    It has the least variance where the gradient's squared norm grows with the number n of own tokens, for which
    `lengths` or the column `dense.kept` are needed.
    """
    advantages = []
    for scores in batch:
        rewards, tokens = scores.valid_rewards(), scores.own_tokens()[scores.valid]
        centred = torch.zeros_like(rewards)
        if has_spread(rewards) and bool(tokens.any()):
            centred = rewards - (tokens * rewards).sum() / tokens.sum()
        advantages.append(scatter(centred, scores))
    return advantages


def gpg(batch: Sequence[Scores], *, count: Literal["spread", "nonzero"] = "spread") -> list[Tensor]:
    """A_i = alpha (R_i - mean R), alpha making up for completions that give no gradient: GPG (arXiv 2504.02546).

    alpha = valid completions of the batch / those that count. spread: those in a group with spread, what the paper
    describes. nonzero: those whose reward is not 0, as in verl's code; it depends on where the rewards' 0 is.
    """
    if count not in ("spread", "nonzero"):
        raise ValueError(f"count must be spread or nonzero, not {count!r}")
    rewards = [s.valid_rewards() for s in batch]
    if count == "nonzero":
        counted = sum(int(torch.count_nonzero(row)) for row in rewards)
    else:
        counted = sum(row.numel() for row in rewards if has_spread(row))
    alpha = sum(row.numel() for row in rewards) / max(1, counted)
    return [scatter(alpha * _normalised(row), s) for row, s in zip(rewards, batch, strict=True)]


def ones(batch: Sequence[Scores]) -> list[Tensor]:
    """1 for every valid completion, whatever its reward: supervised learning from completions chosen before."""
    return [scatter(torch.ones_like(s.valid_rewards()), s) for s in batch]


ADVANTAGES: Final[dict[str, Estimator]] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "reinforce_plus_plus": reinforce_plus_plus,
    "reinforce_plus_plus_baseline": reinforce_plus_plus_baseline,
    "cpgd": cpgd,
    "gdpo": gdpo,
    "opo": opo,
    "gpg": gpg,
    "gae": gae,
    "vtrace": vtrace,
    "ones": ones,
    "tree": tree,
}


def _normalised(rewards: Tensor, epsilon: float | None = None) -> Tensor:
    """Rewards [n] minus their mean, over std + epsilon unless that is None; exactly 0 without spread."""
    if not has_spread(rewards):
        return torch.zeros_like(rewards)
    centred = rewards - rewards.mean()
    return centred if epsilon is None else centred / (rewards.std(correction=1) + epsilon)


def _sum_of_channels(scores: Scores, epsilon: float) -> Tensor:
    """[V] float64: what `gdpo` adds up for each of the V valid completions of a group."""
    total = torch.zeros_like(scores.valid_rewards())
    if total.numel() and not scores.channels:
        raise ValueError("gdpo needs the rewards' channels, and this group has none")
    for name in sorted(scores.channels):  # the order of a sum in floating point is part of its result
        column = scores.channels[name][scores.valid].double()
        known = ~torch.isnan(column)
        weight = abs(scores.channel_weights.get(name, 1.0))
        total[known] += weight * _normalised(column[known], epsilon)
    return total
