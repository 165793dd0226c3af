"""Explicit quantization in ONNX: what TensorRT needs, and what OpenVINO and ONNX Runtime execute as it is.

Symmetric with zero-point 0, per-tensor activations, per-channel weights, on both inputs of a linear layer and nowhere
else: quantized residual Adds, LayerNorms, masks or softmax cost a ViT 80 points of accuracy, and each pair that an
engine cannot fuse costs a pass over memory. Convolutions stay float: they are a tenth of an attention model's work.
States pass through untouched, so they are never rounded twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeattn.engines import ONNXRUNTIME, Treatment
from edgeattn.errors import UnsupportedError, load_extra
from edgeattn.graphs.layers import LinearLayer, linear_layers
from edgeattn.quantize.calibration import Calibration, checked_samples
from edgeattn.quantize.plan import EVERYTHING, Plan
from edgeattn.quantize.probe import probe

if TYPE_CHECKING:
    import onnx

INT8_MAX = 127  # symmetric: -128 is left out, so that x and -x round alike
NARROW_MAX = 63  # 7 bits: pairs of products with uint8 stay within 16 bits, which CPUs without VNNI sum in
INT4_MAX = 7
GROUP = 32  # values of a weight that share an int4 scale, along K
INT4_OPSET = 21  # the first with int4 and blocks
MIN_SIZE = 16  # rows of a tensor core tile; a smaller K or N is padded up to it and gains nothing
MIN_SCALE = 2.0**-20  # still a float16 with 4 bits of mantissa: TensorRT's Q/DQ run in float16
CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)  # candidates, as shares of the largest |x|
KEPT_VALUES = 200_000  # of an activation, for choosing its clip


@dataclass(frozen=True)
class QdqOptions:
    """What becomes of the layers.

    Attributes:
        plan: treatment by module path.
        narrow: paths of the layers whose weights are kept to 7 bits; see :mod:`edgeattn.quantize.saturation`.
        scales: path -> activation scale that training learned, in real units per step; the others are calibrated.
        shared: one pair per activation, however many layers read it: TensorRT then rounds it once. False gives each
            layer a pair of its own, without which ONNX Runtime on x86 computes query, key and value in float: it makes
            pairs unsigned, as its kernels want them, only where one layer reads them.
    """

    plan: Plan = EVERYTHING
    narrow: frozenset[str] = frozenset()
    scales: Mapping[str, float] = field(default_factory=dict)
    shared: bool = True


@dataclass(frozen=True)
class QuantizedOnnx:
    """Graph name -> file, and what each layer became, by path."""

    models: Mapping[str, Path]
    treatments: Mapping[str, Treatment]


def quantize_onnx(
    onnx: Mapping[str, Path], calibration: Calibration, directory: Path, options: QdqOptions | None = None
) -> QuantizedOnnx:
    """Quantize the linear layers of exported ONNX files.

    A layer that int8 does not pay for stays float whatever the plan says: K or N below 16, or for static int8 a single
    row, or the first projection of raw inputs.

    Args:
        onnx: graph name -> float32 ONNX from ``export_onnx``.
        calibration: graph name -> full input sets; needed where activations are quantized.
        directory: existing directory, another one than the sources'; ``GRAPH.onnx`` is written into it.

    Returns:
        float32 ONNX with Q/DQ on activations and DQ on weights that are stored narrow; the opset is unchanged, or 21
        where weights are int4. ``to_tensorrt`` makes the rest float16.

    Raises:
        DataError: if the calibration does not fit the model or holds NaN.
        InputError: if a pattern of the plan matches no layer.
        UnsupportedError: if no layer of any graph can be quantized.
        MissingExtraError: without onnx or onnxruntime.
    """
    for module in ("onnx", ONNXRUNTIME.module):
        load_extra(module, "convert")
    import onnx as onnx_module

    chosen = options or QdqOptions()
    sources = {graph: onnx_module.load(path) for graph, path in onnx.items()}
    layers = {graph: linear_layers(model.graph) for graph, model in sources.items()}
    asked = chosen.plan.resolve(layer.path for found in layers.values() for layer in found)
    became: dict[str, Treatment] = {}
    written = {}
    for graph, model in sources.items():
        treated = {layer: worthwhile(layer, asked[layer.path]) for layer in layers[graph]}
        static = [layer for layer, treatment in treated.items() if treatment == "int8"]
        samples = checked_samples(calibration, graph, onnx[graph]) if static else []
        _quantize(model, treated, samples, chosen)
        written[graph] = directory / f"{graph}.onnx"
        onnx_module.save(model, written[graph])
        for layer, treatment in treated.items():
            if became.get(layer.path, "float") == "float":
                became[layer.path] = treatment
    if not any(treatment != "float" for treatment in became.values()):
        raise UnsupportedError(
            f"no linear layer is left for int8 (K and N of at least {MIN_SIZE}, more than one row, and the plan); "
            "ship fp16"
        )
    return QuantizedOnnx(written, became)


def worthwhile(layer: LinearLayer, asked: Treatment) -> Treatment:
    """What a layer gets of what the plan asks for it.

    The projection of raw features stays float where ranges are static: one scale for all of them is set by the loudest
    (KWT-1's cepstra: 16 dB with it in int8, 38 dB without), and it is a hundredth of the work.
    """
    if min(layer.inner, layer.outer) < MIN_SIZE or (asked == "int8" and (layer.rows < 2 or layer.raw)):
        return "float"
    if asked == "int4-weights" and layer.inner % GROUP:
        return "int8-weights"  # a block must not hang over the end
    return asked


def _quantize(
    model: onnx.ModelProto,
    treated: Mapping[LinearLayer, Treatment],
    samples: list[dict[str, np.ndarray]],
    options: QdqOptions,
) -> None:
    import onnx

    static = [layer for layer, treatment in treated.items() if treatment == "int8"]
    learned = {layer.activation: options.scales[layer.path] for layer in static if layer.path in options.scales}
    wanted = sorted({layer.activation for layer in static} - learned.keys())
    scales = {**activation_scales(model, wanted, samples), **learned}
    graph = model.graph
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.dims}
    writer = _Writer(graph, options.shared)
    for layer, treatment in treated.items():
        if treatment == "float":
            continue
        writer.split(layer)
        if treatment == "int8":
            writer.activation(layer, scales[layer.activation])
        limit = NARROW_MAX if layer.path in options.narrow else INT8_MAX
        writer.weight(layer, weights[layer.weight], INT4_MAX if treatment == "int4-weights" else limit)
    writer.finish()
    if "int4-weights" in treated.values():
        _raise_opset(model)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    onnx.checker.check_model(inferred)
    model.CopyFrom(inferred)


def activation_scales(
    model: onnx.ModelProto, names: list[str], samples: list[dict[str, np.ndarray]]
) -> dict[str, float]:
    """Scale per activation, real units per integer step, that loses least over the samples in mean square.

    On the streaming Conformer this equals the plain extremes (45 dB both); it is there for models with outliers.

    Args:
        names: tensors of the graph.
        samples: full input sets.
    """
    kept: dict[str, list[np.ndarray]] = {name: [] for name in names}
    largest = dict.fromkeys(names, 0.0)
    for seen in probe(model, names, samples) if names else ():
        for name in names:
            flat = seen[name].ravel()
            largest[name] = max(largest[name], float(np.abs(flat).max()))
            stride = max(1, flat.size * len(samples) // KEPT_VALUES)
            kept[name].append(flat[::stride].copy())
    return {name: best_scale(np.concatenate(kept[name]), largest[name]) for name in names}


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


def _squared_error(sample: np.ndarray, scale: float) -> float:
    restored = np.clip(np.rint(sample / scale), -INT8_MAX, INT8_MAX) * scale
    return float(np.mean((sample - restored) ** 2))


def weight_scales(weight: np.ndarray, axis: int, limit: int = INT8_MAX) -> np.ndarray:
    """Symmetric scale per output channel.

    Args:
        weight: float, two-dimensional.
        axis: the kept axis: 1 for (K, N) as in MatMul, 0 for (N, K) as in Gemm with transB.
        limit: the largest integer.

    Returns:
        float32, shape (weight.shape[axis],), real units per integer step.
    """
    largest = np.abs(weight).max(axis=1 - axis)
    return np.asarray(np.maximum(largest / limit, MIN_SCALE), dtype=np.float32)


def group_scales(weight: np.ndarray, axis: int, limit: int = INT4_MAX) -> np.ndarray:
    """Symmetric scale per output channel and group of :data:`GROUP` values along K.

    Args:
        weight: float, (K, N) for axis 1, (N, K) for axis 0; K a multiple of :data:`GROUP`.

    Returns:
        float32, (K / GROUP, N) or (N, K / GROUP), real units per integer step.
    """
    summed = 1 - axis
    shape = list(weight.shape)
    shape[summed : summed + 1] = [weight.shape[summed] // GROUP, GROUP]
    largest = np.abs(weight.reshape(shape)).max(axis=summed + 1)
    return np.asarray(np.maximum(largest / limit, MIN_SCALE), dtype=np.float32)


def rounded(weight: np.ndarray, axis: int, scale: np.ndarray, limit: int) -> np.ndarray:
    """Integers of a weight, int8, in its own shape; ``scale`` per channel or per group."""
    summed = 1 - axis
    steps = np.expand_dims(scale, summed) if scale.ndim == 1 else np.repeat(scale, GROUP, axis=summed)
    integers: np.ndarray = np.clip(np.rint(weight / steps), -limit, limit).astype(np.int8)
    return integers


def _raise_opset(model: onnx.ModelProto) -> None:
    import onnx

    changed = {"GroupNormalization"}  # of the operators between opset 17 and 21 the one that means something else
    named = next((node for node in model.graph.node if node.op_type in changed), None)
    if named is not None:
        raise UnsupportedError(f"int4 weights need opset {INT4_OPSET}, where {named.op_type} means something else")
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = max(entry.version, INT4_OPSET)
    model.ir_version = max(model.ir_version, 10)  # of int4
    assert onnx.defs.onnx_opset_version() >= INT4_OPSET


class _Writer:
    """Puts Q/DQ before layers and drops float weights that nothing reads any more."""

    def __init__(self, graph: onnx.GraphProto, shared: bool) -> None:
        self.graph, self.shared = graph, shared
        self.before: dict[int, list[onnx.NodeProto]] = {}
        self.after: dict[int, onnx.NodeProto] = {}
        self.made: dict[tuple[str, int, int], str] = {}
        self.pairs: dict[str, str] = {}

    def split(self, layer: LinearLayer) -> None:
        """Make a Gemm a MatMul and an Add: ONNX Runtime has no integer Gemm with a float bias, and computes in float.

        A Gemm with factors of its own stays what it is.
        """
        import onnx

        node = self.graph.node[layer.node]
        options = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        if node.op_type != "Gemm" or options.get("alpha", 1.0) != 1.0 or options.get("beta", 1.0) != 1.0:
            return
        node.op_type = "MatMul"
        del node.attribute[:]
        if len(node.input) > 2 and node.input[2]:
            output, product = node.output[0], f"{node.output[0]}_product"
            added = onnx.helper.make_node("Add", [product, node.input[2]], [output], name=f"{node.name or output}_bias")
            added.metadata_props.extend(node.metadata_props)
            node.output[0] = product
            self.after[layer.node] = added
        del node.input[2:]

    def activation(self, layer: LinearLayer, scale: float) -> None:
        """A pair on the first input."""
        name = layer.activation
        pair = name if self.shared else f"{name}_of_{layer.node}"
        if pair not in self.pairs:
            parameters = self._parameters(pair, np.array(scale, np.float32), np.int8)
            self._node("QuantizeLinear", [name, *parameters], f"{pair}_int8", layer, None)
            self.pairs[pair] = self._node(
                "DequantizeLinear", [f"{pair}_int8", *parameters], f"{pair}_restored", layer, None
            )
        self.graph.node[layer.node].input[0] = self.pairs[pair]

    def weight(self, layer: LinearLayer, weight: np.ndarray, limit: int) -> None:
        """Integers and their DQ on the second input."""
        import onnx

        key = (layer.weight, layer.axis, limit)
        if key not in self.made:
            name = f"{layer.weight}_axis{layer.axis}_{limit}"
            grouped = limit == INT4_MAX
            plain = self.graph.node[layer.node].op_type == "MatMul"  # and takes (K, N)
            weight, kept = (weight.T, 1) if plain and layer.axis == 0 else (weight, layer.axis)
            scale = (group_scales if grouped else weight_scales)(weight, kept, limit)
            integers = np.ascontiguousarray(rounded(weight, kept, scale, limit))
            if grouped:
                tensor = onnx.helper.make_tensor(
                    f"{name}_int", onnx.TensorProto.INT4, integers.shape, integers.ravel().tolist()
                )
            else:
                tensor = onnx.numpy_helper.from_array(integers, f"{name}_int")
            self.graph.initializer.append(tensor)
            parameters = self._parameters(name, scale, None)
            axis = 1 - kept if grouped else kept
            self.made[key] = self._node(
                "DequantizeLinear", [f"{name}_int", *parameters], f"{name}_restored", layer, axis
            )
            if grouped:
                self.before[layer.node][-1].attribute.append(onnx.helper.make_attribute("block_size", GROUP))
        self.graph.node[layer.node].input[1] = self.made[key]

    def finish(self) -> None:
        """Put the new nodes in their places; float weights that nothing reads any more are dropped."""
        nodes = list(self.graph.node)
        del self.graph.node[:]
        for index, node in enumerate(nodes):
            self.graph.node.extend(self.before.get(index, []))
            self.graph.node.append(node)
            self.graph.node.extend([self.after[index]] if index in self.after else [])
        read = {name for node in self.graph.node for name in node.input} | {v.name for v in self.graph.output}
        replaced = {key[0] for key in self.made} - read
        for index in range(len(self.graph.initializer) - 1, -1, -1):
            if self.graph.initializer[index].name in replaced:
                del self.graph.initializer[index]

    def _parameters(self, name: str, scale: np.ndarray, kind: type[np.int8] | None) -> list[str]:
        import onnx

        self.graph.initializer.append(onnx.numpy_helper.from_array(scale, f"{name}_scale"))
        if kind is None:  # of integers; without a zero-point it is 0
            return [f"{name}_scale"]
        self.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(scale.shape, kind), f"{name}_zero_point"))
        return [f"{name}_scale", f"{name}_zero_point"]

    def _node(self, kind: str, inputs: list[str], output: str, layer: LinearLayer, axis: int | None) -> str:
        import onnx

        node = onnx.helper.make_node(kind, inputs, [output], name=f"{kind}_{output}")
        if axis is not None:
            node.attribute.append(onnx.helper.make_attribute("axis", axis))
        node.metadata_props.extend(self.graph.node[layer.node].metadata_props)
        self.before.setdefault(layer.node, []).append(node)
        return output
