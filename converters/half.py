"""float32 ONNX -> float16 ONNX for engines with strong typing: the file itself says what runs in which precision.

Matrix products, convolutions and what lies between them compute in float16. Float32 islands stay where float16 is known
to lose a model: normalisation, softmax, reductions and powers (x^2 overflows from |x| = 256 on), recurrences, the
arithmetic on raw inputs before the first product, constants that float16 cannot hold, and what a range scan named
(:mod:`edgeattn.quantize.ranges`). Graph inputs, outputs and states stay float32, with a Cast at the border: a runtime
binds the same arrays for every precision.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn.graphs.layers import MODULE_KEY, module_path, node_name
from edgeattn.spec import HALF_MAX

if TYPE_CHECKING:
    import onnx

HALF_TINY = 2.0**-24  # smallest positive float16
HALF_NORMAL = 2.0**-14  # below, float16 loses bits with every halving
MASK = -1e30  # constants below mean "hidden"; -65504 hides as well in float16
QDQ_OPSET = 19  # QuantizeLinear and DequantizeLinear take float16 from here on

SENSITIVE = frozenset((
    "LayerNormalization", "RMSNormalization", "GroupNormalization", "InstanceNormalization", "BatchNormalization",
    "LpNormalization", "Softmax", "LogSoftmax", "Softplus", "Exp", "Log", "Pow",
    "Sqrt", "Reciprocal", "CumSum", "Sin", "Cos", "ReduceMean",
    "ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp", "ReduceProd",
    "GlobalAveragePool", "LSTM", "GRU", "RNN", "If", "Loop",
    "Scan", "EyeLike",
))  # fmt: skip
COMPARISONS = frozenset(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"))
NORMALISERS = frozenset(("Sqrt", "Reciprocal"))  # what a norm divides by, or multiplies with
ARITHMETIC = frozenset((
    "Add", "Sub", "Mul", "Div", "Neg", "Abs",
    "Max", "Min", "Clip",
))  # fmt: skip
EPSILON_TAKERS = frozenset(("Add", "Sub", "Max", "Clip", "Where"))
MOVING = frozenset((
    "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity",
    "Slice", "Split", "Gather", "Expand", "Concat", "Pad",
    "Tile", "DepthToSpace",
))  # fmt: skip
QDQ = frozenset(("QuantizeLinear", "DequantizeLinear"))
FIXED = frozenset(("Cast", "CastLike"))  # their types are their own


@dataclass(frozen=True)
class HalfReport:
    """What became of the nodes that handle floats."""

    half: int  # nodes that compute in float16
    single: int  # nodes kept in float32
    named: int = 0  # of these, nodes that are float32 for the sake of the islands alone


def to_half(model: onnx.ModelProto, islands: Collection[str] = ()) -> HalfReport:
    """Rewrite a float32 model in place.

    Args:
        model: with inferred types of every tensor and static shapes; may hold QuantizeLinear and DequantizeLinear,
            whose float side then becomes float16 (and the opset 19).
        islands: names of nodes to keep float32 as well, and the Q/DQ pairs that these read.

    Raises:
        ValueError: naming the islands that the model does not have.
    """
    import onnx

    _constants_to_initializers(model.graph)
    plan = _Plan(model)
    kept = plan.island_nodes(islands)
    single = plan.single_nodes(kept)
    alone = single - plan.single_nodes() if kept else set()
    types = plan.tensor_types(single)
    rewriter = _Rewriter(model.graph, plan.floats, types, plan.constants)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    rewriter.take_inputs()
    for index, node in enumerate(nodes):
        rewriter.take(node, "float32" if index in single else "float16", node.op_type in FIXED)
    rewriter.give_outputs()
    rewriter.store_constants()
    del model.graph.value_info[:]
    if any(node.op_type == "QuantizeLinear" for node in nodes):
        for opset in model.opset_import:
            if opset.domain in ("", "ai.onnx"):
                opset.version = max(opset.version, QDQ_OPSET)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    onnx.checker.check_model(inferred)
    model.CopyFrom(inferred)
    handled = [i for i, node in enumerate(nodes) if any(name in plan.floats for name in (*node.input, *node.output))]
    return HalfReport(
        half=len([i for i in handled if i not in single]),
        single=len([i for i in handled if i in single]),
        named=len([i for i in handled if i in alone]),
    )


class _Plan:
    """Decides which nodes stay float32."""

    def __init__(self, model: onnx.ModelProto) -> None:
        import onnx

        graph = model.graph
        self.graph = graph
        self.opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        values = (*graph.input, *graph.output, *graph.value_info)
        self.floats = {v.name for v in values if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
        self.floats |= {name for name, t in self.constants.items() if t.data_type == onnx.TensorProto.FLOAT}
        self.inputs = {value.name for value in graph.input} - set(self.constants)

    def island_nodes(self, names: Collection[str]) -> set[int]:
        """Indices of the nodes of these names and of the Q/DQ pairs before them, whose DQ would overflow as well."""
        wanted = set(names)
        unknown = wanted - {node_name(node) for node in self.graph.node}
        if unknown:
            raise ValueError(f"the model has no nodes {', '.join(sorted(unknown))}; names are those of the range scan")
        found: set[int] = set()
        read: set[str] = set()
        for index in range(len(self.graph.node) - 1, -1, -1):
            node = self.graph.node[index]
            if node_name(node) in wanted or (node.op_type in QDQ and set(node.output) & read):
                found.add(index)
                read.update(node.input)
        return found

    def single_nodes(self, islands: Collection[int] = ()) -> set[int]:
        """Indices of the nodes that compute in float32, those of ``islands`` among them."""
        single: set[int] = set()
        from_single: set[str] = set()  # tensors that a float32 node made
        deviations: set[str] = set()  # what a norm divides by, or multiplies with
        guarded: set[str] = set()  # kept off zero by an epsilon, which a Cast to float16 would take away again
        raw = set(self.inputs)  # graph inputs, and what arithmetic alone made of them
        for index, node in enumerate(self.graph.node):
            varying = [name for name in node.input if name in self.floats and name not in self.constants]
            is_raw = bool(varying) and all(name in raw for name in varying)
            if (
                index in islands
                or self._needs_single(node)
                or (node.op_type in ARITHMETIC and varying and (is_raw or all(name in from_single for name in varying)))
                or (node.op_type in MOVING and is_raw and not set(varying) & self.inputs)
                or (node.op_type in COMPARISONS and is_raw)  # a mask's -inf and lowest float32 differ there only
                # The rest of a norm in pieces: 1 / sqrt(mean(x^2)) of large x is subnormal in float16.
                or (node.op_type in ("Mul", "Div") and any(name in deviations for name in varying))
                or (node.op_type in MOVING | {"Div"} and any(name in guarded for name in varying))
            ):
                single.add(index)
                from_single.update(node.output)
                if self._has_epsilon(node) or (node.op_type in MOVING and set(varying) & guarded):
                    guarded.update(node.output)
                if node.op_type == "Div" and set(varying) & guarded and node.input[0] in self.constants:
                    deviations.update(node.output)  # a reciprocal: 1 / epsilon overflows
                if node.op_type in NORMALISERS:
                    deviations.update(node.output)
                if is_raw and node.op_type in ARITHMETIC | MOVING:
                    raw.update(node.output)
        return single | self._on_the_way(single)

    def _on_the_way(self, single: set[int]) -> set[int]:
        """Nodes that only move what a float32 node or the border gives to float32 nodes: two Casts for nothing."""
        readers: dict[str, set[int]] = {}
        makers: dict[str, int] = {}
        for index, node in enumerate(self.graph.node):
            for name in (*node.input, *_captured(node)):
                readers.setdefault(name, set()).add(index)
            makers.update(dict.fromkeys(node.output, index))
        border = {value.name for value in self.graph.output}
        kept = set(single)
        for index in range(len(self.graph.node) - 1, -1, -1):
            node = self.graph.node[index]
            if node.op_type not in MOVING or index in kept or not set(node.output) & self.floats:
                continue
            if all((readers.get(name) or name in border) and readers.get(name, set()) <= kept for name in node.output):
                kept.add(index)
        for index in sorted(kept - single):
            varying = [n for n in self.graph.node[index].input if n in self.floats and n not in self.constants]
            if not all(name in self.inputs or makers.get(name) in kept for name in varying):
                kept.remove(index)
        return kept - single

    def _needs_single(self, node: onnx.NodeProto) -> bool:
        if node.op_type in SENSITIVE or node.op_type in FIXED:
            return True
        if node.op_type == "Mul" and node.input[0] == node.input[1]:
            return True  # a square, written out
        if node.op_type in QDQ:
            return False
        if not self._allows_half(node) or self._has_epsilon(node):
            return True
        constants = [self.constants[name] for name in node.input if name in self.constants and name in self.floats]
        return not all(_fits(tensor) for tensor in constants)

    def _has_epsilon(self, node: onnx.NodeProto) -> bool:
        """Whether it adds, bounds or puts in one tiny number, as what keeps a division off zero."""
        import onnx

        if node.op_type not in EPSILON_TAKERS:
            return False
        constants = [self.constants[name] for name in node.input if name in self.constants and name in self.floats]
        values = [np.abs(onnx.numpy_helper.to_array(t)) for t in constants if int(np.prod(t.dims)) == 1]
        return any(0.0 < float(value.max()) < HALF_NORMAL for value in values)

    def _allows_half(self, node: onnx.NodeProto) -> bool:
        import onnx

        try:
            schema = onnx.defs.get_schema(node.op_type, self.opset, node.domain)
        except onnx.defs.SchemaError:
            return False
        for names, formals in ((node.input, schema.inputs), (node.output, schema.outputs)):
            for position, name in enumerate(names):
                formal = formals[min(position, len(formals) - 1)]
                if name in self.floats and "tensor(float16)" not in formal.types:
                    return False
        return True

    def tensor_types(self, single: set[int]) -> dict[str, str]:
        """Float tensor -> the type in which its producer leaves it."""
        types = dict.fromkeys(self.inputs & self.floats, "float32")
        for index, node in enumerate(self.graph.node):
            for name in node.output:
                if name in self.floats:
                    types[name] = "float32" if index in single else "float16"
        return types


class _Rewriter:
    """Rebuilds a graph node by node, with a Cast wherever the type at hand is not the type wanted."""

    def __init__(
        self, graph: onnx.GraphProto, floats: set[str], types: dict[str, str], constants: dict[str, onnx.TensorProto]
    ) -> None:
        self.graph = graph
        self.floats = floats
        self.types = types
        self.constants = constants
        self.copies: dict[tuple[str, str], str] = {}
        self.wanted_constants: dict[str, set[str]] = {name: set() for name in constants}
        self.renamed_outputs: dict[str, str] = {}

    def take_inputs(self) -> None:
        """Outputs that float16 nodes make get another name: the graph's name goes to the float32 Cast of them."""
        for value in self.graph.output:
            if self.types.get(value.name) == "float16":
                self.renamed_outputs[value.name] = f"{value.name}_half"

    def take(self, node: onnx.NodeProto, wanted: str, fixed: bool) -> None:
        module = module_path(node)
        for position, name in enumerate(node.input):
            if name in self.constants:
                node.input[position] = self._constant(name, wanted)
            elif name in self.floats:
                own = self.renamed_outputs.get(name, name)
                node.input[position] = own if fixed else self._as(name, wanted, module)
        _rename_captured(node, lambda name: self._captured(name, module))
        for position, name in enumerate(node.output):
            node.output[position] = self.renamed_outputs.get(name, name)
        if wanted == "float16":
            _retype_attributes(node)
        self.graph.node.append(node)

    def give_outputs(self) -> None:
        """Cast to float32 what float16 nodes made; an output that is a constant keeps its own type."""
        for value in self.graph.output:
            if value.name in self.constants:
                self._constant(value.name, "float32")
        for name, half in self.renamed_outputs.items():
            self._cast(half, name, "float32", "")

    def store_constants(self) -> None:
        """Every constant in the types that its readers want, each once."""
        import onnx

        del self.graph.initializer[:]
        for name, types in self.wanted_constants.items():
            tensor = self.constants[name]
            for wanted in sorted(types):
                if wanted == "float32" or name not in self.floats:
                    self.graph.initializer.append(tensor)
                else:
                    array = _halved(onnx.numpy_helper.to_array(tensor))
                    self.graph.initializer.append(onnx.numpy_helper.from_array(array, f"{name}_half"))

    def _constant(self, name: str, wanted: str) -> str:
        if name not in self.floats:
            wanted = "float32"  # any one key: the tensor is stored as it is
        self.wanted_constants[name].add(wanted)
        return name if wanted == "float32" else f"{name}_half"

    def _captured(self, name: str, module: str) -> str:
        # Bodies of Loop and If stay float32 as a whole.
        if name in self.constants:
            return self._constant(name, "float32")
        return self._as(name, "float32", module) if name in self.floats else name

    def _as(self, name: str, wanted: str, module: str) -> str:
        own = self.renamed_outputs.get(name, name)
        if self.types.get(name, "float32") == wanted:
            return own
        key = (name, wanted)
        if key not in self.copies:
            self.copies[key] = f"{name}_as_{wanted}"
            self._cast(own, self.copies[key], wanted, module)
        return self.copies[key]

    def _cast(self, source: str, target: str, wanted: str, module: str) -> None:
        import onnx

        kind = onnx.TensorProto.FLOAT if wanted == "float32" else onnx.TensorProto.FLOAT16
        node = onnx.helper.make_node("Cast", [source], [target], name=f"cast_{target}", to=kind)
        if module:
            node.metadata_props.add(key=MODULE_KEY, value=module)
        self.graph.node.append(node)


def _fits(tensor: onnx.TensorProto) -> bool:
    import onnx

    array = onnx.numpy_helper.to_array(tensor)
    size = np.abs(array[np.isfinite(array) & (array > MASK)])
    if size.size == 0:
        return True
    # A constant that float16 flushes to zero as a whole is an epsilon; single tiny weights may vanish.
    return float(size.max()) <= HALF_MAX and (float(size.max()) == 0.0 or float(size.max()) >= HALF_TINY)


def _halved(array: np.ndarray) -> np.ndarray:
    hidden = np.isfinite(array) & (array <= MASK)
    return np.where(hidden, -HALF_MAX, array).astype(np.float16)


def _constants_to_initializers(graph: onnx.GraphProto) -> None:
    import onnx

    kept = []
    for node in graph.node:
        value = next((a for a in node.attribute if a.name == "value" and a.HasField("t")), None)
        if node.op_type == "Constant" and value is not None:
            tensor = onnx.TensorProto()
            tensor.CopyFrom(value.t)
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


def _retype_attributes(node: onnx.NodeProto) -> None:
    # ConstantOfShape makes what its value says.
    import onnx

    for attribute in node.attribute:
        if attribute.HasField("t") and attribute.t.data_type == onnx.TensorProto.FLOAT:
            array = onnx.numpy_helper.to_array(attribute.t)
            attribute.t.CopyFrom(onnx.numpy_helper.from_array(_halved(array), attribute.t.name))


def _rename_captured(node: onnx.NodeProto, rename: Any) -> None:
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
            own = set(_defined(body))
            for inner in body.node:
                for position, name in enumerate(inner.input):
                    if name and name not in own:
                        inner.input[position] = rename(name)
                _rename_captured(inner, lambda name, own=own: name if name in own else rename(name))


def _captured(node: onnx.NodeProto) -> Iterable[str]:
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
            own = set(_defined(body))
            for inner in body.node:
                yield from (name for name in (*inner.input, *_captured(inner)) if name not in own)


def _defined(graph: onnx.GraphProto) -> Iterable[str]:
    yield from (value.name for value in graph.input)
    yield from (tensor.name for tensor in graph.initializer)
    for node in graph.node:
        yield from node.output
