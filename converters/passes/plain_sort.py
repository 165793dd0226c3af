"""``sort(stable=True)`` as ``sort``: torch's ONNX exporter has no function for the overload.

TopK of ONNX puts the lower index of equal values first, which is what stable asks for.
"""

from __future__ import annotations

from typing import Any

import torch

from edgeattn.converters.passes.graph import Program, Writer

aten = torch.ops.aten


def plain_sort(program: Program) -> int:
    """Rewrite each stable ``sort`` and ``argsort``; returns how many there were."""
    changed = 0
    for node in program.calls(aten.sort.stable, aten.argsort.stable):
        given: dict[str, Any] = dict(zip(_formals(node), node.args, strict=False)) | dict(node.kwargs)
        plain = aten.sort.default if node.target is aten.sort.stable else aten.argsort.default
        write = Writer(program, node)
        node.kwargs = {}
        write.finish(plain, given["self"], given.get("dim", -1), given.get("descending", False))
        changed += 1
    return changed


def _formals(node: torch.fx.Node) -> list[str]:
    """Names of the arguments that may stand by position, as torch declares them."""
    assert isinstance(node.target, torch._ops.OpOverload)
    return [argument.name for argument in node.target._schema.arguments if not argument.kwarg_only]
