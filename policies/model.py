"""How a policy is held: found by name, loaded, and spoken to through its chat template.

Everything here works on a plain folder of safetensors, config and tokenizer, which is also what a checkpoint is. Any
causal language model of `transformers` 5 with attention in every layer will do, and those of `vision.FAMILIES`, which see.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from safeladder.policies.builtin import BUILTIN, ModelError
from safeladder.policies.finding import default_cache, resolve
from safeladder.policies.thought import OPENING
from safeladder.policies.vision import FAMILIES, Processor, VisionError

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
        sees = AutoConfig.from_pretrained(path).model_type in FAMILIES
        kind: Any = AutoModelForImageTextToText if sees else AutoModelForCausalLM
        model = kind.from_pretrained(path, dtype=DTYPES[dtype], use_safetensors=True)
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
    images: Sequence[tuple[int, int]] = (),
    processor: Processor | None = None,
) -> list[int]:
    """Token ids of a conversation that ends where the assistant is about to speak.

    `shots` are (user, assistant) pairs put before `prompt` as worked examples; `prefix` is text that the assistant has
    already begun with, which the completion continues. Where the template opens the thought itself, as DeepSeek-R1's does,
    a prefix that opens it takes that place. With `system` None the template's own default applies. `images` are (width,
    height) in pixels of what the prompt shows, which only a `processor` can write.
    Raises ModelError when the tokenizer has no chat template, VisionError when prompt and images do not belong together.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            f"the tokenizer {tokenizer.name_or_path!r} has no chat template: use an instruction-tuned model, "
            "or put a chat_template.jinja into its folder"
        )
    messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    for question, answer in shots:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    if images and processor is None:
        raise VisionError("the prompt has images, and this policy takes text only")
    messages.append({"role": "user", "content": Processor.content(prompt, len(images)) if images else prompt})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    if processor is not None:
        text = processor.expanded(text, images)
    before, tag, after = text.rpartition(OPENING)
    if tag and not after.strip() and prefix.startswith(tag):
        text = before
    # The template has written every special token already, so the tokenizer must not add its own.
    ids: list[int] = tokenizer(text + prefix, add_special_tokens=False)["input_ids"]
    return ids
