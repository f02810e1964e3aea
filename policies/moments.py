"""What AdamW keeps about each parameter, by the parameter's name: exp_avg, exp_avg_sq and the number of its steps.

Under names it fits any learner of the same model, whatever the order of its parameters and the number of its ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn

from safeladder.policies.tensors import Part, placed

KINDS: Final = ("exp_avg", "exp_avg_sq", "step")


class MomentsError(ValueError):
    """An optimizer is not AdamW, or tensors are not what it keeps about this model; the message names the tensor."""


def parts(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Part]:
    """All that is kept, as `KIND.NAME`; a parameter that was never stepped has none. Sharded tensors are gathered whole.

    Raises MomentsError for a kind that is not AdamW's.
    """
    found: dict[str, Part] = {}
    for name, parameter in model.named_parameters():
        for kind, value in optimizer.state.get(parameter, {}).items():
            if kind not in KINDS:
                raise MomentsError(f"optimizer state {kind!r} of {name} is not AdamW's: {', '.join(KINDS)}")
            found[f"{kind}.{name}"] = Part.of(value)
    return found


def by_name(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """NAME -> KIND -> tensor, from what `parts` gave. Raises MomentsError for what does not belong to this model."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        kind, _, name = key.partition(".")
        if kind not in KINDS or name not in shapes or (kind != "step" and tensor.shape != shapes[name]):
            raise MomentsError(f"{key} does not belong to this model")
        found.setdefault(name, {})[kind] = tensor
    return found


def put(model: nn.Module, optimizer: torch.optim.Optimizer, stored: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Replaces all that the optimizer keeps by `stored`; of a sharded parameter each rank keeps its own share."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        # torch keeps the step counter on the CPU unless the optimizer works on it on the device
        on_device = bool(group.get("fused") or group.get("capturable"))
        for parameter in group["params"]:
            optimizer.state.pop(parameter, None)
            kept = stored.get(names[id(parameter)])
            if kept is not None:
                counter = kept["step"].to(parameter.device) if on_device else kept["step"]
                optimizer.state[parameter] = {
                    kind: counter if kind == "step" else placed(value, parameter) for kind, value in kept.items()
                }
