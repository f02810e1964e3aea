"""Drawing a token from logits, so that the draw can be repeated anywhere.

The random number behind a token is a keyed hash of (seed, sample, position): no generator state, hence no dependence on
what else is in the batch, on the order of requests, or on the process. The token follows by inverting the cumulative
distribution in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

import torch
from torch import Tensor

from safeladder.policies.engines.base import EngineError
from safeladder.protocol.messages import Sampling

KEY: Final = b"safeladder.sampling.1"  # another way to draw gets another key
UNIFORM_BITS: Final = 48


def uniform(seed: int, sample: int, position: int) -> float:
    """A number in [0, 1) from 48 bits of BLAKE2b. `position` counts the sample's own tokens from 0.

    48 bits rather than 53, so that the product with any total of float64 probabilities stays below that total.
    """
    message = b"".join(number.to_bytes(16, "little", signed=True) for number in (seed, sample, position))
    digest = blake2b(message, digest_size=8, key=KEY).digest()
    return (int.from_bytes(digest, "little") >> (64 - UNIFORM_BITS)) / (1 << UNIFORM_BITS)


def draw(logits: Tensor, sampling: Sampling, uniforms: Sequence[float]) -> tuple[list[int], list[float]]:
    """One token for each row of `logits` [N, V], with `uniforms` [N] in [0, 1).

    Returns token ids and ln of their probability under the truncated, renormalised distribution. Each row's result
    depends on that row alone. Temperature 0 takes the most likely token, the first of equals, with log-probability 0.
    Raises EngineError when a row has no distribution (a logit that is NaN or +inf).
    """
    if sampling.temperature == 0:
        best, tokens = logits.max(dim=-1)
        if not bool(best.isfinite().all()):
            raise EngineError("the model gave logits that are not finite")
        return tokens.tolist(), [0.0] * len(logits)
    scores = logits.double() / sampling.temperature
    scores -= scores.amax(dim=-1, keepdim=True)  # in place on the quotient, never on the logits of the model
    masses = truncate(scores.exp(), sampling.top_k, sampling.top_p, sampling.min_p)
    cumulative = masses.cumsum(dim=-1)
    totals = cumulative[:, -1:]
    if not bool(totals.isfinite().all()):
        raise EngineError("the model gave logits that are not finite")
    targets = totals * torch.tensor(uniforms, dtype=torch.float64, device=logits.device).unsqueeze(-1)
    # right=True: the first token whose cumulative mass exceeds the target, so one of mass 0 is never drawn.
    tokens = torch.searchsorted(cumulative, targets, right=True)
    logprobs = scores.gather(-1, tokens) - totals.log()
    return tokens.squeeze(-1).tolist(), logprobs.squeeze(-1).tolist()


def truncate(masses: Tensor, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Tensor:
    """Sets to 0 what may not be drawn. `masses` [N, V] are probabilities up to a factor for each row.

    In this order: the `top_k` heaviest tokens stay (0: all; of equals at the edge, top-k keeps exactly k); of their
    mass, the smallest set that reaches the share `top_p` stays (Holtzman et al. 2020, eq. 3); a token lighter than
    `min_p` times the heaviest goes (Nguyen et al. 2024, section 3). The heaviest token always stays.
    """
    if 0 < top_k < masses.shape[-1]:
        heaviest, places = masses.topk(top_k, dim=-1)
        masses = torch.zeros_like(masses).scatter_(-1, places, heaviest)
    if top_p < 1.0:
        ordered, places = masses.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(dim=-1) - ordered
        kept = ordered.where(before < top_p * ordered.sum(dim=-1, keepdim=True), 0.0)
        masses = torch.zeros_like(masses).scatter_(-1, places, kept)
    if min_p > 0.0:
        masses = masses.where(masses >= min_p * masses.amax(dim=-1, keepdim=True), 0.0)
    return masses
