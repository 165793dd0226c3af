"""A product with a constant vector whose result is scaled becomes one with a matrix of one column, reshaped.

As in additive attention, ``tanh(q + k) @ v`` (Bahdanau et al., 2015), with a temperature or a soft cap behind it.
OpenVINO moves a scale behind a product into its constant (MatMulMultiplyFusion), whatever the constant's rank: of a
vector it makes a matrix of one row, the shapes do not fit, and the model does not load.
"""

from __future__ import annotations

import numpy as np
import onnx

from edgeattn.converters.passes.onnx_graph import View

SCALES = ("Mul", "Div")


def whole_matrices(model: onnx.ModelProto) -> int:
    """Rewrite each such product of known shape; returns how many there were."""
    view = View(model)
    changed = 0
    for node in list(model.graph.node):
        vector = view.value(node.input[1]) if node.op_type == "MatMul" else None
        shape = view.shape(node.output[0])
        if vector is None or vector.ndim != 1 or shape is None or not _is_scaled(view, node.output[0]):
            continue
        column = view.constant(vector[:, None], f"{node.input[1]}_column")
        product = view.before(node, "MatMul", [node.input[0], column], "", f"{node.output[0]}_column")
        view.types[product] = model.graph.value_info.add()
        dtype = onnx.helper.np_dtype_to_tensor_dtype(vector.dtype)
        view.types[product].CopyFrom(onnx.helper.make_tensor_value_info(product, dtype, [*shape, 1]))
        node.op_type = "Reshape"
        node.input[:] = [product, view.constant(np.array(shape, np.int64), f"{node.output[0]}_shape")]
        changed += 1
    if changed:
        view.drop_unread()
    return changed


def _is_scaled(view: View, name: str) -> bool:
    return any(reader.op_type in SCALES for reader in view.readers.get(name, ()))
