"""Attention over a row that holds prompts once and completions as branches off their ends.

A mask over the whole row would have every token meet every other, only to throw most of it away: the cost would grow with
the square of the row, and a larger token budget would make a step slower. Here every branch meets its prompt and itself
only, so the cost is that of the completions one by one, less the prompts that they share.

`use` makes a model attend this way whenever its forward is given `branches=`; without, it attends as ever. The change
stays, because activations that are computed again in the backward pass must attend as they did in the forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME: Final = "safeladder_branches"


@dataclass(frozen=True)
class Stem:
    """A prompt at [start, start + length) of the row; its branches follow it one after the other."""

    start: int
    length: int
    branches: Sequence[int]  # length of each


@dataclass
class Branches:
    """How a row of T tokens is laid out: the stems cover it in order, without a gap."""

    stems: list[Stem]
    _masks: dict[tuple[int, int, int | None, torch.device], Tensor] = field(default_factory=dict)

    def mask(self, stem: int, own: int, window: int | None, device: torch.device) -> Tensor:
        """[own, stem + own] bool, true where a branch of `own` tokens looks: back, at most `window` tokens of a
        sequence whose first `stem` tokens are the prompt."""
        key = (stem, own, window, device)
        if key not in self._masks:
            positions = torch.arange(stem + own, device=device)
            distance = positions[stem:, None] - positions[None, :]
            self._masks[key] = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
        return self._masks[key]


def use(model: PreTrainedModel) -> bool:
    """Whether the model attends by branches from now on; False for one that does not attend by SDPA or caps its scores."""
    text = model.config.get_text_config()
    if text._attn_implementation == NAME:
        return True
    if text._attn_implementation != "sdpa" or getattr(text, "attn_logit_softcapping", None) is not None:
        return False
    # of a model that sees, the language model alone: its tower attends over pixels, not along rows
    model.set_attn_implementation({"text_config": NAME} if text is not model.config else NAME)
    return bool(model.config.get_text_config()._attn_implementation == NAME)


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    branches: Branches | None = None,
    sliding_window: int | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """query [1, heads, T, d]; key, value [1, key heads, T, d] -> [1, T, heads, d]: the form of `AttentionInterface`."""
    if branches is None:
        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, sliding_window=sliding_window, **more
        )
        return output
    copies = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, copies), repeat_kv(value, copies)
    pieces: list[Tensor] = []

    def meet(start: int, length: int, stem: slice | None, mask: Tensor | None) -> None:
        own = slice(start, start + length)
        keys, values = key[:, :, own], value[:, :, own]
        if stem is not None:
            keys, values = torch.cat((key[:, :, stem], keys), 2), torch.cat((value[:, :, stem], values), 2)
        pieces.append(
            functional.scaled_dot_product_attention(
                query[:, :, own], keys, values, attn_mask=mask, is_causal=mask is None, scale=scaling
            )
        )

    for stem in branches.stems:
        whole = stem.length + (stem.branches[0] if len(stem.branches) == 1 else 0)  # a lone branch is one long sequence
        inside = sliding_window is None or whole <= sliding_window
        meet(stem.start, whole, None, None if inside else branches.mask(0, whole, sliding_window, query.device))
        start = stem.start + stem.length
        for length in stem.branches if whole == stem.length else ():
            if length:
                mask = branches.mask(stem.length, length, sliding_window, query.device)
                meet(start, length, slice(stem.start, stem.start + stem.length), mask)
            start += length
    return torch.cat(pieces, 2).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
