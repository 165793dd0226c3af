"""ONNX files brought to what the converters read: opset 17 at least, float32 instead of narrower floats.

Opset 17 has LayerNormalization as one operator, which float16 needs. Between 11 and 17 seven operators changed what a
node means; onnx's own converter rewrites the whole file through another representation, three times its size in
memory. Here those seven are rewritten in place and the rest, whose newer versions only take more types, is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

OPSET = 17
LARGEST = float(np.finfo(np.float32).max)
AXES = ("Squeeze", "Unsqueeze", "ReduceSum")  # axes: an attribute before 13, an input from there on
SOFTMAX = ("Softmax", "LogSoftmax", "Hardmax")
SAME = frozenset((
    "Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh", "AveragePool",
    "BatchNormalization", "BitShift", "Cast", "Ceil", "Celu", "Clip", "Compress", "Concat", "Constant",
    "ConstantOfShape", "Conv", "ConvInteger", "ConvTranspose", "Cos", "Cosh", "CumSum", "DepthToSpace",
    "DequantizeLinear", "Det", "Div", "DynamicQuantizeLinear", "Einsum", "Elu", "Equal", "Erf", "Exp", "Expand",
    "EyeLike", "Flatten", "Floor", "GRU", "Gather", "GatherElements", "GatherND", "Gemm", "GlobalAveragePool",
    "GlobalLpPool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "HardSigmoid", "Identity", "If",
    "InstanceNormalization", "IsInf", "IsNaN", "LRN", "LSTM", "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual",
    "Log", "Loop", "LpNormalization", "LpPool", "MatMul", "MatMulInteger", "Max", "MaxPool", "Mean",
    "MeanVarianceNormalization", "Min", "Mod", "Mul", "Neg", "NonZero", "Not", "OneHot", "Or", "PRelu", "Pad", "Pow",
    "QLinearConv", "QLinearMatMul", "QuantizeLinear", "RNN", "Range", "Reciprocal", "ReduceL1", "ReduceL2",
    "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSumSquare", "Relu",
    "Reshape", "Resize", "ReverseSequence", "Round", "ScatterElements", "ScatterND", "Selu", "Shape", "Shrink",
    "Sigmoid", "Sign", "SimplifiedLayerNormalization", "Sin", "Sinh", "Size", "Slice", "Softplus", "Softsign",
    "SpaceToDepth", "Sqrt", "Sub", "Sum", "Tan", "Tanh", "ThresholdedRelu", "Tile", "TopK", "Transpose", "Trilu",
    "Where", "Xor",
))  # fmt: skip
"""Operators whose nodes of opset 11 on mean the same in opset 17."""


def upgrade(model: onnx.ModelProto) -> str:
    """Bring a model of opset 11 to 16 to 17, in place.

    Args:
        model: with static shapes in value_info.

    Returns:
        empty, or why the file keeps its opset.
    """
    import onnx

    entry = next(entry for entry in model.opset_import if entry.domain == "")
    if entry.version >= OPSET:
        return ""
    for node in model.graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            return f"{node.op_type} with a body is not rewritten"
        known = node.domain or node.op_type in (*AXES, *SOFTMAX, "Split", *SAME)
        if not known and onnx.defs.get_schema(node.op_type, entry.version).since_version != _since(node.op_type):
            return f"{node.op_type} is not rewritten"
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*model.graph.input, *model.graph.output, *model.graph.value_info)
    } | {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output, *model.graph.value_info)
    } | {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    old = entry.version < 13
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        nodes.extend(_rewritten(model.graph, node, ranks, shapes) if old and node.domain == "" else [node])
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    entry.version = OPSET
    return ""


def _since(operator: str) -> int:
    import onnx

    try:
        return int(onnx.defs.get_schema(operator, OPSET).since_version)
    except onnx.defs.SchemaError:
        return -1


def _rewritten(
    graph: onnx.GraphProto, node: onnx.NodeProto, ranks: dict[str, int], shapes: dict[str, list[int]]
) -> Iterator[onnx.NodeProto]:
    import onnx

    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type in AXES and "axes" in attributes:
        _to_input(graph, node, "axes", attributes["axes"])
    elif node.op_type == "Split" and "split" in attributes:
        _to_input(graph, node, "split", attributes["split"])
    elif node.op_type in SOFTMAX:
        rank = ranks[node.input[0]]
        axis = attributes.get("axis", 1) % max(rank, 1)
        kept = [attribute for attribute in node.attribute if attribute.name != "axis"]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute("axis", -1)])
        if axis != rank - 1:  # all axes from this one on were one
            yield from _flattened(graph, node, axis, shapes[node.input[0]])
            return
    yield node


def _flattened(graph: onnx.GraphProto, node: onnx.NodeProto, axis: int, shape: list[int]) -> Iterator[onnx.NodeProto]:
    import onnx

    source, target = node.input[0], node.output[0]
    flat, done = f"{target}.flat", f"{target}.done"
    sizes = {f"{flat}.shape": [*shape[:axis], -1], f"{done}.shape": shape}
    for name, values in sizes.items():
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(values, np.int64), name))
    element = next(v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.output) if v.name == target)
    flat_shape = [*shape[:axis], int(np.prod(shape[axis:]))]
    graph.value_info.extend(onnx.helper.make_tensor_value_info(name, element, flat_shape) for name in (flat, done))
    node.input[0], node.output[0] = flat, done
    yield onnx.helper.make_node("Reshape", [source, f"{flat}.shape"], [flat], name=f"{flat}.reshape")
    yield node
    yield onnx.helper.make_node("Reshape", [done, f"{done}.shape"], [target], name=f"{done}.reshape")


def _to_input(graph: onnx.GraphProto, node: onnx.NodeProto, name: str, values: Sequence[int]) -> None:
    import onnx

    stored = f"{node.output[0]}.{name}"
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(list(values), np.int64), stored))
    node.input.append(stored)
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)


def in_float32(model: onnx.ModelProto, *others: str) -> int:
    """Make float32 of other floats, in place: weights, types, casts, inputs and outputs.

    Args:
        others: element types, as ``FLOAT16``.

    Returns:
        how many tensors and casts were changed.
    """
    import onnx

    narrow = tuple(onnx.TensorProto.DataType.Value(name) for name in others)
    changed = 0

    def graph(part: onnx.GraphProto) -> None:
        nonlocal changed
        for value in (*part.input, *part.output, *part.value_info):
            if value.type.tensor_type.elem_type in narrow:
                value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
                changed += 1
        for stored in part.initializer:
            tensor(stored)
        for node in part.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    tensor(attribute.t)
                if attribute.name in ("to", "dtype", "stash_type", "output_dtype") and attribute.i in narrow:
                    attribute.i = onnx.TensorProto.FLOAT
                    changed += 1
                for body in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                    graph(body)

    def tensor(stored: onnx.TensorProto) -> None:
        nonlocal changed
        if stored.data_type in narrow:
            numbers = onnx.numpy_helper.to_array(stored)
            if numbers.dtype == np.float64:  # its lowest number, which hides, is none of float32
                numbers = np.where(np.isfinite(numbers), np.clip(numbers, -LARGEST, LARGEST), numbers)
            wide = numbers.astype(np.float32)
            stored.CopyFrom(onnx.numpy_helper.from_array(wide, stored.name))
            changed += 1

    graph(model.graph)
    return changed
