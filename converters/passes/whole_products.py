"""Products of integers by arithmetic that every engine has.

TensorRT and LiteRT multiply matrices of floats alone. A sum of products of 8 bits is exact in float32 up to 1,024
terms: 2^24 is what its digits hold. Other integers are multiplied one by one and summed, which is exact in their own
type, as long as that stays small.
"""

from __future__ import annotations

from typing import Any

import torch

from edgeattn.converters.passes.graph import Program, Writer, size, through

aten = torch.ops.aten
PRODUCTS = (aten.matmul.default, aten.mm.default, aten.bmm.default, aten.linear.default, aten._int_mm.default)
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
SMALL = {torch.int8: 2**7, torch.uint8: 2**8 - 1, torch.bool: 1}  # type -> largest magnitude
EXACT = 2**24  # float32 holds every whole number up to it
MAX_TERMS = 2**22  # products that are written out: 16 MB of int32
KEPT = (aten.to.dtype, aten._to_copy.default, aten.transpose.int, aten.t.default, aten.permute.default,
        aten.view.default, aten.reshape.default, aten.unsqueeze.default, aten.mT.default, aten.numpy_T.default,
        aten.select.int, aten.slice.Tensor, aten.contiguous.default, aten.clone.default)  # fmt: skip
"""What hands values on as they are."""


def whole_products(program: Program) -> int:
    """Rewrite each product of integers; returns how many there were."""
    changed = 0
    for node in program.calls(*PRODUCTS):
        arguments: tuple[Any, ...] = node.args
        if node.meta["val"].dtype in WHOLE and len(arguments) == 2:
            changed += _rewrite(program, node)
    return changed


def _rewrite(program: Program, node: torch.fx.Node) -> bool:
    left, right = (argument for argument in node.args if isinstance(argument, torch.fx.Node))
    kind = node.meta["val"].dtype
    terms = size(left)[-1]
    write = Writer(program, node)
    if terms * _magnitude(program, left) * _magnitude(program, right) < EXACT:
        factors = [write(aten.to.dtype, factor, torch.float32) for factor in (left, right)]
        target: Any = aten.matmul.default if node.target is aten._int_mm.default else node.target
        write.finish(aten.to.dtype, write(target, *factors), kind)
        return True
    if node.target is aten.linear.default:
        right = write(aten.transpose.int, right, 0, 1)
    if len(size(right)) < 2 or len(size(left)) < 2 or node.meta["val"].numel() * terms > MAX_TERMS:
        return False
    spread = write(aten.mul.Tensor, write(aten.unsqueeze.default, left, -1), write(aten.unsqueeze.default, right, -3))
    total = write(aten.sum.dim_IntList, spread, [-2])
    write.finish(aten.to.dtype, total, kind)
    return True


def _magnitude(program: Program, node: torch.fx.Node) -> int:
    """The largest magnitude that a value can have, as far as the types on its way tell."""
    step: Any = node
    least = EXACT
    while isinstance(step, torch.fx.Node):
        value = step.meta.get("val")
        if isinstance(value, torch.Tensor):
            least = min(least, SMALL.get(value.dtype, EXACT))
        known = program.known(step) if step.op == "placeholder" else None
        if known is not None and not known.is_floating_point() and known.numel():
            least = min(least, int(known.abs().max()) if known.dtype is not torch.uint8 else int(known.max()))
        following = through(step, KEPT)
        step = step.args[0] if following is not step else None
    return least
