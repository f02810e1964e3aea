"""Who gets credit for what: from the rewards and costs of a batch to one advantage a token.

    rewards -> length rewards -> estimator -> length advantage -> (A_R - sum lambda_d A_Cd) / (1 + sum lambda_d)

The multipliers are those of the training step, not of the time when a completion was sampled. A cost's advantage is
normalised within its group as a reward's is (grpo); a sample whose cost is unknown has none.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from safeladder.policies.advantages import ADVANTAGES, Dense, Scores, grpo, is_per_token
from safeladder.policies.batch import TrainingGroup
from safeladder.policies.lengths import LENGTH_ADVANTAGES, LENGTH_REWARDS, informative
from safeladder.policies.options import StepOptions
from safeladder.policies.registry import bind_all, bind_one, rule_of

if TYPE_CHECKING:
    from safeladder.policies.constraints import Constraints


class CreditError(ValueError):
    """A group whose credit cannot be told; the message names it."""


class Credit:
    """Assigns advantages as the options say. Raises RuleError for rules that do not exist."""

    def __init__(self, options: StepOptions) -> None:
        self._estimate = bind_one("advantage", ADVANTAGES, options.advantage, "grpo")
        self._rewards = bind_all("length reward", LENGTH_REWARDS, options.length_rewards)
        self._lengths = bind_all("length advantage", LENGTH_ADVANTAGES, options.length_advantage)
        if len(self._lengths) > 1:
            raise ValueError(f"there can be one length advantage only, not {', '.join(self._lengths)}")
        self._dense = is_per_token(rule_of(self._estimate))

    @property
    def reads_ratios(self) -> bool:
        """Whether the estimator gives one number a token, and so wants to know ln proximal - ln behaviour."""
        return self._dense

    def assign(
        self,
        batch: Sequence[TrainingGroup],
        constraints: Constraints | None = None,
        length_factor: float = 1.0,
        log_ratios: Sequence[Sequence[Tensor]] | None = None,
    ) -> list[list[Tensor]]:
        """For every group K tensors [n_k], float32. `length_factor` in [0, 1] scales the length advantage.

        log_ratios: ln proximal - ln behaviour, in the form of the result, for estimators that read them.
        Raises CreditError when a group lacks what a rule reads, or a valid reward is not finite.
        """
        try:
            scores = [
                self._scores(group, None if log_ratios is None else log_ratios[place])
                for place, group in enumerate(batch)
            ]
            columns = self._estimate(scores)
            for rule in self._lengths.values():
                # the length term alone, so that its coefficient can be annealed
                shaped = [rule(column, score) for column, score in zip(columns, scores, strict=True)]
                columns = [
                    column + length_factor * (after - column) for column, after in zip(columns, shaped, strict=True)
                ]
        except CreditError:
            raise
        except ValueError as error:
            raise CreditError(f"groups {', '.join(group.id for group in batch)}: {error}") from error
        spread = [_over_tokens(c, group, self._dense) for c, group in zip(columns, batch, strict=True)]
        if constraints is None:
            return spread
        costs = [self._costs(group, constraints.acting()) for group in batch]
        return [
            [
                constraints.combine(advantage, {name: values[k] for name, values in cost.items()}).float()
                for k, advantage in enumerate(advantages)
            ]
            for advantages, cost in zip(spread, costs, strict=True)
        ]

    def informative(self, group: TrainingGroup, constrained: Collection[str] = ()) -> bool:
        """Whether a group carries any gradient under these rules: what dynamic sampling asks of it.

        constrained: the costs that a constraint limits; no other cost moves the policy. A length advantage that has not
        begun yet (`lazy_start`) counts as if it had. Raises CreditError when the group lacks what a rule reads.
        """
        scores = self._scores(group, None)
        scores = replace(scores, costs={name: scores.costs[name] for name in constrained if name in scores.costs})
        channels = rule_of(self._estimate) is ADVANTAGES["gdpo"]
        if informative(scores, length_advantage=False, channels=channels):
            return True
        nothing = torch.zeros_like(scores.rewards)
        try:
            return any(bool(rule(nothing, scores).any()) for rule in self._lengths.values())
        except ValueError as error:
            raise CreditError(f"group {group.id}: {error}") from error

    def _scores(self, group: TrainingGroup, log_ratios: Sequence[Tensor] | None) -> Scores:
        rewards = torch.from_numpy(group.rewards.astype(np.float64))
        kept = [torch.from_numpy(group.kept_of(k)) for k in range(len(group.completion_ids))]
        try:
            scores = self._read(group, rewards, kept, log_ratios)
            for rule in self._rewards.values():
                rewards = rewards + (rule(scores) - scores.rewards)
        except ValueError as error:
            raise CreditError(f"group {group.id}: {error}") from error
        return replace(scores, rewards=rewards)

    def _read(
        self, group: TrainingGroup, rewards: Tensor, kept: list[Tensor], log_ratios: Sequence[Tensor] | None
    ) -> Scores:
        return Scores(
            rewards=rewards,
            valid=torch.from_numpy(group.valid),
            channels=_tensors(group.channels),
            costs=_tensors(group.costs),
            thought_lengths=None if group.thought_lengths is None else torch.from_numpy(group.thought_lengths),
            lengths=None if self._dense else torch.tensor([int(own.sum()) for own in kept]),
            qualified=None if group.qualified is None else torch.from_numpy(group.qualified),
            dense=self._columns(group, kept, log_ratios) if self._dense else None,
            channel_weights=group.channel_weights,
        )

    @staticmethod
    def _columns(group: TrainingGroup, kept: list[Tensor], log_ratios: Sequence[Tensor] | None) -> Dense:
        behaviour = [torch.from_numpy(column) for column in group.behaviour]
        kl = None
        if group.reference is not None and log_ratios is not None:
            reference = [torch.from_numpy(column) for column in group.reference]
            kl = [b + ratio - r for b, ratio, r in zip(behaviour, log_ratios, reference, strict=True)]
        values = None if group.values is None else [torch.from_numpy(column) for column in group.values]
        nodes = None if group.nodes is None else [torch.from_numpy(column) for column in group.nodes]
        ratios = None if log_ratios is None else list(log_ratios)
        return Dense(values=values, kl=kl, log_ratio=ratios, kept=kept, nodes=nodes)

    @staticmethod
    def _costs(group: TrainingGroup, acting: Mapping[str, str]) -> dict[str, list[Tensor]]:
        """For every constraint the advantages of the cost that it acts on, [n_k] each."""
        spread = {}
        for name, weighed in acting.items():
            if weighed not in group.costs:
                raise CreditError(
                    f"group {group.id} has no cost {weighed!r}, which a constraint limits; its family lacks it"
                )
            cost = torch.from_numpy(group.costs[weighed].astype(np.float64))
            known = torch.isfinite(cost) & torch.from_numpy(group.valid)
            (column,) = grpo([Scores(rewards=torch.nan_to_num(cost), valid=known)])
            spread[name] = _over_tokens(column, group, dense=False)
        return spread


def _over_tokens(column: Tensor, group: TrainingGroup, dense: bool) -> list[Tensor]:
    """[K] or [sum n_k] as K tensors [n_k]."""
    lengths = [len(tokens) for tokens in group.completion_ids]
    if dense:
        return [part.float() for part in torch.split(column, lengths)]
    return [value.float().expand(length) for value, length in zip(column, lengths, strict=True)]


def _tensors(columns: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(values.astype(np.float64)) for name, values in columns.items()}
