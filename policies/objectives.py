"""Policy objectives as losses of one number a token; a lower loss is better.

Three policies meet here: *behaviour* sampled the tokens, *proximal* is the policy at the start of the step, *current* is
being differentiated. r = current / proximal unless a rule says otherwise. An objective answers for what current and proximal
are to each other; for what proximal and behaviour are, the step multiplies its losses by the importance weights of
`corrections.py`. The exceptions read behaviour themselves and go with the correction "off"; they carry `reads_behaviour`.

An objective is one function `(tokens: Tokens, *, options) -> losses [N]`, entered in `OBJECTIVES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import torch
from torch import Tensor

from safeladder.policies.aggregation import MAX_LOG_RATIO, mean_by_sequence, over_tokens, sum_by_sequence

Objective = Callable[..., Tensor]


@dataclass(frozen=True)
class Tokens:
    """What an objective sees: the N completion tokens of some whole sequences, one sequence after the other.

    Logarithms are natural. Only `logprobs` carries a gradient.
    """

    logprobs: Tensor  # [N] ln current
    proximal: Tensor  # [N] ln proximal
    behaviour: Tensor  # [N] ln behaviour
    advantages: Tensor  # [N]
    lengths: Sequence[int]  # [S], N in all
    kept: Tensor  # [N] bool; False: written by an environment, in no loss and no statistic
    epoch: int = 0  # how often this batch was gone through before

    def log_ratio(self) -> Tensor:
        """ln r [N], clamped to +-20, with gradient."""
        return _log_ratio(self.logprobs, self.proximal)


def reads_behaviour(objective: Objective) -> Objective:
    """Marks an objective that answers for the sampling policy itself: an importance weight would count it twice."""
    objective.reads_behaviour = True  # type: ignore[attr-defined]
    return objective


# -------------------------------------------------------------------------------------------------- token by token


def clipped(tokens: Tokens, *, low: float = 0.2, high: float = 0.2, dual: float | None = None) -> Tensor:
    """max(-r A, -clip(r, 1 - low, 1 + high) A).

    PPO (arXiv 1707.06347), eq. 7, with the asymmetric range of DAPO (arXiv 2503.14476). With importance weights this is
    the decoupled objective of Hilton et al. (arXiv 2110.00641): clipping is around the proximal policy. `dual` (> 1)
    bounds the loss of a negative advantage at -dual * A (arXiv 1912.09729).
    """
    if dual is not None and dual <= 1.0:
        raise ValueError(f"dual clip must be above 1, not {dual}: below it would cut ratios inside the clip range")
    ratio, advantages = tokens.log_ratio().exp(), tokens.advantages
    losses = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1.0 - low, 1.0 + high))
    if dual is not None:
        losses = torch.where(advantages < 0, torch.minimum(losses, -advantages * dual), losses)
    return losses


def cpgd(
    tokens: Tokens,
    *,
    low: float = 0.2,
    high: float = 0.2,
    tightness: float = 1.0,
    drift: float = 0.001,
    drift_cap: float = 2.0,
    scale_epochs: bool = True,
) -> Tensor:
    """Clipped policy gradient with policy drift: -(min(ln r A, clip(ln r) A) - drift E). CPGD (arXiv 2505.12504).

    ln r is clipped to [ln(1 - low), ln(1 + high)]; the ratio itself never multiplies the gradient, which is A or 0. E =
    min(r - 1, drift_cap) ln current, its first factor a constant, has the gradient of k3, an estimate of KL(proximal ||
    current), capped from above. `tightness` l < 1 clips early tokens harder: at token i of n, low and high are scaled by
    l + (1 - l) i / n ("tight to loose"). When a batch is gone through again, `scale_epochs` multiplies the advantage by
    clip(r, 1 - low, 1 + high), a constant; the paper takes r at the end of the pass before, here it is the one of now.
    """
    if not 0 <= tightness <= 1 or not 0 <= low < 1 or high < 0:
        raise ValueError(f"cpgd needs tightness in [0, 1], low in [0, 1) and high >= 0: {tightness}, {low}, {high}")
    # Not clamped: a policy that is e^20 away on the side that is not clipped must still be brought back.
    log_ratio, advantages = tokens.logprobs - tokens.proximal.detach(), tokens.advantages
    looseness = tightness + (1 - tightness) * _progress(tokens)
    bottom, top = torch.log1p(-low * looseness), torch.log1p(high * looseness)
    if scale_epochs and tokens.epoch > 0:
        advantages = advantages * tokens.log_ratio().detach().exp().clamp(1 - low, 1 + high)
    gain = torch.minimum(log_ratio * advantages, log_ratio.clamp(bottom, top) * advantages)
    distance = torch.expm1(tokens.log_ratio().detach()).clamp(max=drift_cap) * tokens.logprobs
    return drift * distance - gain


def cispo(tokens: Tokens, *, low: float | None = None, high: float = 1.0) -> Tensor:
    """-clip(r, 1 - low, 1 + high) A ln current, the clipped ratio a constant: every token keeps a gradient.

    CISPO (arXiv 2506.13585), eq. 4 and 5. low None leaves the ratio unbounded from below, as the paper does; it names no
    value of high, the default is ours.
    """
    bottom = 0.0 if low is None else 1.0 - low
    weight = tokens.log_ratio().detach().exp().clamp(bottom, 1.0 + high)
    return -weight * tokens.advantages * tokens.logprobs


def sapo(tokens: Tokens, *, positive: float = 1.0, negative: float = 1.05) -> Tensor:
    """-(4 / tau) sigmoid(tau (r - 1)) A, tau = positive where A > 0, else negative: a soft gate in place of a clip.

    SAPO (arXiv 2511.20347). The gradient is that of -r A at r = 1 and fades on both sides, faster for larger tau.
    """
    ratio = tokens.log_ratio().exp()
    tau = torch.where(tokens.advantages > 0, positive, negative).to(ratio)
    return -torch.sigmoid(tau * (ratio - 1.0)) * (4.0 / tau) * tokens.advantages


def policy_gradient(tokens: Tokens) -> Tensor:
    """-A ln current: REINFORCE (Williams 1992), without any ratio; also GPG's loss (arXiv 2504.02546)."""
    return -tokens.advantages * tokens.logprobs


@reads_behaviour
def tis_reinforce(tokens: Tokens, *, cap: float = 1.0) -> Tensor:
    """-min(current / behaviour, cap) A ln current, the ratio a constant.

    Truncated importance sampling as the code of ROLL has it.
    """
    weight = _log_ratio(tokens.logprobs.detach(), tokens.behaviour).exp().clamp(max=cap)
    return -weight * tokens.advantages * tokens.logprobs


@reads_behaviour
def kimi(tokens: Tokens, *, tau: float = 0.1) -> Tensor:
    """-A ln current + (tau / 2) (ln current - ln behaviour)^2.

    The loss of Kimi k1.5 (arXiv 2501.12599), per token as the code of ROLL has it.
    """
    distance = tokens.logprobs - tokens.behaviour.detach()  # not clamped: what is farther away is pulled harder
    return policy_gradient(tokens) + tau / 2 * distance.square()


def sft(tokens: Tokens, *, positive_only: bool = False) -> Tensor:
    """-ln current: supervised learning. `positive_only` leaves out tokens without a positive advantage.

    For demonstrations use the advantage "ones"; with a group-relative advantage and `positive_only` it is learning from
    the better half of the samples.
    """
    return -torch.where(tokens.advantages > 0, tokens.logprobs, 0.0) if positive_only else -tokens.logprobs


# -------------------------------------------------------------------------------------------- sequence by sequence


def gspo(tokens: Tokens, *, low: float = 3e-4, high: float = 4e-4) -> Tensor:
    """max(-s A, -clip(s, 1 - low, 1 + high) A), s the geometric mean of a sequence's ratios. GSPO (arXiv 2507.18071).

    In the token form of its section 4.3: s_t = s current_t / current_t, all but the numerator constants, so that
    advantages may differ from token to token. s is normalised by length, hence the narrow range. Use it with the
    aggregation "sequence_mean".
    """
    mean = mean_by_sequence(tokens.log_ratio().detach(), tokens.kept, tokens.lengths)
    own = tokens.logprobs - tokens.logprobs.detach()  # 0, with the token's gradient
    ratio = (own + over_tokens(mean, tokens.lengths)).clamp(max=10.0).exp()
    advantages = tokens.advantages
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1.0 - low, 1.0 + high))


def gmpo(tokens: Tokens, *, low: float = 0.4, high: float = 0.4) -> Tensor:
    """-A exp(mean of a sequence's clipped ln r): the geometric mean of clipped ratios. GMPO (arXiv 2507.20673).

    ln r is clipped to [-low, high] on the side on which PPO clips; A is the mean advantage of the sequence. Every token
    bears the whole loss of its sequence: use it with the aggregation "sequence_mean", which averages it over them.
    """
    log_ratio, sign = tokens.log_ratio(), torch.sign(tokens.advantages)
    bounded = sign * torch.minimum(sign * log_ratio, sign * log_ratio.clamp(-low, high))
    ratio = mean_by_sequence(bounded, tokens.kept, tokens.lengths).exp()
    advantage = mean_by_sequence(tokens.advantages, tokens.kept, tokens.lengths)
    return over_tokens(-advantage * ratio, tokens.lengths)


@reads_behaviour
def topr(tokens: Tokens, *, level: Literal["sequence", "token"] = "sequence") -> Tensor:
    """-A ln current where A >= 0, -min(current / behaviour, 1) A ln current where A < 0. TOPR (arXiv 2503.14286).

    What is good is learned as it is, off policy too; what is bad is pushed away only as far as the policy still does it.
    The ratio, a constant, is that of the whole completion or the token's.
    """
    log_ratio = _log_ratio(tokens.logprobs.detach(), tokens.behaviour)
    if level == "sequence":
        whole = sum_by_sequence(log_ratio, tokens.kept, tokens.lengths)
        log_ratio = over_tokens(whole, tokens.lengths)
    weight = torch.where(tokens.advantages < 0, log_ratio.clamp(max=0.0).exp(), 1.0)
    return weight * policy_gradient(tokens)


OBJECTIVES: Final[dict[str, Objective]] = {
    "clipped": clipped,
    "cpgd": cpgd,
    "gspo": gspo,
    "cispo": cispo,
    "sapo": sapo,
    "gmpo": gmpo,
    "topr": topr,
    "policy_gradient": policy_gradient,
    "tis_reinforce": tis_reinforce,
    "kimi": kimi,
    "sft": sft,
}


def held(objective: Objective, tokens: Tokens) -> Tensor:
    """[N] bool: kept tokens whose advantage the objective lets through in no part, as a clip does.

    Their gradient d loss / d ln current is zero, or what it would be without the advantage: a clipped token of `cpgd` still
    drifts. Right for any rule, since it is asked of the gradient and not of the clip range. An objective that does not read
    how large the advantage is, like `sft`, holds back only what has no gradient at all.
    """
    logprobs = tokens.logprobs.detach().requires_grad_()
    advantages = tokens.advantages.detach().requires_grad_()
    whole, by_advantage = _gradients(
        objective(replace(tokens, logprobs=logprobs, advantages=advantages)), logprobs, advantages
    )
    silent = whole == 0
    if bool(by_advantage.any()):
        nothing = torch.zeros_like(advantages)
        (rest,) = _gradients(objective(replace(tokens, logprobs=logprobs, advantages=nothing)), logprobs)
        silent |= whole == rest
    return tokens.kept & (tokens.advantages != 0) & silent


# ------------------------------------------------------------------------------------------------ proximal policy


def interpolated_proximal(current: Tensor, behaviour: Tensor, versions: Tensor, version: int) -> Tensor:
    """ln proximal [N], read off the line between behaviour and current policy instead of a forward of its own.

    ln proximal = ln behaviour + a (ln current - ln behaviour), a = (version - v) / (version + 1 - v) with v the version
    that sampled the token and `version` the learner's at the start of the step: AReaL's log-linear approximation (arXiv
    2505.24298, and its documentation on the proximal policy). A token as fresh as the learner has a = 0. Detached.
    """
    age = (version - versions).clamp(min=0).to(current.dtype)
    return (behaviour + age / (age + 1.0) * (current - behaviour)).detach()


def _log_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return (numerator - denominator.detach()).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def _gradients(losses: Tensor, *inputs: Tensor) -> list[Tensor]:
    """The gradients of summed losses, zero for inputs that they do not depend on."""
    if not losses.requires_grad:
        return [torch.zeros_like(each) for each in inputs]
    found = torch.autograd.grad(losses.sum(), inputs, allow_unused=True)
    return [torch.zeros_like(each) if one is None else one for each, one in zip(inputs, found, strict=True)]


def _progress(tokens: Tokens) -> Tensor:
    """[N]: i / n for the i-th of a sequence's n kept tokens, i from 1; 1 where n is 0."""
    parts = [
        part.cumsum(0) / max(1.0, float(part.sum()))
        for part in torch.split(tokens.kept.to(tokens.logprobs.dtype), list(tokens.lengths))
    ]
    return torch.cat(parts) if parts else tokens.logprobs.detach()
