"""``log_sigmoid`` as ``min(x, 0) - log(1 + exp(-|x|))``, which no engine rounds to -inf.

ONNX has no operator for it, and the exporter writes Log(Sigmoid(x)): Sigmoid is 0 below -18 in ONNX Runtime and below
-88 in exact arithmetic, where torch gives x. ``log(sigmoid(x))`` written out becomes ``-log(1 + exp(-x))``: torch's own
sigmoid is exact down to -88, and gives -inf from there as this does; ONNX Runtime's is not.
"""

from __future__ import annotations

from typing import Any

import torch

from edgeattn.converters.passes.graph import Program, Writer

aten = torch.ops.aten


def stable_log_sigmoid(program: Program) -> int:
    """Rewrite each ``log_sigmoid``, and each ``log`` of a ``sigmoid``; returns how many there were."""
    changed = 0
    for node in program.calls(aten.log_sigmoid.default, aten.log.default):
        source: Any = node.args[0]
        write = Writer(program, node)
        if node.target is aten.log_sigmoid.default:
            tail = write(aten.exp.default, write(aten.neg.default, write(aten.abs.default, source)))
            smaller = write(aten.neg.default, write(aten.relu.default, write(aten.neg.default, source)))
            write.finish(aten.sub.Tensor, smaller, write(aten.log1p.default, tail))
        elif getattr(source, "target", None) is aten.sigmoid.default and _is_float(source.args[0]):
            grown = write(aten.exp.default, write(aten.neg.default, source.args[0]))
            write.finish(aten.neg.default, write(aten.log.default, write(aten.add.Tensor, grown, 1.0)))
        else:
            continue
        changed += 1
    return changed


def _is_float(node: Any) -> bool:
    return bool(node.meta["val"].is_floating_point())
