"""Where a float32 graph leaves the range of float16: a scan of its tensors over calibration samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeattn.errors import DataError, load_extra
from edgeattn.graphs.layers import layer_path, node_name
from edgeattn.quantize.calibration import checked_samples
from edgeattn.quantize.probe import probe
from edgeattn.spec import HALF_MAX, HIDDEN

if TYPE_CHECKING:
    import onnx

HALF_TINY = float(np.finfo(np.float16).smallest_subnormal)  # 2^-24; the smaller half of what lies below becomes 0
MARGIN = 2.0  # the samples do not show the largest values of use
SLICE_BYTES = 64 << 20  # of tensors taken out of one run

FLEXIBLE = frozenset(("Constant", "Cast", "CastLike", "QuantizeLinear", "DequantizeLinear", "If", "Loop", "Scan"))
"""Not named: these have types of their own, follow their readers, or stay float32 as a whole (their bodies too)."""
FUSED_NORMS = frozenset(("LayerNormalization", "RMSNormalization", "GroupNormalization", "InstanceNormalization"))
TOWARDS_SOFTMAX = frozenset((
    "Add", "Sub", "Mul", "Div", "Where", "Min", "Max", "Clip", "Reshape", "Transpose", "Squeeze", "Unsqueeze",
    "Flatten", "Identity", "Slice", "Split", "Gather", "Expand", "Concat", "Pad", "Tile", "Cast",
))  # fmt: skip


@dataclass(frozen=True)
class Island:
    """A node that has to compute in float32 where the rest is float16.

    Attributes:
        node: its name; the first output's where the file gives it none.
        op: ONNX operator.
        path: path of its torch module, else of the node.
        reason: what float16 would do to it, in words.
        largest: the |x| that the reason speaks of, infinite for -inf.
    """

    node: str
    op: str
    path: str
    reason: str
    largest: float


@dataclass(frozen=True)
class Range:
    """Extremes of a tensor over all samples.

    Attributes:
        largest: max |x| of the finite values.
        shown: the same without the values that hide (:data:`HIDDEN` and below).
        infinite: whether it holds an infinity.
        blind: whether a row (last axis) lies below -65504 as a whole: its softmax is NaN in float16, and even in
            float32.
    """

    largest: float = 0.0
    shown: float = 0.0
    infinite: bool = False
    blind: bool = False

    def merged(self, other: Range) -> Range:
        """Of both."""
        return Range(
            max(self.largest, other.largest),
            max(self.shown, other.shown),
            self.infinite or other.infinite,
            self.blind or other.blind,
        )


def range_of(values: np.ndarray) -> Range:
    """Extremes of one array, float, any shape.

    >>> range_of(np.array([[1.0, -2e9], [-3e4, 3.0]]))
    Range(largest=2000000000.0, shown=3.0, infinite=False, blind=False)
    """
    if values.size == 0:
        return Range()
    low, high = float(values.min()), float(values.max())
    if math.isfinite(low) and math.isfinite(high) and low > HIDDEN:  # nearly always: two passes
        return Range(max(-low, high), max(-low, high))
    finite = values[np.isfinite(values)]
    shown = finite[finite > HIDDEN]
    rows = values.max(axis=-1) if values.ndim else values
    return Range(
        float(np.abs(finite).max(initial=0.0)),
        float(np.abs(shown).max(initial=0.0)),
        finite.size < values.size,
        bool((np.isfinite(rows) & (rows < -HALF_MAX)).any()),
    )


def half_islands(onnx: Path, samples: Sequence[Mapping[str, np.ndarray]]) -> tuple[Island, ...]:
    """Nodes of a float32 ONNX file that overflow float16, or vanish in it, on the samples.

    A node is one if a tensor that it reads or writes goes beyond 65504 / :data:`MARGIN`, or is below 2^-24 as a whole
    (an epsilon); if squares or sums inside it do (ReduceL2, ReduceMean: their results are small again); or if it reads
    a constant beyond 65504 or an infinite one. Partial sums of a product are not bounded: max |a| max |b| K would name
    every product, so what it gave is what counts. A fused normalisation squares in float32 inside every engine and is
    named for its input alone. Values that hide a position on the way to a softmax may become -inf.

    Args:
        onnx: below 2 GiB, with static shapes, as from ``export_onnx``.
        samples: full input sets, states included. Islands hold for what these show.

    Returns:
        In the graph's order; what ``to_half`` keeps in float32 by itself may be among them.

    Raises:
        DataError: for no samples, or ones that do not fit the model.
        MissingExtraError: without onnx or onnxruntime.
    """
    if not samples:
        raise DataError(f"{onnx.name}: a range scan needs samples and got none: it would find nothing to keep float32")
    onnx_module = load_extra("onnx", "convert")
    checked = checked_samples({onnx.stem: samples}, onnx.stem, onnx)
    model = onnx_module.shape_inference.infer_shapes(onnx_module.load(onnx), data_prop=True)
    constants = _constants(model.graph)
    sizes = _float_sizes(model.graph)
    ranges = {name: range_of(array) for name, array in constants.items()}
    ranges.update(_scan(model, {name: size for name, size in sizes.items() if name not in constants}, checked))
    hiding = {name for name in _hiding(model.graph, ranges) if name in constants or not ranges[name].blind}
    seen = {name: replace(found, largest=found.shown) if name in hiding else found for name, found in ranges.items()}
    named = ((node, _reason(node, seen, constants, sizes)) for node in model.graph.node if node.op_type not in FLEXIBLE)
    return tuple(
        Island(node_name(node), node.op_type, layer_path(node), *reason) for node, reason in named if reason is not None
    )


def _constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Float initializers and Constant nodes by tensor name."""
    import onnx

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        value = next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            tensors[node.output[0]] = value
    return {
        name: onnx.numpy_helper.to_array(tensor)
        for name, tensor in tensors.items()
        if tensor.data_type == onnx.TensorProto.FLOAT
    }


def _float_sizes(graph: onnx.GraphProto) -> dict[str, int]:
    """Elements of each float tensor that is an input or that a node writes; 1 where the shape is unknown."""
    import onnx

    return {
        value.name: math.prod(max(1, dim.dim_value) for dim in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }


def _scan(
    model: onnx.ModelProto, sizes: Mapping[str, int], samples: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, Range]:
    """Extremes of tensors, taken out in slices so that memory stays bounded whatever the model's depth."""
    ranges = dict.fromkeys(sizes, Range())
    for names in _slices(sizes):
        for tensors in probe(model, names, samples):
            for name in names:
                ranges[name] = ranges[name].merged(range_of(tensors[name]))
    return ranges


def _slices(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    names: list[str] = []
    room = SLICE_BYTES
    for name, size in sizes.items():
        if names and 4 * size > room:
            yield names
            names, room = [], SLICE_BYTES
        names.append(name)
        room -= 4 * size
    if names:
        yield names


def _hiding(graph: onnx.GraphProto, ranges: Mapping[str, Range]) -> set[str]:
    """Tensors that lead to a softmax and nowhere else: scores, and the masks added to them.

    Of a softmax with a row that is hidden as a whole they have to be what they are.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in graph.output}
    hiding: set[str] = set()
    for node in reversed(graph.node):
        for name in node.input:
            if (
                name in ranges
                and name not in outputs
                and all(
                    (reader.op_type == "Softmax" and not ranges.get(reader.input[0], Range()).blind)
                    or (reader.op_type in TOWARDS_SOFTMAX and set(reader.output) <= hiding)
                    for reader in readers[name]
                )
            ):
                hiding.add(name)
    return hiding


def _reason(
    node: onnx.NodeProto, ranges: Mapping[str, Range], constants: Mapping[str, np.ndarray], sizes: Mapping[str, int]
) -> tuple[str, float] | None:
    """Why a node has to stay float32 and the |x| behind it, None if it need not."""
    for name in node.input:
        if name in constants:
            if ranges[name].infinite:
                return "a constant is infinite", math.inf
            if ranges[name].largest > HALF_MAX:
                return f"a constant of {ranges[name].largest:.3g} is beyond float16", ranges[name].largest
    for names, verb in ((node.output, "gives"), (node.input, "reads")):
        for name in names:
            largest = ranges[name].largest if name in ranges and name not in constants else 0.0
            if largest > HALF_MAX / MARGIN:
                return f"{verb} |x| up to {largest:.3g}, float16 ends at {HALF_MAX:.0f}", largest
    inside = _inside(node, ranges, sizes)
    if inside > HALF_MAX / MARGIN:
        return f"squares or sums up to {inside:.3g} inside, float16 ends at {HALF_MAX:.0f}", inside
    for name in (*node.output, *node.input):
        if name in ranges and 0.0 < ranges[name].largest < HALF_TINY:
            return f"|x| up to {ranges[name].largest:.3g} is 0 in float16", ranges[name].largest
    return None


def _inside(node: onnx.NodeProto, ranges: Mapping[str, Range], sizes: Mapping[str, int]) -> float:
    """Largest sum inside a node whose result does not show it; 0 for all others."""
    given, made = node.input[0] if node.input else "", node.output[0]
    if node.op_type in FUSED_NORMS or given not in ranges or made not in ranges:
        return 0.0
    if node.op_type == "ReduceL2":
        return ranges[made].largest ** 2
    if node.op_type in ("ReduceMean", "GlobalAveragePool"):
        return ranges[made].largest * sizes.get(given, 1) / sizes.get(made, 1)
    if node.op_type == "LpNormalization":
        return ranges[given].largest ** 2
    return 0.0
