"""``one_hot`` as a comparison with 0 .. n-1: torch's own decomposition asserts at run time, and scatters.

An engine cannot raise, a scatter is refused by delegates, and LiteRT has no lowering for the assertion.
"""

from __future__ import annotations

import torch

from edgeattn.converters.passes.graph import Program, Writer

aten = torch.ops.aten


def plain_one_hot(program: Program) -> int:
    """Rewrite each ``one_hot`` with a given number of classes; returns how many there were."""
    calls = [node for node in program.calls(aten.one_hot.default) if len(node.args) > 1 and node.args[1] != -1]
    for node in calls:
        indices, classes = node.args
        write = Writer(program, node)
        numbers = write.constant(torch.arange(int(classes)))  # type: ignore[arg-type]
        equal = write(aten.eq.Tensor, write(aten.unsqueeze.default, indices, -1), numbers)
        write.finish(aten.to.dtype, equal, torch.int64)
    return len(calls)
