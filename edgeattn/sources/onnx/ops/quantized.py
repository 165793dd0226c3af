"""Integer operators: what QDQ, QOperator and dynamically quantized files are made of.

Integers are exact in float32 up to 2^24, so products of 8-bit values are taken there: engines and BLAS have kernels for
it. Rounding is half to even and saturating, as the standard asks, so values agree with ONNX Runtime's to the integer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from edgeattn.sources.onnx.ops.node import CONTRIB, TABLE, Function, Node, NotImportableError, op
from edgeattn.sources.onnx.ops.products import convolution, paddings

RANGES: dict[torch.dtype, tuple[int, int]] = {
    torch.uint8: (0, 255),
    torch.int8: (-128, 127),
    torch.uint16: (0, 65535),
    torch.int16: (-32768, 32767),
}
NARROW = {"uint4": (0, 15), "int4": (-8, 7), "uint2": (0, 3), "int2": (-2, 1)}  # that torch holds as 8-bit ones
ELEMENTS: dict[int, tuple[torch.dtype, str]] = {  # output_dtype: the type that torch holds, a narrow one's name
    2: (torch.uint8, ""), 3: (torch.int8, ""), 4: (torch.uint16, ""), 5: (torch.int16, ""),
    21: (torch.uint8, "uint4"), 22: (torch.int8, "int4"), 25: (torch.uint8, "uint2"), 26: (torch.int8, "int2"),
}  # fmt: skip
Real = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Integers:
    """The integers that a node makes.

    Attributes:
        low: the least.
        high: the greatest.
        held: the type that holds them.
        endless: whether a scale is infinite, as quantizers of masks of -inf write: NaN becomes the least then, as in
            ONNX Runtime.
    """

    low: int
    high: int
    held: torch.dtype
    endless: bool = False


def integers(node: Node, kind: torch.dtype, narrow: str = "") -> Integers:
    """Integers of a type; int32 holds them where the node may choose."""
    if kind not in RANGES:
        raise NotImportableError(f"{kind} is not imported, integers of up to 16 bits are")
    floats = [array for array in node.constants.values() if array.dtype.kind == "f"]
    endless = not all(np.isfinite(array).all() for array in floats)
    return Integers(*NARROW.get(narrow, RANGES[kind]), torch.int32 if node.wide else kind, endless)


def _along(value: Tensor, rank: int, axis: int) -> Tensor:
    """A scale or zero-point per slice, shaped to broadcast; a single one stays a scalar."""
    if value.numel() == 1:
        return value.reshape(())
    return value.reshape([-1 if i == axis else 1 for i in range(rank)])


def quantize(x: Tensor, scale: Tensor, zero: Tensor | None, wanted: Integers) -> Tensor:
    """Saturating x / scale + zero-point, half to even."""
    y = torch.round(x / scale)
    y = y if zero is None else y + zero.to(x.dtype)
    y = torch.where(torch.isnan(y), wanted.low, y) if wanted.endless else y
    return torch.clamp(y, wanted.low, wanted.high).to(wanted.held)


def dequantize(x: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """(x - zero-point) * scale."""
    y = x.to(scale.dtype)
    return (y if zero is None else y - zero.to(scale.dtype)) * scale


def _block(node: Node, index: int = 1) -> Callable[[Tensor, int], Tensor]:
    """How scales and zero-points are spread over the tensor: per tensor, per slice or per block."""
    rank, size = node.rank(), node.integer("block_size")
    axis = node.axis("axis", 1) if rank else 0
    if not size:
        return lambda value, _: _along(value, rank, axis)
    length = node.shape()[axis]
    if node.shape(index)[axis] * size < length:
        raise NotImportableError(f"block_size = {size} does not cover axis {axis}")
    return lambda value, _: value.repeat_interleave(size, axis).narrow(axis, 0, length)


@op("QuantizeLinear")
@op("QuantizeLinear", domain=CONTRIB)
def _quantize_linear(node: Node) -> Function:
    spread = _block(node)
    element = node.integer("output_dtype")
    if node.has(2):
        zero = node.constants.get(2)
        wanted = integers(node, node.dtype(2), "" if zero is None else zero.dtype.name)
    elif (element or 2) in ELEMENTS:
        wanted = integers(node, *ELEMENTS[element or 2])
    else:
        raise NotImportableError(f"output_dtype = {element} is not imported, integers of up to 16 bits are")
    return lambda x, scale, zero=None: quantize(x, spread(scale, 1), None if zero is None else spread(zero, 2), wanted)


@op("DequantizeLinear")
@op("DequantizeLinear", domain=CONTRIB)
def _dequantize_linear(node: Node) -> Function:
    spread = _block(node)
    return lambda x, scale, zero=None: dequantize(x, spread(scale, 1), None if zero is None else spread(zero, 2))


def _dynamic(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low, high = torch.clamp(x.amin(), max=0.0), torch.clamp(x.amax(), min=0.0)
    scale = (high - low) / 255.0
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.clamp(torch.round(-low / scale), 0, 255)
    return torch.clamp(torch.round(x / scale) + zero, 0, 255), scale, zero


@op("DynamicQuantizeLinear")
def _dynamic_quantize_linear(node: Node) -> Function:
    held = integers(node, torch.uint8).held

    def apply(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, scale, zero = _dynamic(x)
        return y.to(held), scale, zero.to(held)

    return apply


def centred(x: Tensor, zero: Tensor | None, rank: int, axis: int) -> Tensor:
    """X - zero-point in float32, where products of 8-bit values are exact."""
    y = x.to(torch.float32)
    return y if zero is None else y - _along(zero, rank, axis).to(torch.float32)


@op("MatMulInteger")
def _matmul_integer(node: Node) -> Function:
    ranks = node.rank(), node.rank(1)

    def apply(a: Tensor, b: Tensor, az: Tensor | None = None, bz: Tensor | None = None) -> Tensor:
        product = centred(a, az, ranks[0], ranks[0] - 2) @ centred(b, bz, ranks[1], ranks[1] - 1)
        return product.to(torch.int32)

    return apply


@op("MatMulIntegerToFloat", domain=CONTRIB)
def _matmul_integer_to_float(node: Node) -> Function:
    ranks = node.rank(), node.rank(1)

    def apply(
        a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, az: Tensor | None = None, bz: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        product = centred(a, az, ranks[0], ranks[0] - 2) @ centred(b, bz, ranks[1], ranks[1] - 1)
        y = product * (_along(a_scale, ranks[0], ranks[0] - 2) * _along(b_scale, ranks[1], ranks[1] - 1))
        return y if bias is None else y + bias

    return apply


@op("DynamicQuantizeMatMul", domain=CONTRIB)
def _dynamic_quantize_matmul(node: Node) -> Function:
    rank = node.rank(1)

    def apply(x: Tensor, b: Tensor, scale: Tensor, zero: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        y, x_scale, x_zero = _dynamic(x)
        product = (y - x_zero) @ centred(b, zero, rank, rank - 1) * (x_scale * _along(scale, rank, rank - 1))
        return product if bias is None else product + bias

    return apply


@op("ConvInteger")
def _conv_integer(node: Node) -> Function:
    apply = _integer_convolution(node, 1)
    rank = node.rank()
    return lambda x, w, xz=None, wz=None: apply(centred(x, xz, rank, 1), centred(w, wz, rank, 0), None).to(torch.int32)


def _integer_convolution(node: Node, weight: int) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    paddings(node, node.shape()[2:], node.shape(weight)[2:])  # refuses what convolution would
    return convolution(node, weight)


@op("QLinearMatMul")
def _qlinear_matmul(node: Node) -> Function:
    ranks, wanted = (node.rank(), node.rank(3)), integers(node, node.dtype(7))

    def apply(
        a: Tensor, a_scale: Tensor, az: Tensor, b: Tensor, b_scale: Tensor, bz: Tensor, scale: Tensor, zero: Tensor
    ) -> Tensor:
        product = centred(a, az, ranks[0], ranks[0] - 2) @ centred(b, bz, ranks[1], ranks[1] - 1)
        real = product * (_along(a_scale, ranks[0], ranks[0] - 2) * _along(b_scale, ranks[1], ranks[1] - 1))
        return quantize(real, scale.reshape(()), zero.reshape(()), wanted)

    return apply


@op("QLinearConv")
def _qlinear_conv(node: Node) -> Function:
    convolve, rank, wanted = _integer_convolution(node, 3), node.rank(), integers(node, node.dtype(7))

    def apply(
        x: Tensor, x_scale: Tensor, xz: Tensor, w: Tensor, w_scale: Tensor, wz: Tensor, scale: Tensor, zero: Tensor,
        bias: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        total = convolve(centred(x, xz, rank, 1), centred(w, wz, rank, 0), None)
        if bias is not None:
            total = total + _along(bias, rank, 1).to(torch.float32)
        real = total * (x_scale.reshape(()) * _along(w_scale, rank, 1))
        return quantize(real, scale.reshape(()), zero.reshape(()), wanted)

    return apply


@op("QGemm", domain=CONTRIB)
def _qgemm(node: Node) -> Function:
    turn_a, turn_b, alpha = node.integer("transA"), node.integer("transB"), node.number("alpha", 1.0)
    wanted = integers(node, node.dtype(8)) if node.has(8) else None

    def apply(
        a: Tensor, a_scale: Tensor, az: Tensor, b: Tensor, b_scale: Tensor, bz: Tensor, c: Tensor | None = None,
        scale: Tensor | None = None, zero: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        left, right = centred(a, az, 2, 0), centred(b, bz, 2, 0 if turn_b else 1)
        total = (left.t() if turn_a else left) @ (right.t() if turn_b else right)
        total = total if c is None else total + c.to(torch.float32)
        real = total * (alpha * a_scale.reshape(()) * _along(b_scale, 2, 1))
        if scale is None or zero is None or wanted is None:
            return real
        return quantize(real, scale.reshape(()), zero.reshape(()), wanted)

    return apply


@op("QLinearAdd", "QLinearMul", domain=CONTRIB)
def _qlinear_binary(node: Node) -> Function:
    wanted, add = integers(node, node.dtype()), node.op == "QLinearAdd"

    def apply(
        a: Tensor, a_scale: Tensor, az: Tensor | None, b: Tensor, b_scale: Tensor, bz: Tensor | None, scale: Tensor,
        zero: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        left, right = dequantize(a, a_scale, az), dequantize(b, b_scale, bz)
        return quantize(left + right if add else left * right, scale, zero, wanted)

    return apply


@op("QLinearSigmoid", "QLinearLeakyRelu", domain=CONTRIB)
def _qlinear_unary(node: Node) -> Function:
    wanted, alpha = integers(node, node.dtype()), node.number("alpha", 0.01)
    function: Real = torch.sigmoid if node.op == "QLinearSigmoid" else lambda x: F.leaky_relu(x, alpha)

    def apply(x: Tensor, x_scale: Tensor, xz: Tensor | None, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        return quantize(function(dequantize(x, x_scale, xz)), scale, zero, wanted)

    return apply


@op("QLinearSoftmax", domain=CONTRIB)
def _qlinear_softmax(node: Node) -> Function:
    wanted = integers(node, node.dtype())
    old = node.integer("opset") < 13
    axis, shape = node.axis("axis", -1), node.shape()

    def apply(x: Tensor, x_scale: Tensor, xz: Tensor | None, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        if wanted.endless:  # a mask of -inf was quantized: ONNX Runtime makes 1 of each greatest value
            return quantize((x == x.amax(axis, keepdim=True)).to(torch.float32), scale, zero, wanted)
        real = dequantize(x, x_scale, xz)
        y = torch.softmax(real.flatten(axis), axis).reshape(shape) if old else torch.softmax(real, axis)
        return quantize(y, scale, zero, wanted)

    return apply


@op("QLinearGlobalAveragePool", domain=CONTRIB)
def _qlinear_global_pool(node: Node) -> Function:
    wanted, last = integers(node, node.dtype()), bool(node.integer("channels_last"))
    axes = list(range(1, node.rank() - 1)) if last else list(range(2, node.rank()))

    def apply(x: Tensor, x_scale: Tensor, xz: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        return quantize(dequantize(x, x_scale, xz).mean(axes, keepdim=True), scale, zero, wanted)

    return apply


@op("QLinearConcat", domain=CONTRIB)
def _qlinear_concat(node: Node) -> Function:
    axis, wanted = node.axis("axis", 0, node.rank(2)), integers(node, node.dtype(2))

    def apply(scale: Tensor, zero: Tensor, *parts: Tensor) -> Tensor:
        real = [dequantize(*parts[i : i + 3]) for i in range(0, len(parts), 3)]
        return quantize(torch.cat(real, axis), scale, zero, wanted)

    return apply


@op("QLinearAveragePool", domain=CONTRIB)
def _qlinear_average_pool(node: Node) -> Function:
    node.refuse("channels_last", 0)
    wanted, pool = integers(node, node.dtype()), TABLE["", "AveragePool"](node)

    def apply(x: Tensor, x_scale: Tensor, xz: Tensor | None, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        y = pool(dequantize(x, x_scale, xz))
        assert isinstance(y, Tensor)
        return quantize(y, scale, zero, wanted)

    return apply


@op("QLinearWhere", domain=CONTRIB)
def _qlinear_where(node: Node) -> Function:
    wanted = integers(node, node.dtype(1))

    def apply(
        chosen: Tensor, x: Tensor, x_scale: Tensor, xz: Tensor, y: Tensor, y_scale: Tensor, yz: Tensor, scale: Tensor,
        zero: Tensor,
    ) -> Tensor:  # fmt: skip
        real = torch.where(chosen, dequantize(x, x_scale, xz), dequantize(y, y_scale, yz))
        return quantize(real, scale, zero, wanted)

    return apply
