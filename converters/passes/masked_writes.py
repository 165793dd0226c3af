"""``scores[mask] = value`` and ``masked_scatter`` keep their shapes: a choice by the mask, and no list of places.

torch indexes with the places where a mask is true, whose number depends on values: LiteRT has no such index, TensorRT
no NonZero. The result has the shape of what is written all the same: one value is chosen by the mask; of several, the
i-th true place takes the i-th, which a running sum over the mask counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edgeattn.converters.passes.graph import Program
from edgeattn.converters.passes.replacing import replace_calls

aten = torch.ops.aten


def masked_writes(program: Program) -> int:
    """Rewrite each write under a mask; returns how many there were."""
    return replace_calls(program, {aten.index_put.default: _index_put, aten.masked_scatter.default: _masked_scatter})


def _index_put(x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False) -> Any:
    masks = [(place, index) for place, index in enumerate(indices) if index is not None]
    if len(masks) != 1 or masks[0][1].dtype != torch.bool:
        return NotImplemented
    before, mask = masks[0]
    after = x.ndim - before - mask.ndim
    wide = mask.reshape([1] * before + list(mask.shape) + [1] * after)
    written = values.to(x.dtype)
    rows = values.shape[-after - 1] if values.ndim > after else 1
    if rows != 1:  # a value for each true place
        if before or values.ndim != after + 1:
            return NotImplemented
        written = written.index_select(0, _counted(mask, rows)).reshape([*mask.shape, *values.shape[1:]])
    elif values.ndim > after:  # the places' axis, of size 1, stands for all axes of the mask
        front, back = values.shape[: values.ndim - after - 1], values.shape[values.ndim - after :]
        written = written.reshape([*front, *[1] * mask.ndim, *back])
    if accumulate:
        return x + torch.where(wide, written, torch.zeros((), dtype=x.dtype))
    return x.masked_fill(wide, written) if written.ndim == 0 else torch.where(wide, written, x)


def _masked_scatter(x: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    wide = mask.expand(x.shape)
    places = _counted(wide, source.numel())
    return torch.where(wide, source.reshape(-1).index_select(0, places).reshape(x.shape), x)


def _counted(mask: Tensor, rows: int) -> Tensor:
    """How many places before each are true, the first axis first; flat, below ``rows``."""
    flat = mask.reshape(math.prod(mask.shape))
    return (flat.to(torch.int64).cumsum(0) - 1).clamp(0, rows - 1)
