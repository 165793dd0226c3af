"""``1.0 - mask`` becomes a difference of two tensors.

It traces to ``rsub(mask, 1.0)``, which torch's own decomposition turns into ``sub(1.0, mask)`` with a Python number
where a tensor belongs. Where the types must be promoted besides (an integer mask), torch 2.13's ONNX exporter stops:
"Cannot find a compatible OpOverload for aten.sub" (XLNet). A tensor without axes promotes as the number does.
"""

from __future__ import annotations

from typing import Any

import torch

from edgeattn.converters.passes.graph import Program, Writer

aten = torch.ops.aten


def tensor_operands(program: Program) -> int:
    """Rewrite each ``rsub`` of a number; returns how many there were."""
    calls = program.calls(aten.rsub.Scalar)
    for node in calls:
        arguments: tuple[Any, ...] = node.args
        factor = arguments[2] if len(arguments) > 2 else node.kwargs.get("alpha", 1)
        write = Writer(program, node)
        node.kwargs = {}
        write.finish(aten.sub.Tensor, write.constant(torch.tensor(arguments[1])), arguments[0], alpha=factor)
    return len(calls)
