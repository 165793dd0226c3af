"""An ONNX graph for one set of input shapes: what depends on shapes alone is computed, what is constant is folded.

Exporters write shape arithmetic (Shape, Gather, Concat, Reshape ...), conditions on shapes and loops over them. With
static shapes all of it has one value. One walk over the nodes in order computes every tensor's shape and every value
that does not depend on the inputs' values; If and Loop with a known condition are replaced by the nodes that run.
What is left is plain: nodes, initializers, a static shape for every tensor. Weights are left as they stand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from edgeattn.errors import EdgeattnError, ModelError, UnsupportedError
from edgeattn.sources.onnx.control import KINDS, refuse_sizes, replaced
from edgeattn.sources.onnx.node_names import captured, renamed
from edgeattn.sources.onnx.older import OPSET, modern
from edgeattn.sources.onnx.ops import Function, Node, NotImportableError, TooManyStepsError
from edgeattn.sources.onnx.sequences import resolved
from edgeattn.sources.onnx.values import (
    STANDARD,
    TYPES_TO_ONNX,
    Value,
    build,
    constant_inputs,
    constant_value,
    describe,
    initializers,
    make_node,
    opsets,
    outputs_of,
    without_constant,
)
from edgeattn.sources.onnx.walk import bodies

if TYPE_CHECKING:
    import onnx

MAX_TENSOR_BYTES = 2 * 2**30  # one tensor of an edge model; a hostile file asks for terabytes
MAX_FOLDED_BYTES = 2**20  # a constant that folding may add
MAX_NODES = 100_000  # looked at, each step of a loop again, whether they are left or folded
SPARE_BYTES = 2**28  # that folding may add beside four times the constants of the file
COPIED_BYTES = 2**32  # that folding may read beside sixty-four times the constants of the file
SMALL = 1_024  # elements of a constant that may shape the graph
TINY = 64  # elements of the constants of shape arithmetic
QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "MatMulNBits")  # stay: engines run them in integers
ARITHMETIC = frozenset((
    "Abs", "Add", "And", "ArgMax", "ArgMin", "BitShift", "Cast", "CastLike", "Ceil", "Clip", "Compress", "Concat",
    "Constant", "CumSum", "Div", "Equal", "Exp", "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Greater",
    "GreaterOrEqual", "Identity", "IsInf", "IsNaN", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mod", "Mul",
    "Neg", "NonZero", "Not", "Or", "Pow", "Reciprocal", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "Relu", "Reshape", "Round", "ScatterElements", "ScatterND", "Shape", "Sigmoid", "Sign", "Size",
    "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh", "TopK", "Transpose", "Trilu", "Unsqueeze",
    "Where", "Xor",
))  # fmt: skip
"""Operators whose output is bounded by the product of their inputs' sizes, whatever their attributes say."""
SMALL_FLOATS = (17, 18, 19, 20, 23, 24)  # element types: FLOAT8*, FLOAT4E2M1
BROADCAST = 2**18  # elements that several tiny constants may become
Oracle = Callable[[Sequence[str]], Mapping[str, np.ndarray]]


def make_static(
    model: onnx.ModelProto,
    inputs: Mapping[str, Value],
    oracle: Oracle | None = None,
    bound: Mapping[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    """The same graph for these input shapes, without shape arithmetic.

    Args:
        model: valid, sorted, functions inlined, weights inside.
        inputs: shape and type of every input that is no initializer.
        oracle: gives values of named tensors, for operators that the importer does not know.
        bound: values of inputs that are constants from here on.

    Raises:
        ModelError: naming the node, if its input shapes do not fit it or its output would not fit in memory.
        UnsupportedError: naming the node, if a shape depends on values.
    """
    walk = Walk(model, inputs, oracle)
    walk.values.update({name: constant_value(array) for name, array in (bound or {}).items()})
    walk.nodes(model.graph.node)
    return walk.result()


class Walk:
    """One pass over the nodes.

    Attributes:
        versions: domain -> opset that the nodes have on the walk.
        values: what is known of every tensor so far.
        alias: name -> the name that stands for it.
        kept: the nodes that are left.
        sequences: name -> the tensors in it.
        fresh: how many bodies were copied.
        most: nodes that are looked at.
    """

    def __init__(self, model: onnx.ModelProto, inputs: Mapping[str, Value], oracle: Oracle | None) -> None:
        self.model = model
        versions = opsets(model)
        self.older = min(versions.get("", OPSET), OPSET)  # the opset that nodes are brought up from
        self.versions = versions | {"": max(versions.get("", OPSET), OPSET)}
        self.oracle = oracle
        self.values: dict[str, Value] = {**initializers(model.graph), **inputs}
        self.inputs = inputs
        self.sequences: dict[str, list[str]] = {}
        self.alias: dict[str, str] = {}
        self.kept: list[onnx.NodeProto] = []
        self.walked = 0
        stored = sum(value.nbytes for value in self.values.values() if value.constant is not None)
        self.may_add = 4 * stored + SPARE_BYTES
        self.may_copy = 64 * stored + COPIED_BYTES
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.uses = _uses(model.graph)
        self.fresh = 0
        self.most = MAX_NODES

    def nodes(self, nodes: Iterable[onnx.NodeProto]) -> None:
        """Walk over nodes in order."""
        for node in nodes:
            self.step(node)
            try:
                for plain in self._modern(renamed(node, self.alias)):
                    self.node(plain)
            except EdgeattnError:
                raise
            except NotImportableError as error:
                raise UnsupportedError(f"{describe(node)}: {error}") from error
            except Exception as error:  # attributes and constants of any kind: no list of what can be wrong is whole
                raise ModelError(f"{describe(node)} cannot be read: {type(error).__name__}: {_line(error)}") from error

    def _modern(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        if self.older >= OPSET:
            return [node]

        def constant(name: str, array: np.ndarray) -> str:
            self.values[name] = constant_value(array)
            return name

        return modern(node, self.older, self.values, constant)

    def step(self, node: onnx.NodeProto, cost: int = 1) -> None:
        """A file of a few bytes may hold a loop of 2^62 steps, and loops within it."""
        self.walked += cost
        if self.walked > self.most:
            raise UnsupportedError(f"{describe(node)}: more than {self.most} nodes after unrolling loops")

    def node(self, proto: onnx.NodeProto) -> None:
        """Walk over one node; what it reads is known."""
        if proto.op_type in KINDS and not proto.domain:
            why = replaced(self, proto)
            if why:
                refuse_sizes(proto, why)
                self._guess(proto, NotImportableError(why))
            return
        if resolved(self, proto):
            return
        self._check_inference(proto)
        try:
            if self._computed(proto):
                return
            node, made = self._shapes(proto)
        except TooManyStepsError as error:
            raise ModelError(f"{describe(proto)}: {error}") from error
        except NotImportableError as error:
            self._guess(proto, error)
            return
        if self._folded(proto, node, made):
            return
        self.values.update(made)
        if self._is_nothing(proto, node):
            self.alias[proto.output[0]] = proto.input[0]
            return
        self.kept.append(proto)

    def _check_inference(self, proto: onnx.NodeProto) -> None:
        """Refuse nodes that were exported as they are in training: results change between calls, or with the batch."""
        training = any(attribute.name == "training_mode" and attribute.i for attribute in proto.attribute)
        if proto.op_type == "Dropout" and len(proto.input) > 2 and proto.input[2]:
            mode = self.values[proto.input[2]].constant
            training = mode is None or bool(mode.reshape(-1)[0])
        if training:
            raise ModelError(f"{describe(proto)} is left on, training_mode is set: call eval() before the export")

    def _computed(self, proto: onnx.NodeProto) -> bool:
        """Shape arithmetic, most of what exporters write: a handful of known numbers, computed without ado."""
        given = [self.values[name] for name in proto.input if name]
        tiny = all(v.constant is not None and v.constant.size <= TINY for v in given)
        if (given and not tiny) or proto.domain not in STANDARD or proto.op_type not in ARITHMETIC or not proto.output:
            return False
        if proto.op_type != "Concat" and math.prod(max(1, math.prod(v.shape)) for v in given) > BROADCAST:
            return False
        node = make_node(proto, self.versions, self.values)
        function = build(node)
        tensors = constant_inputs(node)
        assert tensors is not None
        with torch.no_grad():
            for name, tensor in outputs_of(self._called(proto, node, function, tensors), list(proto.output)):
                self.values[name] = constant_value(tensor.detach().numpy())
        return True

    def _called(self, proto: onnx.NodeProto, node: Node, function: Function, tensors: Sequence[Tensor | None]) -> Any:
        try:
            return function(*tensors)
        except Exception as error:
            shapes = ", ".join(str(list(s)) for s in node.shapes if s is not None)
            raise ModelError(f"{describe(proto)} does not fit inputs of shape {shapes}: {_line(error)}") from error

    def _abstract(self, proto: onnx.NodeProto, node: Node, function: Function) -> Any:
        """The function on tensors without values."""
        sizes = [None if s is None or i in node.taken else (s, node.dtypes[i]) for i, s in enumerate(node.shapes)]
        try:
            with torch.device("meta"), torch.no_grad():
                return function(*[None if s is None else torch.empty(s[0], dtype=s[1]) for s in sizes])
        except Exception:  # noqa: BLE001  # constants of the function's own are on the CPU: the slower way takes any
            with self.fake:
                tensors = [None if s is None else torch.empty(s[0], dtype=s[1]) for s in sizes]
                return self._called(proto, node, function, tensors)

    def _shapes(self, proto: onnx.NodeProto) -> tuple[Node, dict[str, Value]]:
        """The node with its outputs' shapes, from running it on tensors without values."""
        node = make_node(proto, self.versions, self.values, SMALL)
        try:
            function = build(node)
        except NotImportableError:
            node = make_node(proto, self.versions, self.values)
            function = build(node)
        result = self._abstract(proto, node, function)
        made = {n: Value(tuple(map(int, t.shape)), t.dtype) for n, t in outputs_of(result, list(proto.output))}
        for name, value in made.items():
            if value.nbytes > MAX_TENSOR_BYTES:
                raise ModelError(
                    f"{describe(proto)} makes {name!r} of shape {list(value.shape)}, {value.nbytes / 2**30:.0f} GiB; "
                    f"at most {MAX_TENSOR_BYTES // 2**30} GiB are read"
                )
        return node, made

    def _folded(self, proto: onnx.NodeProto, small: Node, made: Mapping[str, Value]) -> bool:
        if proto.op_type in QUANTIZED:
            return False
        given = [self.values[name] for name in proto.input if name]
        if not all(v.constant is not None for i, v in enumerate(given) if i not in small.taken):
            return False
        size, read = sum(value.nbytes for value in made.values()), sum(v.nbytes for v in given)
        shared = any(self.uses.get(name, 0) > 1 for name in proto.input)
        if size > MAX_FOLDED_BYTES and (shared or size > read):
            return False
        # A chain of nodes makes its weights again at each; many nodes may read one large constant.
        if size + read > TINY * 16 and (size > self.may_add or read > self.may_copy):
            return False
        self.may_add, self.may_copy = self.may_add - size, self.may_copy - read
        node = make_node(proto, self.versions, self.values)
        function = build(node)
        tensors = constant_inputs(node)
        if tensors is None:
            return False
        with torch.no_grad():
            for name, tensor in outputs_of(self._called(proto, node, function, tensors), list(proto.output)):
                self.values[name] = constant_value(tensor.detach().numpy())
        return True

    def _is_nothing(self, proto: onnx.NodeProto, node: Node) -> bool:
        """Whether the first output is the first input."""
        kind = proto.op_type
        if kind not in MAYBE_NOTHING or not proto.input or any(proto.output[1:]):
            return False
        source, target = self.values[proto.input[0]], self.values[proto.output[0]]
        if (source.shape, source.dtype) != (target.shape, target.dtype):
            return False
        if kind in ("Concat", "Sum", "Max", "Min", "Mean"):
            return len(proto.input) == 1
        if kind == "Transpose":
            order = [axis for axis in node.ints("perm") or [*reversed(range(node.rank()))] if node.shape()[axis] > 1]
            return order == sorted(order)
        if kind == "Slice":
            return all(step > 0 for step in node.ints("steps", 4) or [])
        return kind != "Pad" or not any(node.ints("pads", 1) or [])

    def _guess(self, proto: onnx.NodeProto, why: NotImportableError) -> None:
        """An operator without a builder: its outputs' shapes from one run."""
        wanted = [name for name in proto.output if name]
        if self._makes_small_floats(proto):
            raise UnsupportedError(
                f"{describe(proto)} makes floats of 8 bits or fewer, which are in no edge engine here: give the float "
                "model, or one quantized to int8"
            )
        if self.older < OPSET and any(bodies(proto)):
            raise UnsupportedError(f"{describe(proto)}: {why}; export to opset {OPSET} or newer, where it is kept")
        try:
            found = self.oracle(wanted) if self.oracle is not None else {}
        except Exception as error:
            raise UnsupportedError(f"{describe(proto)}: {why}; ONNX Runtime says: {_line(error)}") from error
        for name in wanted:
            if name not in found:
                raise UnsupportedError(f"{describe(proto)}: {why}")
            value = constant_value(np.asarray(found[name]))
            if 0 in value.shape:
                raise UnsupportedError(f"{describe(proto)}: the shape of {name!r} depends on values")
            self.values[name] = without_constant(value)
        if proto.op_type in KINDS:
            for name, start in zip(proto.output, proto.input[2:], strict=False):
                if name and self.values[name].shape != self.values[start].shape:
                    raise UnsupportedError(f"{describe(proto)}: the shape of {name!r} depends on values")
            proto = renamed(proto, {}, copied=True)
            proto.doc_string = str(why)  # for who asks why it is still there
        self.kept.append(proto)

    def _makes_small_floats(self, proto: onnx.NodeProto) -> bool:
        """Whether a node rounds to a type of 8 bits or fewer that torch has not, as FP8 files do."""
        attributes = [a.i for a in proto.attribute if a.name in ("to", "output_dtype")]
        zero = self.values.get(proto.input[2]) if len(proto.input) > 2 else None
        kind = "" if zero is None or zero.constant is None else zero.constant.dtype.name
        quantizes = proto.op_type == "QuantizeLinear" and kind.startswith(("float8", "float4"))
        return quantizes or any(element in SMALL_FLOATS for element in attributes)

    def resolve(self, name: str) -> str:
        """What a name stands for now."""
        while name in self.alias:
            name = self.alias[name]
        return name

    def result(self) -> onnx.ModelProto:
        """The graph of the nodes that are left and used."""
        import onnx

        self._name_outputs()
        graph = self.model.graph
        outputs = self._outputs()
        needed, nodes = set(outputs), []
        for proto in reversed(self.kept):
            if needed & set(proto.output):
                nodes.append(proto)
                needed.update(name for name in proto.input if name)
                needed.update(captured(proto))
        nodes.reverse()
        made = onnx.ModelProto()
        made.ir_version = max(8, min(self.model.ir_version, 10))
        made.producer_name, made.producer_version = self.model.producer_name, self.model.producer_version
        made.opset_import.extend(self.model.opset_import)
        for entry in made.opset_import:
            entry.version = self.versions.get(entry.domain, entry.version)
        made.graph.name = graph.name or "main"
        made.graph.node.extend(nodes)
        original = {tensor.name: tensor for tensor in graph.initializer}
        for name in sorted(needed):
            constant = self.values[name].constant if name in self.values else None
            if name in original:
                made.graph.initializer.append(original[name])
            elif constant is not None and name not in self.inputs:
                made.graph.initializer.append(onnx.numpy_helper.from_array(constant, name))
            if made.graph.initializer and not len(made.graph.initializer) % 1_000:
                self._check_size(made)
        self._check_size(made)
        stored = {tensor.name for tensor in made.graph.initializer}
        made.graph.input.extend(self._info(name) for name in self.inputs)
        made.graph.output.extend(self._info(name) for name in outputs)
        known = stored | set(self.inputs) | set(outputs)
        made.graph.value_info.extend(
            self._info(name) for node in nodes for name in node.output if name and name not in known
        )
        return made

    def _outputs(self) -> list[str]:
        """Outputs that hold anything, or all if none does: merged decoders give caches of no rows in one branch."""
        outputs = [value.name for value in self.model.graph.output]
        for name in outputs:
            if self.resolve(name) in self.sequences:
                raise UnsupportedError(f"output {name!r} is a sequence; edge engines give tensors")
        return [name for name in outputs if 0 not in self.values[self.resolve(name)].shape] or outputs

    def _check_size(self, made: onnx.ModelProto) -> None:
        size = sum(len(tensor.raw_data) for tensor in made.graph.initializer)
        if size > MAX_TENSOR_BYTES:
            raise UnsupportedError(
                f"folded, its constants have {size / 2**30:.1f} GiB; no edge engine's file holds them"
            )

    def _name_outputs(self) -> None:
        """Outputs that other names stand for get their own name back, by renaming or by an Identity."""
        import onnx

        outputs = self._outputs()
        made = {name for node in self.kept for name in node.output}
        for name in dict.fromkeys(outputs):
            source = self.resolve(name)
            if source == name:
                if name in self.inputs or (self.values[name].constant is not None and name not in made):
                    self._pass_through(name, name)
                continue
            if source in made and source not in outputs:
                mapping = {source: name}
                self.kept = [renamed(node, mapping, outputs=True) for node in self.kept]
                self.values[name] = self.values[source]
                self.alias = {k: (name if v == source else v) for k, v in self.alias.items() if k != name}
                self.alias[source] = name
                made = (made - {source}) | {name}
            else:
                self.values[name] = without_constant(self.values[source])
                self.kept.append(onnx.helper.make_node("Identity", [source], [name], name=f"{name}_identity"))

    def _pass_through(self, name: str, source: str) -> None:
        import onnx

        if name in self.inputs:
            raise ModelError(f"{name!r} names an input and an output; rename the output")
        inner = f"{source}.constant"
        self.values[inner] = self.values[source]
        self.values[name] = without_constant(self.values[source])
        self.kept.append(onnx.helper.make_node("Identity", [inner], [name], name=f"{name}_identity"))

    def _info(self, name: str) -> onnx.ValueInfoProto:
        import onnx

        value = self.values[name]
        return onnx.helper.make_tensor_value_info(name, TYPES_TO_ONNX[value.dtype], value.shape)


MAYBE_NOTHING = frozenset((
    "Identity", "Dropout", "Cast", "CastLike", "Reshape", "Expand", "Squeeze", "Unsqueeze", "Flatten", "Tile", "Slice",
    "Pad", "Transpose", "Concat", "Sum", "Max", "Min", "Mean",
))  # fmt: skip


def _uses(graph: onnx.GraphProto) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in graph.node:
        for name in (*node.input, *captured(node)):
            counts[name] = counts.get(name, 0) + 1
    return counts


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
