"""Products of few rows with large matrices, which is what decoding is: three ways, by the number of rows.

For a matrix [N, K] and rows [M, K], on a CPU in float32. One row: as it is. A few rows: the matrix times the rows
turned, which reads the matrix once in its own order. More rows: oneDNN over a copy of the matrix in the order that its
kernel reads, from `PACKED_ROWS` on; such a copy costs the matrix's memory again and is made anew at a swap. Everywhere
else: `linear`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

PACKED_ROWS: Final = 12


class Product:
    """x [M, K] -> x W^T + b, [M, N], where W is what `linears` of `model` have for weights, one behind the other.

    Their parameters become views of W. `copy` is W in oneDNN's order, or None where there is none.
    """

    def __init__(self, linears: Sequence[nn.Linear], model: nn.Module) -> None:
        self.weight = linears[0].weight.detach()
        self.bias = None if linears[0].bias is None else linears[0].bias.detach()
        if len(linears) > 1:
            self.weight = _joined([linear.weight for linear in linears])
            if self.bias is not None:
                self.bias = _joined([linear.bias for linear in linears])
        self.copy: Any = None
        # the names under which the weights may be published, for each of the linears
        self.names = [_names(model, linear.weight) for linear in linears]

    def __call__(self, rows: Tensor) -> Tensor:
        count = len(rows)
        if self.copy is not None and count >= PACKED_ROWS:
            result: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self.copy, self.bias, "none", [], "")
            return result
        if 1 < count < PACKED_ROWS and not rows.is_cuda:
            result = torch.mm(self.weight, rows.t()).t().contiguous()
            return result if self.bias is None else result.add_(self.bias)
        return functional.linear(rows, self.weight, self.bias)


def prepared(product: Product, tensors: Mapping[str, Tensor]) -> Any:
    """`Product.copy` for the weights `tensors`; None where no copy is of use, or where one of the weights is missing."""
    weight = product.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return None
    if not torch.backends.mkldnn.is_available():
        return None
    found = [next((tensors[name] for name in names if name in tensors), None) for names in product.names]
    parts = [part for part in found if part is not None]
    if len(parts) < len(found) or sum(map(len, parts)) != len(weight):
        return None
    with torch.no_grad():
        whole = torch.cat([part.to(weight.dtype) for part in parts]) if len(parts) > 1 else parts[0].to(weight.dtype)
        return torch.ops.mkldnn._reorder_linear_weight(whole, PACKED_ROWS)


def _joined(parameters: Sequence[Tensor]) -> Tensor:
    whole = torch.cat([parameter.detach() for parameter in parameters])
    at = 0
    for parameter in parameters:
        parameter.data = whole[at : at + len(parameter)]
        at += len(parameter)
    return whole


def _names(model: nn.Module, parameter: Tensor) -> list[str]:
    return [name for name, own in model.named_parameters(remove_duplicate=False) if own is parameter]
