"""Run-time assertions leave the program: an engine cannot raise.

Index checks trace to ``_assert_async``, for which LiteRT has no lowering; dtype checks of ``.to()`` trace to
``_assert_tensor_metadata`` and hold by the static types.
"""

from __future__ import annotations

import torch

from edgeattn.converters.passes.graph import Program

aten = torch.ops.aten
ASSERTS = (
    aten._assert_async.msg,
    aten._assert_async.default,
    aten._assert_tensor_metadata.default,
    aten._assert_scalar.default,
)


def drop_asserts(program: Program) -> int:
    """Remove every assertion; returns how many there were."""
    asserts = program.calls(*ASSERTS)
    for node in asserts:
        program.graph.erase_node(node)
    return len(asserts)
