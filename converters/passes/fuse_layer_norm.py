"""A LayerNorm in pieces becomes one LayerNormalization again.

Files of old opsets, and modules that write it out (``(x - x.mean(-1)) * rsqrt(var + eps)``), hold a LayerNorm as
ReduceMean, Sub, Pow, ReduceMean, Add, Sqrt, Div. In float16 the square overflows from |x - mean| = 256 on: on a Jetson
a ViT's top-1 fell from 85 % to 19 % (TensorRT#2564, #3101, onnxruntime#13639). As one operator (ONNX opset 17) it is
computed in float32 inside by every engine, and in one kernel.

Recognised, with either of the two written where there is a choice:

    c = x - ReduceMean(x)                   (both uses of c may be nodes of their own)
    v = ReduceMean(c * c)  or  ReduceMean(Pow(c, 2))
    n = c / Sqrt(v + eps)  or  c * Reciprocal(Sqrt(v + eps))  or  c * Pow(v + eps, -0.5)
    y = n * scale + bias                    (constants over the last axes; each may be missing)

``std + eps`` (epsilon outside the root) is another function and stays. RMSNorm has no operator before opset 23; it
stays in pieces, of which float16 files keep every one in float32 (:mod:`edgeattn.converters.half`).
"""

from __future__ import annotations

import math

import numpy as np
import onnx

from edgeattn.converters.passes.onnx_graph import View, axes_of

OPSET = 17  # LayerNormalization is there since


def fuse_layer_norm(model: onnx.ModelProto) -> int:
    """Fuse each LayerNorm in pieces; returns how many there were."""
    view = View(model)
    if view.opset < OPSET:
        return 0
    fused = 0
    for node in list(model.graph.node):
        if node.op_type in ("Div", "Mul") and _fuse(view, node):
            fused += 1
    if fused:
        view.drop_unread()
    return fused


def _fuse(view: View, node: onnx.NodeProto) -> bool:
    found = _normalised(view, node)
    if found is None:
        return False
    source, axes, epsilon = found
    shape = view.shape(source)
    if shape is None:
        return False
    first = sorted(axis % len(shape) for axis in axes)
    if first != list(range(first[0], len(shape))):  # only the last axes can be normalised together
        return False
    normal = shape[first[0] :]
    last, scale = _affine(view, node, "Mul", normal)
    last, bias = _affine(view, last, "Add", normal)
    parameters = [view.constant(np.ones(normal, np.float32) if scale is None else scale, f"{source}_norm_scale")]
    if bias is not None:
        parameters.append(view.constant(bias, f"{source}_norm_bias"))
    # The last node of the pieces turns into the whole; the others lose their readers.
    del last.input[:], last.attribute[:]
    last.op_type = "LayerNormalization"
    last.input.extend([source, *parameters])
    last.attribute.append(onnx.helper.make_attribute("axis", first[0] - len(shape)))
    last.attribute.append(onnx.helper.make_attribute("epsilon", epsilon))
    return True


def _normalised(view: View, node: onnx.NodeProto) -> tuple[str, list[int], float] | None:
    """x, axes and epsilon, if a node divides a centred x by its deviation."""
    orders = [(0, 1)] if node.op_type == "Div" else [(0, 1), (1, 0)]
    for centred_at, other_at in orders:
        centred = _centred(view, node.input[centred_at])
        deviation = _deviation(view, node.input[other_at], inverse=node.op_type == "Mul")
        if centred is None or deviation is None:
            continue
        variance, epsilon = deviation
        squared = view.maker(variance, "ReduceMean")
        if squared is None:
            continue
        inner = _squared(view, squared.input[0])
        again = None if inner is None else _centred(view, inner)
        axes = axes_of(view, squared)
        if again == centred and axes is not None and sorted(axes) == sorted(centred[1]) and _keeps(squared):
            return centred[0], list(centred[1]), epsilon
    return None


def _centred(view: View, name: str) -> tuple[str, tuple[int, ...]] | None:
    """X and the axes, if a tensor is x minus its mean."""
    node = view.maker(name, "Sub")
    mean = None if node is None else view.maker(node.input[1], "ReduceMean")
    if node is None or mean is None or mean.input[0] != node.input[0] or not _keeps(mean):
        return None
    axes = axes_of(view, mean)
    shape = view.shape(node.input[0])
    if not axes or shape is None:
        return None
    return node.input[0], tuple(sorted(axis % len(shape) - len(shape) for axis in axes))


def _keeps(node: onnx.NodeProto) -> bool:
    return next((a.i for a in node.attribute if a.name == "keepdims"), 1) == 1


def _deviation(view: View, name: str, inverse: bool) -> tuple[str, float] | None:
    """The variance and epsilon, if a tensor is (the inverse of) Sqrt(variance + epsilon)."""
    power = view.maker(name, "Pow")
    exponent = None if power is None else view.number(power.input[1])
    if power is not None and exponent == (-0.5 if inverse else 0.5):
        return _with_epsilon(view, power.input[0])
    if inverse:
        reciprocal = view.maker(name, "Reciprocal", "Div")
        if reciprocal is None or (reciprocal.op_type == "Div" and view.number(reciprocal.input[0]) != 1.0):
            return None
        name = reciprocal.input[-1]
    root = view.maker(name, "Sqrt")
    return None if root is None else _with_epsilon(view, root.input[0])


def _with_epsilon(view: View, name: str) -> tuple[str, float] | None:
    node = view.maker(name, "Add")
    if node is None:
        return None
    for variance, other in (tuple(node.input), tuple(reversed(node.input))):
        epsilon = view.number(other)
        if epsilon is not None and 0 < epsilon < 1:
            return variance, epsilon
    return None


def _squared(view: View, name: str) -> str | None:
    """c, if a tensor is c * c or Pow(c, 2)."""
    node = view.maker(name, "Pow", "Mul")
    if node is None:
        return None
    if node.op_type == "Pow":
        return str(node.input[0]) if view.number(node.input[1]) == 2.0 else None
    left, right = node.input
    return str(left) if left == right or _same(view, left, right) else None


def _same(view: View, left: str, right: str) -> bool:
    return _centred(view, left) is not None and _centred(view, left) == _centred(view, right)


def _affine(
    view: View, node: onnx.NodeProto, op_type: str, normal: tuple[int, ...]
) -> tuple[onnx.NodeProto, np.ndarray | None]:
    """The next node and its constant, if it multiplies (adds) one over the normalised axes; else the node itself."""
    reader = view.only_reader(node.output[0])
    if reader is None or reader.op_type != op_type:
        return node, None
    other = reader.input[1] if reader.input[0] == node.output[0] else reader.input[0]
    value = view.value(other)
    if value is None or value.dtype != np.float32 or value.size not in (1, math.prod(normal)):
        return node, None
    if value.size > 1 and value.shape[-len(normal) :] != normal:
        return node, None
    if value.ndim > len(view.shape(node.output[0]) or value.shape):
        return node, None
    return reader, np.broadcast_to(value.reshape(-1) if value.size == 1 else value.reshape(normal), normal)
