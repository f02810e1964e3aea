"""A short way through models of the Llama family: the same mathematics as theirs in `transformers`, with fewer and larger steps.

What is saved against the generic forward: query, key and value are one product, and so are gate and up; rows are never moved
when the batch changes, because every row begins in column 0 of its own slot; the heads that share keys and values
share one product with them; prompts that come together are laid end to end in one forward without padding.

The weights stay the model's own. Those that are multiplied together are laid one behind the other in memory, and the
model's parameters become views of that, so that a swap in place reaches both. Only the copies in the processor's order
(see `products`) are made again at a swap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from safeladder.policies import weights
from safeladder.policies.engines.decoder import Decoder, States, tokens
from safeladder.policies.engines.products import Product, prepared
from safeladder.policies.vision import Picture

FAMILY: Final = frozenset({"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"})
FIXED_ROPE: Final = frozenset({"default", "linear", "llama3", "yarn"})  # angles that do not depend on the length
PROMPT_TOKENS: Final = 1024  # prompts' tokens in one forward, unless one alone has more
HEADROOM: Final = 64  # columns allocated ahead

Attend = Callable[[int, Tensor, Tensor], Tensor]


def serves(model: Any) -> bool:
    """Whether `LlamaDecoder` computes what this model does."""
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        type(model).__name__ in FAMILY
        and kinds == {"full_attention"}
        and (type(model).__name__ != "MistralForCausalLM" or config.sliding_window is None)
        and config.hidden_act == "silu"
        and config.rope_parameters.get("rope_type") in FIXED_ROPE
        and float(config.rope_parameters.get("partial_rotary_factor") or 1.0) == 1.0
        and all(type(module) is nn.Linear for module in _linears(model))
    )


def _alike(sizes: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The places of parts, given as (tokens before, new tokens), in batches of equally many new ones and of about as many before:
    padding at most doubles what is stored."""
    batches: dict[tuple[int, int], list[int]] = {}
    for at, (start, count) in enumerate(sizes):
        batches.setdefault((start.bit_length(), count), []).append(at)
    return list(batches.values())


def _linears(model: Any) -> list[Any]:
    found = [model.lm_head]
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        found += [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
        found += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    return found


@dataclass(slots=True)
class _Layer:
    before_attention: nn.Module
    query_key_value: Product
    query_norm: nn.Module | None
    key_norm: nn.Module | None
    attention_out: Product
    before_mlp: nn.Module
    gate_up: Product
    down: Product


class LlamaDecoder(Decoder):
    """States are one tensor [layers * 2, key heads, tokens, features]: keys and values of each layer in turn."""

    def __init__(self, model: Any) -> None:
        self.model = model
        config = model.config
        first = model.model.layers[0].self_attn
        self._features = int(first.head_dim)
        self._key_heads = int(config.num_key_value_heads)
        self._query_heads = int(config.num_attention_heads)
        self._scale = float(first.scaling)
        with torch.no_grad():
            self._layers = [self._layer(layer) for layer in model.model.layers]
            self._head = Product([model.lm_head], model)
        self._products = [self._head]
        for layer in self._layers:
            self._products += [layer.query_key_value, layer.attention_out, layer.gate_up, layer.down]
        for product, copy in zip(self._products, self.prepare(dict(model.state_dict())), strict=True):
            product.copy = copy
        # [layers, 2, slots, key heads, columns, features]: row r of the batch is slot r, its token t stands in column t
        self._buffer = torch.zeros(
            (len(self._layers), 2, 0, self._key_heads, 0, self._features), dtype=model.dtype, device=model.device
        )
        self._lengths: list[int] = []

    def _layer(self, layer: Any) -> _Layer:
        attention, mlp, model = layer.self_attn, layer.mlp, self.model
        return _Layer(
            layer.input_layernorm,
            Product([attention.q_proj, attention.k_proj, attention.v_proj], model),
            getattr(attention, "q_norm", None),
            getattr(attention, "k_norm", None),
            Product([attention.o_proj], model),
            layer.post_attention_layernorm,
            Product([mlp.gate_proj, mlp.up_proj], model),
            Product([mlp.down_proj], model),
        )

    @property
    def rows(self) -> int:
        return len(self._lengths)

    @property
    def columns(self) -> int:
        return max(self._lengths, default=0)

    # ------------------------------------------------------------------------------------------------------- weights

    def prepare(self, tensors: Mapping[str, Tensor]) -> list[Any]:
        return [prepared(product, tensors) for product in self._products]

    def load(self, tensors: Mapping[str, Tensor], prepared: list[Any] | None) -> None:
        weights.copy_into(self.model, tensors)
        copies = self.prepare(tensors) if prepared is None else prepared
        for product, copy in zip(self._products, copies, strict=True):
            product.copy = copy

    # ------------------------------------------------------------------------------------------------------- prompts

    def extend(
        self, parts: Sequence[tuple[Sequence[int], States]], pictures: Mapping[int, Picture] | None = None
    ) -> tuple[list[States], Tensor]:
        states: list[States] = []
        logits: list[Tensor] = []
        pack: list[tuple[Sequence[int], States]] = []
        for at, part in enumerate(parts):
            pack.append(part)
            following = len(parts[at + 1][0]) if at + 1 < len(parts) else PROMPT_TOKENS
            if sum(len(ids) for ids, _ in pack) + following > PROMPT_TOKENS:
                more, last = self._extend(pack)
                states, logits, pack = [*states, *more], [*logits, last], []
        return states, torch.cat(logits)

    def logits(self, ids: Sequence[int], before: States) -> Tensor:
        _, hidden, _ = self._through([(ids, before)])
        return self._head(hidden)

    def _extend(self, parts: Sequence[tuple[Sequence[int], States]]) -> tuple[list[States], Tensor]:
        states, hidden, lasts = self._through(parts)
        return states, self._head(hidden[self._tensor(lasts)])

    def _through(self, parts: Sequence[tuple[Sequence[int], States]]) -> tuple[list[States], Tensor, list[int]]:
        """States of the parts, hidden states [all tokens, H], and the place of each part's last token in them.

        One forward over the parts, end to end; each attends to itself and to what stands before it. Parts that are alike attend
        together: right-aligned, so that their new tokens stand in the same columns.
        """
        batches = _alike([(tokens(before), len(ids)) for ids, before in parts])
        order = [at for batch in batches for at in batch]
        aligned = [self._aligned([parts[at] for at in batch]) for batch in batches]

        def attend(number: int, query: Tensor, key_value: Tensor) -> Tensor:
            outputs, at = [], 0
            for batch, (result, mask) in zip(batches, aligned, strict=True):
                count = len(parts[batch[0]][0])
                span = slice(at, at + len(batch) * count)
                at = span.stop
                states = result[2 * number : 2 * number + 2]  # [2, parts, key heads, columns, features]
                fresh = key_value[span].reshape(len(batch), count, 2, self._key_heads, self._features)
                states[..., -count:, :] = fresh.permute(2, 0, 3, 1, 4)
                attended = functional.scaled_dot_product_attention(
                    query[span].reshape(len(batch), count, self._query_heads, self._features).transpose(1, 2),
                    states[0],
                    states[1],
                    attn_mask=mask,
                    is_causal=mask is None,
                    scale=self._scale,
                    enable_gqa=True,
                )
                outputs.append(attended.transpose(1, 2).flatten(2).flatten(0, 1))
            return torch.cat(outputs)

        positions = [tokens(parts[at][1]) + place for at in order for place in range(len(parts[at][0]))]
        hidden = self._forward([token for at in order for token in parts[at][0]], positions, attend)
        states: list[States] = [[] for _ in parts]
        last, lasts = -1, [0] * len(parts)
        for batch, (result, _) in zip(batches, aligned, strict=True):
            for place, at in enumerate(batch):
                ids, before = parts[at]
                last += len(ids)
                lasts[at] = last
                states[at] = [result[:, place, :, result.shape[3] - tokens(before) - len(ids) :]]
        return states, hidden, lasts

    def _aligned(self, parts: Sequence[tuple[Sequence[int], States]]) -> tuple[Tensor, Tensor | None]:
        """Room for the states of parts with as many new tokens each, [layers * 2, parts, key heads, columns, features], with what stands
        before them in it; and what each new token sees, bool [parts, 1, tokens, columns]; None: itself and all earlier ones."""
        starts, count = [tokens(before) for _, before in parts], len(parts[0][0])
        columns = max(starts) + count
        shape = (len(self._layers) * 2, len(parts), self._key_heads, columns, self._features)
        if not any(starts):
            return self._buffer.new_empty(shape), None
        # zeros: what a row does not see is masked, but 0 * NaN would still be NaN
        result = self._buffer.new_zeros(shape)
        for place, (_, before) in enumerate(parts):
            if before:
                result[:, place, :, columns - count - starts[place] : columns - count] = before[0]
        seen = torch.ones((count, columns), dtype=torch.bool, device=result.device).tril(columns - count)
        padding = columns - count - self._tensor(starts)
        own = torch.arange(columns, device=result.device) >= padding[:, None]
        return result, seen & own[:, None, None]

    # ------------------------------------------------------------------------------------------------------- a step

    def step(self, token_ids: Sequence[int], lengths: Sequence[int]) -> Tensor:
        rows, heads, groups = len(token_ids), self._key_heads, self._query_heads // self._key_heads
        self._lengths = [length + 1 for length in lengths]
        self._reserve(rows, self.columns)
        slots, columns, used = self._buffer.shape[2], self._buffer.shape[4], self.columns
        at = self._tensor(list(lengths))
        # where in a layer's buffer, seen as lines of features, each row's new keys and values go: [rows, 2, heads]
        lines = torch.arange(2 * slots * heads, device=self._buffer.device).view(2, slots, heads)[:, :rows]
        places = (lines.transpose(0, 1) * columns + at[:, None, None]).flatten()
        mask = None  # rows of one length need none
        if min(lengths) != max(lengths):
            mask = torch.zeros((rows, 1, 1, used), dtype=self._buffer.dtype, device=self._buffer.device)
            unseen = torch.arange(used, device=at.device) > at[:, None]
            mask.masked_fill_(unseen[:, None, None], -torch.inf)
        flat = self._buffer.view(len(self._layers), -1, self._features)
        seen = self._buffer[:, :, :rows, :, :used]

        def attend(number: int, query: Tensor, key_value: Tensor) -> Tensor:
            flat[number].index_copy_(0, places, key_value.reshape(-1, self._features))
            attended = functional.scaled_dot_product_attention(
                query.reshape(rows, heads, groups, self._features),
                seen[number, 0],
                seen[number, 1],
                attn_mask=mask,
                scale=self._scale,
            )
            return attended.flatten(1)

        return self._head(self._forward(token_ids, lengths, attend))

    def join(self, rows: Sequence[States]) -> None:
        first, lengths = self.rows, [tokens(states) for states in rows]
        self._lengths += lengths
        self._reserve(self.rows, self.columns)
        stacked = self._buffer.flatten(0, 1)
        for slot, (states, length) in enumerate(zip(rows, lengths, strict=True), first):
            stacked[:, slot, :, :length] = states[0]

    def states(self, row: int, length: int, start: int = 0) -> States:
        return [self._buffer.flatten(0, 1)[:, row, :, start:length].clone()]

    def keep(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        for slot, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            if row != slot:
                self._buffer[:, :, slot, :, :length] = self._buffer[:, :, row, :, :length]
        self._lengths = list(lengths)
        if not rows:
            self._buffer = self._buffer[:, :, :0, :, :0].clone()

    def _reserve(self, slots: int, columns: int) -> None:
        """Makes room for so many rows and columns; what has been there stays where it is."""
        layers, two, old_slots, heads, old_columns, features = self._buffer.shape
        if slots <= old_slots and columns <= old_columns:
            return
        if columns > old_columns:
            columns = max(columns + HEADROOM, old_columns + old_columns // 2)
        shape = (layers, two, max(slots, old_slots), heads, max(columns, old_columns), features)
        # zeros: what a row does not see is masked, but 0 * NaN would still be NaN
        buffer = self._buffer.new_zeros(shape)
        buffer[:, :, :old_slots, :, :old_columns] = self._buffer
        self._buffer = buffer

    # ---------------------------------------------------------------------------------------------------- the layers

    def _forward(self, token_ids: Sequence[int], positions: Sequence[int], attend: Attend) -> Tensor:
        """Hidden states [N, H] of N tokens. `attend` takes the layer's number, queries [N, heads, d] and keys and values
        [N, 2 * key heads, d], stores these, and returns [N, heads * d]."""
        hidden = self.model.model.embed_tokens(self._tensor(list(token_ids)))
        cosine, sine = self._rotations(hidden, positions)
        half = self._features // 2
        for number, layer in enumerate(self._layers):
            fused = layer.query_key_value(self._norm(layer.before_attention, hidden))
            heads = fused.reshape(len(fused), -1, self._features)
            if layer.query_norm is not None and layer.key_norm is not None:
                kinds = torch.split(heads, [self._query_heads, self._key_heads, self._key_heads], 1)
                heads = torch.cat([layer.query_norm(kinds[0]), layer.key_norm(kinds[1]), kinds[2]], 1)
            heads = torch.addcmul(heads * cosine, heads.roll(half, -1), sine)
            attended = attend(number, heads[:, : self._query_heads], heads[:, self._query_heads :])
            hidden = hidden + layer.attention_out(attended)
            gate, up = layer.gate_up(self._norm(layer.before_mlp, hidden)).chunk(2, -1)
            hidden = hidden + layer.down(functional.silu(gate).mul_(up))
        return self._norm(self.model.model.norm, hidden)

    def _rotations(self, hidden: Tensor, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Cosine and signed sine [N, all heads, d] (Su et al. 2021, eq. 34, in the half-split order of `transformers`).
        For values they are 1 and 0, so that all heads turn in one operation."""
        cosine, sine = self.model.model.rotary_emb(hidden, self._tensor(list(positions))[None])
        count, turned = len(positions), self._query_heads + self._key_heads
        cosines = hidden.new_ones((count, turned + self._key_heads, self._features))
        sines = torch.zeros_like(cosines)
        cosines[:, :turned] = cosine[0][:, None]
        sines[:, :turned] = sine[0][:, None]
        sines[..., : self._features // 2].neg_()
        return cosines, sines

    def _norm(self, module: Any, hidden: Tensor) -> Tensor:
        if hidden.dtype != torch.float32:
            result: Tensor = module(hidden)  # which has its own way of rounding in between
            return result
        return functional.rms_norm(hidden, (hidden.shape[-1],), module.weight, module.variance_epsilon)

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, device=self.model.device)
