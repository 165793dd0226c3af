"""``nn.Bilinear`` as two products: LiteRT has no lowering for it, and torch's own decomposition is a product of three.

y[o] = a W[o] b + bias[o] (torch.nn.Bilinear): a times all W as one matrix, then b.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgeattn.converters.passes.graph import Program
from edgeattn.converters.passes.replacing import replace_calls

aten = torch.ops.aten


def plain_bilinear(program: Program) -> int:
    """Rewrite each bilinear layer; returns how many there were."""
    return replace_calls(program, {aten.bilinear.default: _bilinear})


def _bilinear(a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    outputs, left, right = weight.shape
    rows = a.reshape(-1, left) @ weight.permute(1, 0, 2).reshape(left, outputs * right)
    result = (rows.reshape(-1, outputs, right) @ b.reshape(-1, right, 1)).reshape([*a.shape[:-1], outputs])
    return result if bias is None else result + bias
