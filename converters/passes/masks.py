"""Reading attention masks in a traced program: which positions may be seen, and as what number the others are written.

Models hide positions in many ways: a boolean mask, ``masked_fill(zeros, hidden, -inf)``, ``where(seen, 0, lowest)``,
``(1 - seen) * lowest``, sums of these. They all come down to a boolean "seen" and one of two numbers:

- minus infinity. A row that sees nothing is NaN after softmax; ``scaled_dot_product_attention`` gives zeros for it;
- the lowest finite number. A row that sees nothing becomes uniform: any score drowns in the number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from edgeattn.converters.passes.graph import LOWEST, Program, Writer

aten = torch.ops.aten

# Operators that move a mask without looking at its values; "seen" moves along.
MOVING = frozenset((
    aten.view.default, aten.reshape.default, aten.expand.default, aten.unsqueeze.default, aten.squeeze.dim,
    aten.transpose.int, aten.permute.default, aten.slice.Tensor, aten.select.int, aten.repeat.default,
))  # fmt: skip
COPIES = frozenset((
    aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten._to_copy.default, aten.clone.default,
    aten.contiguous.default, aten.alias.default, aten.detach_.default, aten.detach.default,
    aten.lift_fresh_copy.default,
))  # fmt: skip


@dataclass(frozen=True)
class Mask:
    """An additive mask of which only two values are possible, 0 and hidden.

    Attributes:
        seen: boolean node, broadcastable like the mask.
        infinite: hidden positions hold -inf, not a lowest finite number.
    """

    seen: torch.fx.Node
    infinite: bool


def read_mask(program: Program, node: Any, write: Writer) -> Mask | None:
    """The boolean behind an additive mask, or None where the node is no mask (a learned bias, an input)."""
    if not isinstance(node, torch.fx.Node) or node.op != "call_function":
        return _read_constant(program, node, write)
    if node.target in COPIES:
        return read_mask(program, node.args[0], write)
    if node.target in MOVING:
        inner = read_mask(program, node.args[0], write)
        return inner and Mask(write(node.target, inner.seen, *node.args[1:], **node.kwargs), inner.infinite)
    if node.target is aten.add.Tensor and not node.kwargs:
        left, right = (read_mask(program, argument, write) for argument in node.args)
        if left is None or right is None:
            return None
        return Mask(write(aten.logical_and.default, left.seen, right.seen), left.infinite or right.infinite)
    return (
        _read_choice(program, node, write)
        or _read_product(program, node, write)
        or _read_constant(program, node, write)
    )


def _read_choice(program: Program, node: torch.fx.Node, write: Writer) -> Mask | None:
    """``masked_fill(0, hidden, lowest)`` or ``where(condition, 0, lowest)``, either way round."""
    arguments: tuple[Any, ...] = node.args
    if node.target in (aten.masked_fill.Scalar, aten.masked_fill_.Scalar, aten.masked_fill.Tensor):
        base, condition, fill = arguments
        hidden = scalar(program, fill)
        if hidden is None or hidden > LOWEST:
            return None
        seen = write(aten.logical_not.default, condition)
        if scalar(program, base) == 0.0:
            return Mask(seen, math.isinf(hidden))
        under = read_mask(program, base, write)
        return under and Mask(write(aten.logical_and.default, under.seen, seen), under.infinite or math.isinf(hidden))
    if node.target in (aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar):
        condition, *choices = arguments
        values = [scalar(program, choice) for choice in choices]
        if values[0] == 0.0 and values[1] is not None and values[1] <= LOWEST:
            return Mask(condition, math.isinf(values[1]))
        if values[1] == 0.0 and values[0] is not None and values[0] <= LOWEST:
            return Mask(write(aten.logical_not.default, condition), math.isinf(values[0]))
    return None


def _read_product(program: Program, node: torch.fx.Node, write: Writer) -> Mask | None:
    """``(1 - seen) * lowest`` on numbers 0 and 1, as BERT wrote it for years."""
    if node.target not in (aten.mul.Tensor, aten.mul.Scalar):
        return None
    factors = [scalar(program, argument) for argument in node.args]
    lowest = next((factor for factor in factors if factor is not None and factor <= LOWEST), None)
    other = next((a for a, factor in zip(node.args, factors, strict=True) if factor is None), None)
    if lowest is None or not isinstance(other, torch.fx.Node) or math.isinf(lowest):
        return None
    return Mask(write(aten.eq.Scalar, other, 0), False)


def _read_constant(program: Program, node: Any, write: Writer) -> Mask | None:
    value = program.known(node) if isinstance(node, torch.fx.Node) else None
    if value is None or not value.is_floating_point() or value.numel() == 0:
        return None
    hidden = value <= LOWEST
    if not bool(hidden.any()) or not bool((value[~hidden] == 0).all()):
        return None
    return Mask(write.constant(~hidden), bool(torch.isinf(value[hidden]).any()))


def scalar(program: Program, value: Any) -> float | None:
    """The one number that a node or a Python number stands for."""
    if isinstance(value, (int, float)):
        return float(value)
    if isinstance(value, torch.fx.Node) and value.target in (
        aten.full.default,
        aten.zeros.default,
        aten.zeros_like.default,
        aten.new_zeros.default,
        aten.full_like.default,
    ):
        if value.target in (aten.full.default, aten.full_like.default):
            fill = value.args[1]
            return float(fill) if isinstance(fill, (int, float)) else None
        return 0.0
    known = program.known(value)
    if known is None or known.numel() == 0 or known.dtype == torch.bool:
        return None
    first = known.reshape(-1)[0]
    return float(first) if known.numel() == 1 or bool((known == first).all()) else None
