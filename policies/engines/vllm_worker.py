"""What our adaptor needs inside vLLM's own workers: to exchange the weights for those of a publication.

vLLM mixes `Publications` into its worker class (`worker_extension_cls`) and calls it through `collective_rpc`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

from safeladder.policies.weights import TENSORS


class Publications:
    model_runner: Any
    reload_weights: Any

    def load_publication(self, path: str) -> None:
        """Loads the tensors of the verified publication at `path` in place; each worker takes its own share."""
        with torch.inference_mode():
            self.reload_weights(weights_iterator=_tensors(Path(path) / TENSORS))
            _repack_tied_head(self.model_runner.get_model())


def _tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118  # not a mapping
            yield name, tensors.get_tensor(name)


def _repack_tied_head(model: Any) -> None:
    """On a CPU the head multiplies with a packed copy of its weights. A reload renews those of all layers that own their
    weights; a head tied to the embeddings owns none and would go on with the old ones (vLLM 0.32)."""
    head, embeddings = getattr(model, "lm_head", None), getattr(getattr(model, "model", None), "embed_tokens", None)
    if not getattr(getattr(model, "config", None), "tie_word_embeddings", False) or head is None or embeddings is None:
        return
    if embeddings.weight.device.type == "cpu":
        head.weight = embeddings.weight
        dispatch_cpu_unquantized_gemm(head, remove_weight=False)
