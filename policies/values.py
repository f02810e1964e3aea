"""Returns of one sequence of tokens, with and without a value function: returns-to-go, GAE, V-trace.

Pure functions of T tokens in float64. The recursions run backwards over plain numbers: as tensors, every step would
cost three orders of magnitude more. `bootstrap` is the value after the last token: 0 where the sequence has ended.
"""

from __future__ import annotations

import torch
from torch import Tensor


def returns_to_go(rewards: Tensor, *, gamma: float = 1.0) -> Tensor:
    """G_t = r_t + gamma G_{t+1}, with G = 0 after the last token. rewards: [T]. Returns [T] float64."""
    returns: list[float] = []
    following = 0.0
    for reward in reversed(_numbers(rewards)):
        following = reward + gamma * following
        returns.append(following)
    return _tensor(returns[::-1], rewards)


def gae(
    rewards: Tensor, values: Tensor, *, gamma: float = 1.0, gae_lambda: float = 0.95, bootstrap: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (arXiv 1506.02438, eq. 16) and the targets of the value function.

    delta_t = r_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma lambda A_{t+1};  target_t = A_t + V_t.

    rewards, values: [T]; gamma, gae_lambda in [0, 1]. Returns two [T] float64. Raises ValueError for unequal lengths.
    """
    _check(rewards, values)
    advantages: list[float] = []
    following, value_after = 0.0, bootstrap
    for reward, value in zip(reversed(_numbers(rewards)), reversed(_numbers(values)), strict=True):
        following = reward + gamma * value_after - value + gamma * gae_lambda * following
        value_after = value
        advantages.append(following)
    estimated = _tensor(advantages[::-1], rewards)
    return estimated, estimated + values.double()


def vtrace(
    rewards: Tensor,
    values: Tensor,
    log_ratio: Tensor,
    *,
    gamma: float = 1.0,
    rho_cap: float = 1.0,
    c_cap: float = 1.0,
    policy_cap: float | None = 1.0,
    bootstrap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """V-trace (IMPALA, arXiv 1802.01561, eq. 1 and section 4.2): advantages of the policy, targets of the values.

    With rho_t = exp(log_ratio_t), policy over behaviour:
    v_t = V_t + min(rho_cap, rho_t) (r_t + gamma V_{t+1} - V_t) + gamma min(c_cap, rho_t) (v_{t+1} - V_{t+1})
    A_t = min(policy_cap, rho_t) (r_t + gamma v_{t+1} - V_t)
    `policy_cap` None leaves the last factor out, for a caller who weighs the loss by the ratio already.

    rewards, values, log_ratio: [T]; caps > 0, infinity is no cap. Returns two [T] float64, advantages and targets v.
    Raises ValueError for unequal lengths.
    """
    _check(rewards, values, log_ratio)
    ratio = log_ratio.double().exp()
    policy_weights = torch.ones_like(ratio) if policy_cap is None else ratio.clamp(max=policy_cap)
    columns = (rewards, values, policy_weights, ratio.clamp(max=rho_cap), ratio.clamp(max=c_cap))
    advantages: list[float] = []
    targets: list[float] = []
    value_after = target_after = bootstrap
    for reward, value, weight, rho, c in zip(*(reversed(_numbers(column)) for column in columns), strict=True):
        advantages.append(weight * (reward + gamma * target_after - value))
        delta = rho * (reward + gamma * value_after - value)
        target_after = value + delta + gamma * c * (target_after - value_after)
        value_after = value
        targets.append(target_after)
    return _tensor(advantages[::-1], rewards), _tensor(targets[::-1], rewards)


def _check(*columns: Tensor) -> None:
    shapes = [tuple(column.shape) for column in columns]
    if any(len(shape) != 1 or shape != shapes[0] for shape in shapes):
        raise ValueError(f"the columns must all be [T], one entry a token, not {shapes}")


def _numbers(column: Tensor) -> list[float]:
    numbers: list[float] = column.double().tolist()
    return numbers


def _tensor(numbers: list[float], like: Tensor) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64, device=like.device)
