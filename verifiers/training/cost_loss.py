"""The loss of a cost model (Safe RLHF, arXiv 2310.12773, equation 7): which of two answers is worse, and on which side of 0 each lies."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def cost_loss(better: Tensor, worse: Tensor, sign_better: Tensor, sign_worse: Tensor) -> Tensor:
    """Mean over pairs of  -ln s(c_w - c_b) - ln s(s_w c_w) - ln s(s_b c_b),  s the sigmoid.

    better, worse: costs [N] of the less and the more harmful answer. sign_*: [N], +1 harmful, -1 harmless, 0 unknown: then the term of
    that answer's sign is left out (ours; the paper's pairs are all labelled).
    """
    ranking = -logsigmoid(worse - better)
    signs = -logsigmoid(sign_worse * worse) * sign_worse.abs() - logsigmoid(sign_better * better) * sign_better.abs()
    return (ranking + signs).mean()
