"""Rounding to a grid that training fixed, written out as torch computes it.

Quantization-aware training leaves ``fake_quantize`` with its scales in the program. ONNX has QuantizeLinear for 8 bits
alone, which divides where torch multiplies by the reciprocal: a value between two steps then falls to the other side,
and is a whole step off. TensorRT takes no zero-point but 0, LiteRT's converter none of it. So it is

    (clamp(round(x * (1 / scale)) + zero_point, least, most) - zero_point) * scale

with the scales as they are, for any number of bits.
"""

from __future__ import annotations

from typing import Any

import torch

from edgeattn.converters.passes.graph import Program, Writer, size

aten = torch.ops.aten
PER_TENSOR = (aten.fake_quantize_per_tensor_affine.default, aten.fake_quantize_per_tensor_affine.tensor_qparams)
PER_CHANNEL = aten.fake_quantize_per_channel_affine.default


def fake_quantization(program: Program) -> int:
    """Write out each rounding to a grid; returns how many there were."""
    calls = program.calls(*PER_TENSOR, PER_CHANNEL)
    for node in calls:
        arguments: tuple[Any, ...] = node.args
        source, scale, zero = arguments[:3]
        least, most = arguments[-2:]
        write = Writer(program, node)
        if node.target is PER_CHANNEL:
            shape = [1] * len(size(source))
            shape[arguments[3]] = -1
            scale, zero = (_shaped(program, write, value, shape) for value in (scale, zero))
        else:
            scale, zero = (_shaped(program, write, value, []) for value in (scale, zero))
        known = program.known(zero)
        shifted = known is None or bool(known.any())
        steps = write(aten.round.default, write(aten.mul.Tensor, source, _reciprocal(program, write, scale)))
        steps = write(aten.add.Tensor, steps, zero) if shifted else steps
        held = write(aten.clamp.default, steps, least, most)
        write.finish(aten.mul.Tensor, write(aten.sub.Tensor, held, zero) if shifted else held, scale)
    return len(calls)


def _shaped(program: Program, write: Writer, value: Any, shape: list[int]) -> Any:
    """A scale or zero-point as float32 of a shape that spreads over its tensor."""
    known = program.known(value)
    if known is not None:
        return write.constant(known.to(torch.float32).reshape(shape))
    return write(aten.reshape.default, write(aten.to.dtype, value, torch.float32), shape)


def _reciprocal(program: Program, write: Writer, scale: Any) -> Any:
    known = program.known(scale)
    if known is not None:
        return write.constant(1.0 / known)
    # A scale of 0 makes 0 of everything, and must not make 0 * inf before it does.
    one = write.constant(torch.tensor(1.0))
    return write(aten.reciprocal.default, write(aten.where.self, write(aten.eq.Scalar, scale, 0.0), one, scale))
