"""A TFLite graph as an ONNX model in float32: dequantized weights and activations, TFLite's order of axes outside."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeattn.errors import UnsupportedError
from edgeattn.sources.tflite import arithmetic, images, shaping
from edgeattn.sources.tflite.builder import TABLE, Builder
from edgeattn.sources.tflite.read import Graph

if TYPE_CHECKING:
    import onnx

OPSET = 17
WRITERS = (arithmetic, images, shaping)  # enter their operators in the table


def to_onnx(graph: Graph) -> onnx.ModelProto:
    """Write a graph.

    Raises:
        UnsupportedError: naming the first operator that is not read, or why one is not.
    """
    import onnx

    unknown = sorted({operator.kind for operator in graph.operators} - set(TABLE))
    if unknown:
        raise UnsupportedError(
            f"operators {', '.join(unknown[:8])} are not read; give the model that the file was made from"
        )
    builder = Builder(graph)
    inputs = [_port(builder, name, index) for name, index in graph.inputs.items()]
    for number, operator in enumerate(graph.operators):
        builder.operator, builder.label = operator, f"{operator.kind.lower()}_{number}"
        try:
            TABLE[operator.kind](builder)
        except (LookupError, ValueError, TypeError, ArithmeticError) as error:  # options and constants of any kind
            raise builder.refuse(f"its options do not fit: {type(error).__name__}: {str(error)[:100]}") from error
    outputs = []
    for name, index in graph.outputs.items():
        source = builder.tensor(index)
        if name in graph.inputs:
            raise UnsupportedError(f"{name!r} names an input and an output of the file")
        builder.nodes.append(onnx.helper.make_node("Identity", [source], [name], name=f"output/{name}"))
        outputs.append(_port(builder, name, index))
    stored = [onnx.numpy_helper.from_array(array, name) for name, array in builder.constants.items()]
    made = onnx.helper.make_graph(builder.nodes, "main", inputs, outputs, stored)
    return onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=8)


def _port(builder: Builder, name: str, index: int) -> onnx.ValueInfoProto:
    import onnx

    kind = onnx.helper.np_dtype_to_tensor_dtype(builder.kind_of(index))
    return onnx.helper.make_tensor_value_info(name, kind, builder.graph.tensors[index].shape)
