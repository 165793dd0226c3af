"""Windows that slide over a tensor, and their sum back into one, by slices, Concat and sums.

``Tensor.unfold`` of heads (B, H, T, D) makes a tensor of five axes, which LiteRT's converter pads as six
("'tfl.pad' op operand 0 at most 5-D"); ``fold`` (col2im) has no kernel in LiteRT and TensorRT. A fold is a transposed
convolution with an identity, whose windows lie on the batch.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from edgeattn.converters.passes.graph import Program, Writer, size

aten = torch.ops.aten
MAX_SLICES = 32  # beyond, a Concat of that many inputs is no better than a gather


def plain_windows(program: Program) -> int:
    """Rewrite each ``unfold`` and ``col2im``, and ``im2col`` of one map; returns how many there were."""
    changed = 0
    for node in program.calls(aten.unfold.default):
        source, axis, width, step = _four(node)
        if size(source) == () or node in program.written:
            continue
        _unfold(Writer(program, node), source, axis, width, step)
        changed += 1
    for node in program.calls(aten.col2im.default):
        _fold(Writer(program, node), *node.args)
        changed += 1
    for node in program.calls(aten.im2col.default):
        arguments: tuple[Any, ...] = node.args
        lone, *sizes = arguments
        if len(size(lone)) == 3:  # one map alone, which torch's ONNX exporter takes for several
            write = Writer(program, node)
            lifted = write(aten.unsqueeze.default, lone, 0)
            write.finish(aten.squeeze.dim, write(aten.im2col.default, lifted, *sizes), 0)
            changed += 1
    return changed


def frames(write: Writer, signal: torch.fx.Node, width: int, step: int) -> torch.fx.Node:
    """The windows of a signal (rows, length): (rows, count, width).

    Of the signal in pieces of ``step`` a window is as many neighbours as it needs.
    """
    rows, length = size(signal)
    count, pieces = (length - width) // step + 1, -(-width // step)
    if count == 1:
        return write(aten.slice.Tensor, write(aten.unsqueeze.default, signal, 1), 2, 0, width)
    if pieces > MAX_SLICES:
        places = torch.arange(count)[:, None] * step + torch.arange(width)
        taken = write(aten.index_select.default, signal, 1, write.constant(places.reshape(-1)))
        return write(aten.reshape.default, taken, [rows, count, width])
    wanted = (count - 1 + pieces) * step
    if wanted > length:
        signal = write(aten.constant_pad_nd.default, signal, [0, wanted - length], 0.0)
    elif wanted < length:
        signal = write(aten.slice.Tensor, signal, 1, 0, wanted)
    cut = write(aten.reshape.default, signal, [rows, count - 1 + pieces, step])
    parts = [write(aten.slice.Tensor, cut, 1, first, first + count) for first in range(pieces)]
    whole = write(aten.cat.default, parts, 2) if pieces > 1 else parts[0]
    return whole if pieces * step == width else write(aten.slice.Tensor, whole, 2, 0, width)


def overlapped(write: Writer, windows: torch.fx.Node, step: int) -> torch.fx.Node:
    """The sum of windows (rows, count, width) that begin ``step`` apart: (rows, (count - 1) * step + width)."""
    rows, count, width = size(windows)
    length, pieces = (count - 1) * step + width, -(-width // step)
    if pieces > MAX_SLICES:
        identity = torch.eye(width, dtype=windows.meta["val"].dtype).reshape(width, 1, width)
        turned = write(aten.transpose.int, windows, 1, 2)
        summed = write(aten.conv_transpose1d.default, turned, write.constant(identity), None, [step])
        return write(aten.reshape.default, summed, [rows, length])
    if pieces * step > width:
        windows = write(aten.constant_pad_nd.default, windows, [0, pieces * step - width], 0.0)
    total = None
    for place in range(pieces):
        part = write(aten.slice.Tensor, windows, 2, place * step, (place + 1) * step)
        moved = write(aten.constant_pad_nd.default, part, [0, 0, place, pieces - 1 - place], 0.0)
        total = moved if total is None else write(aten.add.Tensor, total, moved)
    whole = write(aten.reshape.default, total, [rows, (count - 1 + pieces) * step])
    return whole if size(whole)[1] == length else write(aten.slice.Tensor, whole, 1, 0, length)


def _four(node: torch.fx.Node) -> tuple[torch.fx.Node, int, int, int]:
    arguments: tuple[Any, ...] = node.args
    source, axis, width, step = arguments
    return source, axis % max(len(size(source)), 1), width, step


def _unfold(write: Writer, source: torch.fx.Node, axis: int, width: int, step: int) -> None:
    shape = size(source)
    count = (shape[axis] - width) // step + 1
    if width > MAX_SLICES or step > 1:
        last = len(shape) - 1
        turned = source if axis == last else write(aten.transpose.int, source, axis, last)
        outer = size(turned)[:-1]
        made = frames(write, write(aten.reshape.default, turned, [math.prod(outer), shape[axis]]), width, step)
        grid = write(aten.reshape.default, made, [*outer, count, width])
        write.finish(aten.transpose.int, grid, axis, last)
        return
    # In three axes: what is before, the one that slides, and what is after.
    rows = [math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]), 1]
    flat = write(aten.reshape.default, source, rows)
    parts = [write(aten.slice.Tensor, flat, 1, first, first + count) for first in range(width)]
    write.finish(
        aten.reshape.default,
        write(aten.cat.default, parts, 3),
        [*shape[:axis], count, *shape[axis + 1 :], width],
    )


def _fold(write: Writer, source: Any, output: Any, kernel: Any, dilation: Any, padding: Any, stride: Any) -> None:
    *batch, channels, _ = size(source)
    spread, pads, step, high_wide = (list(given) * (3 - len(given)) for given in (dilation, padding, stride, kernel))
    wanted = list(output)
    reach = [d * (k - 1) for d, k in zip(spread, high_wide, strict=True)]
    counts = [(w + 2 * p - r - 1) // s + 1 for w, p, r, s in zip(wanted, pads, reach, step, strict=True)]
    extra = [w - ((c - 1) * s - 2 * p + r + 1) for w, c, s, p, r in zip(wanted, counts, step, pads, reach, strict=True)]
    places = math.prod(high_wide)
    maps = math.prod(batch) * channels // places
    identity = torch.eye(places, dtype=source.meta["val"].dtype).reshape(places, 1, *high_wide)
    grid = write(aten.reshape.default, source, [maps, places, *counts])
    summed = write(aten.conv_transpose2d.input, grid, write.constant(identity), None, step, pads, extra, 1, spread)
    write.finish(aten.reshape.default, summed, [*batch, channels // places, *wanted])
