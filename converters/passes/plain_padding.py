"""Padding that an engine lacks: circular by Concat of slices, and any of more than five axes over three.

OpenVINO has no Pad that wraps around, and TFLite's PAD takes five axes ("'tfl.pad' op operand 0 at most 5-D").
"""

from __future__ import annotations

import math
from typing import Any

import torch

from edgeattn.converters.passes.graph import Program, Writer, size

aten = torch.ops.aten
MAX_AXES = 5  # of TFLite's PAD


def plain_padding(program: Program) -> int:
    """Rewrite each circular padding, and each constant one of many axes; returns how many there were."""
    changed = 0
    for node in program.calls(aten.pad.default, aten.constant_pad_nd.default):
        given: tuple[Any, ...] = node.args
        source, amounts, *rest = given
        mode = rest[0] if rest and node.target is aten.pad.default else "constant"
        many = len(size(source)) > MAX_AXES and mode == "constant"
        if (mode != "circular" and not many) or not any(amounts):
            continue
        values = rest[1:] if node.target is aten.pad.default else rest
        value = (values[0] if values else node.kwargs.get("value")) or 0.0
        write = Writer(program, node)
        made = source
        for place in range(len(amounts) // 2):
            axis, (before, after) = len(size(source)) - 1 - place, amounts[2 * place : 2 * place + 2]
            if before or after:
                made = (
                    _wrapped(write, made, axis, before, after)
                    if mode == "circular"
                    else _filled(write, made, axis, [before, after], value)
                )
        node.kwargs = {}
        write.finish(aten.clone.default, made)
        changed += 1
    return changed


def _wrapped(write: Writer, source: torch.fx.Node, axis: int, before: int, after: int) -> torch.fx.Node:
    """What is cut off below 0 first, then the end before and the beginning after."""
    length = size(source)[axis]
    if min(before, after) < 0:
        source = write(aten.slice.Tensor, source, axis, max(-before, 0), length - max(-after, 0))
        length = size(source)[axis]
    parts = [source]
    if before > 0:
        parts.insert(0, write(aten.slice.Tensor, source, axis, length - before, length))
    if after > 0:
        parts.append(write(aten.slice.Tensor, source, axis, 0, after))
    return write(aten.cat.default, parts, axis) if len(parts) > 1 else source


def _filled(write: Writer, source: torch.fx.Node, axis: int, ends: list[int], value: Any) -> torch.fx.Node:
    shape = size(source)
    flat = write(aten.reshape.default, source, [math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])])
    grown = write(aten.constant_pad_nd.default, flat, [0, 0, *ends], value)
    return write(aten.reshape.default, grown, [*shape[:axis], size(grown)[1], *shape[axis + 1 :]])
