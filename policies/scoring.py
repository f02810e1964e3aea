"""What a model makes of given tokens: ln p(completion token | everything before it), packed, shared and in chunks.

Three savings, none of which changes a number beyond rounding. Sequences are laid end to end in one row, so nothing is spent on
padding. Completions of one prompt branch off its end, so the prompt is computed once, gradients included. The head is
asked for log-probabilities in place of logits: it walks over the tokens in chunks and computes each chunk's logits again
in the backward pass, so that a tensor of tokens x vocabulary never exists, however long the row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from safeladder.policies.branches import Branches, Stem, use
from safeladder.policies.packing import pack_branches
from safeladder.policies.vision import Layout, Picture
from safeladder.policies.vision.layout import Positions

HEAD_ELEMENTS: Final = 2**25  # logits that exist at once where `head_tokens` is not given: 128 MiB in float32

Tokens = Sequence[int]


def completion_logprobs(
    model: PreTrainedModel,
    sequences: Sequence[tuple[Tokens, Tokens]],
    temperature: float = 1.0,
    token_budget: int = 1024,
    head_tokens: int | None = None,
    pictures: Mapping[int, Picture] | None = None,
) -> list[Tensor]:
    """ln p(completion token | everything before it) for each (prompt_ids, completion_ids) pair, in the order given.

    Returns float32 tensors [len(completion)], each <= 0, of softmax(logits / temperature) in float32. Sequences are
    packed without padding, at most `token_budget` tokens a forward (a longer one travels alone); completions of one
    prompt that follow each other share its computation, gradients included. With gradients enabled the result carries
    them; the graphs of all packs are then alive together, so a learner that accumulates calls this pack by pack.
    `head_tokens` bounds the tokens whose logits exist at once; None chooses by the size of the vocabulary.
    In a prompt an image's tokens are the name of its picture, one of `pictures` (see `vision.layout`).

    Raises ValueError for an empty prompt (its first token would have nothing to be conditioned on), and for a
    temperature or a `head_tokens` that is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; log-probabilities need one above 0")
    if head_tokens is not None and head_tokens < 1:
        raise ValueError(f"head_tokens is {head_tokens}; the head needs at least one token at a time")
    for index, (prompt, _) in enumerate(sequences):
        if not len(prompt):
            raise ValueError(f"sequence {index} has an empty prompt")
    # The last token predicts nothing that is asked for, so it is not fed.
    lengths = [max(0, len(completion) - 1) for _, completion in sequences]
    results: list[Tensor] = []
    for indices in pack_branches([prompt for prompt, _ in sequences], lengths, token_budget):
        layout = Layout(model, pictures)
        results += _pack_logprobs(model, layout, [sequences[index] for index in indices], temperature, head_tokens)
    return results


def _pack_logprobs(
    model: PreTrainedModel,
    layout: Layout,
    sequences: Sequence[tuple[Tokens, Tokens]],
    temperature: float,
    head_tokens: int | None,
) -> list[Tensor]:
    """`completion_logprobs` of one pack, in one forward over a row [1, T]."""
    row = _Row.of(sequences, layout)
    if not row.targets:
        return [torch.zeros(0, device=model.device) for _ in sequences]
    targets = torch.tensor(row.targets, device=model.device)
    asks = {
        **layout.inputs(row.ids, row.positions),
        "logits_to_keep": torch.tensor(row.places, device=model.device),
        "use_cache": False,
    }
    if use(model):
        # a mask of four dimensions is handed on unread, so that none is made
        asks |= {"branches": Branches(row.stems), "attention_mask": torch.ones((1, 1, 1, 1), device=model.device)}
    else:
        asks["attention_mask"] = _masks(model, row)
    if head_reaches_output(model):
        with _head_replaced(model, lambda head, hidden: _score(head, hidden, targets, temperature, head_tokens)):
            logprobs = model(**asks).logits[0, :, 0]
    else:
        # Cross entropy keeps one [targets, vocabulary] tensor for the backward pass; log-softmax and gather keep two.
        logits = model(**asks).logits[0].float() / temperature
        logprobs = -functional.cross_entropy(logits, targets, reduction="none")
    return list(torch.split(logprobs, [len(completion) for _, completion in sequences]))


# ------------------------------------------------------------------------------------------------------------ the row


@dataclass
class _Row:
    """One forward's row: prompts once, completions as branches off their ends. Lists are [T] unless noted."""

    layout: Layout
    positions: Positions  # [axes][T]
    ids: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)  # [targets] where the logits of each completion token stand
    targets: list[int] = field(default_factory=list)
    stems: list[Stem] = field(default_factory=list)
    end: int = 0  # the position after the newest stem

    @classmethod
    def of(cls, sequences: Sequence[tuple[Tokens, Tokens]], layout: Layout) -> _Row:
        row = cls(layout, [[] for _ in range(layout.axes)])
        previous: Tokens | None = None
        for prompt, completion in sequences:
            if not len(completion):
                continue
            if previous is None or list(previous) != list(prompt):
                row._stem(prompt)
            row._branch(completion)
            previous = prompt
        if row.targets and not any(token < 0 for token in row.ids) and (blank := layout.blank()):
            row._stem(blank)
        return row

    def _stem(self, prompt: Tokens) -> None:
        self.stems.append(Stem(len(self.ids), len(prompt), []))
        self.end = self._lay(prompt, 0)

    def _branch(self, completion: Tokens) -> None:
        stem = self.stems[-1]
        self.stems[-1] = Stem(stem.start, stem.length, [*stem.branches, len(completion) - 1])
        self.places.append(stem.start + stem.length - 1)
        self.places += range(len(self.ids), len(self.ids) + len(completion) - 1)
        self.targets += map(int, completion)
        self._lay(completion[:-1], self.end)  # the last token predicts nothing that is asked for

    def _lay(self, ids: Tokens, start: int) -> int:
        tokens = list(map(int, ids))
        positions, end = self.layout.positions(tokens, start)
        self.ids += tokens
        for axis, more in zip(self.positions, positions, strict=True):
            axis += more
        return end

    def mask(self, window: int | None, device: torch.device, dtype: torch.dtype) -> Tensor:
        """[1, 1, T, T], 0 where a token looks and the lowest number elsewhere, for models without branches."""
        group, branch = [], []
        for number, stem in enumerate(self.stems):
            group += [number] * (stem.length + sum(stem.branches))
            branch += [0] * stem.length + [at for at, length in enumerate(stem.branches, 1) for _ in range(length)]
        groups, branches, positions = (torch.tensor(x, device=device) for x in (group, branch, self.positions[0]))
        seen = (branches[None, :] == 0) | (branches[:, None] == branches[None, :])
        seen &= (groups[:, None] == groups[None, :]).tril()
        if window is not None:
            seen &= positions[:, None] - positions[None, :] < window
        lowest = torch.finfo(dtype).min
        return torch.where(seen, 0.0, lowest).to(dtype)[None, None]


def _masks(model: PreTrainedModel, row: _Row) -> Tensor | dict[str, Tensor]:
    """The mask of the whole row, or one for each kind of layer where a model has layers with a window."""
    text = model.config.get_text_config()
    whole = row.mask(None, model.device, model.dtype)
    if not any("sliding" in kind for kind in getattr(text, "layer_types", None) or ()):
        return whole
    return {
        "full_attention": whole,
        "sliding_attention": row.mask(text.sliding_window, model.device, model.dtype),
    }


# ----------------------------------------------------------------------------------------------------------- the head

_reaches: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def head_reaches_output(model: PreTrainedModel) -> bool:
    """Whether the model's logits are its linear head's output, as they are: no soft cap, no scale after it.

    Found out once a model, by a forward of one token whose head is made to answer with numbers of our own.
    """
    if model not in _reaches:
        head = model.get_output_embeddings()
        if type(head) is not nn.Linear:
            _reaches[model] = False
        else:
            told = torch.linspace(-40.0, 40.0, head.out_features, device=model.device)[None, None]
            ids = torch.zeros((1, 1), dtype=torch.long, device=model.device)
            with torch.no_grad(), _head_replaced(model, lambda head, hidden: told.to(hidden.dtype)):
                heard = model(input_ids=ids, use_cache=False).logits
            _reaches[model] = heard.shape == told.shape and bool(torch.allclose(heard.float(), told, rtol=1e-2))
    return _reaches[model]


@contextmanager
def _head_replaced(model: PreTrainedModel, answer: Any) -> Iterator[None]:
    """Lets `answer(head, hidden)` stand in for the head's own forward.

    The call still goes through the whole model, so that a sharded one gathers and reduces the head's weights as ever.
    """
    head = model.get_output_embeddings()
    head.forward = lambda hidden: answer(head, hidden)
    try:
        yield
    finally:
        del head.forward


def _score(head: nn.Linear, hidden: Tensor, targets: Tensor, temperature: float, head_tokens: int | None) -> Tensor:
    """Log-probabilities [1, N, 1] of targets [N] where the hidden states are [1, N, H]."""
    chunk = head_tokens or max(1, HEAD_ELEMENTS // head.out_features)
    logprobs: Tensor = _HeadLogprobs.apply(hidden[0], head.weight, head.bias, targets, 1.0 / temperature, chunk)  # type: ignore[no-untyped-call]
    return logprobs[None, :, None].clone()  # a sharded model must not return a view


class _HeadLogprobs(torch.autograd.Function):
    """ln softmax(scale * (hidden W^T + b))[target], chunk by chunk; gradients for hidden, weight and bias.

    With p the softmax of a token and g its incoming gradient, the gradient of its logits is scale * g * (onehot - p).
    A single chunk keeps its p; several are computed again, at the price of one more product with the head in four.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scale: float, chunk: int
    ) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        states = hidden.detach().to(dtype)
        logprobs = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        kept: Tensor | None = None
        with torch.autocast(device, enabled=False):
            for start in range(0, len(targets), chunk):
                part = slice(start, start + chunk)
                logprobs[part], kept = _softmax(states[part], weight.to(dtype), bias, targets[part], scale)
        if len(targets) > chunk or not any(ctx.needs_input_grad):
            kept = None
        ctx.save_for_backward(states, weight, bias, targets, kept)
        ctx.scale, ctx.chunk, ctx.hidden_dtype = scale, chunk, hidden.dtype
        return logprobs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, bias, targets, kept = ctx.saved_tensors
        kernel = weight.to(states.dtype)
        to_states = torch.empty_like(states)
        to_weight: Tensor | None = None
        to_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        with torch.autocast(states.device.type, enabled=False):
            for start in range(0, len(targets), ctx.chunk):
                part = slice(start, start + ctx.chunk)
                p = kept
                if p is None:
                    _, p = _softmax(states[part], kernel, bias, targets[part], ctx.scale)
                incoming = gradient[part].float() * ctx.scale
                p.mul_(-incoming[:, None])
                p[torch.arange(len(p), device=p.device), targets[part]] += incoming
                if to_bias is not None:
                    to_bias += p.sum(0)
                p = p.to(states.dtype)
                torch.mm(p, kernel, out=to_states[part])
                if ctx.needs_input_grad[1]:
                    share = p.t() @ states[part]  # the first one is the sum's beginning: zeros of that size cost a pass
                    to_weight = share.to(weight.dtype) if to_weight is None else to_weight.add_(share)
        return to_states.to(ctx.hidden_dtype), to_weight, to_bias, None, None, None


def _softmax(
    states: Tensor, kernel: Tensor, bias: Tensor | None, targets: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Log-probabilities [n] of the targets and the whole softmax [n, V], in float32, in one buffer of that size."""
    logits = (states @ kernel.t()).float()
    if bias is not None:
        logits += bias
    logits.mul_(scale).sub_(logits.amax(-1, keepdim=True))
    chosen = logits.gather(-1, targets[:, None])[:, 0]
    total = logits.exp_().sum(-1)
    return chosen - total.log(), logits.div_(total[:, None])
