"""Nodes of opset 6 to 10 in the form of opset 11, one by one while the walk over the graph knows their inputs.

onnx's own version converter takes no bodies, needs the whole file again and stops at several operators; here only what
changed its meaning between those opsets is rewritten (the changelog of operators, onnx/docs/Changelog.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgeattn.errors import UnsupportedError
from edgeattn.sources.onnx.values import STANDARD, TYPES_TO_ONNX, Value, describe

if TYPE_CHECKING:
    import onnx

OPSET = 11
BROADCASTING = frozenset((
    "Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Equal", "Greater", "Less",
))  # fmt: skip
DROPPED = ("broadcast", "is_test", "consumed_inputs", "output_sequence", "spatial")
"""Attributes of older opsets that say nothing more."""
LARGEST = float(np.finfo(np.float32).max)

Constant = Callable[[str, np.ndarray], str]
"""Stores a constant under a name like the one given; the name."""


def modern(node: onnx.NodeProto, opset: int, values: Mapping[str, Value], constant: Constant) -> list[onnx.NodeProto]:
    """A node of an older opset as nodes of opset 11.

    Args:
        opset: of the file, 6 to 10.
        values: shape, type and, where it is known, value of everything that the node reads.
        constant: keeps what the new nodes read.

    Raises:
        UnsupportedError: for a form that has no counterpart.
    """
    if node.domain not in STANDARD:
        return [node]
    import onnx

    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    rewrite = REWRITES.get(node.op_type)
    if rewrite is not None:
        return rewrite(node, attributes, values, constant)
    if node.op_type in BROADCASTING and opset < 7 and attributes.get("axis") is not None:
        return _aligned(node, attributes, values)
    if node.op_type == "PRelu" and opset < 7 and len(values[node.input[1]].shape) == 1:
        return _aligned(node, {"axis": 1}, values)
    return [_with(node, keep=True)]


def _with(
    node: onnx.NodeProto,
    kind: str = "",
    inputs: list[str] | None = None,
    output: str = "",
    keep: bool = False,
    attributes: Mapping[str, Any] | None = None,
) -> onnx.NodeProto:
    """A copy with another type, inputs, first output or attributes.

    Args:
        keep: whether the attributes stay, but for :data:`DROPPED`.
    """
    import onnx

    made = onnx.NodeProto()
    made.CopyFrom(node)
    made.op_type = kind or node.op_type
    if inputs is not None:
        made.input[:] = inputs
    if output:
        made.output[:] = [output]
    kept = [a for a in node.attribute if keep and a.name not in DROPPED]
    del made.attribute[:]
    made.attribute.extend(kept)
    for name, value in (attributes or {}).items():
        made.attribute.append(onnx.helper.make_attribute(name, value))
    return made


def _aligned(node: onnx.NodeProto, attributes: Mapping[str, Any], values: Mapping[str, Value]) -> list[onnx.NodeProto]:
    """``axis`` of the second input's first axis, as opset 6 broadcasts: ones behind it do the same."""
    import onnx

    rank, own = (len(values[name].shape) for name in node.input[:2])
    axis = int(attributes["axis"])
    behind = rank - (axis + rank if axis < 0 else axis) - own
    plain = _with(node)
    if behind <= 0 or own == 0:
        return [plain]
    lifted = f"{node.output[0]}.aligned"
    plain.input[1] = lifted
    axes = list(range(own, own + behind))
    return [onnx.helper.make_node("Unsqueeze", [node.input[1]], [lifted], axes=axes), plain]


def _slice(
    node: onnx.NodeProto, attributes: Mapping[str, Any], _values: Mapping[str, Value], constant: Constant
) -> list[onnx.NodeProto]:
    if "starts" not in attributes:
        return [node]
    named = [name for name in ("starts", "ends", "axes") if name in attributes]
    stored = [constant(f"{node.output[0]}.{name}", np.array(attributes[name], np.int64)) for name in named]
    return [_with(node, inputs=[node.input[0], *stored])]


def _clip(
    node: onnx.NodeProto, attributes: Mapping[str, Any], values: Mapping[str, Value], constant: Constant
) -> list[onnx.NodeProto]:
    low, high = attributes.get("min", -LARGEST), attributes.get("max", LARGEST)
    kind = _numpy(values[node.input[0]].dtype)
    bounds = [
        "" if abs(bound) >= LARGEST else constant(f"{node.output[0]}.{name}", np.array(bound, kind))
        for name, bound in (("min", low), ("max", high))
    ]
    return [_with(node, inputs=[node.input[0], *bounds])]


def _pad(
    node: onnx.NodeProto, attributes: Mapping[str, Any], values: Mapping[str, Value], constant: Constant
) -> list[onnx.NodeProto]:
    if "pads" not in attributes:
        return [node]
    pads = constant(f"{node.output[0]}.pads", np.array(attributes["pads"], np.int64))
    fill = np.array(attributes.get("value", 0.0), _numpy(values[node.input[0]].dtype))
    value = constant(f"{node.output[0]}.value", fill)
    mode = attributes.get("mode", b"constant")
    return [_with(node, inputs=[node.input[0], pads, value], attributes={"mode": mode})]


def _top_k(
    node: onnx.NodeProto, attributes: Mapping[str, Any], _values: Mapping[str, Value], constant: Constant
) -> list[onnx.NodeProto]:
    if "k" not in attributes:
        return [node]
    count = constant(f"{node.output[0] or node.output[1]}.k", np.array([attributes["k"]], np.int64))
    return [_with(node, inputs=[node.input[0], count], attributes={"axis": attributes.get("axis", -1)})]


def _scatter(
    node: onnx.NodeProto, attributes: Mapping[str, Any], _values: Mapping[str, Value], _constant: Constant
) -> list[onnx.NodeProto]:
    return [_with(node, "ScatterElements", attributes={"axis": attributes.get("axis", 0)})]


def _batch_norm(
    node: onnx.NodeProto, attributes: Mapping[str, Any], values: Mapping[str, Value], constant: Constant
) -> list[onnx.NodeProto]:
    """Until opset 8 ``spatial`` may be off: then every place of a sample has a mean and a variance of its own."""
    import onnx

    if attributes.get("spatial", 1) or len(values[node.input[0]].shape) < 3:
        return [_with(node, keep=True)]
    source, scale, bias, mean, variance = node.input
    kind = _numpy(values[source].dtype)
    epsilon = constant(f"{node.output[0]}.epsilon", np.array(attributes.get("epsilon", 1e-5), kind))
    names = [f"{node.output[0]}.{part}" for part in ("centred", "variance", "deviation", "normal", "scaled")]
    steps = (
        ("Sub", [source, mean], names[0]), ("Add", [variance, epsilon], names[1]), ("Sqrt", [names[1]], names[2]),
        ("Div", [names[0], names[2]], names[3]), ("Mul", [names[3], scale], names[4]),
        ("Add", [names[4], bias], node.output[0]),
    )  # fmt: skip
    return [onnx.helper.make_node(kind, inputs, [output], name=node.name) for kind, inputs, output in steps]


def _resize(
    node: onnx.NodeProto, attributes: Mapping[str, Any], values: Mapping[str, Value], constant: Constant
) -> list[onnx.NodeProto]:
    """Upsample, and Resize of opset 10: from the corner, to the lower neighbour; the upper one where it shrinks.

    ONNX Runtime's kernels do so (UpsampleNearest, ``SIMPLE``); linear has one form.
    """
    scales = _scales(node, attributes, values)
    if scales is None:
        raise UnsupportedError(f"{describe(node)}: its scales depend on values; export to opset 11 or newer")
    target, shape = node.output[0], np.array(values[node.input[0]].shape)
    if len(scales) != len(shape):
        raise UnsupportedError(f"{describe(node)}: {len(scales)} scales for an input of {len(shape)} axes")
    roi = constant(f"{target}.roi", np.zeros(0, np.float32))
    common = {"mode": attributes.get("mode", b"nearest"), "coordinate_transformation_mode": "asymmetric"}
    grows, shrinks = np.maximum(scales, 1), np.minimum(scales, 1)
    linear = common["mode"] != b"nearest"
    if linear or (grows == 1).all() or (shrinks == 1).all():
        nearest = "floor" if (shrinks == 1).all() else "ceil"
        more = {} if linear else {"nearest_mode": nearest}
        kept = constant(f"{target}.scales", scales.astype(np.float32))
        return [_with(node, "Resize", [node.input[0], roi, kept], attributes=common | more)]
    steps, source = [], node.input[0]
    for name, factor, nearest in (("grown", grows, "floor"), ("shrunk", shrinks, "ceil")):
        output = target if name == "shrunk" else f"{target}.{name}"
        kept = constant(f"{target}.{name}.scales", factor.astype(np.float32))
        steps.append(_with(node, "Resize", [source, roi, kept], output, attributes=common | {"nearest_mode": nearest}))
        source = output
    return steps


def _scales(node: onnx.NodeProto, attributes: Mapping[str, Any], values: Mapping[str, Value]) -> np.ndarray | None:
    if "scales" in attributes:
        return np.array(attributes["scales"], np.float32)
    if "height_scale" in attributes:  # opset 6
        return np.array([1, 1, attributes["height_scale"], attributes["width_scale"]], np.float32)
    known = values[node.input[1]].constant if len(node.input) > 1 else None
    return None if known is None else known.reshape(-1).astype(np.float32)


def _scan(
    node: onnx.NodeProto, _attributes: Mapping[str, Any], _values: Mapping[str, Value], _constant: Constant
) -> list[onnx.NodeProto]:
    if len(node.attribute) and any(a.name == "directions" for a in node.attribute):
        raise UnsupportedError(f"{describe(node)}: Scan of opset 8 has a batch of its own; export to opset 9 or newer")
    return [node]


def _numpy(dtype: torch.dtype) -> np.dtype[Any]:
    import onnx

    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(TYPES_TO_ONNX[dtype]))


REWRITES: Mapping[
    str,
    Callable[[Any, Mapping[str, Any], Mapping[str, Value], Constant], list[Any]],
] = {
    "BatchNormalization": _batch_norm, "Clip": _clip, "Pad": _pad, "Resize": _resize, "Scan": _scan,
    "Scatter": _scatter, "Slice": _slice, "TopK": _top_k, "Upsample": _resize,
}  # fmt: skip
