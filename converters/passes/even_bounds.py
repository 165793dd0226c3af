"""``clamp(0, 1.0)`` with both bounds as floats.

Torch's decomposition promotes each bound by itself: where one is an integer and the other a float, its ONNX exporter
stops ("Cannot find a compatible OpOverload for aten.clamp"). The numbers are the same.
"""

from __future__ import annotations

from typing import Any

import torch

from edgeattn.converters.passes.graph import Program

aten = torch.ops.aten


def even_bounds(program: Program) -> int:
    """Rewrite each ``clamp`` between an integer and a float; returns how many there were."""
    changed = 0
    for node in program.calls(aten.clamp.default, aten.clamp_.default):
        source, *bounds = node.args
        low: Any = bounds[0] if bounds else node.kwargs.get("min")
        high: Any = bounds[1] if len(bounds) > 1 else node.kwargs.get("max")
        if {type(low), type(high)} == {int, float}:
            node.args, node.kwargs = (source, float(low), float(high)), {}
            changed += 1
    return changed
