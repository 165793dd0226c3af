"""Arithmetic on integers and booleans that engines lack, by arithmetic that they have.

LiteRT has no kernel for ``argmax``, ``abs``, ``sign`` and ``pow`` of 64 bits, nor for exclusive or of booleans, and
its mean takes no type; TensorRT and LiteRT have no bits of integers, and TensorRT looks for the largest, and takes a
softmax, of two axes at least. All of it is exact: ``argmax`` is the first place that equals the maximum, a shift is a
product or a quotient.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch

from edgeattn.converters.passes.graph import Program, Writer, size

aten = torch.ops.aten
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
WIDE = (torch.int64,)
MAX_POWER = 8
MAX_SHIFT = 30

Rewrite = Callable[[Program, Writer, torch.fx.Node], bool]


def whole_arithmetic(program: Program) -> int:
    """Rewrite each of these operations; returns how many there were."""
    changed = 0
    for node in list(program.graph.nodes):
        rewrite = REWRITES.get(node.target) if node.op == "call_function" else None
        if rewrite is not None and isinstance(_value(node.args[0]), torch.Tensor):
            changed += rewrite(program, Writer(program, node), node)
    return changed


def _value(node: Any) -> Any:
    return node.meta.get("val") if isinstance(node, torch.fx.Node) else node


def _kind(node: Any) -> Any:
    return getattr(_value(node), "dtype", None)


def _place(_: Program, write: Writer, node: torch.fx.Node) -> bool:
    """Argmax and argmin."""
    source: Any = node.args[0]
    axis: Any = node.args[1] if len(node.args) > 1 else None
    kept = bool(node.args[2]) if len(node.args) > 2 else bool(node.kwargs.get("keepdim", False))
    extreme = aten.amax.default if node.target is aten.argmax.default else aten.amin.default
    flat = len(size(source)) < 2 or axis is None
    if _kind(source) not in WIDE and not flat:
        return False
    shape = list(size(node))
    place: Any = node.target
    given = write(aten.reshape.default, source, [1, -1]) if flat else source
    along = 1 if flat else axis
    if _kind(source) in WIDE:
        found = write(aten.eq.Tensor, given, write(extreme, given, [along], True))
        given, place = write(aten.to.dtype, found, torch.int32), aten.argmax.default
    if flat:
        write.finish(aten.reshape.default, write(place, given, along, False), shape)
    else:
        write.finish(place, given, along, kept)
    return True


def _extreme_and_place(program: Program, _: Writer, node: torch.fx.Node) -> bool:
    """Max and min along an axis, which give values and places."""
    source, axis = node.args[:2]
    if (_kind(source) not in WIDE and len(size(source)) > 1) or any(
        user.target is not operator.getitem for user in node.users
    ):
        return False
    kept = bool(node.args[2]) if len(node.args) > 2 else bool(node.kwargs.get("keepdim", False))
    most = node.target is aten.max.dim
    for user in list(node.users):
        part = Writer(program, user)
        if user.args[1] == 0:
            part.finish(aten.amax.default if most else aten.amin.default, source, [axis], kept)
        else:
            part.finish(aten.argmax.default if most else aten.argmin.default, source, axis, kept)
            _place(program, part, user)
    return True


def _magnitude(_: Program, write: Writer, node: torch.fx.Node) -> bool:
    source = node.args[0]
    if _kind(source) not in WIDE:
        return False
    write.finish(aten.maximum.default, source, write(aten.neg.default, source))
    return True


def _sign(_: Program, write: Writer, node: torch.fx.Node) -> bool:
    source = node.args[0]
    if _kind(source) not in WHOLE:
        return False
    over, under = (write(aten.to.dtype, write(op, source, 0), _kind(source)) for op in (aten.gt.Scalar, aten.lt.Scalar))
    write.finish(aten.sub.Tensor, over, under)
    return True


def _power(_: Program, write: Writer, node: torch.fx.Node) -> bool:
    source, power = node.args
    if _kind(source) not in WHOLE or not isinstance(power, int) or not 1 <= power <= MAX_POWER:
        return False
    result: Any = source
    for _step in range(power - 2):
        result = write(aten.mul.Tensor, result, source)
    write.finish(*((aten.clone.default, source) if power == 1 else (aten.mul.Tensor, result, source)))
    return True


def _unequal(_: Program, write: Writer, node: torch.fx.Node) -> bool:
    """Exclusive or of booleans."""
    logical = node.target is aten.logical_xor.default
    sides = node.args[:2]
    if any(not isinstance(_value(side), torch.Tensor) for side in sides):
        return False
    if not logical and any(_kind(side) is not torch.bool for side in sides):
        return False
    given = [side if _kind(side) is torch.bool else write(aten.ne.Scalar, side, 0) for side in sides]
    write.finish(aten.ne.Tensor, *given)
    return True


def _typed_mean(_: Program, write: Writer, node: torch.fx.Node) -> bool:
    """A mean that names its type, which LiteRT's converter does not read."""
    kind = node.kwargs.get("dtype")
    if kind is None:
        return False
    source: Any = node.args[0]
    source = source if _kind(source) is kind else write(aten.to.dtype, source, kind)
    options = {key: value for key, value in node.kwargs.items() if key != "dtype"}
    node.kwargs = {}
    write.finish(node.target, source, *node.args[1:], **options)
    return True


def _of_one_axis(_: Program, write: Writer, node: torch.fx.Node) -> bool:
    """A softmax over all that there is, which TensorRT takes of two axes at least."""
    source: Any = node.args[0]
    if len(size(source)) != 1:
        return False
    row = write(node.target, write(aten.unsqueeze.default, source, 0), -1, *node.args[2:], **node.kwargs)
    node.kwargs = {}
    write.finish(aten.squeeze.dim, row, 0)
    return True


def _number(program: Program, value: Any) -> int | None:
    known = program.known(value)
    return int(known) if known is not None and known.numel() == 1 and not known.is_floating_point() else None


def _low_bits(program: Program, write: Writer, node: torch.fx.Node) -> bool:
    """``x & 7`` is the remainder by 8."""
    source, other = node.args
    mask = _number(program, other)
    if _kind(source) not in WHOLE or mask is None or mask < 0 or mask & (mask + 1) or mask >= 2**MAX_SHIFT:
        return False
    write.finish(aten.remainder.Scalar, source, mask + 1)
    return True


def _shift(program: Program, write: Writer, node: torch.fx.Node) -> bool:
    source, other = node.args
    places = _number(program, other)
    if _kind(source) not in WHOLE or places is None or not 0 <= places <= MAX_SHIFT:
        return False
    left = "lshift" in str(node.target) or "left_shift" in str(node.target)
    if left:
        write.finish(aten.mul.Tensor, source, 2**places)
    else:
        write.finish(aten.div.Tensor_mode, source, write.constant(torch.tensor(2**places)), rounding_mode="floor")
    return True


def _complement(_: Program, write: Writer, node: torch.fx.Node) -> bool:
    source = node.args[0]
    if _kind(source) not in WHOLE:
        return False
    write.finish(aten.sub.Tensor, write(aten.neg.default, source), 1)
    return True


REWRITES: dict[Any, Rewrite] = {
    aten.argmax.default: _place,
    aten.argmin.default: _place,
    aten.max.dim: _extreme_and_place,
    aten.min.dim: _extreme_and_place,
    aten.abs.default: _magnitude,
    aten.sign.default: _sign,
    aten.pow.Tensor_Scalar: _power,
    aten.softmax.int: _of_one_axis,
    aten.log_softmax.int: _of_one_axis,
    aten.mean.default: _typed_mean,
    aten.mean.dim: _typed_mean,
    aten.logical_xor.default: _unequal,
    aten.bitwise_xor.Tensor: _unequal,
    aten.__xor__.Tensor: _unequal,
    aten.bitwise_and.Scalar: _low_bits,
    aten.bitwise_and.Tensor: _low_bits,
    aten.__and__.Scalar: _low_bits,
    aten.__and__.Tensor: _low_bits,
    aten.__lshift__.Scalar: _shift,
    aten.__rshift__.Scalar: _shift,
    aten.bitwise_left_shift.Tensor_Scalar: _shift,
    aten.bitwise_right_shift.Tensor_Scalar: _shift,
    aten.bitwise_not.default: _complement,
}
