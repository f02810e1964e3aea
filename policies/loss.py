"""The loss of some completions under the configured rules, and its gradient with respect to their log-probabilities.

Everything that an objective does happens on flat tensors of one number a token. The model is not needed for it: what goes
back into the model is one gradient a token, d loss / d ln pi, which its own backward pass takes from there. That keeps the
rules apart from the model, and shows for any rule which tokens it takes the gradient from (`clip_fraction`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from safeladder.policies.aggregation import aggregate, reference_kl
from safeladder.policies.batch import TrainingGroup
from safeladder.policies.corrections import FILTERS, WEIGHTS, Ratios, cap_of, log_ratios
from safeladder.policies.objectives import OBJECTIVES, Tokens, held, interpolated_proximal
from safeladder.policies.options import StepOptions
from safeladder.policies.registry import bind_all, bind_one, rule_of


@dataclass
class Sample:
    """One completion on its way through a step. Tensors are [n] and live on the CPU.

    place: its group's number in the batch. proximal, weights: set by a pass over the whole batch, where there is one.
    """

    group: TrainingGroup
    index: int
    place: int
    advantages: Tensor
    kept: Tensor
    proximal: Tensor | None = None
    weights: Tensor | None = None

    @property
    def length(self) -> int:
        return len(self.group.completion_ids[self.index])

    @property
    def behaviour(self) -> NDArray[np.float32]:
        return self.group.behaviour[self.index]


@dataclass(frozen=True)
class PackLoss:
    """What one pack adds. Tensors are [N], detached.

    gradient: d loss / d logprobs; policy_loss and kl are already divided as configured. held: tokens with an advantage and
    a weight from which the objective takes nothing (`objectives.held`); active: all of them. cap: of the weights.
    """

    policy_loss: float
    kl: float
    gradient: Tensor
    log_ratio: Tensor
    weights: Tensor
    filtered: dict[str, int]
    held: int
    active: int
    cap: float


class PolicyLoss:
    """The configured objective, correction, filters and penalty as one function of log-probabilities."""

    def __init__(self, options: StepOptions) -> None:
        """Raises RuleError for rules that do not exist, ValueError for options that contradict each other."""
        self.options = options
        # with this advantage a batch is demonstrations: nobody sampled them, and there is nothing to be off policy from
        self.demonstrations = list(options.advantage) == ["ones"]
        self._objective = bind_one("objective", OBJECTIVES, options.objective, "clipped")
        weighs_itself = getattr(rule_of(self._objective), "reads_behaviour", False)
        default = "off" if weighs_itself else "token_truncate"
        self._correct = bind_one("correction", WEIGHTS, options.correction, default)
        self._filters = bind_all("filter", FILTERS, options.filters)
        if options.proximal == "behaviour" and options.correction and "off" not in options.correction:
            raise ValueError(
                f"correction {next(iter(options.correction))!r} with proximal: behaviour would count the ratio twice: "
                'the objective\'s own ratio is to the sampling policy already; use correction: "off"'
            )
        if weighs_itself and options.correction and "off" not in options.correction:
            raise ValueError(
                f"correction {next(iter(options.correction))!r} with objective {next(iter(options.objective))!r} would count "
                'the ratio twice: the objective answers for the sampling policy already; use correction: "off"'
            )
        rules = [self._correct, *self._filters.values()]
        self.whole_batch = any(getattr(rule_of(rule), "whole_batch", False) for rule in rules)
        if self.whole_batch and options.proximal not in ("auto", "recompute"):
            raise ValueError(f"a rule that looks at the whole batch needs proximal: recompute, not {options.proximal}")
        reference_kl(torch.zeros(0), torch.zeros(0), options.kl_kind)

    @property
    def filters(self) -> list[str]:
        """Names of the configured filters."""
        return list(self._filters)

    def moves_without_advantage(self) -> bool:
        """Whether tokens of advantage 0 carry a gradient: asked of the objective itself, once the ratio is not 1."""
        logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
        proximal, nothing = torch.tensor([-1.3, -1.6]), torch.zeros(2)
        kept = torch.ones(2, dtype=torch.bool)
        losses = self._objective(Tokens(logprobs, proximal, proximal, nothing, [2], kept)).sum()
        if not losses.requires_grad:
            return False
        (gradient,) = torch.autograd.grad(losses, logprobs, allow_unused=True)
        return gradient is not None and bool(gradient.any())

    def weigh(self, samples: Sequence[Sample]) -> dict[str, int]:
        """Sets the weights of samples whose proximal policy is known, from all of them at once.

        Returns how many kept tokens each filter leaves out.
        """
        if not samples:
            return {}
        proximal = torch.cat([sample.proximal for sample in samples if sample.proximal is not None])
        behaviour = _flat([sample.behaviour for sample in samples], proximal)
        weights, filtered = self._weights(_ratios(samples, proximal, behaviour))
        for sample, part in zip(samples, torch.split(weights, [s.length for s in samples]), strict=True):
            sample.weights = part
        return filtered

    def __call__(
        self,
        samples: Sequence[Sample],
        logprobs: Tensor,
        coefficients: Sequence[float],
        epoch: int = 0,
        version: int = 0,
    ) -> PackLoss:
        """logprobs [N], detached, of the samples' tokens; coefficients [S] of `aggregation.coefficients`."""
        options = self.options
        current = logprobs.detach().requires_grad_()
        behaviour = current.detach()
        if not self.demonstrations:
            behaviour = _flat([sample.behaviour for sample in samples], current)
        proximal = self._proximal(samples, current.detach(), behaviour, version)
        ratios = _ratios(samples, current.detach() if options.proximal == "behaviour" else proximal, behaviour)
        if samples[0].weights is not None:
            weights = torch.cat([s.weights for s in samples if s.weights is not None]).to(current.device)
            filtered: dict[str, int] = {}
        else:
            weights, filtered = self._weights(ratios)

        tokens = Tokens(current, proximal, behaviour, ratios.advantages, ratios.lengths, ratios.kept, epoch)
        losses = self._objective(tokens) * weights
        policy_loss = aggregate(losses, ratios.kept, ratios.lengths, coefficients)
        gradient = _gradient(policy_loss, current)
        active = ratios.kept & (ratios.advantages != 0) & (weights != 0)
        silent = int((active & held(self._objective, tokens)).sum())
        kl = 0.0
        if options.reference_kl > 0:
            reference = _flat([s.group.reference[s.index] for s in samples if s.group.reference is not None], current)
            penalties = reference_kl(current, reference, options.kl_kind)
            penalty = aggregate(penalties, ratios.kept, ratios.lengths, coefficients)
            gradient = gradient + options.reference_kl * _gradient(penalty, current)
            kl = float(penalty.detach())
        return PackLoss(
            policy_loss=float(policy_loss.detach()),
            kl=kl,
            gradient=gradient,
            log_ratio=ratios.log_ratio,
            weights=weights,
            filtered=filtered,
            held=silent,
            active=int(active.sum()),
            cap=cap_of(self._correct),
        )

    def _proximal(self, samples: Sequence[Sample], current: Tensor, behaviour: Tensor, version: int) -> Tensor:
        if self.options.proximal == "behaviour":
            return behaviour
        if self.options.proximal == "interpolate":
            versions = torch.from_numpy(np.concatenate([s.group.versions[s.index] for s in samples]))
            return interpolated_proximal(current, behaviour, versions.to(current.device), version)
        if samples[0].proximal is None:
            return current
        return torch.cat([s.proximal for s in samples if s.proximal is not None]).to(current.device)

    def _weights(self, ratios: Ratios) -> tuple[Tensor, dict[str, int]]:
        """Importance weights with every filter applied, and how many kept tokens each filter alone leaves out."""
        weights = torch.ones_like(ratios.log_ratio)
        if self.options.proximal != "behaviour":
            weights = self._correct(ratios)
        filtered = {}
        for name, rule in self._filters.items():
            stays = rule(ratios)
            filtered[name] = int((ratios.kept & ~stays).sum())
            weights = torch.where(stays, weights, 0.0)
        return weights, filtered


def _ratios(samples: Sequence[Sample], proximal: Tensor, behaviour: Tensor) -> Ratios:
    device = proximal.device
    return Ratios(
        log_ratio=log_ratios(proximal, behaviour),
        advantages=torch.cat([sample.advantages for sample in samples]).to(device),
        lengths=[sample.length for sample in samples],
        kept=torch.cat([sample.kept for sample in samples]).to(device),
    )


def _gradient(loss: Tensor, logprobs: Tensor) -> Tensor:
    """d loss / d logprobs; zero where a loss does not depend on them at all."""
    if not loss.requires_grad:
        return torch.zeros_like(logprobs)
    (gradient,) = torch.autograd.grad(loss, logprobs, allow_unused=True)
    return torch.zeros_like(logprobs) if gradient is None else gradient


def _flat(columns: Sequence[NDArray[np.float32]], like: Tensor) -> Tensor:
    return torch.from_numpy(np.concatenate(columns).astype(np.float32)).to(like.device)
