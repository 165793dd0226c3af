"""Rules of preflight over the ONNX file of a model whose source is one: what its quantization asks of an engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from edgeattn.converters.onnx_operators import lacks
from edgeattn.converters.preflight.rule import Issue, Question, Rule, Severity, only, through_onnx
from edgeattn.converters.preflight.rules import LONG_ATTENTION
from edgeattn.converters.preflight.view import GraphView
from edgeattn.converters.tensorrt import asymmetric_nodes
from edgeattn.engines import ONNXRUNTIME, OPENVINO, TENSORRT
from edgeattn.graphs.layers import module_path

if TYPE_CHECKING:
    import onnx

    from edgeattn.converters.passes.onnx_graph import View

VALUE_SIZED = ("NonZero", "Unique", "Compress")


def _graph(view: GraphView) -> View:
    """The ONNX file of a graph with its lookups; an empty one where the source is none."""
    import onnx

    from edgeattn.converters.passes.onnx_graph import View

    return View(onnx.ModelProto() if view.onnx is None else view.onnx)


def _hit(node: onnx.NodeProto, severity: Severity, reason: str, change: str, predicted: bool = False) -> Issue:
    return Issue(severity, reason, change, node.name or node.output[0], module_path(node), predicted=predicted)


def zero_point(view: GraphView, _: Question) -> Iterator[Issue]:
    """Asymmetric quantization."""
    for node in asymmetric_nodes(_graph(view).model):
        yield _hit(
            node, "stops", "a zero-point that is not 0; TensorRT takes symmetric int8 only", "quantize it symmetrically"
        )


def channel_axis(view: GraphView, _: Question) -> Iterator[Issue]:
    """Per-channel scales along another axis than the output channels."""
    graph = _graph(view)
    for node in graph.graph.node:
        scales = graph.value(node.input[1]) if node.op_type == "DequantizeLinear" else None
        if scales is None or scales.size < 2:
            continue
        shape = list(graph.constants[node.input[0]].dims) if node.input[0] in graph.constants else []
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        for reader in graph.readers.get(node.output[0], ()):
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


def quantized_add(view: GraphView, _: Question) -> Iterator[Issue]:
    """Quantized residual Adds and masks."""
    graph = _graph(view)
    for node in graph.graph.node:
        if node.op_type != "Add":
            continue
        quantized = [made for name in node.input if (made := graph.maker(name, "DequantizeLinear")) is not None]
        if len(quantized) == len(node.input) and not any(made.input[0] in graph.constants for made in quantized):
            yield _hit(
                node,
                "risk",
                "an Add of two quantized tensors: residuals and masks lose small values (a ViT fell to 5 % top-1)",
                "leave Adds and masks float: quantize linear layers only",
            )


def quantized_attention(view: GraphView, _: Question) -> Iterator[Issue]:
    """int8 products of two activations over long sequences."""
    graph = _graph(view)
    for node in graph.graph.node:
        made = [graph.maker(name, "DequantizeLinear") for name in node.input]
        if node.op_type != "MatMul" or any(m is None or m.input[0] in graph.constants for m in made):
            continue
        longest = max((size for name in node.input for size in (graph.shape(name) or ())[-2:]), default=0)
        if longest > LONG_ATTENTION:
            yield _hit(
                node,
                "slow",
                f"int8 attention over {longest} positions: TensorRT fuses it up to {LONG_ATTENTION} only",
                "leave products of two activations float",
                True,
            )


def value_sized(view: GraphView, question: Question) -> Iterator[Issue]:
    """Nodes whose result size depends on values."""
    for node in _graph(view).graph.node:
        if node.op_type in VALUE_SIZED:
            severity: Severity = "risk" if question.engine == ONNXRUNTIME.name else "stops"
            yield _hit(
                node,
                severity,
                f"the size of what {node.op_type} makes depends on values; {question.engine} needs static shapes",
                "keep the full size and give a mask",
            )


def missing_kernel(view: GraphView, question: Question) -> Iterator[Issue]:
    """ONNX operations that an engine's parser refuses."""
    for node in _graph(view).graph.node:
        if question.engine in REFUSED.get(node.op_type, ()) or (view.refusal and lacks(question.engine, node)):
            yield _hit(
                node,
                "stops",
                f"{question.engine} has no {node.op_type}",
                "replace it in the model, or choose another engine",
            )


REFUSED: Mapping[str, tuple[str, ...]] = {
    "Det": (OPENVINO.name, TENSORRT.name),
}
"""Operation -> engines that refused it when it was tried."""


ONNX_RULES: Mapping[str, Rule] = {
    "zero-point": Rule(zero_point, only(TENSORRT), ("stops",)),
    "channel-axis": Rule(channel_axis, through_onnx, ("risk",)),
    "quantized-add": Rule(quantized_add, through_onnx, ("risk",)),
    "quantized-attention": Rule(quantized_attention, only(TENSORRT), ("slow",)),
    "onnx-value-dependent-shape": Rule(value_sized, through_onnx, ("stops", "risk")),
    "onnx-unsupported-operation": Rule(missing_kernel, through_onnx, ("stops",)),
}  # fmt: skip
