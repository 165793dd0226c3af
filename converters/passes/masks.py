"""Reading attention masks in a traced program: which positions may be seen, and as what number the others are written.

Models hide positions in many ways: a boolean mask, ``masked_fill(zeros, hidden, -inf)``, ``where(seen, 0, lowest)``,
``(1 - seen) * lowest``, sums of these. They all come down to a boolean "seen" for each of two numbers:

- minus infinity. A row that sees nothing is NaN after softmax; ``scaled_dot_product_attention`` gives zeros for it;
- the lowest finite number. A row that sees nothing becomes uniform: any score drowns in the number. Where a row has
  both, the finite ones win.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from edgeattn.converters.passes.graph import DROWNS, LOWEST, Program, Writer

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


# What they give is a mask no more, whatever they read.
PRODUCTS = frozenset((
    aten.linear.default, aten.matmul.default, aten.mm.default, aten.bmm.default, aten.addmm.default,
    aten.baddbmm.default, aten.einsum.default, aten.embedding.default, aten.layer_norm.default, aten.softmax.int,
    aten.tanh.default, aten.sigmoid.default, aten.conv1d.default, aten.conv2d.default,
))  # fmt: skip


@dataclass(frozen=True)
class Mask:
    """An additive mask of which only 0 and what hides are possible.

    Attributes:
        shown: boolean node, false where the mask holds ``number``; None if it nowhere does.
        number: the lowest finite number that hides.
        seen: boolean node, false where the mask holds -inf; None if it nowhere does. Both are broadcastable like the
            mask.
    """

    shown: torch.fx.Node | None = None
    number: float | None = None
    seen: torch.fx.Node | None = None


def both(write: Writer, left: torch.fx.Node | None, right: torch.fx.Node | None) -> torch.fx.Node | None:
    """Where two booleans hold; None holds everywhere."""
    if left is None or right is None or left is right:
        return right if left is None else left
    return write(aten.logical_and.default, left, right)


def either(write: Writer, left: torch.fx.Node | None, right: torch.fx.Node | None) -> torch.fx.Node | None:
    """Where one of two booleans holds; None holds everywhere."""
    return None if left is None or right is None else write(aten.logical_or.default, left, right)


def read_mask(program: Program, node: Any, write: Writer) -> Mask | None:
    """The booleans behind an additive mask, or None where the node is no mask (a learned bias, an input).

    Nor is a mask one in which finite numbers hide at several depths: a row that sees nothing shows the highest of them.
    """
    if not isinstance(node, torch.fx.Node):
        return None
    if node.op != "call_function" or program.known(node) is not None:
        return _read_constant(program, node, write)
    if node.target in COPIES:
        return read_mask(program, node.args[0], write)
    if node.target in MOVING:
        inner = read_mask(program, node.args[0], write)
        if inner is None:
            return None
        rest = node.args[1:]
        shown, seen = (part and write(node.target, part, *rest, **node.kwargs) for part in (inner.shown, inner.seen))
        return Mask(shown, inner.number, seen)
    if node.target is aten.add.Tensor and not node.kwargs:
        left, right = (read_mask(program, argument, write) for argument in node.args)
        return None if left is None or right is None else _sum(left, right, write)
    return _read_choice(program, node, write) or _read_product(program, node, write)


def _sum(left: Mask, right: Mask, write: Writer) -> Mask | None:
    seen = both(write, left.seen, right.seen)
    if left.number is None or right.number is None:
        return Mask(both(write, left.shown, right.shown), left.number or right.number, seen)
    if left.shown is None or right.shown is None or left.number + right.number >= torch.finfo(torch.float32).min:
        return None  # what both hide lies deeper than what one hides
    # The sum of two lowest numbers is -inf.
    if left.number != right.number:
        return None
    return Mask(
        both(write, left.shown, right.shown),
        left.number,
        both(write, seen, either(write, left.shown, right.shown)),
    )


def _read_choice(program: Program, node: torch.fx.Node, write: Writer) -> Mask | None:
    """``masked_fill(0, hidden, lowest)`` or ``where(condition, 0, lowest)``, either way round."""
    arguments: tuple[Any, ...] = node.args
    if node.target in (aten.masked_fill.Scalar, aten.masked_fill_.Scalar, aten.masked_fill.Tensor):
        base, condition, fill = arguments
        number = scalar(program, fill)
        if number is None or not _hides(number):
            return None
        under = Mask() if scalar(program, base) == 0.0 else read_mask(program, base, write)
        if under is None:
            return None
        if math.isinf(number):
            return replace(under, seen=both(write, under.seen, write(aten.logical_not.default, condition)))
        if under.number not in (None, number):
            return None
        shown = both(write, under.shown, write(aten.logical_not.default, condition))
        return Mask(shown, number, either(write, under.seen, condition))
    if node.target in (aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar):
        condition, *choices = arguments
        values = [scalar(program, choice) for choice in choices]
        for first, other in ((0, 1), (1, 0)):
            number = values[other]
            if values[first] == 0.0 and number is not None and _hides(number):
                seen = condition if first == 0 else write(aten.logical_not.default, condition)
                return Mask(seen=seen) if math.isinf(number) else Mask(seen, number)
    return None


def _hides(number: float) -> bool:
    return number <= DROWNS


def _read_product(program: Program, node: torch.fx.Node, write: Writer) -> Mask | None:
    """``(1 - seen) * lowest`` on numbers 0 and 1, as BERT wrote it for years."""
    if node.target not in (aten.mul.Tensor, aten.mul.Scalar):
        return None
    factors = [scalar(program, argument) for argument in node.args]
    lowest = next((factor for factor in factors if factor is not None and _hides(factor)), None)
    other = next((a for a, factor in zip(node.args, factors, strict=True) if factor is None), None)
    if lowest is None or not isinstance(other, torch.fx.Node) or math.isinf(lowest):
        return None
    return Mask(write(aten.eq.Scalar, other, 0), lowest)


def _read_constant(program: Program, node: torch.fx.Node, write: Writer) -> Mask | None:
    value = program.known(node)
    if value is None or not value.is_floating_point() or value.numel() == 0:
        return None
    hidden = value <= LOWEST
    if not bool(hidden.any()) or not bool((value[~hidden] == 0).all()):
        return None
    infinite = torch.isneginf(value)
    numbers = sorted(set(value[hidden & ~infinite].tolist()))
    blind = bool(hidden.all(-1).any())  # where every row sees something, it makes no difference how deep the rest lies
    if blind and (len(numbers) > 1 or not all(_hides(number) for number in numbers)):
        return None
    seen = write.constant(~infinite) if bool(infinite.any()) else None
    return Mask(write.constant(~hidden | infinite), min(numbers), seen) if numbers else Mask(seen=seen)


def may_hide(program: Program, mask: torch.fx.Node) -> bool:
    """Whether an additive mask may hold what hides: an input, or a number that is put or added on the way to it."""
    waiting: list[Any] = [mask]
    visited: set[torch.fx.Node] = set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, (int, float)) and node <= LOWEST:
            return True
        if not isinstance(node, torch.fx.Node) or node in visited:
            continue
        visited.add(node)
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or node.target in PRODUCTS:
            continue
        known = program.known(node)
        if known is not None:
            if bool((known <= LOWEST).any()):
                return True
        elif node.op == "placeholder":
            return True
        else:
            waiting += torch.utils._pytree.tree_leaves((node.args, node.kwargs))
    return False


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
