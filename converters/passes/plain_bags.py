"""``EmbeddingBag`` as an embedding and a sum, mean or maximum over the rows of each bag.

Bags of one size, as a 2-D input makes them, are rows of a table of indices. Bags that begin where ``offsets`` says
have sizes that depend on values: which row belongs to which bag is then a comparison of places with offsets.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgeattn.converters.passes.graph import Program
from edgeattn.converters.passes.replacing import is_read, replace

aten = torch.ops.aten
BAGS = (aten.embedding_bag.padding_idx, aten.embedding_bag.default)
SUM, MEAN, MAX = 0, 1, 2  # torch's numbers


def plain_bags(program: Program) -> int:
    """Rewrite each embedding bag; returns how many there were."""
    changed = 0
    for node in program.calls(*BAGS):
        if not any(is_read(node, output) for output in (1, 2, 3)):  # what torch's backward needs
            changed += replace(program, node, functools.partial(_bag, _size_of_bags(program, node)))
    return changed


def _size_of_bags(program: Program, node: torch.fx.Node) -> int:
    """How many indices each bag has, where all have as many; else 0."""
    arguments: tuple[Any, ...] = node.args
    indices, offsets = arguments[1].meta["val"].numel(), program.known(arguments[2])
    last = len(arguments) > 7 and arguments[7]
    if offsets is None or not len(offsets) - last:
        return 0
    bags = len(offsets) - last
    size = indices // bags
    even = torch.equal(offsets, torch.arange(len(offsets), dtype=offsets.dtype) * size) and size * bags == indices
    return size if even else 0


def _bag(
    size: int,
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,  # noqa: ARG001  # the operator's own arguments
    mode: int = SUM,
    sparse: bool = False,  # noqa: ARG001
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> tuple[Tensor, None, None, None]:
    rows = functional.embedding(indices, weight)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights[:, None]
    padding = -1 if padding_idx is None else padding_idx
    if size:
        rows = rows.reshape(-1, size, weight.shape[1])
        counted = None if padding < 0 else (indices != padding).reshape(-1, size)
    else:
        counted = _members(indices, offsets, include_last_offset)
        counted = counted if padding < 0 else counted & (indices != padding)
        rows = rows[None]
    return _reduced(rows, counted, mode), None, None, None


def _members(indices: Tensor, offsets: Tensor, include_last_offset: bool) -> Tensor:
    """Which of the indices belong to which bag, (bags, indices)."""
    places = torch.arange(len(indices))
    if include_last_offset:
        return (places >= offsets[:-1, None]) & (places < offsets[1:, None])
    begun = places >= offsets[:, None]
    ended = torch.cat([begun[1:], torch.zeros_like(begun[:1])])
    return begun & ~ended


def _reduced(rows: Tensor, counted: Tensor | None, mode: int) -> Tensor:
    """The bags: (bags or 1, rows, width) and which rows count, None for all."""
    if counted is None:
        return rows.amax(1) if mode == MAX else rows.mean(1) if mode == MEAN else rows.sum(1)
    if mode == MAX:
        highest = torch.where(counted[..., None], rows, float("-inf")).amax(1)
        return torch.where(counted.any(1, keepdim=True), highest, 0.0)
    kept = counted.to(rows.dtype)
    total = kept @ rows[0] if len(rows) == 1 else (rows * kept[..., None]).sum(1)
    return total / kept.sum(1, keepdim=True).clamp(min=1.0) if mode == MEAN else total
