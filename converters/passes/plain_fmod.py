"""``fmod`` of integers as ``x - trunc(x / n) * n``: LiteRT's lowering divides in float64, which has no kernel."""

from __future__ import annotations

from typing import Any

import torch

from edgeattn.converters.passes.graph import Program, Writer

aten = torch.ops.aten


def plain_fmod(program: Program) -> int:
    """Rewrite each ``fmod`` of integers; returns how many there were."""
    changed = 0
    for node in program.calls(aten.fmod.Scalar, aten.fmod.Tensor):
        arguments: tuple[Any, ...] = node.args
        source, divisor = arguments
        if node.meta["val"].is_floating_point():
            continue
        write = Writer(program, node)
        times = write(aten.div.Tensor_mode, source, divisor, rounding_mode="trunc")
        write.finish(aten.sub.Tensor, source, write(aten.mul.Tensor, times, divisor))
        changed += 1
    return changed
