"""Masks of eager attention in numbers that float16 holds: -1e4 instead of -inf and of the lowest float32.

A GPU delegate, TensorRT in float16 and most NPUs turn the lowest float32 into -inf, and a row that sees nothing is then
NaN: -inf minus -inf. exp(-1e4) is exactly 0 in every float format, so nothing else changes. What feeds each softmax is
read upwards: ``masked_fill(scores, hidden, -inf)``, ``where(seen, scores, lowest)``, ``scores + mask`` with a mask
made of 0 and one lowest number (:mod:`~edgeattn.converters.passes.masks`).

A row that sees nothing gives what it gave:

- scores that are replaced stay equal, hence uniform;
- a lowest finite number that is added drowns the scores, so the row is uniform. -1e4 would leave the scores
  readable, so the mask becomes -2e4 and the sum is held at -1e4 from below;
- -inf gave NaN, anything is better.

``scaled_dot_product_attention`` is :mod:`~edgeattn.converters.passes.plain_attention`'s.
"""

from __future__ import annotations

from typing import Any

import torch

from edgeattn.converters.passes.graph import LOWEST, Program, Writer
from edgeattn.converters.passes.masks import COPIES, read_mask, scalar
from edgeattn.spec import HIDDEN

aten = torch.ops.aten
FILLS = (aten.masked_fill.Scalar, aten.masked_fill.Tensor)
CHOICES = (aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf)
SOFTMAXES = (aten.softmax.int, aten._softmax.default, aten.log_softmax.int, aten._log_softmax.default)
SHAPES = frozenset((aten.view.default, aten.reshape.default, aten.transpose.int, aten.permute.default,
                    aten.unsqueeze.default, aten.squeeze.dim, aten.dropout.default))  # fmt: skip


def finite_masks(program: Program) -> int:
    """Rewrite what hides positions before each softmax; returns how many numbers were replaced."""
    work = _Work(program)
    for node in program.calls(*SOFTMAXES):
        if work.lower(node, 0):
            write = Writer(program, node)
            node.args = (write(aten.clamp.default, node.args[0], HIDDEN), *node.args[1:])
    return work.replaced


class _Work:
    """Goes up from a softmax; each node is visited once, however many layers read it."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.replaced = 0
        self._visited: dict[torch.fx.Node, bool] = {}
        self._biases: dict[Any, tuple[torch.fx.Node, bool]] = {}

    def lower(self, reader: torch.fx.Node, position: int) -> bool:
        """Rewrite one argument of ``reader``; true if the scores must be held at the hidden value from below."""
        node = reader.args[position]
        if not isinstance(node, torch.fx.Node) or node.op != "call_function":
            return False
        if any(user.op == "output" for user in node.users):  # what the user sees stays as it is
            return False
        if node not in self._visited:
            self._visited[node] = False
            self._visited[node] = self._lowered(node)
        return self._visited[node]

    def _lowered(self, node: torch.fx.Node) -> bool:
        if node.target in COPIES or node.target in SHAPES:
            return self.lower(node, 0)
        if node.target in FILLS:
            fill = scalar(self.program, node.args[2])
            if fill is not None and fill <= LOWEST:
                node.target, node.args = aten.masked_fill.Scalar, (*node.args[:2], HIDDEN)
                self.replaced += 1
            return self.lower(node, 0)
        if node.target in CHOICES:
            return self._choice(node)
        if node.target is aten.add.Tensor and not node.kwargs:
            left, right = (self._summand(node, position) for position in (0, 1))
            return left or right
        return False

    def _choice(self, node: torch.fx.Node) -> bool:
        floor = False
        for position in (1, 2):
            value = scalar(self.program, node.args[position])
            if value is None:
                floor |= self.lower(node, position)
            elif value <= LOWEST:
                hidden = Writer(self.program, node).constant(torch.tensor(HIDDEN, dtype=node.meta["val"].dtype))
                arguments = list(node.args)
                arguments[position] = hidden
                scores = arguments[3 - position]
                if isinstance(scores, torch.fx.Node):
                    node.target = aten.where.self
                    node.args = tuple(arguments)
                    self.replaced += 1
        return floor

    def _summand(self, node: torch.fx.Node, position: int) -> bool:
        mask = node.args[position]
        if mask not in self._biases:
            write = Writer(self.program, node)
            found = read_mask(self.program, mask, write)
            if found is None:
                return self.lower(node, position)
            self._biases[mask] = self._bias(found.seen, found.infinite, node, write)
            self.replaced += 1
        bias, floor = self._biases[mask]
        node.args = tuple(bias if index == position else argument for index, argument in enumerate(node.args))
        return floor

    def _bias(
        self, seen: torch.fx.Node, infinite: bool, node: torch.fx.Node, write: Writer
    ) -> tuple[torch.fx.Node, bool]:
        dtype = node.meta["val"].dtype
        known = self.program.known(seen)
        if known is not None:
            floor = not infinite and not bool(known.any(-1).all())
            hidden = 2 * HIDDEN if floor else HIDDEN
            return write.constant(torch.where(known, 0.0, hidden).to(dtype)), floor
        hidden = HIDDEN if infinite else 2 * HIDDEN
        ones = write(aten.to.dtype, seen, dtype)
        return write(aten.mul.Tensor, write(aten.sub.Tensor, ones, 1.0), -hidden), not infinite
