"""How a policy is held: found by name, loaded, and spoken to through its chat template.

Everything here works on a plain folder of safetensors, config and tokenizer, which is also what a checkpoint is. Any
causal language model of `transformers` 5 with attention in every layer will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from safeladder.policies.builtin import BUILTIN, ModelError
from safeladder.policies.finding import default_cache, resolve

__all__ = [
    "BUILTIN",
    "ModelError",
    "default_cache",
    "encode_prompt",
    "load",
    "load_tokenizer",
    "resolve",
]

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Its bars would be drawn into the logs of every process that loads a model.
transformers_logging.disable_progress_bar()


# ------------------------------------------------------------------------------------------------------- loading


def load(path: Path, dtype: str = "float32", device: str = "cpu") -> tuple[PreTrainedModel, Any]:
    """Model (evaluation mode: no dropout) and tokenizer of the folder `path`.

    `dtype` is float32, bfloat16 or float16. Raises ModelError for a folder without model or safetensors.
    """
    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is none of {sorted(DTYPES)}")
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=DTYPES[dtype], use_safetensors=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load a causal language model from {path}: {error}") from error
    return model.to(device).eval(), load_tokenizer(path)


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of the folder `path`. Raises ModelError when there is none."""
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load a tokenizer from {path}: {error}") from error


def encode_prompt(
    tokenizer: Any,
    prompt: str,
    system: str | None = None,
    prefix: str = "",
    shots: Sequence[tuple[str, str]] = (),
) -> list[int]:
    """Token ids of a conversation that ends where the assistant is about to speak.

    `shots` are (user, assistant) pairs put before `prompt` as worked examples; `prefix` is text that the assistant has
    already begun with, which the completion continues. With `system` None the template's own default applies.
    Raises ModelError when the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            f"the tokenizer {tokenizer.name_or_path!r} has no chat template: use an instruction-tuned model, "
            "or put a chat_template.jinja into its folder"
        )
    messages = [] if system is None else [{"role": "system", "content": system}]
    for question, answer in shots:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    messages.append({"role": "user", "content": prompt})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    # The template has written every special token already, so the tokenizer must not add its own.
    ids: list[int] = tokenizer(text + prefix, add_special_tokens=False)["input_ids"]
    return ids
