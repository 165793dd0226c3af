"""``cdist`` as a difference, its powers, their sum and its root: torch's newer ONNX exporter has no function for it.

The older one has, but a graph that needs the newer one for anything else is refused, and its odd powers of negative
differences are negative. The difference of every pair must fit :data:`MAX_ELEMENTS`.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from edgeattn.converters.passes.graph import Program, Writer, size

aten = torch.ops.aten
MAX_ELEMENTS = 2**22


def plain_distances(program: Program) -> int:
    """Rewrite each ``cdist`` of points that are few; returns how many there were."""
    changed = 0
    for node in program.calls(aten.cdist.default):
        arguments: tuple[Any, ...] = node.args
        left, right = arguments[:2]
        power: Any = arguments[2] if len(arguments) > 2 else node.kwargs.get("p", 2.0)
        pairs = node.meta["val"].numel() * size(left)[-1]
        if power <= 0 or pairs > MAX_ELEMENTS or len(size(left)) != len(size(right)):
            continue
        write = Writer(program, node)
        apart = write(
            aten.sub.Tensor, write(aten.unsqueeze.default, left, -2), write(aten.unsqueeze.default, right, -3)
        )
        node.kwargs = {}
        if power == 2:  # Euclid
            write.finish(aten.sqrt.default, write(aten.sum.dim_IntList, write(aten.mul.Tensor, apart, apart), [-1]))
        elif math.isinf(power):
            write.finish(aten.amax.default, write(aten.abs.default, apart), [-1])
        elif power == 1:
            write.finish(aten.sum.dim_IntList, write(aten.abs.default, apart), [-1])
        else:
            raised = write(aten.pow.Tensor_Scalar, write(aten.abs.default, apart), power)
            write.finish(aten.pow.Tensor_Scalar, write(aten.sum.dim_IntList, raised, [-1]), 1 / power)
        changed += 1
    return changed
