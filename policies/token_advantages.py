"""Advantages that differ from token to token: REINFORCE++, GAE and V-trace.

Each estimator returns, for every group, one number a token of all its K completions, [sum n_k], and is marked with
`per_token`. Only the policy's own tokens take part: what an environment wrote is cut out before the recursion, so the
token before a search result is followed by the one after it, and stays exactly 0 in the result. The completion's reward
arrives at its last own token. Invalid completions are 0 throughout and are not read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import torch
from torch import Tensor

from safeladder.policies.scores import Scores, has_spread
from safeladder.policies.values import gae as gae_of_sequence
from safeladder.policies.values import returns_to_go
from safeladder.policies.values import vtrace as vtrace_of_sequence

Estimator = Callable[..., list[Tensor]]  # (batch: Sequence[Scores], *, options...) -> for each group a tensor
Marked = TypeVar("Marked", bound=Estimator)
OfCompletion = Callable[[Scores, int, Tensor], Tensor]  # (scores, k, own tokens [n_k] bool) -> [own tokens of k]

_WHITENING_EPSILON: Final = 1e-8  # added to the variance


def per_token(estimator: Marked) -> Marked:
    """Marks an estimator that gives one number a token, [sum n_k] for a group, where the others give [K]."""
    estimator.per_token = True  # type: ignore[attr-defined]
    return estimator


def is_per_token(estimator: Estimator) -> bool:
    """Whether `per_token` marked this estimator, or, for a partial, the function that it binds."""
    return bool(getattr(getattr(estimator, "func", estimator), "per_token", False))


@per_token
def reinforce_plus_plus(batch: Sequence[Scores], *, beta: float = 0.0, gamma: float = 1.0) -> list[Tensor]:
    """Returns-to-go of r_t = -beta KL_t, plus R at the end, whitened over all own tokens of the batch.

    REINFORCE++ (arXiv 2501.03262). Equal rewards in the whole batch, with beta 0 and gamma 1, give exactly 0; a group
    without spread beside others does not, because its distance to the batch counts.

    beta: weight of the KL to the reference; it needs the column `dense.kl`. Where it is set, the loss's own penalty
    towards the reference belongs at 0, or the same divergence counts twice. gamma in [0, 1].
    """

    def of_completion(scores: Scores, k: int, own: Tensor) -> Tensor:
        return returns_to_go(_token_rewards(scores, k, own, beta), gamma=gamma)

    return _over_own_tokens(batch, of_completion, whiten=True)


@per_token
def gae(
    batch: Sequence[Scores], *, beta: float = 0.0, gamma: float = 1.0, gae_lambda: float = 0.95, whiten: bool = True
) -> list[Tensor]:
    """Generalised advantage estimation (arXiv 1506.02438) from the column `dense.values`.

    Rewards are those of `reinforce_plus_plus`; a completion ends after its last own token, with value 0. `whiten`:
    centre and scale over all own tokens of the batch, as PPO's implementations do. What the values predict counts, so
    equal rewards give no zeros.
    """

    def of_completion(scores: Scores, k: int, own: Tensor) -> Tensor:
        rewards = _token_rewards(scores, k, own, beta)
        return gae_of_sequence(rewards, _column(scores, "values", k, own), gamma=gamma, gae_lambda=gae_lambda)[0]

    return _over_own_tokens(batch, of_completion, whiten=whiten)


@per_token
def vtrace(
    batch: Sequence[Scores],
    *,
    beta: float = 0.0,
    gamma: float = 1.0,
    rho_cap: float = 1.0,
    c_cap: float = 1.0,
    policy_cap: float | None = 1.0,
    whiten: bool = False,
) -> list[Tensor]:
    """V-trace (arXiv 1802.01561) from the columns `dense.values` and `dense.log_ratio` (proximal over behaviour).

    The advantage already carries min(policy_cap, rho_t). Either no importance weight is chosen beside it, or
    `policy_cap` is None: else the ratio counts twice. Rewards and ends as in `gae`.
    """

    def of_completion(scores: Scores, k: int, own: Tensor) -> Tensor:
        rewards = _token_rewards(scores, k, own, beta)
        values, log_ratio = _column(scores, "values", k, own), _column(scores, "log_ratio", k, own)
        return vtrace_of_sequence(
            rewards, values, log_ratio, gamma=gamma, rho_cap=rho_cap, c_cap=c_cap, policy_cap=policy_cap
        )[0]

    return _over_own_tokens(batch, of_completion, whiten=whiten)


def whitened(numbers: Tensor, counts: Tensor | None = None) -> Tensor:
    """(x - mean) / sqrt(variance + 1e-8), where the i-th number stands for counts_i equal ones (None: one each).

    numbers, counts: [n] float64. The variance has sum counts - 1 in the denominator. Numbers that count and are all
    equal give exactly 0.
    """
    counts = torch.ones_like(numbers) if counts is None else counts
    if not has_spread(numbers[counts > 0]):
        return torch.zeros_like(numbers)
    total = counts.sum()
    centred = numbers - (counts * numbers).sum() / total
    variance = (counts * centred.square()).sum() / (total - 1)
    return centred / (variance + _WHITENING_EPSILON).sqrt()


def _over_own_tokens(batch: Sequence[Scores], of_completion: OfCompletion, whiten: bool) -> list[Tensor]:
    """For each group [sum n_k]: what `of_completion` gives at the own tokens of valid completions, else exactly 0."""
    places: list[Tensor] = []  # for each group [sum n_k] bool
    found: list[Tensor] = []  # for each group what stands at these places, float64
    for scores in batch:
        kept = scores.kept()
        valid = scores.valid.tolist()
        rows = [own if ok else torch.zeros_like(own) for own, ok in zip(kept, valid, strict=True)]
        numbers = [of_completion(scores, k, own) for k, own in enumerate(kept) if valid[k]]
        nothing = scores.rewards.new_zeros(0)
        places.append(torch.cat([nothing.bool(), *rows]))
        found.append(torch.cat([nothing.double(), *numbers]))
    if whiten and found:
        found = list(torch.split(whitened(torch.cat(found)), [numbers.numel() for numbers in found]))
    advantages = []
    for scores, where, numbers_of_group in zip(batch, places, found, strict=True):
        spread = torch.zeros(where.shape, dtype=scores.rewards.dtype, device=scores.rewards.device)
        spread[where] = numbers_of_group.to(spread.dtype)
        advantages.append(spread)
    return advantages


def _token_rewards(scores: Scores, k: int, own: Tensor, beta: float) -> Tensor:
    """[own tokens of k] float64: -beta KL_t, and the completion's reward at the last one."""
    if beta:
        rewards = -beta * _column(scores, "kl", k, own)
    else:
        rewards = torch.zeros(int(own.sum()), dtype=torch.float64, device=scores.rewards.device)
    rewards[-1:] += scores.rewards[k].double()
    return rewards


def _column(scores: Scores, name: str, k: int, own: Tensor) -> Tensor:
    """[own tokens of k] float64 of a dense column. Raises ValueError where it is missing or not finite."""
    columns = {} if scores.dense is None else scores.dense.columns()
    if name not in columns:
        raise ValueError(
            f"this estimator needs the dense column {name!r}; the batch has: {', '.join(columns) or 'none'}"
        )
    numbers = columns[name][k][own].double()
    if not bool(torch.isfinite(numbers).all()):
        raise ValueError(f"dense column {name!r} of valid completion {k} is not finite")
    return numbers
