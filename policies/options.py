"""How a learner's step is made: the options of `step.LearnerStep`, with their vetted defaults. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Rules = Mapping[str, Mapping[str, Any]]
Aggregation = Literal["token_mean", "sequence_mean", "group_token_mean", "constant"]
Proximal = Literal["auto", "recompute", "interpolate", "behaviour"]
KLKind = Literal["k1", "k2", "k3"]


@dataclass(frozen=True)
class StepOptions:
    """Probabilities and ratios are plain numbers, logarithms natural. A rule stands as `{name: {option: value}}`.

    Optimizer: AdamW; `warmup_steps`: the learning rate grows linearly from learning_rate / warmup_steps, then stays.

    Advantages: `length_rewards` change the rewards first, `advantage` compares them within a group (default `grpo`),
    `length_advantage` adds its term, and the constraints' multipliers weigh the costs' advantages against it.

    Loss: `objective` (default `clipped`), `aggregation`, `reference_kl` (weight of the penalty; 0 asks for no reference
    log-probabilities), `max_completion_tokens` (divisor of aggregation "constant").

    Staleness: `correction` is the importance weight (default `token_truncate`; `off` under an objective that reads the
    sampling policy itself), `filters` leave tokens out. `proximal` says where the policy at the start of the step comes
    from: "recompute" is a forward without gradients over the batch, "interpolate" reads it off behaviour and current
    policy by their versions, "behaviour" takes the sampling policy for it (and then weighs nothing), "auto" spares the
    extra forward where a batch makes one update and no rule looks at the whole batch: the proximal policy is then the
    current one.

    Reuse: a batch makes `epochs` * `minibatches` updates.

    Computing: `token_budget` is the tokens of one forward, `head_tokens` those whose logits exist at once (None: chosen by
    the size of the vocabulary); both bound memory and change nothing beyond rounding. `compute_dtype` "bfloat16" keeps
    weights and optimizer in float32. `temperature` is the one that the tokens were sampled with.
    """

    learning_rate: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0
    warmup_steps: int = 0
    advantage: Rules = field(default_factory=dict)
    length_rewards: Rules = field(default_factory=dict)
    length_advantage: Rules = field(default_factory=dict)
    objective: Rules = field(default_factory=dict)
    aggregation: Aggregation = "token_mean"
    max_completion_tokens: int | None = None
    correction: Rules = field(default_factory=dict)
    filters: Rules = field(default_factory=dict)
    proximal: Proximal = "auto"
    epochs: int = 1
    minibatches: int = 1
    reference_kl: float = 0.001
    kl_kind: KLKind = "k3"
    token_budget: int = 1024
    head_tokens: int | None = None
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    activation_checkpointing: bool = False
    temperature: float = 1.0
