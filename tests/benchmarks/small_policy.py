"""What the generated tasks have in common: a Llama with a vocabulary of 16, its warm start, and sampling in batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

REDACTED, SEPARATOR, START = 10, 11, 12  # after the ten digits; the rest up to VOCABULARY is a task's own
VOCABULARY = 16

# (random) -> prompts [B, P] and what should follow them [B, n], tokens below 0 are not learned
Demonstrations = Callable[[np.random.Generator], tuple[NDArray[np.int64], NDArray[np.int64]]]


def model(hidden: int, layers: int) -> LlamaForCausalLM:
    """A Llama in float32, with random weights of torch's present seed: 0.5 million parameters at 128 and 2, 1.3 million at 192 and 3."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=512,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=32,
        tie_word_embeddings=False,
        bos_token_id=START,
        eos_token_id=None,
        pad_token_id=VOCABULARY - 1,
    )
    return LlamaForCausalLM(config).eval()


def warm_start(
    path: Path, steps: int, build: Callable[[], LlamaForCausalLM], demonstrations: Demonstrations, seed: int = 0
) -> LlamaForCausalLM:
    """The policy after `steps` supervised steps on demonstrations, from `path` if it was made before."""
    torch.manual_seed(seed)
    policy = build()
    if path.exists():
        policy.load_state_dict(load_file(path))
        return policy
    random = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, (step + 1) / 50)
        asked, shown = demonstrations(random)
        tokens = torch.from_numpy(np.hstack([asked, np.maximum(shown, 0)]))
        logits = policy(tokens[:, :-1]).logits[:, asked.shape[1] - 1 :]
        functional.cross_entropy(
            logits.flatten(0, 1), torch.from_numpy(shown).flatten().clamp(min=-1), ignore_index=-1
        ).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(policy.state_dict(), partial)
    partial.rename(path)
    return policy


@torch.no_grad()
def sample(
    policy: LlamaForCausalLM,
    asked: NDArray[np.int64],
    each: int,
    generator: torch.Generator,
    longest: int,
    closing: int | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """`each` answers to every one of n prompts: tokens and ln probabilities, both [n, each, T], at temperature 1.

    T = longest, or less where every row had ended before. With `closing` a row ends with the token after its first
    `closing`; what stands behind that end is noise, which the caller cuts off.
    """
    cache = DynamicCache()
    logits = policy(torch.from_numpy(asked), past_key_values=cache, use_cache=True).logits[:, -1]
    cache.batch_repeat_interleave(each)
    logits = logits.repeat_interleave(each, dim=0)
    tokens: list[Tensor] = []
    found: list[Tensor] = []
    closed = torch.zeros(len(logits), dtype=torch.bool)
    while True:
        logprobs = functional.log_softmax(logits.float(), dim=-1)
        drawn = torch.multinomial(logprobs.exp(), 1, generator=generator)
        tokens.append(drawn)
        found.append(logprobs.gather(1, drawn))
        if len(tokens) == longest or bool(closed.all()):
            break
        if closing is not None:
            closed |= drawn[:, 0] == closing
        logits = policy(drawn, past_key_values=cache, use_cache=True).logits[:, -1]
    shape = (len(asked), each, len(tokens))
    return torch.cat(tokens, 1).numpy().reshape(shape), torch.cat(found, 1).numpy().reshape(shape)
