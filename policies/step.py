"""One optimizer step: from a batch of groups to changed weights.

    rewards -> advantages -> forward, pack by pack -> weights of importance -> clipped loss + penalty -> AdamW

What is kept true here:

* Packs change nothing. Sequences are laid end to end without padding and each pack's loss is divided by the denominator
  of the whole batch, so the accumulated gradient is that of one large forward, whatever the token budget.
* A sequence that is invalid, vetoed or masked stays counted in the denominator: it never changes another's gradient.
* One update a batch, so the proximal policy is the current one before the update: its log-probabilities are the current
  ones, detached, and no second forward is paid for them. The ratio is then 1 and the clip removes nothing; what the
  clipped form gives is its gradient, A * w * grad ln pi.
* Nothing half done: parameters and optimizer are touched only after every loss and the whole gradient proved finite.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from safeladder.policies.advantages import ADVANTAGES
from safeladder.policies.batch import StepReport, TrainingGroup
from safeladder.policies.corrections import CORRECTIONS, diagnose, log_ratios, veto
from safeladder.policies.objectives import (
    OBJECTIVES,
    Aggregation,
    KLKind,
    aggregate,
    clip_fraction,
    denominator,
    over_tokens,
    reference_kl,
)
from safeladder.policies.packing import pack_branches
from safeladder.policies.scoring import completion_logprobs

Value = TypeVar("Value")


__all__ = ["LearnerStep", "StepError", "StepOptions", "StepReport", "TrainingGroup"]


class StepError(RuntimeError):
    """A batch that cannot be trained on. The parameters and the optimizer are as they were before it."""


@dataclass(frozen=True)
class StepOptions:
    """How a step is made. Probabilities and ratios are plain numbers, logarithms natural.

    warmup_steps: the learning rate grows linearly from learning_rate / warmup_steps, then stays.
    correction_low, correction_cap: bounds of an importance weight, see `corrections.py`; veto: 0 is off.
    reference_kl: weight of the penalty; 0 asks for no reference log-probabilities.
    token_budget: tokens of one forward; it bounds memory and changes no result beyond rounding.
    max_completion_tokens: divisor of aggregation "constant". temperature: the one that the tokens were sampled with.
    """

    learning_rate: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0
    warmup_steps: int = 0
    objective: str = "clipped"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    advantage: str = "grpo"
    aggregation: Aggregation = "token_mean"
    max_completion_tokens: int | None = None
    correction: str = "token_truncate"
    correction_low: float = 0.5
    correction_cap: float = 2.0
    veto: float = 0.0
    reference_kl: float = 0.001
    kl_kind: KLKind = "k3"
    token_budget: int = 1024
    temperature: float = 1.0


@dataclass(frozen=True)
class _Sequence:
    """One completion on its way through the step."""

    group: TrainingGroup
    sample: int
    advantage: float

    @property
    def length(self) -> int:
        return len(self.group.completion_ids[self.sample])


@dataclass
class _Totals:
    """What the packs of a batch leave behind for the report; tensors are flat over tokens."""

    policy_loss: float = 0.0
    kl: float = 0.0
    logprobs: list[Tensor] = field(default_factory=list)
    log_ratio: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    clipped_tokens: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


class LearnerStep:
    """Holds the optimizer of a model and makes steps on it. Not safe for use by several threads at once.

    `steps_done` counts optimizer steps in the surviving history; a learner that restores a checkpoint sets it.
    """

    def __init__(self, model: PreTrainedModel, options: StepOptions | None = None, steps_done: int = 0) -> None:
        """Raises ValueError for unknown names among the options, or weights that are not float32.

        float32 is asked for because a bfloat16 weight loses most updates of size learning_rate to rounding.
        """
        self.model = model
        self.options = options or StepOptions()
        self.steps_done = steps_done
        self._estimate = _named(ADVANTAGES, self.options.advantage, "advantage")
        self._objective = _named(OBJECTIVES, self.options.objective, "objective")
        self._correct = _named(CORRECTIONS, self.options.correction, "correction")
        denominator([], self.options.aggregation, self.options.max_completion_tokens)  # refuses what it does not know
        reference_kl(torch.zeros(0), torch.zeros(0), self.options.kl_kind)
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        odd = [name for name, parameter in trained if parameter.dtype != torch.float32]
        if odd:
            raise ValueError(
                f"{len(odd)} parameters are not float32, {odd[0]} first; load the policy as float32 to train"
            )
        # No dropout: the log-probabilities must be of the policy that the engine samples from.
        model.eval()
        self._parameters = [parameter for _, parameter in trained]
        self.optimizer = torch.optim.AdamW(
            self._parameters,
            lr=self.options.learning_rate,
            betas=self.options.betas,
            weight_decay=self.options.weight_decay,
            fused=True,  # one pass over memory in place of ten; the result does not depend on the number of threads
        )

    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        warmup = self.options.warmup_steps
        return self.options.learning_rate * (min(1.0, (self.steps_done + 1) / warmup) if warmup > 0 else 1.0)

    def train(self, batch: Sequence[TrainingGroup]) -> StepReport:
        """Makes one optimizer step on a batch. It counts also when no sample carries a gradient and nothing moves.

        Raises StepError, naming the groups, when a loss or the gradient is not finite or a reference is missing.
        """
        started = time.perf_counter()
        totals = _Totals()
        sequences, zero_spread = self._with_advantages(batch)
        packs = self._packs(sequences)
        try:
            self._accumulate(batch, packs, totals)
            with totals.phase("optimizer"):
                norm = self._clip_gradient(batch, packs)
                rate = self.learning_rate()
                for parameters in self.optimizer.param_groups:
                    parameters["lr"] = rate
                self.optimizer.step()
        finally:
            self.optimizer.zero_grad(set_to_none=True)
        self.steps_done += 1
        totals.seconds["total"] = time.perf_counter() - started
        return self._report(batch, packs, totals, rate, norm, zero_spread)

    # ------------------------------------------------------------------------------------------ before the forward

    def _with_advantages(self, batch: Sequence[TrainingGroup]) -> tuple[list[_Sequence], int]:
        """Every completion with its advantage, and how many groups have no spread."""
        sequences: list[_Sequence] = []
        zero_spread = 0
        for group in batch:
            if self.options.reference_kl > 0 and group.reference is None:
                raise StepError(f"group {group.id} has no reference log-probabilities; route it through the reference")
            rewards, valid = torch.from_numpy(group.rewards.astype(np.float64)), torch.from_numpy(group.valid)
            try:
                advantages = self._estimate(rewards, valid)
            except ValueError as error:
                raise StepError(f"group {group.id}: {error}") from error
            zero_spread += not bool(advantages.any())
            sequences += [_Sequence(group, sample, float(a)) for sample, a in enumerate(advantages)]
        return sequences, zero_spread

    def _packs(self, sequences: Sequence[_Sequence]) -> list[list[_Sequence]]:
        """The sequences that carry a gradient, packed. Without penalty, a zero advantage carries none."""
        penalised = self.options.reference_kl > 0
        chosen = [s for s in sequences if s.length and (penalised or s.advantage != 0.0)]
        prompts = [s.group.prompt_ids.tolist() for s in chosen]
        packs = pack_branches(prompts, [s.length - 1 for s in chosen], self.options.token_budget)
        return [[chosen[index] for index in indices] for indices in packs]

    # ------------------------------------------------------------------------------------------ forward and backward

    def _accumulate(
        self, batch: Sequence[TrainingGroup], packs: Sequence[Sequence[_Sequence]], totals: _Totals
    ) -> None:
        """Adds the gradient of every pack to `.grad`. All completions of the batch count in the denominator."""
        lengths = [len(tokens) for group in batch for tokens in group.completion_ids]
        divisor = denominator(lengths, self.options.aggregation, self.options.max_completion_tokens)
        self.optimizer.zero_grad(set_to_none=True)
        for sequences in packs:
            with totals.phase("forward"):
                loss = self._loss(sequences, divisor, totals)
            if not math.isfinite(float(loss.detach())):
                raise StepError(
                    f"the loss is {float(loss.detach())} in the pack of {_names(sequences)}; nothing changed"
                )
            with totals.phase("backward"):
                torch.autograd.backward(loss)

    def _loss(self, sequences: Sequence[_Sequence], divisor: float, totals: _Totals) -> Tensor:
        """The loss of one pack, divided by the batch's denominator."""
        options = self.options
        lengths = [s.length for s in sequences]
        pairs = [(s.group.prompt_ids.tolist(), s.group.completion_ids[s.sample].tolist()) for s in sequences]
        logprobs = torch.cat(completion_logprobs(self.model, pairs, options.temperature, options.token_budget))
        device = logprobs.device
        proximal = logprobs.detach()
        log_ratio = log_ratios(proximal, _flat([s.group.behaviour[s.sample] for s in sequences], device))
        kept = veto(log_ratio, lengths, options.veto)
        weights = torch.where(kept, self._correct(log_ratio, options.correction_low, options.correction_cap), 0.0)
        per_sequence = torch.tensor([s.advantage for s in sequences], dtype=logprobs.dtype, device=device)
        advantages = over_tokens(per_sequence, lengths)

        losses = self._objective(
            logprobs, proximal, advantages, weights, options.clip_low, options.clip_high, options.dual_clip
        )
        everywhere = torch.ones_like(kept)
        loss = policy_loss = aggregate(losses, everywhere, lengths, options.aggregation, divisor)
        if options.reference_kl > 0:
            reference = _flat([s.group.reference[s.sample] for s in sequences if s.group.reference is not None], device)
            penalties = reference_kl(logprobs, reference, options.kl_kind)
            kl = aggregate(penalties, everywhere, lengths, options.aggregation, divisor)
            loss = policy_loss + options.reference_kl * kl
            totals.kl += float(kl.detach())
        totals.policy_loss += float(policy_loss.detach())
        totals.logprobs.append(proximal.cpu())
        totals.log_ratio.append(log_ratio.cpu())
        totals.weights.append(weights.cpu())
        fraction = clip_fraction(logprobs, proximal, advantages, options.clip_low, options.clip_high)
        totals.clipped_tokens += float(fraction) * sum(lengths)
        return loss

    def _clip_gradient(self, batch: Sequence[TrainingGroup], packs: Sequence[Sequence[_Sequence]]) -> float:
        """Norm of the whole gradient before clipping. A norm that is not finite raises StepError with the culprits."""
        held = [parameter for parameter in self._parameters if parameter.grad is not None]
        if not held:
            return 0.0
        norm = float(torch.nn.utils.clip_grad_norm_(held, self.options.max_gradient_norm))
        if not math.isfinite(norm):
            raise StepError(f"the gradient's norm is {norm}, from {self._culprits(batch, packs)}; nothing changed")
        return norm

    def _culprits(self, batch: Sequence[TrainingGroup], packs: Sequence[Sequence[_Sequence]]) -> str:
        """Which packs have a gradient that is not finite: each once more on its own, now that the step is lost."""
        guilty: list[_Sequence] = []
        for sequences in packs:
            self._accumulate(batch, [sequences], _Totals())
            if not all(bool(torch.isfinite(p.grad).all()) for p in self._parameters if p.grad is not None):
                guilty += sequences
        return _names(guilty) if guilty else "the sum over the groups " + ", ".join(group.id for group in batch)

    # -------------------------------------------------------------------------------------------------- the report

    def _report(
        self,
        batch: Sequence[TrainingGroup],
        packs: Sequence[Sequence[_Sequence]],
        totals: _Totals,
        rate: float,
        norm: float,
        zero_spread: int,
    ) -> StepReport:
        trained = sum(s.length for sequences in packs for s in sequences)
        found = diagnose(torch.cat([torch.zeros(0), *totals.log_ratio]), torch.cat([torch.zeros(0), *totals.weights]))
        logprob_sum = sum(float(part.double().sum()) for part in totals.logprobs)
        return StepReport(
            step=self.steps_done,
            learning_rate=rate,
            loss=totals.policy_loss + self.options.reference_kl * totals.kl,
            policy_loss=totals.policy_loss,
            kl=totals.kl,
            entropy=-logprob_sum / max(1, trained),
            grad_norm=norm,
            clip_fraction=totals.clipped_tokens / max(1, trained),
            ess=found.ess,
            mismatch=found.mismatch,
            log_ratio_mean=found.log_ratio_mean,
            log_ratio_max=found.log_ratio_max,
            truncated_fraction=found.truncated,
            masked_fraction=found.masked,
            groups=len(batch),
            sequences=sum(len(group.completion_ids) for group in batch),
            valid_sequences=sum(int(group.valid.sum()) for group in batch),
            zero_spread_groups=zero_spread,
            tokens=sum(len(tokens) for group in batch for tokens in group.completion_ids),
            trained_tokens=trained,
            prompt_tokens=sum(len(group.prompt_ids) for group in batch),
            packs=len(packs),
            seconds=totals.seconds,
        )


def _named(registry: Mapping[str, Value], name: str, what: str) -> Value:
    if name not in registry:
        raise ValueError(f"unknown {what} {name!r}; known: {', '.join(sorted(registry))}")
    return registry[name]


def _names(sequences: Sequence[_Sequence]) -> str:
    return "groups " + ", ".join(dict.fromkeys(s.group.id for s in sequences))


def _flat(columns: Sequence[NDArray[np.float32]], device: torch.device) -> Tensor:
    return torch.from_numpy(np.concatenate(columns).astype(np.float32)).to(device)
