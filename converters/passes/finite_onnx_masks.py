"""Masks of ONNX files in numbers that float16 holds, as :mod:`~edgeattn.converters.passes.finite_masks` on programs.

What feeds each Softmax is read upwards: Where between scores and a lowest number, and Adds of a mask: a constant of 0
and one lowest number, Where between the two, a product with the lowest number, other shapes of these. The lowest finite
number becomes -2e4 with the scores held at -1e4 from below, so that a row that sees nothing is uniform as before.

-inf becomes -1e4 where a constant shows that every row sees something. Anywhere else it stays: a row that sees nothing
is NaN, as the file says, and what looks for NaN behind the Softmax finds it.

Only the branch that a Softmax reads is written again: scores that are an output as well, or read by something else,
stay, and so does what feeds a LogSoftmax. A branch in which numbers hide at several depths is left as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx

from edgeattn.converters.passes.graph import DROWNS, LOWEST
from edgeattn.converters.passes.onnx_graph import View
from edgeattn.spec import HIDDEN

KEEPING = frozenset(("Unsqueeze", "Squeeze", "Identity", "Cast", "Reshape"))  # rows stay rows, if their size does
SHAPES = KEEPING | {"Transpose", "Expand", "Slice", "Tile"}


def finite_onnx_masks(model: onnx.ModelProto) -> int:
    """Rewrite what hides positions before each Softmax; returns how many numbers were replaced."""
    work = _Work(View(model))
    for node in list(model.graph.node):
        if node.op_type != "Softmax":
            continue
        lowered = work.lower(node.input[0], node)
        if lowered is None or (lowered.readable and not work.along_last(node)):
            continue
        scores = lowered.name
        if lowered.floor:
            hidden = work.view.constant(np.array(HIDDEN, np.float32), "hidden")
            scores = work.view.before(node, "Max", [scores, hidden], node.input[0], f"{node.input[0]}_held")
        node.input[0] = scores
    if work.replaced:
        work.view.drop_unread()
    return work.replaced


@dataclass(frozen=True)
class _Scores:
    """A tensor written again.

    Attributes:
        name: of it.
        number: what hides in it; None for -inf in constants that leave something to see to every row.
        floor: it is to be held at the hidden value from below.
        readable: what is hidden still differs; nobody sees it, as every row sees others.
    """

    name: str
    number: float | None = None
    floor: bool = False
    readable: bool = False


class _UnclearError(Exception):
    """A branch in which a row that sees nothing would come out as another one."""


class _Work:
    """Goes up from a Softmax; each tensor is written again once, however many layers read it."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.replaced = 0
        self._visited: dict[str, _Scores | None] = {}
        self._masks: dict[str, _Scores | None] = {}

    def along_last(self, softmax: onnx.NodeProto) -> bool:
        """Whether its rows lie along the last axis."""
        axis = next((a.i for a in softmax.attribute if a.name == "axis"), -1)
        shape = self.view.shape(softmax.input[0])
        return axis == -1 or (shape is not None and axis == len(shape) - 1)

    def lower(self, name: str, anchor: onnx.NodeProto) -> _Scores | None:
        """Masked scores again, or None where nothing in them hides or they have to stay."""
        before = self.replaced
        try:
            return self._lower(name, anchor)
        except _UnclearError:
            self.replaced = before
            return None

    def _lower(self, name: str, anchor: onnx.NodeProto) -> _Scores | None:
        if name not in self._visited:
            node = self.view.makers.get(name)
            self._visited[name] = None if node is None else self._lowered(node, anchor)
        return self._visited[name]

    def _lowered(self, node: onnx.NodeProto, anchor: onnx.NodeProto) -> _Scores | None:
        if node.op_type in SHAPES:
            inner = self._lower(node.input[0], anchor)
            if inner is None:
                return None
            if inner.readable and not self._keeps_rows(node):
                raise _UnclearError
            return replace(inner, name=self.view.copied(node, [inner.name, *node.input[1:]], anchor))
        if node.op_type == "Where":
            return self._choice(node, anchor)
        if node.op_type == "Add":
            return self._sum(node, anchor)
        return None

    def _keeps_rows(self, node: onnx.NodeProto) -> bool:
        before, after = (self.view.shape(name) for name in (node.input[0], node.output[0]))
        return node.op_type in KEEPING and before is not None and after is not None and before[-1:] == after[-1:]

    def _choice(self, node: onnx.NodeProto, anchor: onnx.NodeProto) -> _Scores | None:
        """Where(condition, scores, lowest), either way round."""
        for low, other in ((2, 1), (1, 2)):
            number = self.view.number(node.input[low])
            if number is None or number > LOWEST or self.view.value(node.input[other]) is not None:
                continue
            under = self._lower(node.input[other], anchor)
            scores = under or _Scores(node.input[other])
            if np.isinf(number):
                if under is not None or not self._every_row_sees(node.input[0], other == 1):
                    raise _UnclearError
                number = None
            elif under is not None and (scores.number != number or scores.readable):
                raise _UnclearError
            inputs = [node.input[0], scores.name, scores.name]
            inputs[low] = self._hidden(node.input[low], HIDDEN)
            self.replaced += 1
            made = self.view.copied(node, inputs, anchor)
            return replace(scores, name=made, number=number, readable=number is None)
        if any(self._lower(name, anchor) is not None for name in node.input[1:]):
            raise _UnclearError
        return None

    def _every_row_sees(self, condition: str, when: bool) -> bool:
        value = self.view.value(condition)
        return value is not None and value.ndim > 0 and bool((value == when).any(-1).all())

    def _sum(self, node: onnx.NodeProto, anchor: onnx.NodeProto) -> _Scores | None:
        masks = [self._mask(name, anchor) for name in node.input]
        parts = [mask or self._lower(name, anchor) for mask, name in zip(masks, node.input, strict=True)]
        found = [part for part in parts if part is not None]
        if not found:
            return None
        if len(found) > 1 or (masks[0] is None and masks[1] is None):
            raise _UnclearError  # several masks, or a mask that is not the last thing added
        names = [part.name if part is not None else name for part, name in zip(parts, node.input, strict=True)]
        return replace(found[0], name=self.view.copied(node, names, anchor))

    def _mask(self, name: str, anchor: onnx.NodeProto) -> _Scores | None:
        """A mask to add again; None for anything else."""
        if name not in self._masks:
            number = self._number_of(name)
            value = self.view.value(name)
            if value is not None:
                self._masks[name] = self._constant_mask(name, value)
            elif number is None:
                self._masks[name] = None
            else:
                self._masks[name] = _Scores(self._copied_mask(name, anchor), number, floor=True)
        mask = self._masks[name]
        self.replaced += mask is not None
        return mask

    def _constant_mask(self, name: str, value: np.ndarray) -> _Scores | None:
        if value.dtype != np.float32 or value.size == 0:
            return None
        hidden = value <= LOWEST
        if not hidden.any() or (value[~hidden] != 0).any():
            return None
        every = value.ndim > 0 and not bool(hidden.all(-1).any())
        number = None
        if not every:
            numbers = np.unique(value[hidden])
            number = float(numbers[0])
            if len(numbers) > 1 or not np.isfinite(number) or number > DROWNS:
                raise _UnclearError
        lowered = np.where(hidden, np.float32(HIDDEN if every else 2 * HIDDEN), value)
        return _Scores(self.view.constant(lowered, f"{name}_finite"), number, floor=not every, readable=every)

    def _number_of(self, name: str) -> float | None:
        """The one finite number that hides in a computed mask of 0 and that number; None for anything else."""
        node = self.view.makers.get(name)
        if node is None or name in self.view.constants:
            return None
        if node.op_type in SHAPES:
            return self._number_of(node.input[0])
        numbers = [self.view.number(source) for source in node.input]
        low = [number for number in numbers if number is not None and number <= DROWNS and np.isfinite(number)]
        if len(low) != 1:
            return None
        if node.op_type == "Mul" or (node.op_type == "Where" and 0.0 in numbers[1:]):
            return low[0]
        return None

    def _copied_mask(self, name: str, anchor: onnx.NodeProto) -> str:
        node = self.view.makers[name]
        if node.op_type in SHAPES:
            return self.view.copied(node, [self._copied_mask(node.input[0], anchor), *node.input[1:]], anchor)
        inputs = []
        for source in node.input:
            number = self.view.number(source)
            hides = number is not None and number <= DROWNS
            inputs.append(self._hidden(source, 2 * HIDDEN) if hides else source)
        return self.view.copied(node, inputs, anchor)

    def _hidden(self, like: str, hidden: float) -> str:
        return self.view.constant(np.full(tuple(self.view.constants[like].dims), hidden, np.float32), "hidden")
