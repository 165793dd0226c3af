"""Operations without a lowering in plain torch, for LiteRT alone: a part of :mod:`edgeattn.converters.litert_forms`.

Sums and extremes by index have one, and STABLEHLO_SCATTER takes no reduction that litert-torch writes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
COMBINED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": torch.add,
    "prod": torch.mul,
    "amax": torch.maximum,
    "amin": torch.minimum,
}  # two results of scatter_reduce as one


def _scatter_add(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    return _scatter_reduce(x, dim, index, source, "sum")


def _scatter_reduce(
    x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    """Each place compared with each index: elements of ``index`` times the length of the axis."""
    if not x.ndim:
        return _scatter_reduce(x[None], 0, index[None], source[None], reduce, include_self=include_self)[0]
    axis = dim % x.ndim
    part, target = source.movedim(axis, -1), x.movedim(axis, -1)  # plain_scatters left them as long as the index
    hit = index.movedim(axis, -1)[..., None] == torch.arange(x.shape[axis])
    chosen = torch.where(hit, part[..., None], torch.full((), _neutral(reduce, x.dtype), dtype=x.dtype))
    reduced, both = _reduced(chosen, reduce), COMBINED[reduce]
    result = both(target, reduced) if include_self else torch.where(hit.any(-2), reduced, target)
    return result.movedim(-1, axis)


def _reduced(chosen: Tensor, reduce: str) -> Tensor:
    if reduce == "sum":
        return chosen.sum(-2)
    if reduce == "prod":
        return chosen.prod(-2)
    return chosen.amax(-2) if reduce == "amax" else chosen.amin(-2)


def _neutral(reduce: str, dtype: torch.dtype) -> float:
    if reduce in ("sum", "prod"):
        return float(reduce == "prod")
    if dtype.is_floating_point:
        return -math.inf if reduce == "amax" else math.inf
    limits = torch.iinfo(torch.int32)  # what an int64 is in the file
    return limits.min if reduce == "amax" else limits.max


def _exp2(x: Tensor) -> Tensor:
    return torch.exp(x * math.log(2))


def _erfc(x: Tensor) -> Tensor:
    return 1 - torch.erf(x)


def _signbit(x: Tensor) -> Tensor:
    return (x < 0) | (1 / x < 0)  # 1 / -0.0 is -inf


def _logical_xor(a: Tensor, b: Tensor) -> Tensor:
    return (a != 0) != (b != 0)


FUNCTIONS: Mapping[Any, Callable[..., Any]] = {
    aten.scatter_add.default: _scatter_add,
    aten.scatter_reduce.two: _scatter_reduce,
    aten.exp2.default: _exp2,
    aten.erfc.default: _erfc,
    aten.signbit.default: _signbit,
    aten.logical_xor.default: _logical_xor,
}
