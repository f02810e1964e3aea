"""What an estimator may look at: one prompt's completions, their scores, their lengths and their per-token columns.

A completion is *valid* when its verdicts are all there: nothing but its shape is read where `valid` is False. A
verifier's failure on one term of a valid completion is NaN in that channel or cost, never a number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Dense:
    """Columns over the tokens of K completions; n_k tokens in completion k, the environment's among them.

    values: what the value function expects from this token on, sampled with the behaviour policy. kl: an estimate of
    ln proximal - ln reference at the token, in nats. log_ratio: ln proximal - ln behaviour. kept: bool, the policy's
    own tokens; None: all are. nodes: int, the step of a searched tree that a token belongs to. A column that no estimator asks for may be
    None.
    """

    values: Sequence[Tensor] | None = None  # K of [n_k]
    kl: Sequence[Tensor] | None = None  # K of [n_k]
    log_ratio: Sequence[Tensor] | None = None  # K of [n_k]
    kept: Sequence[Tensor] | None = None  # K of [n_k] bool
    nodes: Sequence[Tensor] | None = None  # K of [n_k] int

    def columns(self) -> dict[str, Sequence[Tensor]]:
        """The columns that are there, by name."""
        named = {"values": self.values, "kl": self.kl, "log_ratio": self.log_ratio, "kept": self.kept}
        named["nodes"] = self.nodes
        return {name: column for name, column in named.items() if column is not None}


@dataclass(frozen=True)
class Scores:
    """One prompt's K completions as an estimator sees them.

    Raises ValueError, when it is made, for shapes that do not fit, for a valid completion whose reward is not finite,
    for an infinite channel or cost of a valid completion (NaN is allowed there: it means unknown), and for lengths
    that count nothing.
    """

    rewards: Tensor  # [K] float64; not read where invalid
    valid: Tensor  # [K] bool
    channels: Mapping[str, Tensor] = field(default_factory=dict)  # reward term -> weighted score [K], NaN: has none
    costs: Mapping[str, Tensor] = field(default_factory=dict)  # cost -> [K], NaN: unknown
    thought_lengths: Tensor | None = None  # [K] tokens of the thought, the policy's own
    lengths: Tensor | None = None  # [K] tokens of the whole completion
    qualified: Tensor | None = None  # [K] bool: well formed, correct and safe
    dense: Dense | None = None
    channel_weights: Mapping[str, float] = field(default_factory=dict)  # reward term -> its weight; not named: 1

    def __post_init__(self) -> None:
        if self.rewards.dim() != 1 or self.rewards.shape != self.valid.shape:
            shapes = f"rewards {tuple(self.rewards.shape)} and valid {tuple(self.valid.shape)}"
            raise ValueError(f"{shapes} must both be [K], one entry a sample")
        if self.valid.dtype != torch.bool:
            raise ValueError(f"valid must be bool, not {self.valid.dtype}")
        if not self.rewards.is_floating_point():
            raise ValueError(f"rewards must be floating point, not {self.rewards.dtype}: advantages take their dtype")
        if not bool(torch.isfinite(self.valid_rewards()).all()):
            raise ValueError(
                f"a valid sample's reward is not finite: {self.rewards.tolist()} with valid {self.valid.tolist()}"
            )
        for kind, terms in (("channel", self.channels), ("cost", self.costs)):
            for name, term in terms.items():
                self._check_shape(f"{kind} {name}", term)
                if bool(torch.isinf(term[self.valid]).any()):
                    raise ValueError(f"{kind} {name} of a valid sample is infinite: {term.tolist()}")
        for name, row in (("thought_lengths", self.thought_lengths), ("lengths", self.lengths)):
            if row is not None:
                self._check_shape(name, row)
                if not bool((torch.isfinite(row) & (row >= 0)).all()):
                    raise ValueError(f"{name} must be numbers of tokens, not {row.tolist()}")
        if self.qualified is not None:
            self._check_shape("qualified", self.qualified)
            if self.qualified.dtype != torch.bool:
                raise ValueError(f"qualified must be bool, not {self.qualified.dtype}")
        self._check_dense()

    def _check_shape(self, name: str, row: Tensor) -> None:
        if row.shape != self.rewards.shape:
            raise ValueError(f"{name} {tuple(row.shape)} must be [{self.rewards.numel()}], one entry a sample")

    def _check_dense(self) -> None:
        if self.dense is None:
            return
        shapes = {name: [tuple(row.shape) for row in column] for name, column in self.dense.columns().items()}
        first = next(iter(shapes.values()), None)
        if first is None:
            return
        if len(first) != self.rewards.numel() or any(len(shape) != 1 for shape in first):
            raise ValueError(f"the dense columns must be {self.rewards.numel()} tensors [n_k], not {shapes}")
        if any(shape != first for shape in shapes.values()):
            raise ValueError(f"the dense columns differ in shape: {shapes}")
        if self.lengths is not None and [n for (n,) in first] != self.lengths.tolist():
            raise ValueError(f"the dense columns have {first} tokens, the completions {self.lengths.tolist()}")
        if self.dense.kept is not None and any(row.dtype != torch.bool for row in self.dense.kept):
            raise ValueError("dense.kept must be bool")

    def valid_rewards(self) -> Tensor:
        """[V] the rewards of the V valid completions, float64."""
        return self.rewards[self.valid].double()

    def kept(self) -> list[Tensor]:
        """K of [n_k] bool: the policy's own tokens. Raises ValueError where nothing tells how many tokens there are."""
        if self.dense is not None and self.dense.kept is not None:
            return list(self.dense.kept)
        columns = [] if self.dense is None else list(self.dense.columns().values())
        if columns:
            return [torch.ones_like(row, dtype=torch.bool) for row in columns[0]]
        if self.lengths is None:
            raise ValueError("this estimator counts tokens: it needs the completions' lengths")
        device = self.rewards.device
        return [torch.ones(int(n), dtype=torch.bool, device=device) for n in self.lengths.tolist()]

    def own_tokens(self) -> Tensor:
        """[K] float64: how many tokens of each completion are the policy's own. Raises ValueError as `kept` does."""
        if self.lengths is not None and (self.dense is None or self.dense.kept is None):
            return self.lengths.double()
        counts = [int(row.sum()) for row in self.kept()]
        return torch.tensor(counts, dtype=torch.float64, device=self.rewards.device)


def has_spread(numbers: Tensor) -> bool:
    """Whether the numbers [n] differ. False for fewer than two.

    Exact equality is asked for: the mean of equal numbers may round away from them, and 1/std would blow that up.
    """
    return numbers.numel() >= 2 and bool(numbers.max() > numbers.min())


def scatter(numbers: Tensor, scores: Scores, where: Tensor | None = None) -> Tensor:
    """[K] in the rewards' dtype: `numbers` where the completions are valid (or at the mask `where`), else exactly 0."""
    spread = torch.zeros_like(scores.rewards)
    spread[scores.valid if where is None else where] = numbers.to(spread.dtype)
    return spread
