"""Convolutions, pooling and resizing: rows of pixels there, planes in ONNX (padding of tflite/kernels/padding.h)."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeattn.sources.tflite.builder import Builder, op

SAME = 0


def padding(b: Builder, kernel: tuple[int, int], dilations: tuple[int, int]) -> list[int]:
    """What is padded before and behind, in ONNX's order: SAME keeps size / stride, the odd one comes behind."""
    if b.option("Padding") != SAME:
        return [0, 0, 0, 0]
    before, behind = [], []
    for size, made, stride, width, dilation in zip(
        b.shape()[1:3], b.out_shape()[1:3], strides(b), kernel, dilations, strict=True
    ):
        total = max((made - 1) * stride + (width - 1) * dilation + 1 - size, 0)
        before.append(total // 2)
        behind.append(total - total // 2)
    return [*before, *behind]


def strides(b: Builder) -> tuple[int, int]:
    """Of rows and of columns."""
    return max(1, int(b.option("StrideH", 1))), max(1, int(b.option("StrideW", 1)))


@op("CONV_2D", "DEPTHWISE_CONV_2D")
def _convolution(b: Builder) -> None:
    weight, depthwise = b.known(1), b.operator.kind == "DEPTHWISE_CONV_2D"
    if weight is None or len(b.shape()) != 4:
        raise b.refuse("weights that are computed at run time, or images that have not 4 axes")
    dilations = max(1, int(b.option("DilationHFactor", 1))), max(1, int(b.option("DilationWFactor", 1)))
    channels = b.shape()[3]
    group = channels if depthwise else channels // max(1, weight.shape[3])
    planes = weight.transpose(3, 0, 1, 2) if depthwise else weight.transpose(0, 3, 1, 2)
    if depthwise:  # (1, rows, columns, channels * multiplier): an output channel each
        planes = planes.reshape(weight.shape[3], 1, *weight.shape[1:3])
    inputs = [b.to_planes(b.value()), b.constant(np.ascontiguousarray(planes), "weight")]
    inputs += [b.value(2)] if b.has(2) else []
    kernel = weight.shape[1], weight.shape[2]
    made = b.add(
        "Conv", inputs, strides=strides(b), dilations=dilations, group=group, pads=padding(b, kernel, dilations)
    )
    b.give(b.from_planes(b.activated(made)))


@op("TRANSPOSE_CONV")
def _transposed_convolution(b: Builder) -> None:
    weight = b.known(1)
    if weight is None:
        raise b.refuse("weights that are computed at run time")
    before, behind, more = [], [], []
    for size, wanted, stride, width in zip(
        b.shape(2)[1:3], b.out_shape()[1:3], strides(b), weight.shape[1:3], strict=True
    ):
        total = (size - 1) * stride + width - wanted
        before.append(max(total, 0) // 2)
        behind.append(max(total, 0) - max(total, 0) // 2)
        more.append(max(-total, 0))
    inputs = [b.to_planes(b.value(2)), b.constant(np.ascontiguousarray(weight.transpose(3, 0, 1, 2)), "weight")]
    inputs += [b.value(3)] if b.has(3) else []
    made = b.add("ConvTranspose", inputs, strides=strides(b), pads=[*before, *behind], output_padding=more)
    b.give(b.from_planes(b.activated(made)))


@op("AVERAGE_POOL_2D", "MAX_POOL_2D")
def _pooling(b: Builder) -> None:
    kernel = max(1, int(b.option("FilterHeight", 1))), max(1, int(b.option("FilterWidth", 1)))
    kind = "AveragePool" if b.operator.kind == "AVERAGE_POOL_2D" else "MaxPool"
    pads = padding(b, kernel, (1, 1))
    made = b.add(kind, [b.to_planes(b.value())], kernel_shape=kernel, strides=strides(b), pads=pads)
    b.give(b.from_planes(b.activated(made)))


@op("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR")
def _resize(b: Builder) -> None:
    corners, centers = bool(b.option("AlignCorners", False)), bool(b.option("HalfPixelCenters", False))
    nearest = b.operator.kind == "RESIZE_NEAREST_NEIGHBOR"
    sizes = [b.shape()[0], b.shape()[3], *b.out_shape()[1:3]]
    grows = all(made % size == 0 for size, made in zip(b.shape()[1:3], b.out_shape()[1:3], strict=True))
    if nearest and (corners or (centers and not grows)):
        raise b.refuse("nearest neighbours of aligned corners, or of centres by a factor that is not whole")
    mode = "align_corners" if corners else "half_pixel" if centers and not nearest else "asymmetric"
    options: dict[str, Any] = {"mode": "nearest", "nearest_mode": "floor"} if nearest else {"mode": "linear"}
    inputs = [b.to_planes(b.value()), "", "", b.constant(sizes, "sizes")]
    b.give(b.from_planes(b.add("Resize", inputs, coordinate_transformation_mode=mode, **options)))


@op("DEPTH_TO_SPACE", "SPACE_TO_DEPTH")
def _depth(b: Builder) -> None:
    """The channels of a place lie together, (row, column, channel): a transpose tells it without the modes of ONNX."""
    size = max(1, int(b.option("BlockSize", 1)))
    batch, rows, columns, channels = b.shape()
    if b.operator.kind == "DEPTH_TO_SPACE":
        shape, order = [batch, rows, columns, size, size, channels // size**2], [0, 1, 3, 2, 4, 5]
    else:
        shape, order = [batch, rows // size, size, columns // size, size, channels], [0, 1, 3, 2, 4, 5]
    b.give(b.reshaped(b.add("Transpose", [b.reshaped(b.value(), shape)], perm=order), b.out_shape()))
