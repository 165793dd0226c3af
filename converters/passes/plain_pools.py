"""Adaptive pooling as pooling, as a mean or a maximum over whole axes, or over windows that are picked out.

Output ``i`` of ``n`` covers positions ``floor(i L / n)`` to ``ceil((i + 1) L / n)`` of an axis of length L
(torch.nn.AdaptiveAvgPool1d). Where n divides L that is a pooling of L / n; where n = 1, the whole axis. Else windows
overlap and may differ by one in length. torch's ONNX exporter and LiteRT know the first for one and two axes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgeattn.converters.passes.graph import Program
from edgeattn.converters.passes.replacing import is_read, replace

aten = torch.ops.aten
MAXIMA: dict[Any, Any] = {
    aten.adaptive_max_pool1d.default: functional.max_pool1d,
    aten.adaptive_max_pool2d.default: functional.max_pool2d,
    aten.adaptive_max_pool3d.default: functional.max_pool3d,
}


def plain_pools(program: Program) -> int:
    """Rewrite each adaptive maximum whose places nobody reads, and each adaptive mean of three axes."""
    changed = 0
    for node in program.calls(*MAXIMA, aten.adaptive_avg_pool3d.default):
        if node.target not in MAXIMA:
            changed += replace(program, node, _mean)
        elif not is_read(node, 1):
            changed += replace(program, node, _maximum(MAXIMA[node.target]))
    return changed


def _maximum(pool: Any) -> Any:
    def function(x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, None]:
        return _pooled(x, sizes, pool, mean=False), None

    return function


def _mean(x: Tensor, sizes: Sequence[int]) -> Tensor:
    return _pooled(x, sizes, functional.avg_pool3d, mean=True)


def _pooled(x: Tensor, sizes: Sequence[int], pool: Any, mean: bool) -> Tensor:
    axes = range(x.ndim - len(sizes), x.ndim)
    if all(size == 1 for size in sizes):
        return x.mean(list(axes), keepdim=True) if mean else x.amax(list(axes), keepdim=True)
    if all(x.shape[axis] % size == 0 for axis, size in zip(axes, sizes, strict=True)):
        windows = [x.shape[axis] // size for axis, size in zip(axes, sizes, strict=True)]
        result: Tensor = pool(x, windows, windows)
        return result
    for axis, size in zip(axes, sizes, strict=True):
        if x.shape[axis] != size:
            x = _along(x, axis, size, mean)
    return x


def _along(x: Tensor, axis: int, size: int, mean: bool) -> Tensor:
    length, after = x.shape[axis], x.ndim - axis - 1
    if size == 1:
        return x.mean(axis, keepdim=True) if mean else x.amax(axis, keepdim=True)
    numbers = torch.arange(size)
    first, end = numbers * length // size, ((numbers + 1) * length + size - 1) // size
    most = length // size + 2 if length % size else length // size
    places = first[:, None] + torch.arange(most)
    inside = places < end[:, None]
    chosen = torch.minimum(places, end[:, None] - 1).reshape(size * most)  # beyond a window's end its last again
    windows = x.index_select(axis, chosen).reshape([*x.shape[:axis], size, most, *x.shape[axis + 1 :]])
    if not mean:
        return windows.amax(axis + 1)
    shown = torch.where(inside.reshape([size, most] + [1] * after), windows, 0.0)
    return shown.sum(axis + 1) / (end - first).reshape([size] + [1] * after)
