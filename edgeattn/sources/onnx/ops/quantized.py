"""Integer operators: what QDQ, QOperator and dynamically quantized files are made of.

Integers are exact in float32 up to 2^24, so products of 8-bit values are taken there: engines and BLAS have kernels for
it. Rounding is half to even and saturating, as the standard asks, so values agree with ONNX Runtime's to the integer.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from edgeattn.sources.onnx.ops.node import CONTRIB, Function, Node, NotImportableError, op, to_tensor
from edgeattn.sources.onnx.ops.products import Linear, convolution, paddings

RANGES: dict[torch.dtype, tuple[int, int]] = {
    torch.uint8: (0, 255),
    torch.int8: (-128, 127),
    torch.uint16: (0, 65535),
    torch.int16: (-32768, 32767),
}
Real = Callable[[Tensor], Tensor]


def _along(value: Tensor, rank: int, axis: int) -> Tensor:
    """A scale or zero-point per slice, shaped to broadcast; a single one stays a scalar."""
    if value.numel() == 1:
        return value.reshape(())
    return value.reshape([-1 if i == axis else 1 for i in range(rank)])


def quantize(x: Tensor, scale: Tensor, zero: Tensor | None, wanted: torch.dtype) -> Tensor:
    """Saturating x / scale + zero-point, half to even."""
    low, high = RANGES[wanted]
    y = torch.round(x / scale)
    y = y if zero is None else y + zero.to(x.dtype)
    return torch.clamp(y, low, high).to(wanted)


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
    kinds = {0: torch.uint8, 2: torch.uint8, 3: torch.int8, 4: torch.uint16, 5: torch.int16}
    element = node.integer("output_dtype")
    if not node.has(2) and element not in kinds:
        raise NotImportableError(f"output_dtype = {element} is not imported, 8 and 16-bit integers are")
    wanted = node.dtype(2) if node.has(2) else kinds[element]
    if wanted not in RANGES:
        raise NotImportableError(f"{wanted} is not imported, 8 and 16-bit integers are")
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
def _dynamic_quantize_linear(_node: Node) -> Function:
    def apply(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, scale, zero = _dynamic(x)
        return y.to(torch.uint8), scale, zero.to(torch.uint8)

    return apply


def _centred(x: Tensor, zero: Tensor | None, rank: int, axis: int) -> Tensor:
    y = x.to(torch.float32)
    return y if zero is None else y - _along(zero, rank, axis).to(torch.float32)


@op("MatMulInteger")
def _matmul_integer(node: Node) -> Function:
    ranks = node.rank(), node.rank(1)

    def apply(a: Tensor, b: Tensor, az: Tensor | None = None, bz: Tensor | None = None) -> Tensor:
        product = _centred(a, az, ranks[0], ranks[0] - 2) @ _centred(b, bz, ranks[1], ranks[1] - 1)
        return product.to(torch.int32)

    return apply


@op("MatMulIntegerToFloat", domain=CONTRIB)
def _matmul_integer_to_float(node: Node) -> Function:
    ranks = node.rank(), node.rank(1)

    def apply(
        a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, az: Tensor | None = None, bz: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        product = _centred(a, az, ranks[0], ranks[0] - 2) @ _centred(b, bz, ranks[1], ranks[1] - 1)
        y = product * (_along(a_scale, ranks[0], ranks[0] - 2) * _along(b_scale, ranks[1], ranks[1] - 1))
        return y if bias is None else y + bias

    return apply


@op("DynamicQuantizeMatMul", domain=CONTRIB)
def _dynamic_quantize_matmul(node: Node) -> Function:
    rank = node.rank(1)

    def apply(x: Tensor, b: Tensor, scale: Tensor, zero: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        y, x_scale, x_zero = _dynamic(x)
        product = (y - x_zero) @ _centred(b, zero, rank, rank - 1) * (x_scale * _along(scale, rank, rank - 1))
        return product if bias is None else product + bias

    return apply


@op("ConvInteger")
def _conv_integer(node: Node) -> Function:
    apply = _integer_convolution(node, 1)
    rank = node.rank()
    return lambda x, w, xz=None, wz=None: apply(_centred(x, xz, rank, 1), _centred(w, wz, rank, 0), None).to(
        torch.int32
    )


def _integer_convolution(node: Node, weight: int) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    paddings(node, node.shape()[2:], node.shape(weight)[2:])  # refuses what convolution would
    return convolution(node, weight)


@op("QLinearMatMul")
def _qlinear_matmul(node: Node) -> Function:
    ranks, wanted = (node.rank(), node.rank(3)), node.dtype(7)

    def apply(
        a: Tensor, a_scale: Tensor, az: Tensor, b: Tensor, b_scale: Tensor, bz: Tensor, scale: Tensor, zero: Tensor
    ) -> Tensor:
        product = _centred(a, az, ranks[0], ranks[0] - 2) @ _centred(b, bz, ranks[1], ranks[1] - 1)
        real = product * (_along(a_scale, ranks[0], ranks[0] - 2) * _along(b_scale, ranks[1], ranks[1] - 1))
        return quantize(real, scale.reshape(()), zero.reshape(()), wanted)

    return apply


@op("QLinearConv")
def _qlinear_conv(node: Node) -> Function:
    convolve, rank, wanted = _integer_convolution(node, 3), node.rank(), node.dtype(7)

    def apply(
        x: Tensor, x_scale: Tensor, xz: Tensor, w: Tensor, w_scale: Tensor, wz: Tensor, scale: Tensor, zero: Tensor,
        bias: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        total = convolve(_centred(x, xz, rank, 1), _centred(w, wz, rank, 0), None)
        if bias is not None:
            total = total + _along(bias, rank, 1).to(torch.float32)
        real = total * (x_scale.reshape(()) * _along(w_scale, rank, 1))
        return quantize(real, scale.reshape(()), zero.reshape(()), wanted)

    return apply


@op("QGemm", domain=CONTRIB)
def _qgemm(node: Node) -> Function:
    turn_a, turn_b, alpha = node.integer("transA"), node.integer("transB"), node.number("alpha", 1.0)
    wanted = node.dtype(8) if node.has(8) else None

    def apply(
        a: Tensor, a_scale: Tensor, az: Tensor, b: Tensor, b_scale: Tensor, bz: Tensor, c: Tensor | None = None,
        scale: Tensor | None = None, zero: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        left, right = _centred(a, az, 2, 0), _centred(b, bz, 2, 0 if turn_b else 1)
        total = (left.t() if turn_a else left) @ (right.t() if turn_b else right)
        total = total if c is None else total + c.to(torch.float32)
        real = total * (alpha * a_scale.reshape(()) * _along(b_scale, 2, 1))
        if scale is None or zero is None or wanted is None:
            return real
        return quantize(real, scale.reshape(()), zero.reshape(()), wanted)

    return apply


@op("QLinearAdd", "QLinearMul", domain=CONTRIB)
def _qlinear_binary(node: Node) -> Function:
    wanted, add = node.dtype(), node.op == "QLinearAdd"

    def apply(
        a: Tensor, a_scale: Tensor, az: Tensor | None, b: Tensor, b_scale: Tensor, bz: Tensor | None, scale: Tensor,
        zero: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        left, right = dequantize(a, a_scale, az), dequantize(b, b_scale, bz)
        return quantize(left + right if add else left * right, scale, zero, wanted)

    return apply


@op("QLinearSigmoid", "QLinearLeakyRelu", domain=CONTRIB)
def _qlinear_unary(node: Node) -> Function:
    wanted, alpha = node.dtype(), node.number("alpha", 0.01)
    function: Real = torch.sigmoid if node.op == "QLinearSigmoid" else lambda x: F.leaky_relu(x, alpha)

    def apply(x: Tensor, x_scale: Tensor, xz: Tensor | None, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        return quantize(function(dequantize(x, x_scale, xz)), scale, zero, wanted)

    return apply


@op("QLinearSoftmax", domain=CONTRIB)
def _qlinear_softmax(node: Node) -> Function:
    wanted = node.dtype()
    old = node.integer("opset") < 13
    axis, shape = node.axis("axis", -1), node.shape()

    def apply(x: Tensor, x_scale: Tensor, xz: Tensor | None, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        real = dequantize(x, x_scale, xz)
        y = torch.softmax(real.flatten(axis), axis).reshape(shape) if old else torch.softmax(real, axis)
        return quantize(y, scale, zero, wanted)

    return apply


@op("QLinearGlobalAveragePool", domain=CONTRIB)
def _qlinear_global_pool(node: Node) -> Function:
    wanted, last = node.dtype(), bool(node.integer("channels_last"))
    axes = list(range(1, node.rank() - 1)) if last else list(range(2, node.rank()))

    def apply(x: Tensor, x_scale: Tensor, xz: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        return quantize(dequantize(x, x_scale, xz).mean(axes, keepdim=True), scale, zero, wanted)

    return apply


@op("QLinearConcat", domain=CONTRIB)
def _qlinear_concat(node: Node) -> Function:
    axis, wanted = node.axis("axis", 0, node.rank(2)), node.dtype(2)

    def apply(scale: Tensor, zero: Tensor, *parts: Tensor) -> Tensor:
        real = [dequantize(*parts[i : i + 3]) for i in range(0, len(parts), 3)]
        return quantize(torch.cat(real, axis), scale, zero, wanted)

    return apply


@op("MatMulNBits", domain=CONTRIB)
def _matmul_nbits(node: Node) -> nn.Module:
    """Weights of 4 or 8 bits in blocks along the input axis, (out, blocks, bytes); widened on import."""
    bits, size = node.integer("bits", 4), node.integer("block_size")
    rows, columns = node.integer("K"), node.integer("N")
    if bits not in (4, 8) or node.has(4):
        raise NotImportableError(f"bits = {bits} or a group index is not imported, 4 and 8 bits in order are")
    blocks = -(-rows // size)
    packed = node.static(1).reshape(columns, blocks, -1)
    values = _unpacked(packed, bits).reshape(columns, blocks, size).astype(np.float32)
    scales = node.static(2).reshape(columns, blocks, 1).astype(np.float32)
    zeros = np.full((columns, blocks, 1), 2.0 ** (bits - 1), np.float32)
    if node.has(3):
        given = node.static(3)
        exact = given.dtype.kind == "f"
        whole = given.reshape(columns, -1) if exact else _unpacked(given.reshape(columns, -1), bits)
        zeros = whole[:, :blocks].reshape(columns, blocks, 1).astype(np.float32)
    weight = ((values - zeros) * scales).reshape(columns, -1)[:, :rows]
    bias = to_tensor(node.static(5)) if node.has(5) else None
    return Linear(to_tensor(np.ascontiguousarray(weight)), bias)


def _unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return packed
    return np.stack((packed & 15, packed >> 4), -1).reshape(*packed.shape[:-1], -1)
