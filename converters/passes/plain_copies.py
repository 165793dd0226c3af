"""Copies along axes in forms that every engine takes.

- ``repeat`` of five axes and more: LiteRT's converter makes twice as many axes of it, and BROADCAST_TO takes eight.
  Each repeated axis becomes a Concat, or an expand of three axes where that would be long.
- ``expand`` of a batch or of heads that only products read (multi-query attention: one key for all heads): a product
  spreads an axis of size 1 by itself, and LiteRT loses the shape of a transposed BROADCAST_TO.
- ``expand`` of an operand of arithmetic (a gate per channel, ``x * gate.expand_as(x)``), which spreads it anyway:
  LiteRT's converter turns the images around it and forgets the BROADCAST_TO between.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from edgeattn.converters.passes.graph import Program, Writer, size
from edgeattn.converters.passes.repeated_heads import MAX_COPIES

aten = torch.ops.aten
REPEAT_AXES = 4
ARITHMETIC = (
    aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.maximum.default, aten.minimum.default,
    aten.where.self,
)  # fmt: skip
TURNED = (aten.transpose.int, aten.permute.default, aten.mT.default)


def plain_copies(program: Program) -> int:
    """Rewrite such copies; returns how many there were."""
    changed = 0
    for node in program.calls(aten.repeat.default):
        if len(size(node)) > REPEAT_AXES and node.meta["val"].numel():
            _repeat(program, node)
            changed += 1
    for node in program.calls(aten.matmul.default):
        changed += _spread_by_product(program, node)
    for node in program.calls(*ARITHMETIC):
        changed += _spread_by_arithmetic(node)
    return changed


def _repeat(program: Program, node: torch.fx.Node) -> None:
    arguments: tuple[Any, ...] = node.args
    source, times = arguments
    write = Writer(program, node)
    shape = [1] * (len(times) - len(size(source))) + list(size(source))
    for axis, count in enumerate(times):
        if count == 1:
            continue
        flat = [math.prod(shape[:axis]), 1, math.prod(shape[axis:])]
        once = write(aten.reshape.default, source, flat)
        if count <= MAX_COPIES:
            source = write(aten.cat.default, [once] * count, 1)
        else:
            source = write(aten.expand.default, once, [flat[0], count, flat[2]])
        shape[axis] *= count
    write.finish(aten.reshape.default, source, list(size(node)))


def _spread_by_product(program: Program, node: torch.fx.Node) -> int:
    """Give a product the operands as they are before an expand of its batch axes; how many these were."""
    done = 0
    whole = list(size(node))
    for place in (0, 1):
        other: Any = node.args[1 - place]
        turns: list[Any] = []
        operand: Any = node.args[place]
        while getattr(operand, "target", None) in TURNED:
            turns.append(operand)
            operand = operand.args[0]
        if getattr(operand, "target", None) is not aten.expand.default:
            continue
        source = operand.args[0]
        rank = len(size(operand))
        if len(size(source)) != rank or rank < 3 or len(size(other)) != rank:
            continue
        write = Writer(program, node)
        for turn in reversed(turns):
            source = write(turn.target, source, *turn.args[1:], **turn.kwargs)
        if size(source)[-2:] != size(node.args[place])[-2:]:
            continue  # what the product sums over was expanded
        shapes = [list(size(source))[:-2], list(size(other))[:-2]]
        if [max(pair) for pair in zip(*shapes, strict=True)] == whole[:-2]:
            node.update_arg(place, source)
            done += 1
    return done


def _spread_by_arithmetic(node: torch.fx.Node) -> int:
    """Give an operation its operands as they are before an expand, where that leaves its shape; how many these were."""
    done = 0
    for place, operand in enumerate(node.args):
        if not isinstance(operand, torch.fx.Node) or operand.target is not aten.expand.default:
            continue
        source: Any = operand.args[0]
        others = [size(arg) for at, arg in enumerate(node.args) if at != place and isinstance(arg, torch.fx.Node)]
        if np.broadcast_shapes(size(source), *others) == tuple(size(node)):
            node.update_arg(place, source)
            done += 1
    return done
