"""Gather, scatter, sort: operators that read or write by index."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from edgeattn.sources.onnx.ops.node import Function, Node, NotImportableError, op, to_tensor

SORTED = 3840  # the most that TensorRT sorts


@op("Gather")
def _gather(node: Node) -> Function | nn.Module:
    axis, size = node.axis("axis"), node.shape()[node.axis("axis")]
    if 1 in node.constants:
        return _gather_constant(node, axis, size)
    table = node.constants.get(0)
    if table is not None and axis == 0 and table.ndim == 2 and table.dtype.kind == "f":
        node.taken.add(0)
        return Table(to_tensor(table))

    return lambda x, indices: gathered(x, indices, axis)


def gathered(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    """Slices along an axis by index, negative ones counted from the end."""
    flat = torch.where(indices < 0, indices + x.shape[axis], indices).reshape(-1)
    return torch.index_select(x, axis, flat).reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


class Table(nn.Embedding):
    """Rows of a constant table. Ids are those of an embedding: an id below zero is an error."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight.shape[0], weight.shape[1], _weight=weight, _freeze=True)

    def forward(self, _: None, ids: Tensor, *__: None) -> Tensor:  # type: ignore[override]
        """Rows by id."""
        return F.embedding(ids, self.weight)


def _gather_constant(node: Node, axis: int, size: int) -> Function:
    indices = node.static(1).astype(np.int64)
    indices = np.where(indices < 0, indices + size, indices)
    if indices.size and not 0 <= indices.min() <= indices.max() < size:
        raise NotImportableError(f"an index is beyond axis {axis} of size {size}")
    if indices.ndim == 0:
        position = int(indices)
        return lambda x, _: x.select(axis, position)
    steps = set(np.diff(indices.reshape(-1)).tolist())

    def shaped(x: Tensor, rows: Tensor) -> Tensor:
        return rows.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])

    if indices.size and steps <= {1}:  # neighbours: a slice
        first = int(indices.reshape(-1)[0])
        return lambda x, _: shaped(x, x.narrow(axis, first, indices.size))
    flat = torch.from_numpy(indices.reshape(-1).copy())
    return lambda x, _: shaped(x, torch.index_select(x, axis, flat.to(x.device)))


@op("GatherElements")
def _gather_elements(node: Node) -> Function:
    axis, size = node.axis("axis"), node.shape()[node.axis("axis")]

    def apply(x: Tensor, indices: Tensor) -> Tensor:
        positions = indices.to(torch.int64)
        return torch.gather(x, axis, torch.where(positions < 0, positions + size, positions))

    return apply


@op("GatherND")
def _gather_nd(node: Node) -> Function:
    batch = node.integer("batch_dims")
    data, indices = node.shape(), node.shape(1)
    depth = indices[-1]
    sizes = data[batch : batch + depth]
    strides = [math.prod(sizes[i + 1 :]) for i in range(depth)]
    groups = math.prod(data[:batch])
    tail = data[batch + depth :]
    target = (*indices[:-1], *tail)

    def apply(x: Tensor, index: Tensor) -> Tensor:
        place = _flat_index(index, sizes, strides).reshape(groups, -1)
        if groups > 1 or batch:
            offsets = torch.arange(groups, dtype=torch.int64, device=x.device)[:, None] * math.prod(sizes)
            place = place + offsets
        rows = x.reshape(groups * math.prod(sizes), *tail)
        return torch.index_select(rows, 0, place.reshape(-1)).reshape(target)

    return apply


def _flat_index(index: Tensor, sizes: tuple[int, ...], strides: list[int]) -> Tensor:
    total = None
    for i, (size, stride) in enumerate(zip(sizes, strides, strict=True)):
        part = index.select(-1, i).to(torch.int64)
        part = torch.where(part < 0, part + size, part) * stride
        total = part if total is None else total + part
    assert total is not None
    return total


@op("ScatterElements")
def _scatter_elements(node: Node) -> Function:
    axis, size = node.axis("axis"), node.shape()[node.axis("axis")]
    kind = node.text("reduction", "none")
    reductions = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}

    def apply(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        places = indices.to(torch.int64)
        places = torch.where(places < 0, places + size, places)
        if kind == "none":
            return torch.scatter(x, axis, places, updates)
        return torch.scatter_reduce(x, axis, places, updates, reductions[kind])

    return apply


@op("ScatterND")
def _scatter_nd(node: Node) -> Function:
    kind = node.text("reduction", "none")
    data, indices = node.shape(), node.shape(1)
    depth = indices[-1]
    sizes = data[:depth]
    strides = [math.prod(sizes[i + 1 :]) for i in range(depth)]
    tail = data[depth:]
    reductions = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}

    def apply(x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
        place = _flat_index(index, sizes, strides).reshape(-1)
        rows, new = x.reshape(math.prod(sizes), -1), updates.reshape(place.shape[0], -1)
        if kind == "none":
            return torch.index_put(rows, (place,), new).reshape(data)
        spread = place[:, None].expand(-1, rows.shape[1])
        return torch.scatter_reduce(rows, 0, spread, new, reductions[kind]).reshape(data)

    assert tail is not None
    return apply


@op("TensorScatter")
def _tensor_scatter(node: Node) -> Function:
    axis = node.axis("axis", -2)
    mode = node.text("mode", "linear")
    length, fresh = node.shape()[axis], node.shape(1)[axis]
    batch = node.shape()[0]
    starts = [int(v) for v in node.static(2)] if node.has(2) else [0] * batch

    def apply(x: Tensor, update: Tensor, *_: Tensor) -> Tensor:
        rows = []
        for index, start in enumerate(starts):
            places = (torch.arange(fresh, device=x.device) + start) % length if mode == "circular" else None
            if places is None:
                places = torch.arange(start, start + fresh, device=x.device)
            rows.append(torch.index_copy(x[index], axis - 1, places, update[index]))
        return torch.stack(rows)

    return apply


@op("TopK")
def _top_k(node: Node) -> Function:
    axis = node.axis("axis", -1)
    count = int(node.static(1).reshape(-1)[0]) if node.has(1) else node.integer("k")
    largest, ordered = bool(node.integer("largest", 1)), bool(node.integer("sorted", 1))

    def sort(x: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        values, places = torch.sort(x, dim=axis, descending=largest, stable=True)
        return values.narrow(axis, 0, count), places.narrow(axis, 0, count)

    def top(x: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        values, places = torch.topk(x, count, axis, largest, ordered)
        return values, places

    # Of equal values the standard takes the first, torch's topk any; TensorRT sorts no more than 3,840.
    return sort if node.shape()[axis] <= SORTED else top


@op("ArgMax", "ArgMin")
def _arg_extreme(node: Node) -> Function:
    axis, keep = node.axis("axis"), bool(node.integer("keepdims", 1))
    find = torch.argmax if node.op == "ArgMax" else torch.argmin
    if not node.integer("select_last_index"):
        return lambda x: find(x, axis, keep)
    last = node.shape()[axis] - 1
    return lambda x: last - find(x.flip(axis), axis, keep)


@op("CumSum", "CumProd")
def _cumulative(node: Node) -> Function:
    axis = int(node.static(1).reshape(-1)[0]) % node.rank()
    exclusive, reverse = node.integer("exclusive"), node.integer("reverse")
    product = node.op == "CumProd"

    def apply(x: Tensor, _: Tensor) -> Tensor:
        kept = x.dtype
        y = x.flip(axis) if reverse else x
        if exclusive:
            start = torch.full_like(y.narrow(axis, 0, 1), 1 if product else 0)
            y = torch.cat((start, y.narrow(axis, 0, y.shape[axis] - 1)), axis)
        y = (torch.cumprod(y, axis) if product else torch.cumsum(y, axis)).to(kept)
        return y.flip(axis) if reverse else y

    return apply


@op("OneHot")
def _one_hot(node: Node) -> Function:
    depth = int(node.static(1).reshape(-1)[0])
    off, on = (to_tensor(v.reshape(())) for v in node.static(2))
    rank = node.rank() + 1
    axis = node.axis("axis", -1, rank)

    def apply(indices: Tensor, *_: Tensor) -> Tensor:
        places = torch.where(indices < 0, indices + depth, indices).unsqueeze(axis)
        classes = torch.arange(depth, dtype=indices.dtype, device=indices.device)
        classes = classes.reshape([depth if i == axis else 1 for i in range(rank)])
        return torch.where(places == classes, on.to(indices.device), off.to(indices.device))

    return apply


@op("Compress")
def _compress(node: Node) -> Function:
    chosen = torch.from_numpy(np.nonzero(node.static(1).reshape(-1))[0].astype(np.int64))
    if "axis" not in node.attributes:
        return lambda x, _: torch.index_select(x.reshape(-1), 0, chosen.to(x.device))
    axis = node.axis("axis")
    return lambda x, _: torch.index_select(x, axis, chosen.to(x.device))
