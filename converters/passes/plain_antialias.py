"""An antialiased resize becomes two products with constant matrices, one along each axis.

OpenVINO reads ONNX's Resize and leaves ``antialias`` out, silently; TensorRT and LiteRT have no such operation. The
matrices are what torch makes of the identity.
"""

from __future__ import annotations

from typing import Any

import torch

from edgeattn.converters.passes.graph import Program, Writer, size

aten = torch.ops.aten


def plain_antialias(program: Program) -> int:
    """Rewrite each antialiased bilinear or bicubic resize; returns how many there were."""
    calls = program.calls(aten._upsample_bilinear2d_aa.vec, aten._upsample_bicubic2d_aa.vec)
    for node in calls:
        write, arguments = Writer(program, node), node.args
        rows, columns = write.constant(_matrix(node, 0)), write.constant(_matrix(node, 1).T)
        write.finish(aten.matmul.default, write(aten.matmul.default, rows, arguments[0]), columns)
    return len(calls)


def _matrix(node: torch.fx.Node, place: int) -> torch.Tensor:
    """What a resize does along its first or second axis, (output length, input length)."""
    arguments: tuple[Any, ...] = node.args
    source, sizes, corners, scales = arguments
    length = size(source)[place - 2]
    identity = torch.eye(length, dtype=torch.float64)[None, None]
    wanted = None if sizes is None else [sizes[place], length]
    factors = None if scales is None else [scales[place], 1.0]
    resize: Any = node.target
    made: torch.Tensor = resize(identity, wanted, corners, factors)
    return made[0, 0].to(source.meta["val"].dtype)
