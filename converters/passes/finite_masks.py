"""Masks of eager attention in numbers that float16 holds: -1e4 instead of -inf and of the lowest float32.

A GPU delegate, TensorRT in float16 and most NPUs turn the lowest float32 into -inf, and a row that sees nothing is then
NaN: -inf minus -inf. exp(-1e4) is exactly 0 in every float format, so nothing else changes. What feeds each softmax is
read upwards: ``masked_fill(scores, hidden, -inf)``, ``where(seen, scores, lowest)``, ``scores + mask`` with a mask
made of 0 and one lowest number (:mod:`~edgeattn.converters.passes.masks`).

A row that sees nothing gives what it gave:

- scores that are replaced stay equal, hence uniform;
- a lowest finite number that is added drowns the scores, so the row is uniform. -1e4 would leave the scores
  readable, so the mask becomes -2e4 and the sum is held at -1e4 from below;
- -inf gives NaN, and so does the program: the weights of such a row are chosen to be NaN. Where the model itself looks
  for NaN right behind the softmax (``nan_to_num``, ``masked_fill(isnan(w), 0)``), the row gets that number at once, and
  no engine has to carry a NaN.

Which rows see nothing is worked out from the masks, once for all layers that share one; where every row of a known mask
sees something, nothing is added.

Only the branch that the softmax reads is written again. Scores that are returned as well, or read by something else,
stay what they are, and so does what feeds a ``log_softmax``: its result says -inf, or -1e9, where the model hides. A
branch in which finite numbers hide at several depths, or that is scaled after it was masked, is left as it is.

``scaled_dot_product_attention`` is :mod:`~edgeattn.converters.passes.plain_attention`'s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from edgeattn.converters.passes.graph import LOWEST, Program, Writer, size
from edgeattn.converters.passes.masks import COPIES, Mask, both, either, read_mask, scalar
from edgeattn.spec import HIDDEN

aten = torch.ops.aten
FILLS = (aten.masked_fill.Scalar, aten.masked_fill.Tensor)
CHOICES = (aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf)
SOFTMAXES = (aten.softmax.int, aten._softmax.default)
LARGEST = (aten.amax.default, aten.max.dim)
LOOKING = (aten.nan_to_num.default, aten.isnan.default, aten.nanmean.default, aten.nansum.default)
UNEQUAL = (aten.ne.Tensor, aten.eq.Tensor)
RELUS = (aten.relu.default, aten.relu_.default)
FLOORS = (aten.clamp.default, aten.clamp_min.default)
SHAPES = frozenset((aten.view.default, aten.reshape.default, aten.transpose.int, aten.permute.default,
                    aten.unsqueeze.default, aten.squeeze.dim, aten.expand.default))  # fmt: skip
TURNS = (aten.transpose.int, aten.permute.default)
ALIKE = COPIES | {aten.dropout.default}  # what they give is equal to what they read, element by element


def finite_masks(program: Program) -> int:
    """Rewrite what hides positions before each softmax; returns how many numbers were replaced."""
    work = Lowering(program)
    blind: dict[tuple[Any, ...], _Blind | None] = {}
    for node in program.calls(*SOFTMAXES):
        write = Writer(program, node)
        scores = work.lower(node.args[0], write)
        axis = _axis(node, len(size(node)))
        if scores is None or (scores.readable and axis != -1):
            continue
        lowered = work.held(scores, write)
        if scores.seen is None:
            node.args = (lowered, *node.args[1:])
            continue
        at = (scores.seen, axis, node.meta["val"].dtype)
        if at not in blind:
            blind[at] = _blind_rows(program, scores.seen, axis, node.meta["val"].dtype, write)
        _settle(program, node, lowered, blind[at])
    for node in program.calls(*LARGEST):
        work.replaced += _infinite_largest(program, node)
    return work.replaced


@dataclass(frozen=True)
class Scores:
    """A branch written again, without -inf and without numbers that float16 does not hold.

    Attributes:
        node: what stands for the branch.
        seen: boolean node, false where the branch held -inf; None if it nowhere did. Broadcastable.
        number: the finite number that hides in it, if one does.
        floor: the sum is to be held at the hidden value from below.
        readable: scores that the number hides still differ; nobody sees it, as every row sees others.
    """

    node: torch.fx.Node
    seen: torch.fx.Node | None = None
    number: float | None = None
    floor: bool = False
    readable: bool = False


class _UnclearError(Exception):
    """A branch in which a row that sees nothing would come out as another one."""


class Lowering:
    """Goes up from what reads masked scores; each node is written again once, however many layers read it."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.replaced = 0
        self._visited: dict[torch.fx.Node, Scores | None] = {}
        self._biases: dict[tuple[torch.fx.Node, torch.dtype], Scores | None] = {}

    def lower(self, node: Any, write: Writer) -> Scores | None:
        """The branch again, or None where nothing in it hides or it has to stay as it is."""
        before = self.replaced
        try:
            scores = self._lower(node, write)
            if scores is not None and scores.seen is not None and scores.readable:
                raise _UnclearError
        except _UnclearError:
            self.replaced = before
            return None
        return scores

    def held(self, scores: Scores, write: Writer) -> torch.fx.Node:
        """The branch as a softmax reads it: rows that only finite numbers hide are uniform over these."""
        node = scores.node
        if scores.floor:
            node = write(aten.clamp.default, node, HIDDEN)
        if scores.seen is not None and scores.number is not None:
            deeper = write(aten.mul.Tensor, self._less_one(scores.seen, node, write), -2 * HIDDEN)
            node = write(aten.add.Tensor, node, deeper)
        return node

    def _lower(self, node: Any, write: Writer) -> Scores | None:
        if not isinstance(node, torch.fx.Node) or node.op != "call_function":
            return None
        if node not in self._visited:
            self._visited[node] = self._lowered(node, write)
        return self._visited[node]

    def _lowered(self, node: torch.fx.Node, write: Writer) -> Scores | None:
        if node.target in ALIKE:
            inner = self._lower(node.args[0], write)
            return inner and replace(inner, node=write(node.target, inner.node, *node.args[1:], **node.kwargs))
        if node.target in SHAPES:
            inner = self._lower(node.args[0], write)
            if inner is None:
                return None
            moved = write(node.target, inner.node, *node.args[1:], **node.kwargs)
            if inner.readable and (node.target in TURNS or size(moved)[-1:] != size(inner.node)[-1:]):
                raise _UnclearError
            seen = inner.seen
            if seen is not None:
                whole = size(node.args[0])
                seen = seen if size(seen) == whole else write(aten.expand.default, seen, list(whole))
                seen = write(node.target, seen, *node.args[1:], **node.kwargs)
            return replace(inner, node=moved, seen=seen)
        if node.target in FILLS:
            arguments: tuple[Any, ...] = node.args
            base, condition, fill = arguments
            return self._filled(base, scalar(self.program, fill), condition, None, write)
        if node.target in CHOICES:
            return self._choice(node, write)
        if node.target is aten.add.Tensor and not node.kwargs:
            return self._sum(node, write)
        return None

    def _filled(
        self, base: Any, number: float | None, hidden: Any, unhidden: torch.fx.Node | None, write: Writer
    ) -> Scores | None:
        """``masked_fill(base, hidden, number)``; with ``unhidden``, written as ``where(unhidden, base, number)``."""
        under = self._lower(base, write)
        if number is None or number > LOWEST:
            if under is None:
                return None
            if number is None or under.floor:
                raise _UnclearError
            filled = write(aten.masked_fill.Scalar, under.node, hidden, number)
            return replace(under, node=filled, seen=either(write, under.seen, hidden))
        below = under or Scores(base)
        self.replaced += 1
        if unhidden is None:
            filled = write(aten.masked_fill.Scalar, below.node, hidden, HIDDEN)
            unhidden = write(aten.logical_not.default, hidden)
        else:
            lowest = write.constant(torch.tensor(HIDDEN, dtype=below.node.meta["val"].dtype))
            filled = write(aten.where.self, unhidden, below.node, lowest)
        if math.isinf(number):
            return replace(below, node=filled, seen=both(write, below.seen, unhidden))
        if below.number not in (None, number):
            raise _UnclearError
        return replace(below, node=filled, number=number, seen=either(write, below.seen, hidden))

    def _choice(self, node: torch.fx.Node, write: Writer) -> Scores | None:
        """``where(condition, scores, lowest)``, either way round, or between two branches."""
        arguments: tuple[Any, ...] = node.args
        condition, *choices = arguments
        values = [scalar(self.program, choice) for choice in choices]
        for position in (0, 1):
            number, other = values[position], choices[1 - position]
            if number is not None and number <= LOWEST and isinstance(other, torch.fx.Node):
                if size(other) != size(node):
                    other = write(aten.expand.default, other, list(size(node)))
                if position == 0:
                    return self._filled(other, number, condition, None, write)
                return self._filled(other, number, write(aten.logical_not.default, condition), condition, write)
        first, second = (self._lower(choice, write) for choice in choices)
        if first is None and second is None:
            return None
        found = [branch for branch in (first, second) if branch is not None]
        numbers = {branch.number for branch in found} - {None}
        nodes = [branch.node if branch else choice for branch, choice in zip((first, second), choices, strict=True)]
        if (
            len(numbers) > 1
            or any(branch.floor or branch.readable for branch in found)
            or not all(isinstance(choice, torch.fx.Node) for choice in nodes)
        ):
            raise _UnclearError
        not_chosen = write(aten.logical_not.default, condition)
        seen = both(
            write,
            either(write, first.seen, not_chosen) if first is not None else None,
            either(write, second.seen, condition) if second is not None else None,
        )
        return Scores(write(aten.where.self, condition, *nodes), seen, next(iter(numbers), None))

    def _sum(self, node: torch.fx.Node, write: Writer) -> Scores | None:
        """Scores and a mask, or scores and something else."""
        dtype = node.meta["val"].dtype
        biases = [self._bias(argument, dtype, write) for argument in node.args]
        parts = [
            bias if bias is not None else self._lower(argument, write)
            for bias, argument in zip(biases, node.args, strict=True)
        ]
        found = [part for part in parts if part is not None]
        if not found:
            return None
        numbers = [part.number for part in found if part.number is not None]
        # A finite number drowns what is added to it, also behind it; two of them lie deeper than one.
        if len(numbers) > 1 or any(
            part is not None and bias is None and part.number is not None
            for part, bias in zip(parts, biases, strict=True)
        ):
            raise _UnclearError
        seen = None
        for part in found:
            seen = both(write, seen, part.seen)
        nodes = [part.node if part is not None else argument for part, argument in zip(parts, node.args, strict=True)]
        floor = any(part.floor for part in found)
        readable = any(part.readable for part in found)
        return Scores(write(aten.add.Tensor, *nodes), seen, numbers[0] if numbers else None, floor, readable)

    def _bias(self, mask: Any, dtype: torch.dtype, write: Writer) -> Scores | None:
        """An additive mask as a bias of finite numbers, once for all that read it."""
        if not isinstance(mask, torch.fx.Node):
            return None
        if (mask, dtype) not in self._biases:
            found = read_mask(self.program, mask, write)
            if found is None:
                self._biases[mask, dtype] = None
            else:
                self._biases[mask, dtype] = bias_of(self.program, found, dtype, write)
        bias = self._biases[mask, dtype]
        self.replaced += bias is not None
        return bias

    def _less_one(self, seen: torch.fx.Node, like: torch.fx.Node, write: Writer) -> torch.fx.Node:
        return less_one(self.program, seen, like.meta["val"].dtype, write)


def less_one(program: Program, seen: torch.fx.Node, dtype: torch.dtype, write: Writer) -> torch.fx.Node:
    """0 where a boolean holds, -1 elsewhere; a constant where it is known."""
    known = program.known(seen)
    if known is not None:
        return write.constant(known.to(dtype) - 1.0)
    return write(aten.sub.Tensor, write(aten.to.dtype, seen, dtype), 1.0)


def bias_of(program: Program, mask: Mask, dtype: torch.dtype, write: Writer) -> Scores:
    """What to add to scores for a mask, in numbers that float16 holds."""
    if mask.shown is None or mask.number is None:
        assert mask.seen is not None, "a mask hides something"
        known = program.known(mask.seen)
        if known is not None:
            return Scores(write.constant(torch.where(known, 0.0, HIDDEN).to(dtype)), mask.seen)
        return Scores(write(aten.mul.Tensor, less_one(program, mask.seen, dtype, write), -HIDDEN), mask.seen)
    known = program.known(mask.shown)
    if known is not None:
        every = bool(known.any(-1).all())
        bias = write.constant(torch.where(known, 0.0, HIDDEN if every else 2 * HIDDEN).to(dtype))
        return Scores(bias, mask.seen, mask.number, floor=not every, readable=every)
    bias = write(aten.mul.Tensor, less_one(program, mask.shown, dtype, write), -2 * HIDDEN)
    return Scores(bias, mask.seen, mask.number, floor=True)


@dataclass(frozen=True)
class _Blind:
    """Which rows see nothing, as a boolean, and 1 where a row sees something, else 0; of size 1 along the row."""

    rows: torch.fx.Node
    sees: torch.fx.Node


def _blind_rows(program: Program, seen: torch.fx.Node, axis: int, dtype: torch.dtype, write: Writer) -> _Blind | None:
    """None where every row is known to see something."""
    whole = len(size(seen)) >= -axis
    known = program.known(seen)
    if known is not None:
        some = known.any(axis, keepdim=True) if whole else known
        if bool(some.all()):
            return None
        return _Blind(write.constant(~some), write.constant(some.to(dtype)))
    sees = write(aten.to.dtype, narrow(seen), dtype)
    if whole:
        sees = write(aten.amax.default, sees, [axis], True)
    return _Blind(write(aten.eq.Scalar, sees, 0), sees)


def narrow(mask: Any) -> Any:
    """A mask before ``expand``: what that copies, operators broadcast by themselves."""
    while mask.target is aten.expand.default and mask.args[0].meta["val"].ndim == mask.meta["val"].ndim:
        mask = mask.args[0]
    return mask


def _settle(program: Program, node: torch.fx.Node, scores: torch.fx.Node, blind: _Blind | None) -> None:
    """Let a softmax read ``scores``, and rows that see nothing come out as the model makes them."""
    if blind is None:
        node.args = (scores, *node.args[1:])
        return
    write = Writer(program, node)
    weights = write(node.target, scores, *node.args[1:], **node.kwargs)
    for reader in _readers(node):
        _mend(program, reader, node, weights, blind)
    nothing = write.constant(torch.tensor(math.nan, dtype=node.meta["val"].dtype))
    write.finish(aten.where.self, blind.rows, nothing, weights)  # dropped again if nothing reads it any more
    _keep_nan(program, node)


def _keep_nan(program: Program, source: torch.fx.Node) -> None:
    """Let NaN pass the activations on its way to where the model mends it.

    OpenVINO's Relu and Maximum make 0 of NaN, and nothing would be left to mend; ``x < 0 ? 0 : x`` keeps it. Where no
    place behind looks for NaN, they stay what every engine fuses.
    """
    behind = _behind(source)
    mending = [node for node in behind if node.target in LOOKING or (node.target in UNEQUAL and _of_itself(node))]
    before: set[torch.fx.Node] = set()
    waiting = list(mending)
    while waiting:
        node = waiting.pop()
        if node not in before:
            before.add(node)
            waiting += [inner for inner in node.all_input_nodes if inner in behind]
    for node in [node for node in behind if node in before]:
        low = 0.0 if node.target in RELUS and len(node.all_input_nodes[0].users) == 1 else None
        if node.target in FLOORS and len(node.args) == 2 and isinstance(node.args[1], (int, float)):
            low = float(node.args[1])
        if low is not None and not node.kwargs:
            write = Writer(program, node)
            least = write.constant(torch.tensor(low, dtype=node.meta["val"].dtype))
            write.finish(aten.where.self, write(aten.lt.Scalar, node.args[0], low), least, node.args[0])


def _axis(node: torch.fx.Node, rank: int) -> int:
    """Along which a node works, its second argument, counted from the last, which is -1."""
    given: Any = node.args[1]
    return int(given[0] if isinstance(given, (list, tuple)) else given) % rank - rank


def _behind(source: torch.fx.Node) -> dict[torch.fx.Node, None]:
    """What depends on a node, in no order."""
    found: dict[torch.fx.Node, None] = {}
    waiting = list(source.users)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found[node] = None
            waiting += node.users
    return found


def _of_itself(node: torch.fx.Node) -> bool:
    return len(node.args) == 2 and node.args[0] is node.args[1]


def _infinite_largest(program: Program, node: torch.fx.Node) -> int:
    """The largest of what a mask hides as a whole is -inf; OpenVINO says -3.4e38. Returns whether it is written so."""
    if len(node.args) < 2:
        return 0
    write = Writer(program, node)
    scores = Lowering(program).lower(node.args[0], write)
    arguments: tuple[Any, ...] = node.args
    several = isinstance(arguments[1], (list, tuple)) and len(arguments[1]) != 1
    if scores is None or scores.seen is None or scores.number is not None or several:
        return 0
    shape, dtype = size(arguments[0]), arguments[0].meta["val"].dtype
    axis = _axis(node, len(shape))
    blind = _blind_rows(program, scores.seen, axis, dtype, write)
    if blind is None:
        return 0
    keeps = len(arguments) > 2 and arguments[2]
    readers = [node] if node.target is aten.amax.default else [r for r in node.users if r.args[1] == 0]
    for reader in readers:
        write = Writer(program, reader)
        one = [1 if index == len(shape) + axis else n for index, n in enumerate(shape)]
        rows = write(aten.expand.default, blind.rows, one)
        if not keeps:
            rows = write(aten.squeeze.dim, rows, axis)
        largest = write(reader.target, *reader.args, **reader.kwargs)
        lowest = write.constant(torch.tensor(-math.inf, dtype=dtype))
        write.finish(aten.where.self, rows, lowest, largest)
    return len(readers)


def _readers(node: torch.fx.Node) -> list[torch.fx.Node]:
    """What reads a node or a copy of it."""
    found: list[torch.fx.Node] = []
    for reader in node.users:
        found += _readers(reader) if reader.target in ALIKE else [reader]
    return found


def _mend(program: Program, reader: torch.fx.Node, node: torch.fx.Node, weights: torch.fx.Node, blind: _Blind) -> None:
    """A reader that puts a number where NaN is gets the number by the rows that see nothing."""
    value: Any = None
    arguments: tuple[Any, ...] = reader.args
    if reader.target is aten.nan_to_num.default:
        value = arguments[1] if len(arguments) > 1 else reader.kwargs.get("nan")
        value = 0.0 if value is None else value
    elif reader.target in (*FILLS, *CHOICES):
        condition, (kept, filled) = (
            (arguments[1], (arguments[0], arguments[2]))
            if reader.target in FILLS
            else (arguments[0], (arguments[2], arguments[1]))
        )
        if getattr(condition, "target", None) is not aten.isnan.default:
            return
        if not all(_same(node, source) for source in (condition.args[0], kept)):
            return
        value = scalar(program, filled)
    if not isinstance(value, (int, float)):
        return
    write = Writer(program, reader)
    if value == 0:  # a product is what every delegate takes; a choice is not
        write.finish(aten.mul.Tensor, weights, blind.sees)
    else:
        number = write.constant(torch.tensor(float(value), dtype=node.meta["val"].dtype))
        write.finish(aten.where.self, blind.rows, number, weights)


def _same(node: torch.fx.Node, source: Any) -> bool:
    while isinstance(source, torch.fx.Node) and source is not node and source.target in ALIKE:
        source = source.args[0]
    return source is node
