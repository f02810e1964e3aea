"""What an adaptor must know of a model whose weights are in another process: vocabulary, context, stops, tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from safeladder.policies import model as models
from safeladder.policies import weights
from safeladder.policies.engines.base import EngineError

# A byte-level token may hold a quarter of a character, so a stop string spans at most this many tokens a character.
UTF8_BYTES: Final = 4


class Outline:
    """The model of the folder `path` without its values.

    vocabulary: token ids are below it. context: tokens of prompt and completion together, at most. stop_ids:
    end-of-sequence ids of the generation config and of the tokenizer together. head_size: features of an attention head.
    cache_numbers: keys and values of one token in all layers. Raises EngineError for a folder that holds no causal language model.
    """

    def __init__(self, path: Path) -> None:
        try:
            config = AutoConfig.from_pretrained(path)
            with torch.device("meta"):
                self._skeleton = AutoModelForCausalLM.from_config(config)
        except (OSError, ValueError) as error:
            raise EngineError(f"{path} is no causal language model: {error}") from error
        self.tokenizer = models.load_tokenizer(path)
        self.vocabulary = int(self._skeleton.get_input_embeddings().num_embeddings)
        self.context = int(getattr(config.get_text_config(), "max_position_embeddings", 0) or 2**31)
        self.stop_ids = self._stop_ids(path)
        text = config.get_text_config()
        heads = int(getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
        self.head_size = int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
        self.cache_numbers = 2 * int(text.num_hidden_layers) * heads * self.head_size

    def require(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises WeightsError, naming the difference, unless `tensors` are this model's set in names and shapes."""
        weights.copy_into(self._skeleton, tensors)  # a copy to the meta device compares and moves nothing

    def stopped(self, token_ids: Sequence[int], stop: Sequence[str]) -> bool:
        """Whether the last of `token_ids` completes one of the `stop` strings. Only the tail is decoded."""
        if not stop:
            return False
        tail = UTF8_BYTES * max(map(len, stop)) + 1
        text = self.tokenizer.decode(token_ids[-tail:], skip_special_tokens=False)
        return any(string in text for string in stop)

    def _stop_ids(self, path: Path) -> frozenset[int]:
        configured: Any = None
        if (path / "generation_config.json").is_file():
            configured = GenerationConfig.from_pretrained(path).eos_token_id
        ids = [*(configured if isinstance(configured, list) else [configured]), self.tokenizer.eos_token_id]
        return frozenset(int(token) for token in ids if token is not None)
