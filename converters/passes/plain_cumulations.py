"""``cumprod``, ``cummax`` and ``cummin`` in log2(L) steps: no exporter has them.

After step s each element holds the result over the last 2^s elements (Hillis and Steele, 1986), so zeros and negative
factors come out as they do one by one, which a sum of logarithms would not give.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from edgeattn.converters.passes.graph import Program
from edgeattn.converters.passes.replacing import is_read, replace

aten = torch.ops.aten


def plain_cumulations(program: Program) -> int:
    """Rewrite each of them; returns how many there were."""
    changed = 0
    for node in program.calls(aten.cumprod.default):
        changed += replace(program, node, _cumprod)
    for node in program.calls(aten.cummax.default, aten.cummin.default):
        changed += replace(program, node, _extreme(node.target is aten.cummax.default, places=is_read(node, 1)))
    return changed


def _cumprod(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    whole = torch.int64 if not x.dtype.is_floating_point else x.dtype
    return _running(x.to(dtype or whole), dim, torch.mul, 1)


def _extreme(highest: bool, places: bool) -> Callable[..., Any]:
    def function(x: Tensor, dim: int) -> tuple[Tensor, Tensor | None]:
        lowest = -math.inf if x.dtype.is_floating_point else torch.iinfo(x.dtype).min
        values = _running(x, dim, torch.maximum, lowest) if highest else -_running(-x, dim, torch.maximum, lowest)
        if not places:
            return values, None
        numbers = torch.arange(x.shape[dim]).reshape([-1] + [1] * (x.ndim - dim % x.ndim - 1))
        last = torch.where(x == values, numbers, 0)  # of equal values torch names the last
        return values, _running(last, dim, torch.maximum, 0)

    return function


def _running(x: Tensor, dim: int, combine: Callable[[Tensor, Tensor], Tensor], neutral: float) -> Tensor:
    if not x.ndim:
        return x.clone()
    axis = dim % x.ndim
    length = x.shape[axis]
    flat = x.reshape(math.prod(x.shape[:axis]), length, math.prod(x.shape[axis + 1 :]))  # a pad takes few axes
    step = 1
    while step < length:
        flat = combine(flat, torch.constant_pad_nd(flat[:, : length - step], [0, 0, step, 0], neutral))
        step *= 2
    return flat.reshape(x.shape)
