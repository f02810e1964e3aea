"""From one loss a token to one loss a batch, and the penalty towards the reference policy.

Every way of averaging is one coefficient a sequence: loss = sum_s c_s sum_t l_st. The coefficients are computed once for a
whole update, from the lengths of *all* its completions, before anything is masked or skipped. So a sequence that is left
out never changes the gradient of another, and the sum over any split into packs is the loss of the whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from safeladder.policies.options import Aggregation, KLKind

MAX_LOG_RATIO: Final = 20.0  # e^20 is still far from the float32 range; beyond it a ratio carries no information


def coefficients(
    lengths: Sequence[int], groups: Sequence[int], mode: Aggregation, max_tokens: int | None = None
) -> list[float]:
    """What each of S sequences' summed losses is multiplied by.

    lengths [S] are tokens that count (the policy's own), groups [S] which prompt a sequence belongs to.

    token_mean        1 / sum |y|: each token weighs the same (DAPO, arXiv 2503.14476)
    sequence_mean     1 / (S |y_s|): each completion weighs the same (GRPO, arXiv 2402.03300, eq. 3)
    group_token_mean  1 / (G sum_{k in group} |y_k|): each prompt weighs the same, its tokens too (CPGD, arXiv 2505.12504)
    constant          1 / (S max_tokens): neither length nor batch content matters (Dr. GRPO, arXiv 2503.20783)

    An empty sequence has a finite coefficient, which multiplies nothing. Raises ValueError for an unknown mode, or
    "constant" without max_tokens.
    """
    count = len(lengths)
    if mode == "token_mean":
        return [1.0 / max(1, sum(lengths))] * count
    if mode == "sequence_mean":
        return [1.0 / (count * max(1, length)) for length in lengths]
    if mode == "group_token_mean":
        tokens: Counter[int] = Counter()
        for length, group in zip(lengths, groups, strict=True):
            tokens[group] += length
        return [1.0 / (len(tokens) * max(1, tokens[group])) for group in groups]
    if mode == "constant":
        if not max_tokens or max_tokens < 1:
            raise ValueError('aggregation "constant" needs max_tokens >= 1, the longest completion that may be sampled')
        return [1.0 / (max(1, count) * max_tokens)] * count
    raise ValueError(f"unknown aggregation {mode!r}; known: token_mean, sequence_mean, group_token_mean, constant")


def aggregate(losses: Tensor, mask: Tensor, lengths: Sequence[int], coefficients: Sequence[float]) -> Tensor:
    """Sums per-token losses [N] of some sequences with their coefficients [S].

    mask: [N], 0 leaves a token out (whatever its loss, infinite included); lengths: all tokens of each sequence, N in all.
    """
    if losses.numel() != sum(lengths):
        raise ValueError(f"{losses.numel()} losses for sequences of {list(lengths)} tokens")
    shares = torch.tensor(coefficients, dtype=losses.dtype, device=losses.device)
    return torch.where(mask.bool(), losses * over_tokens(shares, lengths), 0.0).sum()


def over_tokens(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """Repeats one value a sequence [S] over the tokens of the sequence [N]."""
    repeats = torch.tensor(lengths, dtype=torch.int64, device=values.device)
    return values.repeat_interleave(repeats, output_size=sum(lengths))


def sum_by_sequence(values: Tensor, kept: Tensor, lengths: Sequence[int]) -> Tensor:
    """[S]: the values [N] of each sequence's kept tokens added up; 0 for one without."""
    owner = over_tokens(torch.arange(len(lengths), device=values.device), lengths)
    return torch.zeros(len(lengths), dtype=values.dtype, device=values.device).index_add(
        0, owner, torch.where(kept, values, 0.0)
    )


def mean_by_sequence(values: Tensor, kept: Tensor, lengths: Sequence[int]) -> Tensor:
    """[S]: the mean of the values [N] over each sequence's kept tokens; 0 for one without."""
    counts = sum_by_sequence(torch.ones_like(values), kept, lengths)
    return sum_by_sequence(values, kept, lengths) / counts.clamp(min=1)


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
