"""Explicit int8 Q/DQ in ONNX, placed the way TensorRT needs it.

Symmetric with zero-point 0, per-tensor activations, per-channel weights, on both inputs of a linear layer and nowhere
else: quantized residual Adds, LayerNorms, masks or softmax cost a ViT 80 points of accuracy, and each pair that
TensorRT cannot fuse costs a pass over memory. Convolutions stay float: they are a tenth of an attention model's work.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeattn.errors import UnsupportedError, load_extra
from edgeattn.quantize.calibration import Calibration, checked_samples
from edgeattn.runtimes.onnxruntime import BROKEN_FUSIONS

if TYPE_CHECKING:
    import onnx

INT8_MAX = 127  # symmetric: -128 is left out, so that x and -x round alike
MIN_SIZE = 16  # rows of a tensor core tile; a smaller K or N is padded up to it and gains nothing
MIN_SCALE = 2.0**-20  # still a float16 with 4 bits of mantissa: TensorRT's Q/DQ run in float16
CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)  # candidates, as shares of the largest |x|
KEPT_VALUES = 200_000  # of an activation, for choosing its clip


@dataclass(frozen=True)
class LinearLayer:
    """A MatMul or Gemm with constant weights that is worth quantizing.

    Attributes:
        node: its index in the graph.
        activation: tensor on its first input.
        weight: initializer on its second input.
        axis: of the weight's output channels.
    """

    node: int
    activation: str
    weight: str
    axis: int


def int8_qdq(onnx: Mapping[str, Path], calibration: Calibration, directory: Path) -> Mapping[str, Path]:
    """Insert Q/DQ around the linear layers of exported ONNX files.

    Args:
        onnx: graph name -> float32 ONNX from ``export_onnx``.
        calibration: graph name -> full input sets.
        directory: existing directory, another one than the sources'; ``GRAPH.onnx`` is written into it.

    Returns:
        graph name -> float32 ONNX with Q/DQ, opset unchanged; ``to_tensorrt`` makes the rest float16.

    Raises:
        DataError: if the calibration does not fit the model or holds NaN.
        UnsupportedError: if no layer of any graph can be quantized.
        MissingExtraError: without onnx or onnxruntime.
    """
    for module in ("onnx", "onnxruntime"):
        load_extra(module, "convert")
    samples = {graph: checked_samples(calibration, graph, path) for graph, path in onnx.items()}
    written, layers = {}, 0
    for graph, path in onnx.items():
        written[graph] = directory / f"{graph}.onnx"
        layers += _quantize(path, samples[graph], written[graph])
    if not layers:
        raise UnsupportedError(
            f"no linear layer is large enough for int8 (K and N of at least {MIN_SIZE}, more than one row); ship fp16"
        )
    return written


def _quantize(source: Path, samples: list[dict[str, np.ndarray]], target: Path) -> int:
    import onnx

    model = onnx.load(source)
    layers = linear_layers(model.graph)
    scales = activation_scales(model, sorted({layer.activation for layer in layers}), samples)
    _insert_pairs(model.graph, layers, scales)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    onnx.checker.check_model(model)
    onnx.save(model, target)
    return len(layers)


def linear_layers(graph: onnx.GraphProto) -> list[LinearLayer]:
    """The layers to quantize: constant two-dimensional weights, K and N of at least 16, more than one row."""
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer if len(tensor.dims) == 2}
    shapes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    layers = []
    for index, node in enumerate(graph.node):
        if node.op_type not in ("MatMul", "Gemm") or node.input[1] not in weights or node.input[0] not in shapes:
            continue
        options = {attribute.name: attribute for attribute in node.attribute}
        transposed = "transB" in options and options["transB"].i == 1
        if "transA" in options and options["transA"].i == 1:
            continue
        rows = math.prod(shapes[node.input[0]][:-1])
        if rows > 1 and min(weights[node.input[1]]) >= MIN_SIZE:
            layers.append(LinearLayer(index, node.input[0], node.input[1], 0 if transposed else 1))
    return layers


def activation_scales(
    model: onnx.ModelProto, names: list[str], samples: list[dict[str, np.ndarray]]
) -> dict[str, float]:
    """Scale per activation, real units per integer step, that loses least over the samples in mean square.

    On the streaming Conformer this equals the plain extremes (45 dB both); it is there for models with outliers.

    Args:
        names: tensors of the graph.
        samples: full input sets.
    """
    values = _record(model, names, samples)
    return {name: best_scale(*values[name]) for name in names}


def best_scale(sample: np.ndarray, largest: float) -> float:
    """The scale among :data:`CLIPS` of ``largest`` with the least mean square error on ``sample``.

    Args:
        sample: float, any shape.
        largest: max |x| over all calibration data, of which ``sample`` is a part.
    """
    if largest == 0.0:
        return 1.0  # a tensor that is always zero: any scale is right
    scales = [max(clip * largest / INT8_MAX, MIN_SCALE) for clip in CLIPS]
    return min(scales, key=lambda scale: _squared_error(sample, scale))


def weight_scales(weight: np.ndarray, axis: int) -> np.ndarray:
    """Symmetric int8 scale per output channel.

    Args:
        weight: float, two-dimensional.
        axis: the kept axis: 1 for (K, N) as in MatMul, 0 for (N, K) as in Gemm with transB.

    Returns:
        float32, shape (weight.shape[axis],), real units per integer step.
    """
    largest = np.abs(weight).max(axis=1 - axis)
    return np.asarray(np.maximum(largest / INT8_MAX, MIN_SCALE), dtype=np.float32)


def _squared_error(sample: np.ndarray, scale: float) -> float:
    restored = np.clip(np.rint(sample / scale), -INT8_MAX, INT8_MAX) * scale
    return float(np.mean((sample - restored) ** 2))


def _record(
    model: onnx.ModelProto, names: list[str], samples: list[dict[str, np.ndarray]]
) -> dict[str, tuple[np.ndarray, float]]:
    """Per tensor: an even subsample of its values over all samples, and the largest |x|."""
    import onnx
    import onnxruntime

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    inputs = {value.name for value in probe.graph.input}
    inner = [name for name in names if name not in inputs]
    outputs = {value.name for value in probe.graph.output}
    for name in inner:
        if name not in outputs:
            probe.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        probe.SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=list(BROKEN_FUSIONS),
    )
    kept: dict[str, list[np.ndarray]] = {name: [] for name in names}
    largest = dict.fromkeys(names, 0.0)
    for sample in samples:
        seen = dict(zip(inner, session.run(inner, sample), strict=True)) if inner else {}
        for name in names:
            flat = (seen[name] if name in seen else sample[name]).ravel()
            largest[name] = max(largest[name], float(np.abs(flat).max()))
            stride = max(1, flat.size * len(samples) // KEPT_VALUES)
            kept[name].append(flat[::stride].copy())
    return {name: (np.concatenate(kept[name]), largest[name]) for name in names}


def _insert_pairs(graph: onnx.GraphProto, layers: list[LinearLayer], scales: Mapping[str, float]) -> None:
    import onnx

    weights = {tensor.name: tensor for tensor in graph.initializer}
    before: dict[int, list[onnx.NodeProto]] = {}
    restored: dict[tuple[str, int | None], str] = {}  # one pair per tensor and axis, however many layers read it
    for layer in layers:
        node = graph.node[layer.node]
        for position, key in enumerate(((layer.activation, None), (layer.weight, layer.axis))):
            name, axis = key
            if key not in restored:
                if axis is None:
                    scale = np.array(scales[name], dtype=np.float32)
                else:
                    scale = weight_scales(onnx.numpy_helper.to_array(weights[name]), axis)
                pair = _pair(graph, name, scale, axis)
                for made in pair:
                    made.metadata_props.extend(node.metadata_props)
                before.setdefault(layer.node, []).extend(pair)
                restored[key] = pair[-1].output[0]
            node.input[position] = restored[key]
    nodes = list(graph.node)
    del graph.node[:]
    for index, node in enumerate(nodes):
        graph.node.extend(before.get(index, []))
        graph.node.append(node)


def _pair(graph: onnx.GraphProto, name: str, scale: np.ndarray, axis: int | None) -> list[onnx.NodeProto]:
    import onnx

    # The pair stands on weights too, although an int8 constant would be smaller: TensorRT 8.6 wants Q before DQ.
    label = name if axis is None else f"{name}_axis{axis}"
    parameters = [f"{label}_scale", f"{label}_zero_point"]
    graph.initializer.append(onnx.numpy_helper.from_array(scale, parameters[0]))
    graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(scale.shape, np.int8), parameters[1]))
    made = []
    for kind, source, target in (
        ("QuantizeLinear", name, f"{label}_int8"),
        ("DequantizeLinear", f"{label}_int8", f"{label}_restored"),
    ):
        made.append(onnx.helper.make_node(kind, [source, *parameters], [target], name=f"{kind}_{label}"))
        if axis is not None:
            made[-1].attribute.append(onnx.helper.make_attribute("axis", axis))
    return made
