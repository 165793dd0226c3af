"""Every scatter that adds or reduces becomes ``scatter_add`` or ``scatter_reduce``, which exporters write right.

torch's ONNX exporter has no ``index_reduce`` and no scatter with ``reduce``, writes the sum for the mean of
``scatter_reduce``, and takes ``index_add`` and ``index_put`` with ``accumulate`` by other nodes than ``scatter_add``.
Graph attention over lists of edges and pointer-generators (See et al., 2017) are made of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from edgeattn.converters.passes.graph import Program
from edgeattn.converters.passes.replacing import replace_calls

aten = torch.ops.aten
NEUTRAL = {"sum": 0, "prod": 1}
NAMES = {"add": "sum", "multiply": "prod"}  # of scatter, in scatter_reduce's words


def plain_scatters(program: Program) -> int:
    """Rewrite each of them; returns how many there were."""
    return replace_calls(
        program,
        {
            aten.index_add.default: _index_add,
            aten.index_reduce.default: _index_reduce,
            aten.index_put.default: _index_put,
            aten.scatter.reduce: _scatter,
            aten.scatter.value_reduce: _scatter_value,
            aten.scatter_reduce.two: _scatter_reduce,
            aten.scatter_add.default: _scatter_add,
        },
    )


def _index_add(x: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
    return x.scatter_add(dim, _along(index, dim, source), source if alpha == 1 else source * alpha)


def _index_reduce(
    x: Tensor,
    dim: int,
    index: Tensor,
    source: Tensor,
    reduce: str,
    *,
    include_self: bool = True,
) -> Any:
    places = _along(index, dim, source)
    if reduce == "mean":
        return _mean(x, dim, places, source, include_self)
    return x.scatter_reduce(dim, places, source, reduce, include_self=include_self)


def _along(index: Tensor, dim: int, source: Tensor) -> Tensor:
    return index.reshape([-1] + [1] * (source.ndim - dim % source.ndim - 1)).to(torch.int64).expand(source.shape)


def _covers(x: Tensor, dim: int, index: Tensor) -> bool:
    """Whether an index is as long as what is written along every other axis."""
    axis = dim % max(x.ndim, 1)
    return all(index.shape[other] == size for other, size in enumerate(x.shape) if other != axis)


def _fitted(x: Tensor, dim: int, index: Tensor, source: Tensor, write: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Write into the part of ``x`` that the index is as long as, which is how far a scatter goes."""
    sizes = list(index.shape)
    part = source[tuple(slice(0, size) for size in sizes)]
    if not x.ndim:
        return write(x, part)
    sizes[dim] = x.shape[dim]
    result = write(x[tuple(slice(0, size) for size in sizes)], part)
    for axis in range(x.ndim - 1, -1, -1):
        if sizes[axis] < x.shape[axis]:
            rest = x[tuple(slice(0, size) for size in sizes[:axis])].narrow(
                axis, sizes[axis], x.shape[axis] - sizes[axis]
            )
            result = torch.cat([result, rest], axis)
    return result


def _scatter(x: Tensor, dim: int, index: Tensor, source: Tensor, *, reduce: str) -> Tensor:
    if reduce == "add":
        return _added(x, dim, index, source)
    return _fitted(x, dim, index, source, lambda inner, part: inner.scatter_reduce(dim, index, part, NAMES[reduce]))


def _scatter_value(x: Tensor, dim: int, index: Tensor, value: float, *, reduce: str) -> Tensor:
    return _scatter(x, dim, index, torch.full(index.shape, value, dtype=x.dtype), reduce=reduce)


def _scatter_reduce(
    x: Tensor,
    dim: int,
    index: Tensor,
    source: Tensor,
    reduce: str,
    *,
    include_self: bool = True,
) -> Any:
    if reduce == "mean":
        return _mean(x, dim, index, source, include_self)
    if include_self and reduce != "sum" and index.shape == source.shape and _covers(x, dim, index):
        return NotImplemented
    if reduce in NEUTRAL and not include_self:  # TensorRT does not take how torch's exporter leaves the first value out
        number = _added(torch.zeros_like(x), dim, index, torch.ones_like(source))
        x, include_self = torch.where(number > 0, NEUTRAL[reduce], x), True
    if reduce == "sum":
        return _added(x, dim, index, source)

    def write(inner: Tensor, part: Tensor) -> Tensor:
        return inner.scatter_reduce(dim, index, part, reduce, include_self=include_self)

    return _fitted(x, dim, index, source, write)


def _scatter_add(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Any:
    if index.shape == source.shape and _covers(x, dim, index):
        return NotImplemented
    return _added(x, dim, index, source)


def _added(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    return _fitted(x, dim, index, source, lambda inner, part: inner.scatter_add(dim, index, part))


def _mean(x: Tensor, dim: int, index: Tensor, source: Tensor, include_self: bool) -> Tensor:
    nothing = torch.zeros_like(x)
    number = _added(nothing, dim, index, torch.ones_like(source))
    total = _added(x if include_self else nothing, dim, index, source)
    if include_self:
        number = number + 1
    counted = number.clamp(min=1)
    mean = total / counted if x.dtype.is_floating_point else torch.div(total, counted, rounding_mode="floor")
    return mean if include_self else torch.where(number > 0, mean, x)


def _index_put(x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False) -> Any:
    whole = [index for index in indices if index is not None and index.dtype != torch.bool]
    if not accumulate or len(whole) != len(indices):  # torch itself takes no slice before the indices here
        return NotImplemented
    sizes, back = x.shape[: len(whole)], x.shape[len(whole) :]
    place: Any = 0
    for index, size in zip(whole, sizes, strict=True):
        place = place * size + torch.where(index < 0, index + size, index)
    flat = x.reshape(math.prod(sizes), math.prod(back))
    rows = values.expand([*place.shape, *back]).reshape(place.numel(), math.prod(back))
    return flat.scatter_add(0, place.reshape(-1, 1).expand(rows.shape), rows).reshape(x.shape)
