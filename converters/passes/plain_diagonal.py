"""``diagonal`` and ``trace`` as a slice with a step: LiteRT's converter compares unsigned numbers there, and stops.

The diagonal of a matrix [n, m] with n <= m is every (m + 1)-th element of its rows laid end to end.
"""

from __future__ import annotations

from typing import Any

import torch

from edgeattn.converters.passes.graph import Program, Writer, size, written_in_place

aten = torch.ops.aten


def plain_diagonal(program: Program) -> int:
    """Rewrite each ``diagonal`` that nobody writes into, and each ``trace``; returns how many there were."""
    written = written_in_place(program.graph)
    calls = [node for node in program.calls(aten.diagonal.default, aten.trace.default) if node not in written]
    for node in calls:
        write = Writer(program, node)
        if node.target is aten.trace.default:
            write.finish(aten.sum.dim_IntList, diagonal(write, node.args[0], 0, 0, 1), [0])
            continue
        given: dict[str, Any] = dict(zip(("offset", "dim1", "dim2"), node.args[1:], strict=False)) | dict(node.kwargs)
        made = diagonal(write, node.args[0], given.get("offset", 0), given.get("dim1", 0), given.get("dim2", 1))
        node.kwargs = {}
        write.finish(aten.reshape.default, made, list(size(node)))
    return len(calls)


def diagonal(write: Writer, source: Any, offset: int, first: int, second: int) -> Any:
    """The diagonal over two axes, as the last axis of the result; at least one element must be on it."""
    rank = len(size(source))
    first, second = first % rank, second % rank
    others = [axis for axis in range(rank) if axis not in (first, second)]
    if [*others, first, second] != list(range(rank)):
        source = write(aten.permute.default, source, [*others, first, second])
    *outer, rows, columns = size(source)
    if offset > 0:
        source, columns = write(aten.slice.Tensor, source, rank - 1, offset, columns), columns - offset
    elif offset < 0:
        source, rows = write(aten.slice.Tensor, source, rank - 2, -offset, rows), rows + offset
    length = min(rows, columns)
    if length < rows:
        source = write(aten.slice.Tensor, source, rank - 2, 0, length)
    flat = write(aten.reshape.default, source, [*outer, length * columns])
    return write(aten.slice.Tensor, flat, rank - 2, 0, length * columns, columns + 1)
