"""A generated task and a transformer of 1.1 million parameters that learns it by reinforcement: what `staleness.py` trains on.

A prompt is five different digits, the answer is the same digits in rising order. The reward is the share of places with the right
digit. The policy is a Llama with a vocabulary of 16, warmed up on demonstrations of which most are in the wrong order,
so that it knows what an answer looks like and gets a third of the places right: the rest it has to find out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from disclosure import SEPARATOR, START, VOCABULARY
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from safeladder.policies.batch import TrainingGroup

DIGITS = 5
IN_ORDER = 0.3  # share of the demonstrations that are right


def model() -> LlamaForCausalLM:
    """A Llama of about 1.1 million parameters in float32, with random weights of torch's present seed."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=32,
        tie_word_embeddings=False,
        bos_token_id=START,
        eos_token_id=None,
        pad_token_id=VOCABULARY - 1,
    )
    return LlamaForCausalLM(config).eval()


def prompts(count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """[count, 7]: start, five different digits, separator."""
    digits = random.permuted(np.tile(np.arange(10), (count, 1)), axis=1)[:, :DIGITS]
    return np.hstack([np.full((count, 1), START), digits, np.full((count, 1), SEPARATOR)])


def judge(asked: NDArray[np.int64], answers: NDArray[np.int64]) -> NDArray[np.float64]:
    """Rewards [n] in [0, 1] of answers [n, 5] to prompts [n, 7]."""
    return (answers == np.sort(asked[:, 1 : DIGITS + 1], axis=1)).mean(axis=1)


def warm_start(path: Path, steps: int, seed: int = 0) -> LlamaForCausalLM:
    """The policy after `steps` supervised steps on demonstrations, from `path` if it was made before."""
    torch.manual_seed(seed)
    policy = model()
    if path.exists():
        policy.load_state_dict(load_file(path))
        return policy
    random = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, (step + 1) / 50)
        asked = prompts(128, random)
        digits = asked[:, 1 : DIGITS + 1]
        right = random.random((len(asked), 1)) < IN_ORDER
        shown = np.where(right, np.sort(digits, axis=1), random.permuted(digits, axis=1))
        logits = policy(torch.from_numpy(np.hstack([asked, shown]))[:, :-1]).logits[:, asked.shape[1] - 1 :]
        functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(shown).flatten()).backward()
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
    policy: LlamaForCausalLM, asked: NDArray[np.int64], each: int, generator: torch.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """`each` answers to every one of n prompts: tokens and ln probabilities, both [n, each, 5], at temperature 1."""
    cache = DynamicCache()
    logits = policy(torch.from_numpy(asked), past_key_values=cache, use_cache=True).logits[:, -1]
    cache.batch_repeat_interleave(each)
    logits = logits.repeat_interleave(each, dim=0)
    tokens: list[Tensor] = []
    found: list[Tensor] = []
    for place in range(DIGITS):
        logprobs = functional.log_softmax(logits.float(), dim=-1)
        drawn = torch.multinomial(logprobs.exp(), 1, generator=generator)
        tokens.append(drawn)
        found.append(logprobs.gather(1, drawn))
        if place + 1 < DIGITS:
            logits = policy(drawn, past_key_values=cache, use_cache=True).logits[:, -1]
    shape = (len(asked), each, DIGITS)
    return torch.cat(tokens, 1).numpy().reshape(shape), torch.cat(found, 1).numpy().reshape(shape)


def groups(
    policy: LlamaForCausalLM,
    count: int,
    each: int,
    version: int,
    random: np.random.Generator,
    generator: torch.Generator,
) -> list[TrainingGroup]:
    """`count` prompts with `each` judged answers, sampled by the weights as they are now, called `version`."""
    asked = prompts(count, random)
    answers, logprobs = sample(policy, asked, each, generator)
    return [
        TrainingGroup(
            id=f"{version}-{place}",
            prompt_ids=prompt.astype(np.int32),
            completion_ids=list(given.astype(np.int32)),
            behaviour=list(drawn),
            versions=[np.full(DIGITS, version, np.int32)] * each,
            rewards=judge(np.repeat(prompt[None], each, axis=0), given),
            valid=np.ones(each, np.bool_),
        )
        for place, (prompt, given, drawn) in enumerate(zip(asked, answers, logprobs, strict=True))
    ]


def measure(policy: LlamaForCausalLM, count: int, seed: int) -> float:
    """Mean reward over `count` prompts with one answer each; `seed` decides prompts and tokens."""
    asked = prompts(count, np.random.default_rng(seed))
    answers, _ = sample(policy, asked, 1, torch.Generator().manual_seed(seed))
    return float(judge(asked, answers[:, 0]).mean())
