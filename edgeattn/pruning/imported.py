"""Finding units by structure, in a network that is a list of steps with no modules to go by: an imported ONNX graph.

No pattern is matched. That the outputs of a linear layer lie in groups is assumed, and followed through the graph,
forwards and backwards: where a step keeps groups apart they are found again along an axis of what it makes or reads,
and where it mixes them the assumption was wrong. Groups that leave through linear layers alone are a unit, and the
steps on the way say which tensors and sizes hold them. The largest number of groups that can be followed is the number
of neurons, or of key/value heads: a head is what the product of queries and keys mixes.

The idea is that of DepGraph (Fang et al. 2023, "DepGraph: Towards Any Structural Pruning", section 3), with groups of
any width at any place of an axis, so that heads are units too.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from torch import nn

from edgeattn.pruning.anatomy import Anatomy, Setting, Slice, Unit, Unknown
from edgeattn.pruning.axes import (
    ATTENTION,
    RESHAPING,
    SOFTMAX,
    VENDOR,
    Letters,
    Lie,
    MixedError,
    Shape,
    letters,
    reshaped,
)
from edgeattn.pruning.families import together
from edgeattn.pruning.flow import Flow, Step, expands, linear_of

FAMILY = "graph"
PARTS = (1, 2, 3)  # sections of a layer's outputs that each hold all groups: a gate and its input; query, key and value


def find(network: nn.Module) -> Anatomy:
    """All units of a graph, in its order; attention that cannot be followed is unknown, with the step that mixes it.

    Args:
        network: a :class:`Graph`.
    """
    flow = Flow(network)
    units: list[Unit] = []
    failed: dict[str, tuple[int, str]] = {}
    taken: set[str] = set()
    covered: set[str] = set()
    for step in flow.graph.steps:
        place = linear_of(network, step)
        if place is None or place in taken:
            continue
        spread, reasons = _largest(flow, step.outputs[0])
        for path, reason in reasons.items():
            if path not in failed or reason[0] > failed[path][0]:
                failed[path] = reason
        unit = None if spread is None else _unit(spread, {unit.key for unit in units})
        if spread is not None and unit is not None:
            units.append(unit)
            taken |= {*unit.entries}
            covered |= spread.attending
    whole, shared = together(network, units)
    unknown: dict[str, Unknown] = {}
    for step in flow.graph.steps:
        if step.op in (*SOFTMAX, *ATTENTION) and step.path in failed and step.path not in covered:
            why = f"fewer than two heads can be told apart: {failed[step.path][1]}"
            unknown.setdefault(_above(step.path), Unknown(_above(step.path), step.op, why))
    return Anatomy(whole, (), (*unknown.values(), *shared))


def _largest(flow: Flow, value: str) -> tuple[_Spread | None, dict[str, tuple[int, str]]]:
    """The most groups that the last axis of a value holds.

    Returns:
        them, and of every attention met where they could not be followed: how far they were, and why no further.
    """
    size = flow.shapes[value][-1]
    reasons: dict[str, tuple[int, str]] = {}
    tried = [(groups, parts) for parts in PARTS if size % parts == 0 for groups in _divisors(size // parts)]
    for groups, parts in sorted(tried, key=lambda pair: (-pair[0], pair[1])):
        spread = _Spread(flow, groups)
        try:
            spread.follow(value, Lie(len(flow.shapes[value]) - 1, parts, size // parts // groups))
        except MixedError as error:
            for path in spread.attending:
                if path not in reasons or len(spread.laid) > reasons[path][0]:
                    reasons[path] = len(spread.laid), str(error)
            continue
        return spread, reasons
    return None, reasons


def _divisors(number: int) -> list[int]:
    return [n for n in range(2, number + 1) if number % n == 0]


def _unit(spread: _Spread, keys: set[str]) -> Unit | None:
    """The unit that was followed; None where it is none: nothing leaves through one layer, or nothing enters."""
    entries = [path for path in spread.flow.linears if path in spread.entries]
    exits = [path for path in spread.flow.linears if path in spread.exits]
    widths = set(spread.exits.values())
    if not entries or not exits or len(widths) > 1:
        return None
    attends = bool(spread.attending)
    if not attends and len(exits) > 1:
        return None  # the width of the whole model, not a feed-forward
    (width,) = widths
    kind = "attention" if attends else "feedforward"
    share = spread.share  # query heads of a group
    path = _common([*entries, *exits])
    if not path or f"{kind}:{path}" in keys:
        path = exits[0]
    heads = spread.groups * share if attends else 0
    return Unit(
        path=path, kind="attention" if attends else "feedforward", family=FAMILY, groups=spread.groups, width=width,
        exit=exits[0], slices=tuple(spread.slices), settings=tuple(spread.settings), heads=heads,
        head_dim=width // share if attends else 0, cross=False, entries=tuple(entries), tied=tuple(exits[1:]),
    )  # fmt: skip


def _common(paths: Sequence[str]) -> str:
    """The module that all of these lie in."""
    split = [path.split(".")[:-1] for path in paths]
    common = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


def _above(path: str) -> str:
    return path.rpartition(".")[0] or path


class _Spread:
    """Groups on their way through a graph."""

    def __init__(self, flow: Flow, groups: int) -> None:
        self.flow = flow
        self.groups = groups
        self.laid: dict[str, Lie] = {}
        self.todo: list[str] = []
        self.entries: dict[str, None] = {}
        self.exits: dict[str, int] = {}
        self.slices: dict[Slice, None] = {}
        self.settings: dict[Setting, None] = {}
        self.attending: set[str] = set()
        self.share = 1

    def follow(self, value: str, lie: Lie) -> None:
        """Follow groups from a value to wherever they go and come from.

        Raises:
            MixedError: where a step mixes them.
        """
        self._lay(value, lie)
        while self.todo:
            name = self.todo.pop()
            for step in (self.flow.maker[name], *self.flow.readers.get(name, [])):
                self._through(step)

    def _lay(self, value: str, lie: Lie) -> None:
        there = self.laid.get(value)
        if there is not None:
            if there != lie:
                raise MixedError("needs them in another order than they come in")
            return
        if value in self.flow.graph.inputs:
            raise MixedError(f"reads them from the input {value}")
        if value in self.flow.graph.outputs:
            raise MixedError(f"gives them out as {value}")
        if self.flow.shapes[value][lie.axis] != lie.parts * self.groups * lie.inner:
            raise MixedError("repeats or leaves out some")
        self.laid[value] = lie
        self.todo.append(value)

    def _cut(self, module: str, tensor: str, lie: Lie) -> None:
        for part in range(lie.parts):
            self.slices[Slice(module, tensor, lie.axis, lie.inner, part * self.groups * lie.inner)] = None

    def _set(self, module: str, attribute: str, size: int) -> None:
        if size % self.groups:
            raise MixedError("takes a share of them that is no whole number")
        self.settings[Setting(module, attribute, size // self.groups)] = None

    # --- steps --------------------------------------------------------------------------------------------------------

    def _through(self, step: Step) -> None:
        try:
            self._apply(step)
        except MixedError as error:
            raise MixedError(f"{step.label} {error}") from None

    def _apply(self, step: Step) -> None:
        path, module = self.flow.sized(step)
        if isinstance(module, nn.Linear):
            self._linear(step)
        elif step.op in ATTENTION:
            self._attention(step)
        elif step.op in RESHAPING:
            self._reshape(step, path, module)
        elif expands(step, module):
            self._expand(step, path, module)
        elif step.op == "Split" and self._along(step, module.axis):
            self._split(step, path, module)
        elif step.op == "Slice" and any(self._along(step, axis) for axis in getattr(module, "axes", ())):
            self._slice(step, path, module)
        else:
            self._keep(step)

    def _along(self, step: Step, axis: int) -> bool:
        """Whether groups lie along an axis of what a step reads or makes."""
        return any(self.laid[name].axis == axis for name in (*step.inputs, *step.outputs) if name in self.laid)

    def _linear(self, step: Step) -> None:
        given, made = step.inputs[0], step.outputs[0]
        last = len(self.flow.shapes[made]) - 1
        layer = self.flow.network.get_submodule(step.path)
        for name, other in ((given, made), (made, given)):
            lie = self.laid.get(name)
            if lie is None:
                continue
            if lie.axis != last:
                self._lay(other, lie)  # the same layer for every group
            elif name == made:
                self.entries[step.path] = None
                self._cut(step.path, "weight", Lie(0, lie.parts, lie.inner))
                if layer.bias is not None:
                    self._cut(step.path, "bias", Lie(0, lie.parts, lie.inner))
            elif lie.parts > 1:
                raise MixedError("adds up several parts of each")
            else:
                self.exits[step.path] = lie.inner
                self._cut(step.path, "weight", Lie(1, 1, lie.inner))

    def _reshape(self, step: Step, path: str, module: Any) -> None:
        given, made = step.inputs[0], step.outputs[0]
        sizes = self.flow.shapes[given], self.flow.shapes[made]
        for name, other, (shape, wanted) in ((given, made, sizes), (made, given, sizes[::-1])):
            if name in self.laid:
                self._lay(other, reshaped(self.laid[name], shape, wanted, self.groups))
        lie = self.laid[made]
        if hasattr(module, "target"):
            self._set(path, f"target.{lie.axis}", self.flow.shapes[made][lie.axis])
        elif sizes[0] != sizes[1]:
            raise MixedError("has sizes that are fixed")

    def _expand(self, step: Step, path: str, module: Any) -> None:
        given, made = step.inputs[0], step.outputs[0]
        shape, wanted = (self.flow.shapes[name] for name in (given, made))
        more = len(wanted) - len(shape)
        if given in self.laid:
            lie = self.laid[given]
            self._lay(made, Lie(lie.axis + more, lie.parts, lie.inner))
        lie = self.laid[made]
        if lie.axis >= more and shape[lie.axis - more] == wanted[lie.axis]:
            self._lay(given, Lie(lie.axis - more, lie.parts, lie.inner))
        if hasattr(module, "target"):
            self._set(path, f"target.{lie.axis}", wanted[lie.axis])
        elif shape != wanted:
            raise MixedError("has sizes that are fixed")

    def _split(self, step: Step, path: str, module: Any) -> None:
        names = [name for name in (step.inputs[0], *step.outputs) if name in self.laid]
        inner = self.laid[names[0]].inner
        run = self.groups * inner
        sizes = [self.flow.shapes[step.inputs[0]][module.axis], *module.sizes]
        if any(size % run for size in sizes):
            raise MixedError("splits them")
        for name, size in zip((step.inputs[0], *step.outputs), sizes, strict=True):
            if name:
                self._lay(name, Lie(module.axis, size // run, inner))
        for number, size in enumerate(module.sizes):
            self._set(path, f"sizes.{number}", size)

    def _slice(self, step: Step, path: str, module: Any) -> None:
        given, made = step.inputs[0], step.outputs[0]
        lie = self.laid[given] if given in self.laid else self.laid[made]
        run = self.groups * lie.inner
        number = module.axes.index(lie.axis)
        start, end, size = module.starts[number], module.ends[number], self.flow.shapes[given][lie.axis]
        if start % run or end % run or size % run:
            raise MixedError("takes a part of them")
        self._lay(given, Lie(lie.axis, size // run, lie.inner))
        self._lay(made, Lie(lie.axis, (end - start) // run, lie.inner))
        self._set(path, f"starts.{number}", start)
        self._set(path, f"ends.{number}", end)

    def _attention(self, step: Step) -> None:
        """Attention as one operator: heads are axis 1, or packed in axis 2, of all that it reads and makes."""
        self.attending.add(step.path)
        sizes, share = step.attributes.get("head_sizes"), step.attributes.get("share", 1)
        if sizes is None:
            raise MixedError("is one operator that is not understood")
        packed = step.op == f"{VENDOR}Attention"
        query, key, value = ("", "", "") if packed else step.inputs[:3]
        bias_at = {"Attention": 3, f"{VENDOR}Attention": 5, f"{VENDOR}MultiHeadAttention": 5}[step.op]
        bias = step.inputs[bias_at] if len(step.inputs) > bias_at else ""
        if any(step.inputs[4:6] if step.op == "Attention" else ()) or any(step.outputs[1:]):
            raise MixedError("keeps keys and values of former calls")
        spans = ((query, share, sizes[0]), (key, 1, sizes[1]), (value, 1, sizes[2]), (step.outputs[0], share, sizes[2]))
        places: list[tuple[str, int, int]] = []  # value, axis, entries of one key/value head there
        for name, many, size in spans:
            if name:
                flat = len(self.flow.shapes[name]) == 3
                places.append((name, 2, many * size) if flat else (name, 1, many))
        if bias and len(self.flow.shapes[bias]) == 4 and self.flow.shapes[bias][1] > 1:
            places.append((bias, 1, share))
        held = self.flow.constants(step) | {i: ("", tensor) for i, tensor in self.flow.hidden(step).items()}
        if bias_at in held and held[bias_at][1].ndim > 2 and held[bias_at][1].shape[-3] > 1:
            raise MixedError("adds a constant to the scores of each head")
        there, axis, entries = next(place for place in places if place[0] in self.laid)
        lie = self.laid[there]
        if lie.axis != axis or lie.parts > 1 or lie.inner % entries:
            raise MixedError("mixes the entries of a head")
        many = lie.inner // entries
        for name, axis, entries in places:
            self._lay(name, Lie(axis, 1, many * entries))
        self.share = many * share
        if packed:
            self._packed(step, Lie(0, 3, many * sizes[0]))
        elif step.op != "Attention" and 3 in held:
            self._cut(step.path, held[3][0], Lie(0, 3, many * sizes[0]))

    def _packed(self, step: Step, lie: Lie) -> None:
        path = f"{step.path}.projection"
        self.entries[path] = None
        self._cut(path, "weight", lie)
        if self.flow.network.get_submodule(path).bias is not None:
            self._cut(path, "bias", lie)

    def _keep(self, step: Step) -> None:
        """A step whose axes are those of what it reads."""
        shapes = self.flow.operands(step)
        made = [self.flow.shapes[name] if name else None for name in step.outputs]
        given_letters, made_letters, mixed = letters(step.op, step.attributes, shapes, made)
        names = [step.inputs[i] if i < len(step.inputs) else "" for i in range(len(shapes))]
        places = [*zip(names, given_letters, strict=True), *zip(step.outputs, made_letters, strict=True)]
        lies = [(self.laid[name], axes[self.laid[name].axis]) for name, axes in places if name in self.laid]
        for lie, letter in lies:
            if letter is None or letter in mixed:
                raise MixedError("mixes them")
            for name, axes in places:
                if name and letter in axes:
                    self._lay(name, Lie(axes.index(letter), lie.parts, lie.inner))
            if not any(letter in axes for axes in made_letters):
                raise MixedError("sums over them")
            self._cut_constants(step, given_letters, letter, lie)
        self._note(step, shapes, [lie for lie, _ in lies])

    def _cut_constants(self, step: Step, given: Sequence[Letters], letter: Hashable, lie: Lie) -> None:
        for index, (name, _) in self.flow.constants(step).items():
            if letter in given[index]:
                self._cut(step.path, name, Lie(given[index].index(letter), lie.parts, lie.inner))
        for index in self.flow.hidden(step):
            if letter in given[index]:
                raise MixedError("has a mask with a part for each")

    def _note(self, step: Step, shapes: Sequence[Shape | None], lies: Sequence[Lie]) -> None:
        """What tells attention: a product of two that are both computed; heads are what its softmax keeps apart."""
        product = step.op in ("MatMul", "Einsum", f"{VENDOR}FusedMatMul") and len([s for s in shapes if s]) > 1
        if product or step.op in SOFTMAX:
            self.attending.add(step.path)
        if step.op in SOFTMAX:
            self.share = lies[0].inner
