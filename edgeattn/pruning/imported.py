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

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard, cast, runtime_checkable

from torch import Tensor, nn

from edgeattn.pruning.anatomy import Anatomy, Setting, Slice, Unit, Unknown
from edgeattn.pruning.families import together

FAMILY = "graph"
VENDOR = "com.microsoft."
PARTS = (1, 2, 3)  # sections of a layer's outputs that each hold all groups: a gate and its input; query, key and value

ELEMENTWISE = (
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitShift", "BitwiseAnd", "BitwiseNot",
    "BitwiseOr", "BitwiseXor", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Div", "Dropout", "Elu",
    "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity",
    "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg",
    "Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh",
    "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor",
    "com.microsoft.BiasGelu", "com.microsoft.FastGelu", "com.microsoft.Gelu", "com.microsoft.QuickGelu",
)  # fmt: skip
RESHAPING = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
NORMALIZING = (
    "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization",
    f"{VENDOR}SimplifiedLayerNormalization",
)  # fmt: skip
SOFTMAX = ("Softmax", "LogSoftmax", "Hardmax")
ATTENTION = ("Attention", f"{VENDOR}Attention", f"{VENDOR}MultiHeadAttention")

Shape = tuple[int, ...]
Letters = list["Hashable | None"]
"""One name per axis; axes of one name run together, an axis of None is repeated along the others'."""


class Step(Protocol):
    """A call of a module in a graph; see :class:`edgeattn.sources.onnx.importer.Step`."""

    path: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    label: str
    op: str
    attributes: Mapping[str, Any]


@runtime_checkable
class Graph(Protocol):
    """A network that is a list of steps; see :class:`edgeattn.sources.onnx.importer.ImportedModel`."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]

    def shapes(self) -> dict[str, Shape]:
        """Name of every value -> its shape."""
        ...


@dataclass(frozen=True)
class Lie:
    """How groups lie along an axis: entry ``(part * groups + group) * inner + i`` is of that group."""

    axis: int
    parts: int
    inner: int


class MixedError(Exception):
    """Groups cannot be followed through a step; the message says why."""


def is_graph(network: nn.Module) -> TypeGuard[Any]:
    """Whether a network is a list of steps."""
    return isinstance(network, Graph)


def find(network: nn.Module) -> Anatomy:
    """All units of a graph, in its order; attention that cannot be followed is unknown, with the step that mixes it.

    Args:
        network: a :class:`Graph`.
    """
    flow = _Flow(network)
    units: list[Unit] = []
    failed: dict[str, tuple[int, str]] = {}
    taken: set[str] = set()
    covered: set[str] = set()
    for step in flow.graph.steps:
        place = _seed(network, step)
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


def _seed(network: nn.Module, step: Step) -> str | None:
    """The linear layer whose outputs a step makes; None for another step."""
    module = network.get_submodule(step.path)
    if isinstance(module, nn.Linear):
        return step.path
    if step.op == f"{VENDOR}Attention" and isinstance(getattr(module, "projection", None), nn.Linear):
        return f"{step.path}.projection"
    return None


def _largest(flow: _Flow, value: str) -> tuple[_Spread | None, dict[str, tuple[int, str]]]:
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
        path, "attention" if attends else "feedforward", FAMILY, spread.groups, width, exits[0], tuple(spread.slices),
        tuple(spread.settings), heads, width // share if attends else 0, False, tuple(entries), tuple(exits[1:]),
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


class _Flow:
    """A graph with who makes and who reads each value, and its shapes."""

    def __init__(self, network: nn.Module) -> None:
        self.graph = cast(Graph, network)
        self.network = network
        self.shapes = self.graph.shapes()
        self.maker = {name: step for step in self.graph.steps for name in step.outputs if name}
        self.linears = [place for step in self.graph.steps if (place := _seed(network, step)) is not None]
        self.readers: dict[str, list[Step]] = {}
        for step in self.graph.steps:
            for name in dict.fromkeys(step.inputs):
                self.readers.setdefault(name, []).append(step)

    def constants(self, step: Step) -> dict[int, tuple[str, Tensor]]:
        """Input -> the parameter or buffer of the step's module that is read there."""
        module: Any = self.network.get_submodule(step.path)
        if isinstance(module, nn.Embedding):
            return {0: ("weight", module.weight)}
        return {index: (name, getattr(module, name)) for index, name in getattr(module, "constants", {}).items()}

    def hidden(self, step: Step) -> dict[int, Tensor]:
        """Input -> what is read there and is no weight."""
        return dict(getattr(self.network.get_submodule(step.path), "hidden", {}))

    def sized(self, step: Step) -> tuple[str, Any]:
        """Path and module of a step's function, where that is a module with sizes that can be set."""
        module: Any = self.network.get_submodule(step.path)
        inner = getattr(module, "layer", None)
        return (step.path, module) if inner is None else (f"{step.path}.layer", inner)

    def operands(self, step: Step) -> list[Shape | None]:
        """Shapes of a step's inputs; None of those that are absent or were read on import."""
        shapes: dict[int, Shape] = {i: self.shapes[name] for i, name in enumerate(step.inputs) if name}
        shapes |= {i: tuple(tensor.shape) for i, (_, tensor) in self.constants(step).items()}
        shapes |= {i: tuple(tensor.shape) for i, tensor in self.hidden(step).items()}
        return [shapes.get(i) for i in range(max(shapes, default=-1) + 1)]


class _Spread:
    """Groups on their way through a graph."""

    def __init__(self, flow: _Flow, groups: int) -> None:
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
        elif _expands(step, module):
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
                self._lay(other, _reshaped(self.laid[name], shape, wanted, self.groups))
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


def _reshaped(lie: Lie, shape: Shape, wanted: Shape, groups: int) -> Lie:
    """Where groups lie once their tensor has other axes.

    Raises:
        MixedError: if no single axis holds them.
    """
    parts = math.prod(shape[: lie.axis]) * lie.parts
    inner = lie.inner * math.prod(shape[lie.axis + 1 :])
    for axis, size in enumerate(wanted):
        before, after = math.prod(wanted[:axis]), math.prod(wanted[axis + 1 :])
        if parts % before == 0 and inner % after == 0 and (parts // before) * groups * (inner // after) == size:
            return Lie(axis, parts // before, inner // after)
    raise MixedError("spreads them over several axes")


def _expands(step: Step, module: Any) -> bool:
    """Whether a step repeats its input; one that is put beside itself is imported as that."""
    return step.op == "Expand" or (step.op == "Concat" and hasattr(module, "target"))


# --- what is shared ---------------------------------------------------------------------------------------------------


def release(network: nn.Module, anatomy: Anatomy) -> bool:
    """Undo repetitions to all heads that several blocks read, where they are repeated by what reads them anyway.

    A mask that is expanded to all heads once ties every block to the same number of heads.

    Args:
        network: a :class:`Graph`; changed in place.
        anatomy: what was found in it.

    Returns:
        whether anything was changed.
    """
    tying = {
        (setting.module, setting.attribute)
        for unit in anatomy.units
        if unit.tied and unit.kind == "attention"
        for setting in unit.settings
    }
    flow, changed = _Flow(network), False
    for step in flow.graph.steps if tying else ():
        path, module = flow.sized(step)
        for axis in range(len(module.target)) if _expands(step, module) and hasattr(module, "target") else ():
            size = module.target[axis]
            if (path, f"target.{axis}") not in tying or size == 1:
                continue
            followers = _followers(flow, step.outputs[0], axis, size)
            for held, place in () if followers is None else ((module, axis), *followers):
                held.target[place] = 1
            if followers is not None:
                flow, changed = _Flow(network), True
    return changed


def _followers(flow: _Flow, value: str, axis: int, size: int) -> list[tuple[Any, int]] | None:
    """Reshapes, and the axis of each, that must change if a value has one entry along an axis for all.

    Returns:
        None where a step needs the entries one by one.
    """
    laid, todo, found = {value: axis}, [value], []
    while todo:
        name = todo.pop()
        if name in flow.graph.outputs:
            return None
        for step in flow.readers.get(name, []):
            _, module = flow.sized(step)
            try:
                if step.op in RESHAPING:
                    wanted = flow.shapes[step.outputs[0]]
                    lie = _reshaped(Lie(laid[name], 1, 1), flow.shapes[name], wanted, size)
                    if (lie.parts, lie.inner) != (1, 1) or not hasattr(module, "target"):
                        return None
                    found.append((module, lie.axis))
                    reached = {step.outputs[0]: lie.axis}
                else:
                    reached = _repeated(flow, step, laid, name)
            except MixedError:
                return None
            todo += [other for other in reached if other not in laid]
            laid |= reached
    return found


def _repeated(flow: _Flow, step: Step, laid: Mapping[str, int], name: str) -> dict[str, int]:
    """What a step makes with one entry along an axis if it reads such; nothing if another input has them all.

    Raises:
        MixedError: if it does not repeat them.
    """
    shapes = flow.operands(step)
    made = [flow.shapes[output] if output else None for output in step.outputs]
    given_letters, made_letters, mixed = letters(step.op, step.attributes, shapes, made)
    names = [step.inputs[i] if i < len(step.inputs) else "" for i in range(len(shapes))]
    letter = given_letters[names.index(name)][laid[name]]
    if letter is None or letter in mixed or not any(letter in axes for axes in made_letters):
        raise MixedError("needs them all")
    others = [
        axes
        for other, axes in zip(names, given_letters, strict=True)
        if letter in axes and laid.get(other) != axes.index(letter)
    ]
    if others:
        if step.op not in (*ELEMENTWISE, "MatMul", f"{VENDOR}FusedMatMul", "Einsum"):
            raise MixedError("needs them all")
        return {}
    return {
        output: axes.index(letter)
        for output, axes in zip(step.outputs, made_letters, strict=True)
        if output and letter in axes
    }


# --- axes -------------------------------------------------------------------------------------------------------------


def letters(
    op: str, attributes: Mapping[str, Any], given: Sequence[Shape | None], made: Sequence[Shape | None]
) -> tuple[list[Letters], list[Letters], set[Hashable]]:
    """Which axes of what an operator reads and makes run together.

    Args:
        op: an operator of ONNX.
        attributes: of the node; integers that are an input under ``input_1``.
        given: shapes of the inputs, None of those that do not matter.
        made: shapes of the outputs.

    Returns:
        letters of each input, of each output, and those along which entries are mixed or chosen.

    Raises:
        MixedError: for an operator that is not known to keep any axis apart.
    """
    first = next((shape for shape in given if shape is not None), ())
    out = next((shape for shape in made if shape is not None), ())
    plain: list[Letters] = [list(range(len(out))) if shape is not None else [] for shape in made]
    if op in ELEMENTWISE:
        return [_aligned(shape, out) for shape in given], plain, set()
    if op in ("MatMul", f"{VENDOR}FusedMatMul"):
        return _product(attributes, given, out)
    if op == "Einsum":
        return _einsum(attributes, given)
    same: list[Letters] = [list(range(len(first))), *[[] for _ in given[1:]]]
    if op == "Transpose":
        order = list(attributes.get("perm") or reversed(range(len(first))))
        return same, [list(order)], set()
    if op == "Concat":
        return [list(range(len(shape or ()))) for shape in given], plain, {_axis(attributes, first)}
    if op == "Gather":
        axis = _axis(attributes, first, 0)
        rows: Letters = [None] * (len(out) - len(first) + 1)
        return same, [[*range(axis), *rows, *range(axis + 1, len(first))]], {axis}
    if op.startswith("Reduce"):
        axes = {a % len(first) for a in _ints(attributes, "axes", 1) or range(len(first))}
        kept = attributes.get("keepdims", 1)
        return same, [[a for a in range(len(first)) if kept or a not in axes]], set(axes)
    mixed = _mixed(op, attributes, first, out)
    if mixed is None:
        raise MixedError("is not known to keep them apart")
    return same, plain, set(mixed)


def _mixed(op: str, attributes: Mapping[str, Any], shape: Shape, out: Shape) -> Iterator[int] | set[int] | None:
    """Axes that an operator on one tensor, which keeps their order, mixes; None for another operator."""
    rank = len(shape)
    if op in SOFTMAX:
        old = attributes.get("opset", 13) < 13
        axis = _axis(attributes, shape, 1 if old else -1)
        return set(range(axis, rank)) if old else {axis}
    if op in NORMALIZING:
        return set(range(_axis(attributes, shape, -1), rank))
    if op == "LpNormalization":
        return {_axis(attributes, shape, -1)}
    if op == "CumSum":
        return {a % rank for a in attributes.get("input_1", range(rank))}
    if op == "Trilu":
        return {rank - 2, rank - 1}
    if op in ("Slice", "Split"):
        axes = _ints(attributes, "axes", 3) if op == "Slice" else [attributes.get("axis", 0)]
        return {a % rank for a in axes or range(rank)}
    if op == "Pad":
        pads, axes = _ints(attributes, "pads", 1), _ints(attributes, "axes", 3) or list(range(rank))
        if pads is None:
            return set(range(rank))
        return {a % rank for i, a in enumerate(axes) if pads[i] or pads[i + len(axes)]}
    if op == "Tile":
        return {a for a in range(rank) if shape[a] != out[a]}
    if op == "RotaryEmbedding" and rank == 4:
        return {0, 2, 3}
    return None


def _ints(attributes: Mapping[str, Any], name: str, index: int) -> list[int] | None:
    value = attributes.get(name, attributes.get(f"input_{index}"))
    return None if value is None else [int(v) for v in value]


def _axis(attributes: Mapping[str, Any], shape: Shape, default: int = 0) -> int:
    return int(attributes.get("axis", default)) % max(1, len(shape))


def _aligned(shape: Shape | None, out: Shape) -> Letters:
    """Letters of an input that is repeated to a shape, that shape's being its axes."""
    if shape is None:
        return []
    more = len(out) - len(shape)
    return [axis + more if size == out[axis + more] else None for axis, size in enumerate(shape)]


def _product(
    attributes: Mapping[str, Any], given: Sequence[Shape | None], out: Shape
) -> tuple[list[Letters], list[Letters], set[Hashable]]:
    left, right = given[0], given[1] if len(given) > 1 else None
    if left is None or right is None or len(left) < 2 or len(right) < 2:
        raise MixedError("is not known to keep them apart")
    batch = out[:-2]
    rows, columns = len(batch), len(batch) + 1
    a: Letters = [rows, "inner"]
    b: Letters = ["inner", columns]
    if attributes.get("transA"):
        a.reverse()
    if attributes.get("transB"):
        b.reverse()
    letters_ = [[*_aligned(left[:-2], batch), *a], [*_aligned(right[:-2], batch), *b]]
    return letters_, [list(range(len(out)))], set()


def _einsum(
    attributes: Mapping[str, Any], given: Sequence[Shape | None]
) -> tuple[list[Letters], list[Letters], set[Hashable]]:
    equation = attributes["equation"]
    text = (equation.decode() if isinstance(equation, bytes) else str(equation)).replace(" ", "")
    terms, arrow, result = text.partition("->")
    if "." in text or not arrow:
        raise MixedError("is not known to keep them apart")
    return [list(term) for term, _ in zip(terms.split(","), given, strict=True)], [list(result)], set()
