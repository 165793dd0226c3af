"""Functions that torch's ONNX exporter lacks, or writes so that large numbers overflow, by what every engine has.

``log(exp(a) + exp(b))``, as the exporter has it, is inf for numbers around 100, which the example inputs need not show.
Searches compare each number with each boundary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgeattn.converters.passes.graph import Program
from edgeattn.converters.passes.replacing import is_read, replace, replace_calls

aten = torch.ops.aten
MAX_DIFFERENCES = 2**22  # of points, beyond which Euclid's distances are left to the older exporter, by a product


def plain_functions(program: Program) -> int:
    """Rewrite each of them; returns how many there were."""
    changed = replace_calls(program, FUNCTIONS)
    for node in program.calls(*CHOSEN):
        if not is_read(node, 1):  # of equal values an engine may name another place
            changed += replace(program, node, CHOSEN[node.target])
    return changed


def _logaddexp(a: Tensor, b: Tensor) -> Tensor:
    # Of two equal infinities the difference is NaN, which the choice leaves out.
    more = torch.where(a == b, math.log(2), torch.log1p(torch.exp(-(a - b).abs())))
    return torch.maximum(a, b) + more


def _fmax(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(a != a, b, torch.where(b != b, a, torch.maximum(a, b)))  # NaN


def _fmin(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(a != a, b, torch.where(b != b, a, torch.minimum(a, b)))  # NaN


def _hypot(a: Tensor, b: Tensor) -> Tensor:
    return torch.sqrt(a * a + b * b)


def _copysign(a: Tensor, b: Tensor) -> Tensor:
    return torch.where((b < 0) | (1 / b < 0), -a.abs(), a.abs())  # 1 / -0.0 is -inf


def _kthvalue(x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, None]:
    value = x.topk(k, dim, largest=False)[0].narrow(dim, k - 1, 1)
    return (value if keepdim else value.squeeze(dim)), None


def _median_along(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, None]:
    return _kthvalue(x, (x.shape[dim] + 1) // 2, dim, keepdim)


def _median(x: Tensor) -> Tensor:
    return _median_along(x.reshape(-1), 0)[0]


def _searchsorted(
    sequence: Tensor,
    x: Tensor,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Tensor | None = None,
) -> Any:
    if sorter is not None:
        return NotImplemented
    rows = sequence if sequence.ndim == 1 else sequence[..., None, :]
    below = rows <= x[..., None] if right or side == "right" else rows < x[..., None]
    return below.sum(-1).to(torch.int32 if out_int32 else torch.int64)


def _bucketize(x: Tensor, boundaries: Tensor, *, out_int32: bool = False, right: bool = False) -> Any:
    return _searchsorted(boundaries, x, out_int32=out_int32, right=right)


def _cdist(a: Tensor, b: Tensor, p: float = 2.0, compute_mode: int | None = None) -> Any:  # noqa: ARG001
    if p == 2 and a.numel() * b.shape[-2] > MAX_DIFFERENCES:
        return NotImplemented
    return _norm(a[..., :, None, :] - b[..., None, :, :], p)


def _pdist(x: Tensor, p: float = 2.0) -> Tensor:
    rows, columns = torch.triu_indices(len(x), len(x), 1)
    return _norm(x.index_select(0, rows) - x.index_select(0, columns), p)


def _norm(difference: Tensor, p: float) -> Tensor:
    apart = difference.abs()
    if p == 0:
        return (apart != 0).to(apart.dtype).sum(-1)
    if math.isinf(p):
        return apart.amax(-1)
    if p == 1:
        return apart.sum(-1)
    return (apart * apart).sum(-1).sqrt() if p == 2 else apart.pow(p).sum(-1).pow(1 / p)


def _hstack(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(1) if not tensor.ndim else tensor for tensor in tensors], int(tensors[0].ndim > 1))


def _column_stack(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1, 1) if tensor.ndim < 2 else tensor for tensor in tensors], 1)


def _rrelu(x: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, *_: Any, **__: Any) -> Any:
    return NotImplemented if training else functional.leaky_relu(x, (lower + upper) / 2)


def _diagonal_scatter(x: Tensor, source: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    if x.shape[dim1] != x.shape[dim2]:
        return NotImplemented
    rows, columns = dim1 % x.ndim, dim2 % x.ndim
    places = torch.arange(x.shape[rows])
    on = (places[None, :] - places[:, None]) == offset
    sizes = [x.shape[axis] if axis in (rows, columns) else 1 for axis in range(x.ndim)]
    on = (on if rows < columns else on.mT).reshape(sizes)
    return torch.where(on, torch.diag_embed(source, offset, dim1, dim2), x)


def _expand_as(x: Tensor, other: Tensor) -> Tensor:
    return x.expand(other.shape)  # what other passes know


def _all(x: Tensor, *args: Any, **kwargs: Any) -> Any:
    return NotImplemented if x.dtype is torch.bool else (x != 0).all(*args, **kwargs)


def _any(x: Tensor, *args: Any, **kwargs: Any) -> Any:
    return NotImplemented if x.dtype is torch.bool else (x != 0).any(*args, **kwargs)


FUNCTIONS: dict[Any, Any] = {
    aten.expand_as.default: _expand_as,
    **dict.fromkeys((aten.all.default, aten.all.dim, aten.all.dims), _all),
    **dict.fromkeys((aten.any.default, aten.any.dim, aten.any.dims), _any),
    aten.logaddexp.default: _logaddexp,
    aten.fmax.default: _fmax,
    aten.fmin.default: _fmin,
    aten.hypot.default: _hypot,
    aten.copysign.Tensor: _copysign,
    aten.median.default: _median,
    aten.searchsorted.Tensor: _searchsorted,
    aten.bucketize.Tensor: _bucketize,
    aten.cdist.default: _cdist,
    aten.pdist.default: _pdist,
    aten.hstack.default: _hstack,
    aten.column_stack.default: _column_stack,
    aten.rrelu.default: _rrelu,
    aten.diagonal_scatter.default: _diagonal_scatter,
}
CHOSEN: dict[Any, Any] = {aten.kthvalue.default: _kthvalue, aten.median.dim: _median_along}
