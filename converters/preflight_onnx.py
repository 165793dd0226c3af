"""Rules of preflight over the ONNX file of a model whose source is one: what its quantization asks of an engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from edgeattn.converters.onnx import module_path
from edgeattn.converters.preflight_rules import LONG_ATTENTION, ONNX_ENGINES, Ask, Hit, Rule, Severity
from edgeattn.converters.preflight_view import GraphView

if TYPE_CHECKING:
    import numpy as np
    import onnx

QDQ = ("QuantizeLinear", "DequantizeLinear")
VALUE_SIZED = ("NonZero", "Unique", "Compress")


def _hit(node: onnx.NodeProto, severity: Severity, reason: str, change: str, predicted: bool = False) -> Hit:
    return Hit(severity, reason, change, node.name or node.output[0], module_path(node), predicted=predicted)


def zero_point(view: GraphView, _: Ask) -> Iterator[Hit]:
    """Asymmetric quantization."""
    constants = _constants(view)
    for node in _nodes(view):
        if (
            node.op_type in QDQ
            and len(node.input) > 2
            and node.input[2] in constants
            and _array(constants[node.input[2]]).any()
        ):
            yield _hit(
                node,
                "stops",
                "a zero-point that is not 0; TensorRT takes symmetric int8 only",
                "quantize it symmetrically",
            )


def channel_axis(view: GraphView, _: Ask) -> Iterator[Hit]:
    """Per-channel scales along another axis than the output channels."""
    constants = _constants(view)
    readers = _readers(view)
    for node in _nodes(view):
        if (
            node.op_type != "DequantizeLinear"
            or node.input[1] not in constants
            or _array(constants[node.input[1]]).size < 2
        ):
            continue
        shape = list(constants[node.input[0]].dims) if node.input[0] in constants else []
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        for reader in readers.get(node.output[0], ()):
            wanted = _output_axis(reader, len(shape))
            if wanted is not None and axis % max(len(shape), 1) != wanted:
                yield _hit(
                    node,
                    "risk",
                    f"scales along axis {axis}, where the output channels are axis {wanted}: engines run that in float",
                    "quantize per output channel, or per tensor",
                    True,
                )


def _output_axis(node: onnx.NodeProto, rank: int) -> int | None:
    if node.op_type == "Conv":
        return 0
    if node.op_type == "MatMul":
        return rank - 1
    if node.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    return None


def quantized_add(view: GraphView, _: Ask) -> Iterator[Hit]:
    """Quantized residual Adds and masks."""
    makers, constants = _makers(view), _constants(view)
    for node in _nodes(view):
        if node.op_type != "Add":
            continue
        quantized = [
            name for name in node.input if (made := makers.get(name)) is not None and made.op_type == "DequantizeLinear"
        ]
        if len(quantized) == len(node.input) and not any(makers[name].input[0] in constants for name in quantized):
            yield _hit(
                node,
                "risk",
                "an Add of two quantized tensors: residuals and masks lose small values (a ViT fell to 5 % top-1)",
                "leave Adds and masks float: quantize linear layers only",
            )


def quantized_attention(view: GraphView, _: Ask) -> Iterator[Hit]:
    """int8 products of two activations over long sequences."""
    makers, constants, shapes = _makers(view), _constants(view), _shapes(view)
    for node in _nodes(view):
        made = [makers.get(name) for name in node.input]
        if node.op_type != "MatMul" or not all(m is not None and m.op_type == "DequantizeLinear" for m in made):
            continue
        if any(m is not None and m.input[0] in constants for m in made):
            continue
        longest = max((size for name in node.input for size in shapes.get(name, ())[-2:]), default=0)
        if longest > LONG_ATTENTION:
            yield _hit(
                node,
                "slow",
                f"int8 attention over {longest} positions: TensorRT fuses it up to {LONG_ATTENTION} only",
                "leave products of two activations float",
                True,
            )


def value_sized(view: GraphView, ask: Ask) -> Iterator[Hit]:
    """Nodes whose result size depends on values."""
    for node in _nodes(view):
        if node.op_type in VALUE_SIZED:
            severity: Severity = "risk" if ask.engine == "onnxruntime" else "stops"
            yield _hit(
                node,
                severity,
                f"the size of what {node.op_type} makes depends on values; {ask.engine} needs static shapes",
                "keep the full size and give a mask",
            )


def missing_kernel(view: GraphView, ask: Ask) -> Iterator[Hit]:
    """ONNX operations that an engine's parser refuses."""
    for node in _nodes(view):
        if ask.engine in REFUSED.get(node.op_type, ()):
            yield _hit(
                node,
                "stops",
                f"{ask.engine} has no {node.op_type}",
                "replace it in the model, or choose another engine",
            )


REFUSED: Mapping[str, tuple[str, ...]] = {
    "Det": ("openvino", "tensorrt"),
}
"""Operation -> engines that refused it when it was tried."""


def _nodes(view: GraphView) -> tuple[onnx.NodeProto, ...]:
    return () if view.onnx is None else tuple(view.onnx.graph.node)


def _constants(view: GraphView) -> dict[str, onnx.TensorProto]:
    return {} if view.onnx is None else {tensor.name: tensor for tensor in view.onnx.graph.initializer}


def _makers(view: GraphView) -> dict[str, onnx.NodeProto]:
    return {name: node for node in _nodes(view) for name in node.output}


def _readers(view: GraphView) -> dict[str, list[onnx.NodeProto]]:
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in _nodes(view):
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return readers


def _shapes(view: GraphView) -> dict[str, tuple[int, ...]]:
    if view.onnx is None:
        return {}
    graph = view.onnx.graph
    return {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
    }


def _array(tensor: Any) -> np.ndarray:
    import numpy as np
    import onnx

    return np.asarray(onnx.numpy_helper.to_array(tensor))


ONNX_RULES: Mapping[str, Rule] = {
    "zero-point": Rule(zero_point, ("tensorrt",), ("stops",)),
    "channel-axis": Rule(channel_axis, ONNX_ENGINES, ("risk",)),
    "quantized-add": Rule(quantized_add, ONNX_ENGINES, ("risk",)),
    "quantized-attention": Rule(quantized_attention, ("tensorrt",), ("slow",)),
    "onnx-value-dependent-shape": Rule(value_sized, ONNX_ENGINES, ("stops", "risk")),
    "onnx-unsupported-operation": Rule(missing_kernel, ONNX_ENGINES, ("stops",)),
}  # fmt: skip
