"""The linear layers of an exported ONNX graph, each by the path of the module that it came from.

A path is how every tool names a layer: plans, sensitivity and reports. A layer's :func:`fingerprint` finds the same
layer again in a file of another engine, whose names say less.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

MODULE_KEY = "edgeattn.module"  # node metadata: path of the torch module
PRODUCTS = ("MatMul", "Gemm")
MOVING = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "Split", "Concat", "Pad")
RAW_SHARE = 0.05  # of the operations of all linear layers


@dataclass(frozen=True, kw_only=True)
class LinearLayer:
    """A MatMul or Gemm with constant two-dimensional weights, (K, N) or (N, K) as ``axis`` tells.

    Attributes:
        path: module path, ``blocks.0.ffn1.expand``; the node's own name in a file that tells no modules. Products of
            one module share it.
        node: index in the graph; ``name`` of that node.
        activation: tensor on its first input.
        weight: initializer on its second input.
        axis: of the weight's output channels: 1 for (K, N), 0 for (N, K).
        rows: of the activation, all leading axes multiplied.
        inner: K, summed over.
        outer: N, output channels.
        raw: whether it reads inputs of the graph as they come, features or pixels, and does little of the work
            (:data:`RAW_SHARE`): the first projection of a model.
    """

    path: str
    node: int
    name: str
    activation: str
    weight: str
    axis: int
    rows: int
    inner: int
    outer: int
    raw: bool = False

    @property
    def flops(self) -> int:
        """Operations of one call, a multiply-add counted as two."""
        return 2 * self.rows * self.inner * self.outer


def module_path(node: onnx.NodeProto) -> str:
    """Path of the torch module that a node came from (``encoder.layers.0.attention``); empty if the file has none."""
    for entry in node.metadata_props:
        if entry.key == MODULE_KEY:
            return str(entry.value)
        if entry.key == "pkg.torch.onnx.name_scopes":
            scopes = json.loads(str(entry.value).replace("'", '"'))
            return str(scopes[-2]) if len(scopes) > 1 else ""
    return ""


def node_name(node: onnx.NodeProto) -> str:
    """A node's name; its first output where the file gives it none."""
    return str(node.name or node.output[0])


def layer_path(node: onnx.NodeProto) -> str:
    """How a layer is called: its module, else its node.

    torch's older exporter writes the module into the node's name: ``/blocks/0/ffn/MatMul`` is ``blocks.0.ffn``.
    """
    path = module_path(node)
    if path:
        return path
    parts = [part for part in node_name(node).split("/") if part]
    if len(parts) > 1 and parts[-1].rstrip("_0123456789") in PRODUCTS:
        parts = parts[:-1]
    return ".".join(parts)


def linear_layers(graph: onnx.GraphProto) -> tuple[LinearLayer, ...]:
    """Every product with constant weights, in the graph's order; the file must tell static shapes."""
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer if len(tensor.dims) == 2}
    shapes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    layers = []
    for index, node in enumerate(graph.node):
        if node.op_type not in PRODUCTS or node.input[1] not in weights or node.input[0] not in shapes:
            continue
        options = {attribute.name: attribute for attribute in node.attribute}
        if "transA" in options and options["transA"].i == 1:
            continue
        transposed = "transB" in options and options["transB"].i == 1
        outer, inner = weights[node.input[1]] if transposed else weights[node.input[1]][::-1]
        rows = math.prod(shapes[node.input[0]][:-1])
        layers.append(
            LinearLayer(
                path=layer_path(node),
                node=index,
                name=node.name,
                activation=node.input[0],
                weight=node.input[1],
                axis=0 if transposed else 1,
                rows=rows,
                inner=inner,
                outer=outer,
            )
        )
    raw = _raw_tensors(graph)
    limit = RAW_SHARE * sum(layer.flops for layer in layers)
    return tuple(replace(layer, raw=layer.activation in raw and layer.flops <= limit) for layer in layers)


def _raw_tensors(graph: onnx.GraphProto) -> set[str]:
    """Inputs of the graph, and what only moves them."""
    constants = {tensor.name for tensor in graph.initializer}
    raw = {value.name for value in graph.input} - constants
    for node in graph.node:
        moved = [name for name in node.input if name and name not in constants]
        if node.op_type in MOVING and moved and all(name in raw for name in moved):
            raw.update(node.output)
    return raw


def fingerprint(weight: np.ndarray, axis: int) -> str:
    """A hash of float32 weights that does not depend on how they lie: those of (K, N) and of (N, K) are the same.

    Args:
        weight: two-dimensional.
        axis: of the output channels.
    """
    if weight.ndim != 2:
        raise ValueError(f"weight must be two-dimensional, got {weight.shape}")
    rows = np.ascontiguousarray(weight if axis == 0 else weight.T, dtype=np.float32)
    return hashlib.sha256(repr(rows.shape).encode() + rows.tobytes()).hexdigest()


def fingerprints(model: onnx.ModelProto) -> dict[str, tuple[str, ...]]:
    """Fingerprint -> paths of the layers with these weights (several where weights are tied)."""
    import onnx

    arrays = {tensor.name: tensor for tensor in model.graph.initializer}
    found: dict[str, list[str]] = {}
    for layer in linear_layers(model.graph):
        key = fingerprint(onnx.numpy_helper.to_array(arrays[layer.weight]), layer.axis)
        if layer.path not in found.setdefault(key, []):
            found[key].append(layer.path)
    return {key: tuple(paths) for key, paths in found.items()}


ROUNDING = (
    "QuantizeLinear", "DynamicQuantizeLinear", "QLinearMatMul", "QLinearConv", "QLinearAdd", "QLinearMul", "QGemm",
    "QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", "QLinearGlobalAveragePool", "QLinearAveragePool",
    "QLinearConcat", "QLinearWhere", "DynamicQuantizeMatMul",
)  # fmt: skip


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether a graph rounds its activations to integers: two engines may then differ by single steps."""
    return any(node.op_type in ROUNDING for node in model.graph.node)
