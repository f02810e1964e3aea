"""One model on several ranks: each holds a share of every parameter, and of what the optimizer keeps about it (FSDP2).

A decoder layer's parameters are gathered just before it computes and let go of right after, in the backward pass once more;
the gradients are added up over the ranks and each keeps its share. That makes every forward and every backward a collective:

* Every rank makes the same number of them. `divide` says who takes which pack and where a rank without one makes an
  `idle_pass`, which adds nothing.
* Calls go through the root module, whose own parameters (embedding, final norm, head) are gathered for the length of its
  forward only.
* A rank that raises alone leaves the others waiting, see `Ranks.faults`.

The gradient is the sum over ranks. FSDP's own mean would scale it by 1 / ranks; our loss is a sum whose denominators are
those of the whole batch already, so the sum is what one rank computing all packs would have.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from safeladder.policies.ranks import Ranks
from safeladder.policies.scoring import completion_logprobs

Model = TypeVar("Model", bound=PreTrainedModel)


def shard(model: Model, ranks: Ranks) -> Model:
    """Distributes `model` over the ranks, in place, and returns it; alone it stays as it is.

    Every rank brings the same model, adapters attached, before it makes an optimizer. Raises ValueError for an
    architecture without a list of decoder layers.
    """
    if ranks.mesh is None:
        return model
    layers = getattr(model.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        raise ValueError(
            f"{type(model).__name__} has no decoder with a list `layers`: it cannot be sharded layer by layer"
        )
    # The root is resharded after its forward too, though FSDP would keep it: gathered parameters that outlive a forward
    # without gradient are not gathered again by the next one, which would then compute with those of before the step.
    for module in (*layers, model):
        sharded = fully_shard(module, mesh=ranks.mesh, reshard_after_forward=True)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)  # otherwise the factor is a kind of sum that only NCCL has
    return model


def plain_class(model: nn.Module) -> type:
    """The class that `model` has without sharding."""
    return next(cls for cls in type(model).__mro__ if not issubclass(cls, FSDPModule))


# ---------------------------------------------------------------------------------------------------------------- work


def divide(costs: Sequence[float], world: int) -> list[list[int | None]]:
    """Which pack each rank computes when: [world][rounds], indices into `costs` or None for an idle pass.

    Every rank has ceil(packs / world) rounds, and a round lasts as long as its longest pack, because the ranks gather each
    layer together. Packs are therefore taken longest first, `world` of them a round: the longest of round r is at least
    the (r * world + 1)-th longest of all however they are dealt, and here it is just that, so the sum over the rounds is
    the smallest possible. Within a round the longest goes to the rank with the least so far, which evens out the totals.
    `costs` are tokens, or anything that grows with the time of a pack. The result depends on nothing else, so ranks that
    know the same batch agree without speaking.
    """
    if world < 1:
        raise ValueError(f"world is {world}; there is at least one rank")
    order = sorted(range(len(costs)), key=lambda index: (-costs[index], index))
    shares: list[list[int | None]] = [[] for _ in range(world)]
    totals = [0.0] * world
    for start in range(0, len(order), world):
        packs: list[int | None] = [*order[start : start + world]]
        packs += [None] * (world - len(packs))
        for rank, pack in zip(sorted(range(world), key=lambda rank: (totals[rank], rank)), packs, strict=True):
            shares[rank].append(pack)
            totals[rank] += 0.0 if pack is None else costs[pack]
    return shares


def idle_pass(model: PreTrainedModel, gradient: bool = True) -> None:
    """Takes part in a round without a pack: a forward of one token, and a backward that adds zero to every gradient.

    With `gradient` False the forward alone, as the ranks with a pack do it without gradient.
    """
    with torch.set_grad_enabled(gradient):
        (logprobs,) = completion_logprobs(model, [((0,), (0,))])
    if gradient:
        torch.autograd.backward(0.0 * logprobs.sum())


def clip_gradient(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """Scales the gradients so that the norm of the whole, over all parameters and ranks, is at most `max_norm`.

    Returns the norm before, the same on every rank; 0 where no parameter has a gradient. A norm that is not finite is
    returned as it is, and the gradients are then of no use.
    """
    held = [parameter for parameter in parameters if parameter.grad is not None]
    if not held:
        return 0.0
    norm: Tensor = torch.nn.utils.clip_grad_norm_(held, max_norm)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
