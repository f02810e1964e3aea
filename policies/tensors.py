"""Sets of tensors on their way to a file, one tensor in memory at a time.

A policy may be held in ways that its readers must not notice: with low-rank adapters beside its weights, or in shards on
several ranks. Its plain tensors then come into being one by one, and `Stream` is that: names, types and shapes known
beforehand, values made when their turn comes. `write` puts them into a safetensors file as they come, where the library
wants the whole set in memory at once.

Where a value is gathered from several ranks, making it is a collective: every rank goes through an equal stream to its
end, the one that writes by `write`, the others by `exhaust`. The order is therefore fixed by the stream, not by its user.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

# The names of https://huggingface.co/docs/safetensors, "Format"
FORMAT_NAMES: Final[dict[torch.dtype, str]] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Part:
    """One tensor of a stream: what it will be, and how it is made."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> Part:
        """A tensor that is there already; a sharded one is gathered when its turn comes."""
        return cls(tensor.dtype, tuple(tensor.shape), lambda: full(tensor))

    def cast(self, dtype: torch.dtype) -> Part:
        """The same as `dtype` where it is of another floating type."""
        if not self.dtype.is_floating_point or self.dtype == dtype:
            return self
        return Part(dtype, self.shape, lambda: self.make().to(dtype))


class Stream:
    """Tensors by name that are made one at a time, each once, wide types first (which keeps a file aligned).

    `parts` says beforehand what will come. An iteration that was broken off goes on where it stopped.
    """

    def __init__(self, parts: Mapping[str, Part], in_order: bool = False) -> None:
        """`in_order`: as they stand in `parts`, in place of the widest first."""
        self.parts = dict(parts if in_order else sorted(parts.items(), key=lambda item: -item[1].dtype.itemsize))
        self._left = iter(self.parts.items())

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, part in self._left:
            yield name, _made(name, part)  # nothing here keeps the tensor while the next is made

    @property
    def bytes(self) -> int:
        """Size of all values together, those already made included."""
        return sum(part.dtype.itemsize * torch.Size(part.shape).numel() for part in self.parts.values())

    def cast(self, dtype: torch.dtype) -> Stream:
        """The same tensors in the same order, those of a floating type as `dtype`. Takes the place of this stream."""
        return Stream({name: part.cast(dtype) for name, part in self.parts.items()}, in_order=True)

    def exhaust(self) -> None:
        """Makes what is left and lets go of it: what a rank does that takes part without writing."""
        for _ in self:
            pass

    def collected(self) -> dict[str, Tensor]:
        """What is left, all in memory at once, on the CPU. Tensors that are there already are not copied."""
        return {name: tensor.cpu().contiguous() for name, tensor in self}


def write(
    path: Path,
    stream: Stream,
    metadata: Mapping[str, str] | None = None,
    seen: Callable[[str, Tensor], None] | None = None,
) -> str:
    """Writes `stream` into a new safetensors file and returns its digest, "sha256:" and hex. `seen` is shown each tensor.

    Raises OSError from the disk, and then the stream may have tensors left; ValueError for a type that the format lacks.
    """
    start = header({name: (part.dtype, part.shape) for name, part in stream.parts.items()}, metadata)
    digest = hashlib.sha256()
    with path.open("xb") as file:
        file.write(start)
        digest.update(start)
        for name, tensor in stream:
            block = raw_bytes(tensor)
            file.write(block)
            digest.update(block)
            if seen is not None:
                seen(name, tensor)
            del tensor, block
    return f"sha256:{digest.hexdigest()}"


def digest(stream: Stream) -> str:
    """What `write` would return, without a file."""
    found = hashlib.sha256(header({name: (part.dtype, part.shape) for name, part in stream.parts.items()}))
    for _, tensor in stream:
        found.update(raw_bytes(tensor))
    return f"sha256:{found.hexdigest()}"


def header(kinds: Mapping[str, tuple[torch.dtype, Sequence[int]]], metadata: Mapping[str, str] | None = None) -> bytes:
    """What a safetensors file of tensors of these types and shapes, in this order, begins with."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, (dtype, shape) in kinds.items():
        if dtype not in FORMAT_NAMES:
            raise ValueError(f"{name} is {dtype}, which safetensors has no name for")
        end = offset + dtype.itemsize * torch.Size(shape).numel()
        entries[name] = {"dtype": FORMAT_NAMES[dtype], "shape": list(shape), "data_offsets": (offset, end)}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _made(name: str, part: Part) -> Tensor:
    tensor = part.make()
    if (tensor.dtype, tuple(tensor.shape)) != (part.dtype, part.shape):
        raise ValueError(f"{name} came as {tensor.dtype} {list(tensor.shape)}, not {part.dtype} {list(part.shape)}")
    return tensor


def raw_bytes(tensor: Tensor) -> memoryview:
    """The values of `tensor` in row-major order, as they lie in memory."""
    octets: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(octets)


def bits_of(tensor: Tensor) -> NDArray[Any]:
    """The bits of each element as an unsigned integer, flat; of a contiguous tensor on the CPU a view that may be written to."""
    octets: NDArray[Any] = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return octets.view(np.dtype(f"u{tensor.dtype.itemsize}"))


def name_of_dtype(dtype: torch.dtype) -> str:
    """As torch writes it, without the "torch."."""
    return str(dtype).removeprefix("torch.")


def dtype_of_name(name: str) -> torch.dtype:
    """The inverse of `name_of_dtype`. Raises ValueError for a type that does not travel."""
    for dtype in FORMAT_NAMES:
        if name_of_dtype(dtype) == name:
            return dtype
    raise ValueError(f"there is no type {name!r} among those that travel")


# ------------------------------------------------------------------------------------------------------------- models


def distinct(weights: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by name, parameters and persistent buffers, each storage once: of tied ones the first name stays.

    Writer and reader of one architecture come to the same names, whichever tensors it ties.
    """
    named = weights.state_dict(keep_vars=True) if isinstance(weights, nn.Module) else weights
    seen: set[object] = set()
    result: dict[str, Tensor] = {}
    for name, tensor in named.items():
        if isinstance(tensor, DTensor) or tensor.is_meta:
            # Not by address: a rank may hold nothing of a small tensor, and all ranks must come to the same names;
            # a tensor on the meta device has none.
            identity: object = id(tensor)
        else:
            identity = (tensor.data_ptr(), tensor.device, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and identity in seen:
            continue
        seen.add(identity)
        result[name] = tensor.detach() if not isinstance(tensor, DTensor) else tensor
    return result


def full(tensor: Tensor) -> Tensor:
    """The whole tensor, without gradient. Of a sharded one, a collective: every rank asks for it in the same order."""
    with torch.no_grad():
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def placed(value: Tensor, like: Tensor) -> Tensor:
    """The whole tensor `value` on the device of `like`, and this rank's share of it where `like` is sharded.

    No rank talks to another: each is given the whole value and keeps its own.
    """
    if isinstance(like, DTensor):
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return value.to(like.device)


def assign(target: Tensor, value: Tensor) -> None:
    """Copies the whole tensor `value` over `target` in place; a floating type may differ."""
    with torch.no_grad():
        target.copy_(placed(value, target))
