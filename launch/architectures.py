"""What the planner must know of a model: the numbers of its config.json, and how many parameters follow from them.

A folder's own config.json says it; for models that are not here there is a table of the published ones that SafeWork-R1 and its judges are
made of. Vision towers are counted whole, as they are published: their layers differ too much to be worth a formula.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec


@dataclass(frozen=True)
class Architecture:
    """A decoder of the Llama family. head_size: features of a head. vision: parameters of tower and projector. qkv_bias: of Qwen2."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vocab_size: int
    head_size: int
    tied: bool = False
    qkv_bias: bool = False
    vision: int = 0

    @property
    def query(self) -> int:
        """Width of all queries together."""
        return self.num_attention_heads * self.head_size

    @property
    def key(self) -> int:
        """Width of all keys together, and of all values."""
        return self.num_key_value_heads * self.head_size

    @property
    def layer(self) -> int:
        """Parameters of one layer."""
        attention = 2 * self.hidden_size * (self.query + self.key) + self.qkv_bias * (self.query + 2 * self.key)
        return attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size

    @property
    def embedding(self) -> int:
        return self.vocab_size * self.hidden_size

    @property
    def parameters(self) -> int:
        """All of them, the vision tower's too; tied embeddings once."""
        ends = self.embedding * (1 if self.tied else 2) + self.hidden_size
        return self.num_hidden_layers * self.layer + ends + self.vision

    @property
    def cache_numbers(self) -> int:
        """Numbers that one token leaves in the key-value cache."""
        return 2 * self.num_hidden_layers * self.key


_QWEN_72B: Final = Architecture(8192, 80, 64, 8, 29568, 152064, 128, qkv_bias=True)
_QWEN_7B: Final = Architecture(3584, 28, 28, 4, 18944, 152064, 128, qkv_bias=True)
KNOWN: Final[Mapping[str, Architecture]] = {
    "Qwen/Qwen2.5-72B-Instruct": _QWEN_72B,
    "Qwen/Qwen2.5-VL-72B-Instruct": Architecture(
        8192, 80, 64, 8, 29568, 152064, 128, qkv_bias=True, vision=703_000_000
    ),
    "Qwen/Qwen2.5-VL-7B-Instruct": Architecture(3584, 28, 28, 4, 18944, 152064, 128, qkv_bias=True, vision=676_000_000),
    "OpenGVLab/InternVL3-78B": Architecture(8192, 80, 64, 8, 29568, 151674, 128, qkv_bias=True, vision=5_700_000_000),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-70B": Architecture(8192, 80, 64, 8, 28672, 128256, 128),
    # the released verifiers: fine-tuned Qwen2.5-VL-7B, and Qwen2.5-72B by their names' sizes
    "AI45Research/SafeWork-RM-Safety-7B": Architecture(
        3584, 28, 28, 4, 18944, 152064, 128, qkv_bias=True, vision=676_000_000
    ),
    "AI45Research/SafeWork-RM-Value-72B": Architecture(
        8192, 80, 64, 8, 29568, 152064, 128, qkv_bias=True, vision=703_000_000
    ),
    "AI45Research/SafeWork-RM-Knowledge-72B": _QWEN_72B,
    # SmolLM2-135M-Instruct, the built-in one
    "embedded": Architecture(576, 30, 9, 3, 1536, 49152, 64, tied=True),
}


def architecture(model: str) -> Architecture | None:
    """Of a folder with a config.json, or a model of the table, with or without its owner. None for any other."""
    file = Path(model).expanduser() / "config.json"
    if file.is_file():
        return read(msgspec.json.decode(file.read_bytes(), type=dict[str, Any]))
    by_name = {name.rpartition("/")[2].lower(): found for name, found in KNOWN.items()}
    return by_name.get(model.rpartition("/")[2].lower())


def read(config: Mapping[str, Any]) -> Architecture | None:
    """From a config.json as `transformers` writes it, of a text model or of one with a `text_config`; None where it says too little.

    The vision tower of such a folder is not counted.
    """
    text = config.get("text_config") or config.get("llm_config") or config
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    if not all(isinstance(text.get(name), int) for name in names):
        return None
    heads = text["num_attention_heads"]
    return Architecture(
        **{name: text[name] for name in names},
        num_key_value_heads=text.get("num_key_value_heads") or heads,
        head_size=text.get("head_dim") or text["hidden_size"] // heads,
        tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
        qkv_bias=bool(text.get("attention_bias", str(text.get("model_type", "")).startswith("qwen2"))),
    )
