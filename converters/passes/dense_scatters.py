"""ScatterElements with a reduction as a comparison of every place with every index: TensorRT has only the plain one.

A row of the comparison says which updates a place gets; the rest of them count as 0, 1, or the least or the largest
number, and a reduction over the row gives what is added, multiplied or compared. For TensorRT alone: other engines have
the reductions, which cost no memory.
"""

from __future__ import annotations

import math

import numpy as np
import onnx

from edgeattn.converters.passes.onnx_graph import View

REDUCTIONS = {
    "add": ("ReduceSum", "Add", 0.0),
    "mul": ("ReduceProd", "Mul", 1.0),
    "max": ("ReduceMax", "Max", -math.inf),
    "min": ("ReduceMin", "Min", math.inf),
}
AXES_ARE_INPUTS = 18  # the opset since which ReduceMax and the like take them so; ReduceSum always does here


def dense_scatters(model: onnx.ModelProto) -> int:
    """Rewrite each such node whose shapes are known; returns how many there were."""
    view = View(model)
    changed = 0
    for node in list(model.graph.node):
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        reduction = attributes.get("reduction", b"none").decode()
        if node.op_type != "ScatterElements" or reduction not in REDUCTIONS:
            continue
        shapes = [view.shape(name) for name in node.input]
        if any(shape is None for shape in shapes):
            continue
        data, indices, updates = (tuple(shape or ()) for shape in shapes)
        axis = attributes.get("axis", 0) % len(data)
        if indices != updates or any(a != b for i, (a, b) in enumerate(zip(data, indices, strict=True)) if i != axis):
            continue
        _rewrite(view, node, reduction, axis, data)
        changed += 1
    if changed:
        view.drop_unread()
    return changed


def _rewrite(view: View, node: onnx.NodeProto, reduction: str, axis: int, data: tuple[int, ...]) -> None:
    reduce, both, neutral = REDUCTIONS[reduction]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(view.types[node.output[0]].type.tensor_type.elem_type)
    if dtype.kind in "iu" and math.isinf(neutral):
        neutral = np.iinfo(np.int32).min if neutral < 0 else np.iinfo(np.int32).max
    last = [other for other in range(len(data)) if other != axis] + [axis]

    def write(op_type: str, *inputs: str, **attributes: object) -> str:
        name = view.before(node, op_type, list(inputs), "", f"{node.output[0]}_{op_type.lower()}")
        for key, value in attributes.items():
            view.makers[name].attribute.append(onnx.helper.make_attribute(key, value))
        return name

    def constant(value: object, kind: type = np.int64) -> str:
        return view.constant(np.asarray(value, kind), f"{node.output[0]}_constant")

    def turned(name: str) -> str:
        return name if axis == len(data) - 1 else write("Transpose", name, perm=last)

    indices = write("Unsqueeze", turned(node.input[1]), constant([-1]))
    updates = write("Unsqueeze", turned(node.input[2]), constant([-1]))
    kind = onnx.helper.tensor_dtype_to_np_dtype(_type_of(view, node.input[1]))
    hit = write("Equal", indices, view.constant(np.arange(data[axis], dtype=kind), f"{node.output[0]}_places"))
    chosen = write("Where", hit, updates, view.constant(np.array(neutral, dtype), f"{node.output[0]}_neutral"))
    if reduce == "ReduceSum" or view.opset >= AXES_ARE_INPUTS:
        reduced = write(reduce, chosen, constant([-2]), keepdims=0)
    else:
        reduced = write(reduce, chosen, axes=[-2], keepdims=0)
    result = write(both, turned(node.input[0]), reduced)
    if axis != len(data) - 1:
        result = write("Transpose", result, perm=[last.index(other) for other in range(len(data))])
    final = view.makers[result]
    final.output[0], node.output[0] = node.output[0], result  # nothing reads the old node any more
    final.name, node.name = node.name, final.name  # what a range scan names stays


def _type_of(view: View, name: str) -> int:
    return int(
        view.constants[name].data_type if name in view.constants else view.types[name].type.tensor_type.elem_type
    )
