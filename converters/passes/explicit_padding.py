"""``padding="same"`` of a convolution becomes numbers: LiteRT's decomposition rejects the string.

Stride is 1 there (torch demands it), so "same" pads dilation * (kernel - 1) in all, the odd one at the end
(torch.nn.Conv1d); "valid" pads nothing.
"""

from __future__ import annotations

from typing import Any

import torch

from edgeattn.converters.passes.graph import Program, Writer, size

aten = torch.ops.aten
CONVOLUTIONS: dict[Any, Any] = {
    aten.conv1d.padding: aten.conv1d.default,
    aten.conv2d.padding: aten.conv2d.default,
    aten.conv3d.padding: aten.conv3d.default,
}


def explicit_padding(program: Program) -> int:
    """Rewrite each convolution with a named padding; returns how many there were."""
    calls = program.calls(*CONVOLUTIONS)
    for node in calls:
        arguments: tuple[Any, ...] = node.args
        axes = len(size(arguments[1])) - 2
        defaults: list[Any] = [None, [1] * axes, "valid", [1] * axes, 1]
        bias, stride, padding, dilation, groups = [*arguments[2:], *defaults[len(arguments) - 2 :]]
        step = list(dilation) * (axes if len(dilation) == 1 else 1)
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(step, size(arguments[1])[2:], strict=True)]
        source, write = arguments[0], Writer(program, node)
        if any(amount % 2 for amount in total):
            # As torch does: the extra element goes to the end, the rest is symmetric.
            ends = [end for amount in reversed(total) for end in (0, amount % 2)]
            source = write(aten.constant_pad_nd.default, source, ends, 0.0)
        halves = [amount // 2 for amount in total]
        write.finish(CONVOLUTIONS[node.target], source, arguments[1], bias, stride, halves, dilation, groups)
    return len(calls)
