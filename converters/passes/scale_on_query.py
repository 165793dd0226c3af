"""The scale of attention moves from the scores to Q: ``softmax((Q K^T) * s)`` becomes ``softmax((Q * s) K^T)``.

- TensorRT fuses attention as MatMul, pointwise mask, Softmax, MatMul; a scale between the products keeps some versions
  from it (TensorRT#4537), and where int8 is placed by hand NVIDIA's guide puts the scale before the first MatMul;
- Q has d columns and the scores have as many as there are keys: fewer multiplications from S = d on;
- float16 overflows at 65504. Unscaled scores are sqrt(d) times as large as scaled ones: with d = 64, products of
  activations beyond 32 are infinite before the scale comes, and within range after it.

Moves ``Mul`` and ``Div`` by one constant that stand between a MatMul of two computed tensors and a Softmax.
"""

from __future__ import annotations

import numpy as np
import onnx

from edgeattn.converters.passes.onnx_graph import View

BETWEEN = frozenset(("Add", "Where", "Reshape", "Transpose", "Max", "Clip", "Cast", "Mul", "Div", "Sub"))
DEPTH = 8  # nodes between scale and softmax


def scale_on_query(model: onnx.ModelProto) -> int:
    """Move each scale of scores to Q; returns how many there were."""
    view = View(model)
    moved = 0
    for node in list(model.graph.node):
        if node.op_type not in ("Mul", "Div") or node.output[0] in view.outputs:
            continue
        found = _product_and_scale(view, node)
        if found is None or not _reaches_softmax(view, node.output[0], DEPTH):
            continue
        product, scale = found
        factor = view.constant(np.array(scale, np.float32), f"{product.output[0]}_scale")
        scaled = view.before(product, "Mul", [product.input[0], factor], product.input[0], f"{product.input[0]}_scaled")
        product.input[0] = scaled
        # The product takes the name of what it now gives; the scale has no reader left.
        unscaled, product.output[0] = product.output[0], node.output[0]
        node.input[list(node.input).index(unscaled)] = node.output[0]
        node.output[0] = unscaled
        view.makers[product.output[0]], view.makers[unscaled] = product, node
        moved += 1
    if moved:
        view.drop_unread()
    return moved


def _product_and_scale(view: View, node: onnx.NodeProto) -> tuple[onnx.NodeProto, float] | None:
    for position in (0, 1) if node.op_type == "Mul" else (0,):
        product = view.maker(node.input[position], "MatMul")
        scale = view.number(node.input[1 - position])
        factor = view.constants.get(node.input[1 - position])
        if product is None or scale is None or factor is None or not np.isfinite(scale) or scale == 0.0:
            continue
        if factor.data_type != onnx.TensorProto.FLOAT or np.prod(factor.dims, dtype=np.int64) != 1:
            continue
        if any(name in view.constants for name in product.input) or view.only_reader(product.output[0]) is None:
            continue
        return product, scale if node.op_type == "Mul" else 1.0 / scale
    return None


def _reaches_softmax(view: View, name: str, depth: int) -> bool:
    return any(
        reader.op_type == "Softmax"
        or (depth > 0 and reader.op_type in BETWEEN and _reaches_softmax(view, reader.output[0], depth - 1))
        for reader in view.readers.get(name, [])
    )
