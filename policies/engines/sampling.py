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
from torch.nn import functional

from safeladder.policies.engines.base import EngineError
from safeladder.protocol.messages import Sampling

KEY: Final = b"safeladder.sampling.1"  # another way to draw gets another key
UNIFORM_BITS: Final = 48
BLOCK: Final = 256


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
    heaviest, scores = logits.amax(dim=-1, keepdim=True).double(), logits.to(torch.float64, copy=True)
    if sampling.temperature != 1.0:
        heaviest, scores = heaviest / sampling.temperature, scores.div_(sampling.temperature)
    scores -= heaviest  # in place on a copy, never on the logits of the model
    masses = scores.exp()
    numbers = torch.tensor(uniforms, dtype=torch.float64, device=logits.device).unsqueeze(-1)
    if sampling.top_k == 0 and sampling.top_p == 1.0 and sampling.min_p == 0.0:
        places, totals = _inverted_by_blocks(masses, numbers)
    else:
        places, totals = _inverted(truncate(masses, sampling.top_k, sampling.top_p, sampling.min_p), numbers)
    if not bool(totals.isfinite().all()):
        raise EngineError("the model gave logits that are not finite")
    logprobs = scores.gather(-1, places) - totals.log()
    return places.squeeze(-1).tolist(), logprobs.squeeze(-1).tolist()


def _inverted(masses: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """For masses [N, V] and numbers [N, 1] in [0, 1): the first place [N, 1] at which the cumulative mass exceeds the
    number's share of the total, and the totals [N, 1]. A place of mass 0 is never the one."""
    cumulative = masses.cumsum(dim=-1)
    totals = cumulative[:, -1:].contiguous()
    return torch.searchsorted(cumulative, totals * numbers, right=True).clamp_(max=masses.shape[-1] - 1), totals


def _inverted_by_blocks(masses: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """As `_inverted`, up to the rounding of the sums: first the block of `BLOCK` places, then the place in it. Sums of blocks
    are several times as fast as running sums over a whole vocabulary."""
    blocks = functional.pad(masses, (0, -masses.shape[-1] % BLOCK)).reshape(len(masses), -1, BLOCK)
    cumulative = blocks.sum(-1).cumsum(-1)
    totals = cumulative[:, -1:].contiguous()
    targets = totals * numbers
    block = torch.searchsorted(cumulative, targets, right=True).clamp_(max=cumulative.shape[-1] - 1)
    before = functional.pad(cumulative, (1, 0)).gather(-1, block)
    inside = blocks.gather(1, block.unsqueeze(-1).expand(-1, -1, BLOCK)).squeeze(1).cumsum(-1)
    # Rounding may put the target at or past the block's own sum; the block's last token with a mass is meant then.
    most = inside[:, -1:].nextafter(torch.zeros_like(targets))
    place = torch.searchsorted(inside, torch.minimum(targets - before, most), right=True)
    return (block * BLOCK + place).clamp_(max=masses.shape[-1] - 1), totals


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
