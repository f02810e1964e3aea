"""A learner's step on one batch: from groups of completions to changed weights.

    rewards -> advantages -> (proximal forward) -> forward, loss, backward, pack by pack -> AdamW -> multipliers

What is kept true here:

* Packs change nothing. Sequences are laid end to end without padding, and each completion's loss has a coefficient that was
  computed for the whole update, so the accumulated gradient is that of one large forward, whatever the token budget.
* A completion that is invalid, filtered or masked stays counted in the denominator: it never changes another's gradient.
* A batch that makes one update needs no second forward for the proximal policy: it is the current one before the update.
* Nothing half done: parameters and optimizer are touched only after every loss and the whole gradient of an update proved
  finite.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from safeladder.policies.aggregation import coefficients
from safeladder.policies.batch import TrainingGroup
from safeladder.policies.corrections import log_ratios
from safeladder.policies.credit import Credit, CreditError
from safeladder.policies.lazy_start import LazyStart
from safeladder.policies.loss import PolicyLoss, Sample
from safeladder.policies.options import StepOptions
from safeladder.policies.packing import pack_branches
from safeladder.policies.parallel import clip_gradient, divide, idle_pass, shard
from safeladder.policies.ranks import Ranks
from safeladder.policies.report import StepReport, Tally
from safeladder.policies.scoring import completion_logprobs
from safeladder.policies.vision import Gallery

if TYPE_CHECKING:
    from safeladder.policies.constraints import Constraints

__all__ = ["LearnerStep", "StepError", "StepOptions", "StepReport", "TrainingGroup"]


class StepError(RuntimeError):
    """A batch that cannot be trained on. The parameters and the optimizer are as they were before the failing update."""


class LearnerStep:
    """Holds the optimizer of a model and makes steps on it. Not safe for use by several threads at once.

    `steps_done` counts batches in the surviving history; a learner that restores a checkpoint sets it, and puts back what
    `state` gave.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        options: StepOptions | None = None,
        steps_done: int = 0,
        constraints: Constraints | None = None,
        lazy_start: LazyStart | None = None,
        ranks: Ranks | None = None,
        gallery: Gallery | None = None,
    ) -> None:
        """With several `ranks` each makes the same calls with the same batches, and the work of a step is divided.
        `gallery`: of the pictures that prompts show.

        Raises RuleError or ValueError for options that cannot be, or weights that are not float32.

        float32 is asked for because a bfloat16 weight loses most updates of size learning_rate to rounding.
        """
        self.model = model
        self.options = options or StepOptions()
        self.steps_done = steps_done
        self.constraints = constraints
        self.lazy_start = lazy_start
        self._gallery = gallery
        self._credit = Credit(self.options)
        self._loss = PolicyLoss(self.options)
        coefficients([], [], self.options.aggregation, self.options.max_completion_tokens)  # refuses what cannot be
        self._penalised = self.options.reference_kl > 0 or self._loss.moves_without_advantage()
        prepare(model, self.options.activation_checkpointing)
        self.ranks = ranks or Ranks.alone(str(model.device))
        shard(model, self.ranks)
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
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

    def state(self) -> dict[str, Any]:
        """Plain JSON of what a checkpoint must hold beside tensors: multipliers and the lazy start."""
        return {
            "constraints": self.constraints.state() if self.constraints else None,
            "lazy_start": self.lazy_start.state() if self.lazy_start else None,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state` gave; a part that this learner does not have is left out."""
        if self.constraints and state.get("constraints"):
            self.constraints.restore(state["constraints"])
        if self.lazy_start and state.get("lazy_start"):
            self.lazy_start.restore(state["lazy_start"])

    def train(self, batch: Sequence[TrainingGroup], version: int = 0) -> StepReport:
        """Makes a step on a batch. It counts also when no completion carries a gradient and nothing moves.

        version: the learner's weight version, from which the ages of tokens follow. Raises StepError, naming the groups,
        when a loss or the gradient is not finite, or a group lacks what the options need.
        """
        started = time.perf_counter()
        tally = Tally(not self._loss.demonstrations, filtered=Counter(dict.fromkeys(self._loss.filters, 0)))
        try:
            with tally.phase("advantages"):
                samples = self._samples(batch)
            chosen = [sample for sample in samples if self._carries_gradient(sample)]
            if self._needs_proximal():
                with tally.phase("proximal"):
                    self._look_back(chosen, tally)
                if self._credit.reads_ratios:
                    self._assign(batch, samples)
            for epoch in range(self.options.epochs):
                for part in self._minibatches(len(batch)):
                    self._update(samples, chosen, part, epoch, version, tally)
        except CreditError as error:
            raise StepError(str(error)) from error
        finally:
            self.optimizer.zero_grad(set_to_none=True)
        rate = self.learning_rate()
        self.steps_done += 1
        tally.merge(self.ranks, samples)
        self._adapt(batch, version, tally)
        tally.seconds["total"] = time.perf_counter() - started
        return tally.report(
            self.steps_done,
            rate,
            self.options.reference_kl,
            version,
            batch,
            samples,
            _without_spread(samples, len(batch)),
            self.constraints.report() if self.constraints else {},
        )

    # ------------------------------------------------------------------------------------------ before the forward

    def _samples(self, batch: Sequence[TrainingGroup]) -> list[Sample]:
        """Every completion of the batch with its advantages."""
        for group in batch:
            if self.options.reference_kl > 0 and group.reference is None:
                raise StepError(f"group {group.id} has no reference log-probabilities; route it through the reference")
        samples = [
            Sample(group, k, place, torch.zeros(len(tokens)), torch.from_numpy(group.kept_of(k)))
            for place, group in enumerate(batch)
            for k, tokens in enumerate(group.completion_ids)
        ]
        if not self._credit.reads_ratios:
            self._assign(batch, samples)
        return samples

    def _assign(self, batch: Sequence[TrainingGroup], samples: Sequence[Sample]) -> None:
        known = None
        if self._credit.reads_ratios:
            columns = iter(samples)
            known = [[_look(next(columns)) for _ in group.completion_ids] for group in batch]
        factor = self.lazy_start.factor if self.lazy_start else 1.0
        assigned = self._credit.assign(batch, self.constraints, factor, known)
        for sample in samples:
            sample.advantages = assigned[sample.place][sample.index]

    def _carries_gradient(self, sample: Sample) -> bool:
        """Without penalty and constraint, a completion whose advantages are all zero need not be computed."""
        needed = self._penalised or self.constraints is not None or self._credit.reads_ratios
        return sample.length > 0 and bool(sample.kept.any()) and (needed or bool(sample.advantages.any()))

    def _needs_proximal(self) -> bool:
        options = self.options
        several = options.epochs * options.minibatches > 1 or self._loss.whole_batch or self._credit.reads_ratios
        return options.proximal == "recompute" or (options.proximal == "auto" and several)

    def _look_back(self, chosen: Sequence[Sample], tally: Tally) -> None:
        """The policy at the start of the step, and the weights that follow from it."""
        packs = self._packs(chosen)
        shares = self._divide(packs)
        found = []
        with self.ranks.noticing("a look back"), torch.no_grad():
            for number in shares[self.ranks.rank]:
                if number is None:
                    idle_pass(self.model, gradient=False)
                else:
                    found.append(self._logprobs(packs[number]).cpu())
        logprobs = torch.cat(self.ranks.collect(torch.cat([torch.zeros(0), *found])))
        order = [sample for share in shares for number in share if number is not None for sample in packs[number]]
        for sample, part in zip(order, torch.split(logprobs, [s.length for s in order]), strict=True):
            sample.proximal = part
        filtered = self._loss.weigh(chosen)
        if self.ranks.first:  # every rank weighs the whole batch; it is counted once
            tally.filtered.update(filtered)

    def _minibatches(self, groups: int) -> Iterator[range]:
        """The batch's groups in as many contiguous parts of nearly equal size as there are minibatches."""
        count = min(self.options.minibatches, max(1, groups))
        for part in range(count):
            yield range(groups * part // count, groups * (part + 1) // count)

    def _packs(self, samples: Sequence[Sample]) -> list[list[Sample]]:
        prompts = [self._prompt(sample.group) for sample in samples]
        packs = pack_branches(prompts, [sample.length - 1 for sample in samples], self.options.token_budget)
        return [[samples[index] for index in indices] for indices in packs]

    # -------------------------------------------------------------------------------------------------- one update

    def _update(
        self,
        samples: Sequence[Sample],
        chosen: Sequence[Sample],
        part: range,
        epoch: int,
        version: int,
        tally: Tally,
    ) -> None:
        """One optimizer step on the groups of `part`."""
        counted = [sample for sample in samples if sample.place in part]
        shares = coefficients(
            [int(sample.kept.sum()) for sample in counted],
            [sample.place for sample in counted],
            self.options.aggregation,
            self.options.max_completion_tokens,
        )
        share_of = {(s.place, s.index): share for s, share in zip(counted, shares, strict=True)}
        if epoch == 0:
            tally.shares.update(share_of)
        packs = self._packs([sample for sample in chosen if sample.place in part])
        self._accumulate(packs, share_of, epoch, version, tally)
        with self.ranks.noticing("an update"), tally.phase("optimizer"):
            norm = self._clip_gradient(packs, share_of, epoch, version)
            for parameters in self.optimizer.param_groups:
                parameters["lr"] = self.learning_rate()
            self.optimizer.step()
        tally.grad_norm = max(tally.grad_norm, norm)
        tally.updates += 1

    def _accumulate(
        self,
        packs: Sequence[Sequence[Sample]],
        share_of: Mapping[tuple[int, int], float],
        epoch: int,
        version: int,
        tally: Tally,
    ) -> None:
        """Leaves the gradient of all packs in `.grad`. Raises StepError on every rank when a loss is not finite."""
        self.optimizer.zero_grad(set_to_none=True)
        fault = ""
        for number in self._divide(packs)[self.ranks.rank]:
            if number is None:
                with self.ranks.noticing("an idle pass"):
                    idle_pass(self.model)
                continue
            samples = packs[number]
            with self.ranks.noticing("a forward"), tally.phase("forward"):
                logprobs = self._logprobs(samples)
            with tally.phase("loss"):
                shares = [share_of[sample.place, sample.index] for sample in samples]
                loss = self._loss(samples, logprobs, shares, epoch, version)
            if not math.isfinite(loss.policy_loss + loss.kl):
                fault += f"the loss is {loss.policy_loss} and its penalty {loss.kl} in the pack of {_names(samples)}; "
            with self.ranks.noticing("a backward"), tally.phase("backward"):
                torch.autograd.backward([logprobs], [loss.gradient])
            tally.add(samples, logprobs.detach(), loss, epoch)
        if faults := self.ranks.faults(fault):
            raise StepError(f"{''.join(faults)}nothing changed")

    def _divide(self, packs: Sequence[Sequence[Sample]]) -> list[list[int | None]]:
        """Which rank computes which pack when; one rank alone takes them as they come."""
        if self.ranks.world == 1:
            return [list(range(len(packs)))]
        return divide([sum(s.length for s in pack) + len(pack[0].group.prompt_ids) for pack in packs], self.ranks.world)

    def _logprobs(self, samples: Sequence[Sample]) -> Tensor:
        """ln pi of the samples' tokens [N], one after the other."""
        options = self.options
        pairs = [(self._prompt(s.group), s.group.completion_ids[s.index].tolist()) for s in samples]
        hashes = {hash for sample in samples for hash in sample.group.images}
        pictures = {each.name: each for each in self._gallery.of(sorted(hashes))} if self._gallery else {}
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=options.compute_dtype == "bfloat16"):
            return torch.cat(
                completion_logprobs(
                    self.model, pairs, options.temperature, options.token_budget, options.head_tokens, pictures
                )
            )

    def _prompt(self, group: TrainingGroup) -> list[int]:
        """Its tokens, those of its images named by them. Raises StepError for images where none can be seen."""
        ids: list[int] = group.prompt_ids.tolist()
        if not group.images:
            return ids
        if self._gallery is None:
            raise StepError(f"group {group.id} has images, and this policy takes text only")
        return self._gallery.named(ids, group.images)

    def _clip_gradient(
        self,
        packs: Sequence[Sequence[Sample]],
        share_of: Mapping[tuple[int, int], float],
        epoch: int,
        version: int,
    ) -> float:
        """Norm of the whole gradient before clipping. A norm that is not finite raises StepError with the culprits."""
        norm = clip_gradient(self._parameters, self.options.max_gradient_norm)
        if math.isfinite(norm):
            return norm
        guilty: list[Sample] = []
        for samples in packs:  # each once more on its own, now that the step is lost
            self._accumulate([samples], share_of, epoch, version, Tally())
            whole = all(bool(torch.isfinite(p.grad).all()) for p in self._parameters if p.grad is not None)
            if self.ranks.faults("" if whole else "here"):
                guilty += samples
        named = guilty or [sample for samples in packs for sample in samples]
        raise StepError(f"the gradient's norm is {norm}, from {_names(named)}; nothing changed")

    # ------------------------------------------------------------------------------------------- after the updates

    def _adapt(self, batch: Sequence[TrainingGroup], version: int, tally: Tally) -> None:
        """Moves the multipliers by the costs of this batch, and the lazy start by its rewards."""
        if self.constraints is not None:
            weights = tally.sequence_weights()
            episodes = [(place, k) for place, group in enumerate(batch) for k in range(len(group.completion_ids))]
            ages = [version - int(batch[p].own_versions(k).min(initial=version)) for p, k in episodes]
            self.constraints.update(
                self.steps_done,
                {
                    name: (
                        [float(batch[p].costs[name][k]) if batch[p].valid[k] else math.nan for p, k in episodes],
                        [weights.get(episode, 1.0) for episode in episodes],
                        ages,
                    )
                    for name in self.constraints.multipliers()
                },
            )
        if self.lazy_start is not None:
            self.lazy_start.update(_curves(batch))


def prepare(model: PreTrainedModel, activation_checkpointing: bool = False) -> None:
    """Makes a model ready to be trained: no dropout, float32, and activations computed again where asked for.

    No dropout, because the log-probabilities must be of the policy that the engine samples from. Raises ValueError for
    trained weights that are not float32.
    """
    odd = [name for name, p in model.named_parameters() if p.requires_grad and p.dtype != torch.float32]
    if odd:
        raise ValueError(f"{len(odd)} parameters are not float32, {odd[0]} first; load the policy as float32 to train")
    model.eval()
    if not activation_checkpointing:
        return
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()  # transformers recomputes activations in training mode only
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0


def _curves(batch: Sequence[TrainingGroup]) -> dict[str, float]:
    """What a lazy start may watch: mean `reward`, share `qualified`, mean of every cost; NaN where nothing is known."""
    columns: dict[str, list[float]] = {"reward": [], "qualified": []}
    for group in batch:
        columns["reward"] += group.rewards[group.valid].tolist()
        if group.qualified is not None:
            columns["qualified"] += group.qualified[group.valid].tolist()
        for name, cost in group.costs.items():
            columns.setdefault(name, []).extend(cost[np.isfinite(cost)].tolist())
    return {name: sum(values) / len(values) if values else math.nan for name, values in columns.items()}


def _look(sample: Sample) -> Tensor:
    """ln proximal - ln behaviour [n]; zero for a completion without a kept token, which was not looked at."""
    if sample.proximal is None:
        return torch.zeros(sample.length)
    return log_ratios(sample.proximal, torch.from_numpy(sample.behaviour))


def _without_spread(samples: Sequence[Sample], groups: int) -> int:
    """How many groups carry no advantage at all."""
    return groups - len({sample.place for sample in samples if bool(sample.advantages.any())})


def _names(samples: Sequence[Sample]) -> str:
    return "groups " + ", ".join(dict.fromkeys(sample.group.id for sample in samples))
