"""Shorter thoughts: rewards and advantages that look at length, and when they begin.

Two places for the same wish. A *length reward*, `(scores, *, options) -> rewards [K]`, changes the reward before any
estimator sees it. A *length advantage*, `(task_advantages [K], scores, *, beta) -> advantages [K]`, is added after the
estimator, so that length neither leaks into the baseline nor is absorbed by a division by the spread.

An invalid completion is not read: its reward and advantage come back as they were. What "qualified" means (well formed,
correct and safe) is the recipe's to say; a rule that asks for it raises ValueError where `Scores.qualified` is None.
`measure` says which length is meant: of the thought, or of the whole completion.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import torch
from torch import Tensor

from safeladder.policies.scores import Scores, has_spread, scatter

LengthReward = Callable[..., Tensor]  # (scores: Scores, *, options...) -> rewards [K]
LengthAdvantage = Callable[..., Tensor]  # (task_advantages [K], scores: Scores, *, options...) -> advantages [K]
Measure = Literal["thought", "completion"]


# ---------------------------------------------------------------------------------------------------------- rewards


def overlong(
    scores: Scores, *, max_tokens: int | None = None, buffer_tokens: int = 1024, factor: float = 1.0
) -> Tensor:
    """R minus up to `factor` for a completion that comes near the limit: DAPO's soft overlong punishment.

    arXiv 2503.14476, eq. 13. 0 up to max_tokens - buffer_tokens tokens, growing linearly to `factor` at max_tokens,
    `factor` beyond, qualified or not. max_tokens: the longest completion that the generator writes; it has no default,
    because one that is too large never punishes.

    Returns [K]. Raises ValueError without max_tokens, or unless 0 < buffer_tokens <= max_tokens.
    """
    if max_tokens is None:
        raise ValueError("overlong needs max_tokens: the longest completion that the generator writes")
    if not 0 < buffer_tokens <= max_tokens:
        raise ValueError(f"buffer_tokens must be in 1..{max_tokens} (max_tokens), not {buffer_tokens}")
    over = (_lengths(scores, "completion")[scores.valid] - (max_tokens - buffer_tokens)) / buffer_tokens
    return _replaced(scores, scores.valid_rewards() - factor * over.clamp(0.0, 1.0))


def kimi(scores: Scores, *, weight: float = 1.0, measure: Measure = "completion") -> Tensor:
    """R + weight * s, s = 1/2 - (l - min l) / (max l - min l), and min(0, s) where not qualified: Kimi k1.5.

    arXiv 2501.12599, section 2.3.3; min and max over the prompt's valid completions; without spread of lengths s is 0.
    weight: in units of the reward. The paper gives no number; above twice the reward's gap between a qualified and an
    unqualified completion, a short failure can overtake a long success.

    Returns [K].
    """
    lengths, qualified = _lengths(scores, measure)[scores.valid], _qualified(scores)[scores.valid]
    term = _relative_shortness(lengths)
    return _replaced(scores, scores.valid_rewards() + weight * torch.where(qualified, term, term.clamp(max=0.0)))


def arora_zanette(scores: Scores, *, alpha: float = 0.1, measure: Measure = "completion") -> Tensor:
    """R - alpha |R| sigmoid(z) where qualified, z the length standardised over the prompt's qualified completions.

    arXiv 2502.04463: there R is 1 or 0, and this is 1[correct] (1 - alpha sigmoid(z)). With other rewards, |R| is ours:
    the penalty keeps its share of the reward and never becomes a bonus. Where qualified lengths do not differ, z is 0
    and the penalty alpha |R| / 2. The standard deviation has the number of qualified completions in the denominator.
    alpha: in [0, 1).

    Returns [K].
    """
    chosen = _qualified(scores)
    rewards = scores.rewards.clone()
    lengths = _lengths(scores, measure)[chosen]
    qualified_rewards = rewards[chosen].double()
    penalty = alpha * qualified_rewards.abs() * torch.sigmoid(_standardised(lengths))
    rewards[chosen] = (qualified_rewards - penalty).to(rewards.dtype)
    return rewards


def lazy(
    scores: Scores, *, weight: float = 1.0, tolerance_tokens: float = 200.0, measure: Measure = "completion"
) -> Tensor:
    """R + weight * s for qualified completions only: s = 1/2 up to the tolerance, Kimi's term beyond it.

    arXiv 2505.12284. Over the qualified completions S of the prompt: s = 1/2 where l <= min_S l + tolerance_tokens,
    else 1/2 - (l - min_S l) / (max_S l - min_S l). An unqualified completion keeps its reward, whatever
    its length. That the paper's penalty begins only once accuracy is stable is `LazyStart`'s part (lazy_start.py).

    Returns [K].
    """
    if tolerance_tokens < 0:
        raise ValueError(f"tolerance_tokens must not be negative: {tolerance_tokens}")
    chosen = _qualified(scores)
    rewards = scores.rewards.clone()
    if bool(chosen.any()):
        lengths = _lengths(scores, measure)[chosen]
        term = torch.where(lengths <= lengths.min() + tolerance_tokens, 0.5, _relative_shortness(lengths))
        rewards[chosen] = (rewards[chosen].double() + weight * term).to(rewards.dtype)
    return rewards


LENGTH_REWARDS: Final[dict[str, LengthReward]] = {
    "overlong": overlong,
    "kimi": kimi,
    "arora_zanette": arora_zanette,
    "lazy": lazy,
}


# ------------------------------------------------------------------------------------------------------- advantages


def cale(task_advantages: Tensor, scores: Scores, *, beta: float = 0.2, measure: Measure = "thought") -> Tensor:
    """CALE, conditional advantage for length-based estimation: ours, since no source gives SafeWork-R1's formula.

    A_k = A_task,k + beta rho A_len,k with S the qualified completions, rho = |S| / valid completions, and for k in S
    z_k = (l_k - mean_S l) / std_S l,  A_len,k = -(sigmoid(z_k) - mean_S sigmoid(z)); 0 for others and where |S| < 2.

    Credit for shortness exists among qualified completions alone, sums to 0 over them, and stays below 1 in size, so a
    beta below `qualified_gap` keeps every qualified completion above every unqualified one. No beta does where an
    unqualified completion has the higher task advantage: then qualification must first become part of the reward.
    Lengths of S that are all equal give exactly 0, so std needs no epsilon, and scaling all lengths changes nothing.
    std has |S| in the denominator, as in the code of the closest published relative (`ddca`).

    task_advantages: [K], of a reward without a length term. beta >= 0. Returns [K] in the dtype of task_advantages.
    """
    return _with_length(task_advantages, scores, beta, measure, by_share=True)


def dca(task_advantages: Tensor, scores: Scores, *, beta: float = 0.2, measure: Measure = "completion") -> Tensor:
    """A_i = A_acc,i + beta A_len,i with A_len as in `cale` over the correct completions: DCA (arXiv 2602.02099).

    "Correct" is `qualified` here. beta >= 0, about 0.2 in the paper. Returns [K].
    """
    return _with_length(task_advantages, scores, beta, measure, by_share=False)


def ddca(task_advantages: Tensor, scores: Scores, *, beta: float = 0.2, measure: Measure = "completion") -> Tensor:
    """`dca` with beta n/G, n the correct ones among the G completions: a hard prompt keeps its length.

    arXiv 2602.02099. The same function as `cale`, on the length of the whole completion. Returns [K].
    """
    return _with_length(task_advantages, scores, beta, measure, by_share=True)


LENGTH_ADVANTAGES: Final[dict[str, LengthAdvantage]] = {"cale": cale, "dca": dca, "ddca": ddca}


def qualified_gap(task_advantages: Tensor, scores: Scores) -> float | None:
    """Lowest task advantage of a qualified completion minus the highest of an unqualified one, among the valid.

    A length advantage with beta below it cannot turn their order; None where one of the two kinds is missing.
    """
    qualified = _qualified(scores)
    others = scores.valid & ~qualified
    if not bool(qualified.any()) or not bool(others.any()):
        return None
    return float(task_advantages[qualified].min() - task_advantages[others].max())


def informative(
    scores: Scores, length_advantage: bool, *, channels: bool = False, measure: Measure = "thought"
) -> bool:
    """Whether this group carries any gradient: what dynamic sampling (DAPO, arXiv 2503.14476, eq. 11) asks of it.

    It does when, among its valid completions, the rewards differ, or the known values of any cost, or, with
    `length_advantage`, the lengths of the qualified ones, or, with `channels` (for `gdpo`), any reward term. Numbers
    are compared with one another, never with those of a full or an empty score: a recipe may give any range.
    """
    if has_spread(scores.valid_rewards()):
        return True
    columns = [*scores.costs.values(), *(scores.channels.values() if channels else ())]
    for column in columns:
        if has_spread(column[scores.valid & ~torch.isnan(column)]):
            return True
    return length_advantage and has_spread(_lengths(scores, measure)[_qualified(scores)])


# ---------------------------------------------------------------------------------------------------------- lengths


def _with_length(task_advantages: Tensor, scores: Scores, beta: float, measure: Measure, by_share: bool) -> Tensor:
    if task_advantages.shape != scores.rewards.shape:
        raise ValueError(
            f"task advantages {tuple(task_advantages.shape)} must be [{scores.rewards.numel()}], one a completion"
        )
    if beta < 0:
        raise ValueError(f"beta must not be negative: {beta}; that would reward length")
    chosen = _qualified(scores)
    shortness = -torch.sigmoid(_standardised(_lengths(scores, measure)[chosen]))
    credit = shortness - shortness.mean() if has_spread(shortness) else torch.zeros_like(shortness)
    share = int(chosen.sum()) / max(1, int(scores.valid.sum())) if by_share else 1.0
    advantages = task_advantages.clone()
    advantages[chosen] += (beta * share * credit).to(advantages.dtype)
    return advantages


def _lengths(scores: Scores, measure: Measure) -> Tensor:
    """[K] float64. Raises ValueError where the scores do not have this length."""
    if measure not in ("thought", "completion"):
        raise ValueError(f"measure must be thought or completion, not {measure!r}")
    lengths = scores.thought_lengths if measure == "thought" else scores.lengths
    if lengths is None:
        name = "thought_lengths" if measure == "thought" else "lengths"
        raise ValueError(f"this rule measures the {measure}: it needs Scores.{name}")
    return lengths.double()


def _qualified(scores: Scores) -> Tensor:
    """[K] bool: valid and qualified."""
    if scores.qualified is None:
        raise ValueError(
            "this rule asks which completions are qualified, and the recipe does not say: Scores.qualified"
        )
    return scores.valid & scores.qualified


def _standardised(lengths: Tensor) -> Tensor:
    """(l - mean) / std over [n], std with n in the denominator; exactly 0 without spread."""
    if not has_spread(lengths):
        return torch.zeros_like(lengths)
    return (lengths - lengths.mean()) / lengths.std(correction=0)


def _relative_shortness(lengths: Tensor) -> Tensor:
    """1/2 for the shortest of [n], -1/2 for the longest, linear between; 0 without spread."""
    if not has_spread(lengths):
        return torch.zeros_like(lengths)
    return 0.5 - (lengths - lengths.min()) / (lengths.max() - lengths.min())


def _replaced(scores: Scores, valid_rewards: Tensor) -> Tensor:
    """[K]: these rewards at the valid completions, the old ones elsewhere."""
    return torch.where(scores.valid, scatter(valid_rewards, scores), scores.rewards)
