"""What a step tells of itself, and the sums that its packs leave behind for that."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from safeladder.policies.batch import TrainingGroup
from safeladder.policies.corrections import Diagnostics, Ratios, diagnose
from safeladder.policies.drift import Drift, measure
from safeladder.policies.loss import PackLoss, Sample
from safeladder.policies.ranks import Ranks
from safeladder.policies.traces import Trace, traces


@dataclass(frozen=True)
class StepReport:
    """What a step did. Means are over the kept tokens that went through the first forward, unless noted.

    loss = policy_loss + reference_kl * kl, aggregated as configured, of the first update; kl is 0 without a reference.
    entropy: mean -ln pi of the sampled tokens, an estimate in nats. grad_norm: the largest before clipping. clip_fraction:
    share of tokens with an advantage of which the objective let nothing through, over all updates. off_policy: how far
    behaviour was from the proximal policy. filtered: share of tokens that each filter alone leaves out. age_mean, age_max: versions
    between sampling and training, over tokens. tokens: kept completion tokens of the whole batch; trained_tokens: those
    that went through the forward; prompt_tokens: each prompt once. updates: optimizer steps. sequence_log_ratios: sum of
    ln proximal - ln behaviour of each completion, by group, NaN where it did not go through the forward. engine_drift: what the
    engine makes of the learner's own version, None where nothing could be compared (`drift`). seconds: by phase.
    traces: what became of each group's completions, in order of the batch.
    """

    step: int
    learning_rate: float
    loss: float
    policy_loss: float
    kl: float
    entropy: float
    grad_norm: float
    clip_fraction: float
    off_policy: Diagnostics
    filtered: dict[str, float]
    age_mean: float
    age_max: int
    groups: int
    sequences: int
    valid_sequences: int
    zero_spread_groups: int
    tokens: int
    trained_tokens: int
    prompt_tokens: int
    packs: int
    updates: int
    constraints: dict[str, dict[str, Any]]
    engine_drift: Drift | None
    seconds: dict[str, float]
    traces: list[Trace]


@dataclass(frozen=True)
class Scored:
    """A completion after its first forward. Tensors are [n], on the CPU."""

    sample: Sample
    logprobs: Tensor
    log_ratio: Tensor
    weights: Tensor


@dataclass
class Tally:
    """Collects over the packs of a step what its report and the multipliers need."""

    sampled: bool = True  # False: demonstrations, which no engine has drawn
    policy_loss: float = 0.0
    kl: float = 0.0
    grad_norm: float = 0.0
    updates: int = 0
    packs: int = 0
    held: int = 0
    active: int = 0
    cap: float = 0.0  # of the weights; 0 before the first pack
    filtered: Counter[str] = field(default_factory=Counter)
    scored: list[Scored] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    shares: dict[tuple[int, int], float] = field(default_factory=dict)  # of the first epoch, by (group, completion)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def add(self, samples: Sequence[Sample], logprobs: Tensor, loss: PackLoss, epoch: int) -> None:
        self.held += loss.held
        self.active += loss.active
        self.packs += 1
        self.cap = loss.cap
        if epoch:
            return
        self.policy_loss += loss.policy_loss
        self.kl += loss.kl
        self.filtered.update(loss.filtered)
        lengths = [sample.length for sample in samples]
        columns = [torch.split(c.cpu(), lengths) for c in (logprobs, loss.log_ratio, loss.weights)]
        self.scored += [Scored(*row) for row in zip(samples, *columns, strict=True)]

    def merge(self, ranks: Ranks, samples: Sequence[Sample]) -> None:
        """Makes the tallies of all ranks one, on every rank. `samples` are those of the whole batch."""
        if ranks.world == 1:
            return
        by_key = {(sample.place, sample.index): sample for sample in samples}
        own = [value for s in self.scored for value in (s.sample.place, s.sample.index)]
        keys = torch.cat(ranks.collect(torch.tensor(own, dtype=torch.int64))).reshape(-1, 2).tolist()
        found = [by_key[place, index] for place, index in keys]
        lengths = [sample.length for sample in found]
        columns = [
            torch.split(torch.cat(ranks.collect(_flat(column))), lengths)
            for column in zip(*((s.logprobs, s.log_ratio, s.weights) for s in self.scored), strict=True)
        ] or [torch.split(torch.cat(ranks.collect(torch.zeros(0))), lengths) for _ in range(3)]
        self.scored = [Scored(*row) for row in zip(found, *columns, strict=True)]
        names = sorted(self.filtered)
        sums = [self.policy_loss, self.kl, self.held, self.active, self.packs]
        self.policy_loss, self.kl, *counts = ranks.sum(sums)
        self.held, self.active, self.packs = (round(count) for count in counts)
        # A rank without a pack has not seen the rule's cap.
        self.cap = float(torch.cat(ranks.collect(torch.tensor([self.cap], dtype=torch.float64))).max())
        self.filtered = Counter(dict(zip(names, map(round, ranks.sum([self.filtered[n] for n in names])), strict=True)))

    def sequence_weights(self, cap: float = 2.0) -> dict[tuple[int, int], float]:
        """Importance weight of whole completions by (group, completion): min(product of their tokens' ratios, cap)."""
        return {
            (s.sample.place, s.sample.index): min(float(s.log_ratio[s.sample.kept].double().sum().exp()), cap)
            for s in self.scored
        }

    def _comparable(self, version: int) -> Iterator[tuple[Tensor, Tensor]]:
        """ln learner and ln behaviour of the completions that `version` alone has sampled. The learner's are of before the
        step: from a look back, or from the forward where the step is one update."""
        for s in self.scored if self.sampled else ():
            learner = s.sample.proximal if s.sample.proximal is not None else s.logprobs if self.updates <= 1 else None
            if learner is not None and (s.sample.group.versions[s.sample.index] == version).all():
                yield learner[s.sample.kept], torch.tensor(s.sample.behaviour)[s.sample.kept]

    def report(
        self,
        step: int,
        learning_rate: float,
        reference_kl: float,
        version: int,
        batch: Sequence[TrainingGroup],
        samples: Sequence[Sample],
        zero_spread: int,
        constraints: dict[str, dict[str, Any]],
    ) -> StepReport:
        kept = _flat([s.sample.kept for s in self.scored]).bool()
        logprobs = _flat([s.logprobs for s in self.scored])[kept]
        trained = int(kept.sum())
        ages = [version - int(v) for g in batch for k in range(len(g.versions)) for v in g.own_versions(k)]
        ratios = Ratios(
            log_ratio=_flat([s.log_ratio for s in self.scored]),
            advantages=_flat([s.sample.advantages for s in self.scored]),
            lengths=[s.sample.length for s in self.scored],
            kept=kept,
        )
        return StepReport(
            step=step,
            learning_rate=learning_rate,
            loss=self.policy_loss + reference_kl * self.kl,
            policy_loss=self.policy_loss,
            kl=self.kl,
            entropy=-float(logprobs.double().mean()) if trained else 0.0,
            grad_norm=self.grad_norm,
            clip_fraction=self.held / max(1, self.active),
            off_policy=diagnose(ratios, _flat([s.weights for s in self.scored]), self.cap or 2.0),
            filtered={name: count / max(1, trained) for name, count in sorted(self.filtered.items())},
            age_mean=sum(ages) / max(1, len(ages)),
            age_max=max(ages, default=0),
            groups=len(batch),
            sequences=sum(len(group.completion_ids) for group in batch),
            valid_sequences=sum(int(group.valid.sum()) for group in batch),
            zero_spread_groups=zero_spread,
            tokens=sum(int(group.kept_of(k).sum()) for group in batch for k in range(len(group.completion_ids))),
            trained_tokens=trained,
            prompt_tokens=sum(len(group.prompt_ids) for group in batch),
            packs=self.packs,
            updates=self.updates,
            constraints=constraints,
            engine_drift=measure(self._comparable(version)),
            seconds=self.seconds,
            traces=traces(
                batch, samples, {(s.sample.place, s.sample.index): s.weights for s in self.scored}, self.shares
            ),
        )


def _flat(columns: Sequence[Tensor]) -> Tensor:
    return torch.cat([torch.zeros(0), *columns])
