"""Low-rank adapters: a policy trained through small matrices beside its frozen weights.

An adapted layer computes W x + (alpha / rank) B A x with W [out, in] frozen, A [rank, in] and B [out, rank] trained; B starts
at 0, so that the policy starts as its base (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021,
section 4.1). `peft` puts the layers in; the model keeps its class and is used like any other.

To everybody else it is the plain model: `merged_state` gives W + (alpha / rank) B A under the plain model's names, one
tensor at a time. What goes on bit for bit is the adapters themselves, `adapter_state`, over the same base; the base is
therefore known by a digest, taken when the adapters are put in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from safeladder.policies.tensors import Part, Stream, assign, distinct, full, raw_bytes

ALL_LINEAR: Final = "all-linear"
ADAPTER: Final = "default"  # the name that peft gives the only adapter

Model = TypeVar("Model", bound=nn.Module)


class LoraError(ValueError):
    """Adapters cannot be put in, or do not fit; the message names the layer or tensor."""


@dataclass(frozen=True)
class LoraOptions:
    """rank: columns of A's and B's shared side. alpha: the product B A is scaled by alpha / rank.

    targets: "all-linear" is every linear layer but the head; otherwise the ends of the layers' names, such as "q_proj".
    seed: of A's first values, the same on every rank.

    Defaults: all layers and alpha 32, as in Schulman et al., "LoRA Without Regret", Thinking Machines, 2025, which also
    finds the best learning rate to be about ten times that of full training. There is no dropout: the log-probabilities
    must be of the policy that samples.
    """

    rank: int = 32
    alpha: float = 32.0
    targets: str | Sequence[str] = ALL_LINEAR
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise LoraError(f"rank is {self.rank}; an adapter has at least 1")
        if self.alpha <= 0:
            raise LoraError(f"alpha is {self.alpha}; at 0 or below an adapter would have no effect or the opposite one")
        if isinstance(self.targets, str) and self.targets != ALL_LINEAR:
            raise LoraError(f"targets is {self.targets!r}; give {ALL_LINEAR!r} or a list of layer names")
        if not self.targets:
            raise LoraError(f"targets is empty; give {ALL_LINEAR!r} or a list of layer names")


@dataclass(frozen=True)
class Attached:
    """What is known of a model's adapters. `base`: digest of the frozen weights, "sha256:" and hex."""

    options: LoraOptions
    base: str

    def metadata(self) -> dict[str, str]:
        """What the adapters' file says about them: all that has to agree for them to be the same function."""
        targets = self.options.targets
        return {
            "rank": str(self.options.rank),
            "alpha": str(float(self.options.alpha)),
            "targets": targets if isinstance(targets, str) else json.dumps(sorted(targets)),
            "base": self.base,
        }


_attached: WeakKeyDictionary[nn.Module, Attached] = WeakKeyDictionary()


# ---------------------------------------------------------------------------------------------------------- attaching


def attach(model: Model, options: LoraOptions | None = None) -> Model:
    """Puts adapters into `model`, in place, and returns it: only they are trainable, in float32 whatever the base is.

    Comes before the model is sharded and before an optimizer is made. Raises LoraError when there are adapters already,
    when a target names no linear layer, or when it names one whose weight another module shares (a tied head).
    """
    options = options or LoraOptions()
    if attached(model) is not None or adapted_layers(model):
        raise LoraError("the model has adapters already; load it anew to attach others")
    layers = _chosen(model, options.targets)
    base = _digest(model)
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise LoraError("adapters need the package peft: pip install 'safeladder[lora]'") from error
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules=layers,
    )
    with torch.random.fork_rng(devices=[]):  # peft draws A on the CPU and moves it
        torch.manual_seed(options.seed)
        inject_adapter_in_model(config, model)
    trained = {id(tensor) for tensor in _adapters(model).values()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    _attached[model] = Attached(options, base)
    return model


def attached(model: nn.Module) -> Attached | None:
    """What `attach` put into `model`; None for a model without adapters."""
    return _attached.get(model)


def adapted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers with an adapter beside them, by the name that they have in the plain model."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


def _chosen(model: Any, targets: str | Sequence[str]) -> list[str]:
    """Names of the layers that `targets` stands for; what is frozen already (a vision tower) is none of them."""
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.weight.requires_grad
    }
    if targets == ALL_LINEAR:
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        chosen = [name for name, module in linear.items() if module is not head]
        if not chosen:
            raise LoraError(f"{type(model).__name__} has no linear layer to adapt")
        return chosen
    found: list[str] = []
    for target in targets:
        matches = [name for name in linear if name == target or name.endswith(f".{target}")]
        if not matches:
            known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise LoraError(f"target {target!r} names no linear layer of {type(model).__name__}; it has {known}")
        found += matches
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for name in found:
        sharing = [other for other in owners[id(linear[name].weight)] if other != f"{name}.weight"]
        if sharing:
            raise LoraError(
                f"{name} shares its weight with {sharing[0]}, which an adapter would change too: leave it out"
            )
    return found


def _digest(model: nn.Module) -> str:
    """Names the values of a plain model, their types and shapes included."""
    found = hashlib.sha256()
    for name, tensor in sorted(distinct(model).items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
        found.update(raw_bytes(tensor))
    return f"sha256:{found.hexdigest()}"


# ---------------------------------------------------------------------------------------------------------- the states


def merged_state(model: nn.Module) -> Stream:
    """The tensors of the plain model that `model` stands for: names, types and shapes are exactly the plain model's.

    An adapted weight is W + (alpha / rank) B A, added up in float32 and rounded once to W's type, when its turn comes; no
    second copy of the model exists. Without adapters these are the model's own tensors. Of a sharded model each is
    gathered when its turn comes: a collective, so that every rank must go through the stream.
    """
    layers = adapted_layers(model)
    own = distinct(model)
    adapters = {_matrix(layer, side) for layer in layers for side in "AB"}
    parts: dict[str, Part] = {}
    for name, tensor in own.items():
        module, _, leaf = name.rpartition(".")
        layer = module.removesuffix(".base_layer")
        if name in adapters:
            continue
        if layer == module or layer not in layers:
            parts[name] = Part.of(tensor)
        elif leaf == "weight":
            left, right = own[_matrix(layer, "B")], own[_matrix(layer, "A")]
            make = partial(_merged, tensor, left, right, _scale(layers[layer]))
            parts[f"{layer}.weight"] = Part(tensor.dtype, tuple(tensor.shape), make)
        else:
            parts[f"{layer}.{leaf}"] = Part.of(tensor)
    return Stream(parts)


def _matrix(layer: str, side: str) -> str:
    """Where an adapter's matrix stands in the adapted model."""
    return f"{layer}.lora_{side}.{ADAPTER}.weight"


def _scale(layer: Any) -> float:
    return float(layer.scaling[ADAPTER])


def _merged(weight: Tensor, left: Tensor, right: Tensor, scale: float) -> Tensor:
    """weight [out, in] + scale * left [out, rank] right [rank, in]."""
    product = full(left).float() @ full(right).float()
    return product.mul_(scale).add_(full(weight).float()).to(weight.dtype)


def adapter_state(model: nn.Module) -> Stream:
    """The adapters alone, under `LAYER.lora_A.weight` and `LAYER.lora_B.weight`; empty for a model without."""
    return Stream({name: Part.of(tensor) for name, tensor in _adapters(model).items()})


def load_adapter_state(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Puts what `adapter_state` gave into the adapters of `model`, in place; of a sharded one each rank keeps its share.

    Raises LoraError, naming the difference, when names or shapes are not those of the model; then nothing is changed.
    """
    check_adapter_state(model, tensors)
    for name, tensor in _adapters(model).items():
        assign(tensor, tensors[name])


def check_adapter_state(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raises LoraError unless `tensors` have the names and shapes of the adapters of `model`."""
    own = _adapters(model)
    if not own:
        raise LoraError("the model has no adapters; attach them first")
    for what, names in (("lacks", own.keys() - tensors.keys()), ("also has", tensors.keys() - own.keys())):
        if names:
            raise LoraError(f"not this model's adapters: the set {what} {min(names)}, and {len(names) - 1} more")
    for name, tensor in own.items():
        if tensors[name].shape != tensor.shape:
            raise LoraError(
                f"not this model's adapters: {name} is {list(tensors[name].shape)}, the model has {list(tensor.shape)}"
            )


def check_metadata(model: nn.Module, metadata: Mapping[str, str]) -> None:
    """Raises LoraError unless adapters written with `metadata` are the same function in `model`: options and base agree."""
    own = attached(model)
    if own is None:
        raise LoraError("the model has no adapters; attach them first")
    for name, value in own.metadata().items():
        stored = metadata.get(name)
        if stored != value and name == "base":
            raise LoraError(
                f"the adapters were trained over other weights (base {stored}) than these ({value}): load the model that "
                "the run began with, in the same type, not the merged weights of a checkpoint"
            )
        if stored != value:
            raise LoraError(f"the adapters were trained with {name} {stored}, the model has {name} {value}")


def _adapters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {
        f"{layer}.lora_{side}.weight": model.get_parameter(_matrix(layer, side))
        for layer in adapted_layers(model)
        for side in "AB"
    }
