"""Masks of ONNX files in numbers that float16 holds, as :mod:`~edgeattn.converters.passes.finite_masks` on programs.

What feeds each Softmax is read upwards: Where between scores and a lowest number, and Adds of a mask: a constant of 0
and one lowest number, Where between the two, a product with the lowest number, sums and other shapes of these. -inf
becomes -1e4; a lowest finite number becomes -2e4 with the scores held at -1e4 from below, so that a row that sees
nothing is uniform as before.

A file that looks for NaN after its Softmax (torch's ``scaled_dot_product_attention`` exports so) handles rows that see
nothing by itself; there -inf stays.
"""

from __future__ import annotations

import numpy as np
import onnx

from edgeattn.converters.passes.graph import LOWEST
from edgeattn.converters.passes.onnx_graph import View
from edgeattn.spec import HIDDEN

SHAPES = frozenset((
    "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Expand", "Identity", "Cast", "Slice", "Concat", "Tile",
))  # fmt: skip


def finite_onnx_masks(model: onnx.ModelProto) -> int:
    """Rewrite what hides positions before each Softmax; returns how many numbers were replaced."""
    work = _Work(View(model))
    for node in list(model.graph.node):
        readers = work.view.readers.get(node.output[0], []) if node.output else []
        if node.op_type not in ("Softmax", "LogSoftmax") or any(reader.op_type == "IsNaN" for reader in readers):
            continue
        scores = node.input[0]
        if work.lower(scores):
            hidden = work.view.constant(np.array(HIDDEN, np.float32), "hidden")
            node.input[0] = work.view.before(node, "Max", [scores, hidden], scores, f"{scores}_held")
    if work.replaced:
        work.view.drop_unread()
    return work.replaced


class _Work:
    """Goes up from a Softmax; each tensor is visited once, however many layers read it."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.replaced = 0
        self._visited: dict[str, bool] = {}
        self._kinds: dict[str, str] = {}

    def lower(self, name: str) -> bool:
        """Rewrite what makes the scores; true if they must be held at the hidden value from below."""
        if name not in self._visited:
            self._visited[name] = False
            self._visited[name] = self._lowered(name)
        return self._visited[name]

    def _lowered(self, name: str) -> bool:
        node = self.view.makers.get(name)
        if node is None or name in self.view.outputs:
            return False
        if node.op_type in SHAPES:
            return self.lower(node.input[0])
        if node.op_type == "Where":
            numbers = [self._low(node.input[position]) for position in (1, 2)]
            for position, low in zip((1, 2), numbers, strict=True):
                if low is not None:
                    self._replace(node, position, HIDDEN)
            held = [self.lower(node.input[p]) for p, low in zip((1, 2), numbers, strict=True) if low is None]
            return any(held)
        if node.op_type == "Add":
            left, right = (self._summand(node, position) for position in (0, 1))
            return left or right
        return False

    def _summand(self, node: onnx.NodeProto, position: int) -> bool:
        name = node.input[position]
        kind = self._kinds.get(name) or self._kind(name)
        if kind is None:
            return self.lower(name)
        if name not in self._kinds:
            self._kinds[name] = kind
            if name in self.view.constants:
                self._replace_mask(node, position)
            else:
                self._rewrite(name, HIDDEN if kind == "infinite" else 2 * HIDDEN)
        elif name in self.view.constants:
            self._replace_mask(node, position)
        return kind == "finite"

    def _low(self, name: str) -> float | None:
        number = self.view.number(name)
        return number if number is not None and number <= LOWEST else None

    def _kind(self, name: str) -> str | None:
        """A mask is "infinite", "finite" (a row may see nothing) or "seeing" (none does); None for anything else."""
        value = self.view.value(name)
        if value is not None:
            if value.dtype != np.float32 or value.size == 0:
                return None
            hidden = value <= LOWEST
            if not hidden.any() or (value[~hidden] != 0).any():
                return None
            if np.isinf(value[hidden]).any():
                return "infinite"
            return "finite" if value.ndim == 0 or hidden.all(-1).any() else "seeing"
        node = self.view.makers.get(name)
        if node is None or name in self.view.outputs:
            return None
        if node.op_type in SHAPES - {"Concat"}:
            return self._kind(node.input[0])
        if node.op_type == "Where":
            numbers = [self.view.number(node.input[position]) for position in (1, 2)]
            low = [number for number in numbers if number is not None and number <= LOWEST]
            if len(low) != 1 or 0.0 not in numbers:
                return None
            return "infinite" if np.isinf(low[0]) else "finite"
        if node.op_type == "Mul":
            low = [number for number in map(self._low, node.input) if number is not None and np.isfinite(number)]
            return "finite" if len(low) == 1 else None
        if node.op_type == "Add":
            kinds = [self._kind(source) for source in node.input]
            if None in kinds:
                return None
            return "infinite" if "infinite" in kinds else "finite"
        return None

    def _rewrite(self, name: str, hidden: float) -> None:
        """Other numbers inside a computed mask."""
        node = self.view.makers.get(name)
        if node is None:
            return
        for position, source in enumerate(node.input):
            if node.op_type in ("Where", "Mul") and self._low(source) is not None:
                self._replace(node, position, hidden)
            elif node.op_type == "Add" and source in self.view.constants:
                self._replace_mask(node, position, hidden)
            elif node.op_type == "Add" or (node.op_type in SHAPES and position == 0):
                self._rewrite(source, hidden)

    def _replace(self, node: onnx.NodeProto, position: int, hidden: float) -> None:
        shape = self.view.constants[node.input[position]].dims
        node.input[position] = self.view.constant(np.full(tuple(shape), hidden, np.float32), "hidden")
        self.replaced += 1

    def _replace_mask(self, node: onnx.NodeProto, position: int, hidden: float | None = None) -> None:
        name = node.input[position]
        value = self.view.value(name)
        assert value is not None
        number = hidden if hidden is not None else 2 * HIDDEN if self._kinds.get(name) == "finite" else HIDDEN
        lowered = np.where(value <= LOWEST, np.float32(number), value).astype(np.float32)
        node.input[position] = self.view.constant(lowered, f"{name}_finite")
        self.replaced += 1
