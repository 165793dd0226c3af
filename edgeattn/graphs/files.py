"""The files of an engine (ONNX, OpenVINO IR, TFLite) read as one kind of graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeattn.engines import OPENVINO, Files
from edgeattn.errors import BundleError, UnsupportedError, load_extra
from edgeattn.runtimes.openvino import SHARED_WEIGHTS

BITS = {
    "float64": 64, "int64": 64, "uint64": 64, "float32": 32, "int32": 32, "uint32": 32, "float16": 16, "bfloat16": 16,
    "int16": 16, "uint16": 16, "int8": 8, "uint8": 8, "bool": 8, "float8": 8, "int4": 4, "uint4": 4,
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """A tensor of a graph.

    Attributes:
        dtype: that it is stored in; a dequantized tensor still lies there as integers.
        constant: whether it is known before a call.
        packed: whether it is stored narrower than it is computed with: dequantized weights or activations.
    """

    shape: tuple[int, ...]
    dtype: str
    constant: bool = False
    packed: bool = False

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return math.ceil(self.size * BITS.get(self.dtype, 32) / 8)


@dataclass(frozen=True)
class Node:
    """An operation of a file, whatever its format; ``equation`` is that of an einsum."""

    name: str
    type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    transposed: bool = False  # the first input of a product
    equation: str = ""


@dataclass(frozen=True)
class Graph:
    """A graph of a file.

    Attributes:
        nodes: in an order in which they can run.
        tensors: as the file declares them; what a node gives is constant if all that it reads is.
        inputs, outputs: names.
    """

    nodes: tuple[Node, ...]
    tensors: Mapping[str, Tensor]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def read_onnx(path: Path, graph: str) -> Graph:
    """A graph of an ONNX file; raises :class:`~edgeattn.errors.BundleError` for what is none."""
    onnx = load_extra("onnx", "convert")
    try:
        model = onnx.load(str(path), load_external_data=False)
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:
        raise BundleError(
            f"{path}: graph {graph!r} cannot be read as ONNX ({str(error).splitlines()[0]:.200})"
        ) from error
    types = onnx.TensorProto.DataType
    tensors = {
        value.name: Tensor(
            tuple(int(dim.dim_value) for dim in value.type.tensor_type.shape.dim),
            _onnx_dtype(types.Name(value.type.tensor_type.elem_type)),
        )
        for value in (*model.graph.input, *model.graph.value_info, *model.graph.output)
    }
    weights = {
        tensor.name: Tensor(tuple(tensor.dims), _onnx_dtype(types.Name(tensor.data_type)), True)
        for tensor in model.graph.initializer
    }
    nodes = []
    for number, node in enumerate(model.graph.node):
        options = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type == "Constant" and "value" in options:
            value = options["value"].t
            weights[node.output[0]] = Tensor(tuple(value.dims), _onnx_dtype(types.Name(value.data_type)), True)
            continue
        if node.op_type == "Constant":
            weights[node.output[0]] = Tensor((1,), "float32", True)
            continue
        nodes.append(
            Node(
                node.name or f"{node.op_type}_{number}",
                node.op_type,
                tuple(name for name in node.input if name),
                tuple(name for name in node.output if name),
                "transA" in options and options["transA"].i == 1,
                options["equation"].s.decode() if "equation" in options else "",
            )
        )
    inputs = tuple(value.name for value in model.graph.input if value.name not in weights)
    return Graph(tuple(nodes), tensors | weights, inputs, tuple(value.name for value in model.graph.output))


def _onnx_dtype(name: str) -> str:
    known = {"FLOAT": "float32", "DOUBLE": "float64"}
    return known.get(name, name.lower())


def read_ir(path: Path, graph: str) -> Graph:
    """A graph of an OpenVINO IR; raises :class:`~edgeattn.errors.BundleError` for what is none."""
    openvino = OPENVINO.load()
    shared = path.with_name(SHARED_WEIGHTS)
    files = [str(path)] if path.with_suffix(".bin").is_file() or not shared.is_file() else [str(path), str(shared)]
    try:
        model = openvino.Core().read_model(*files)
        ordered = list(model.get_ordered_ops())
    except RuntimeError as error:
        raise BundleError(
            f"{path}: graph {graph!r} cannot be read as IR ({str(error).splitlines()[-1]:.200})"
        ) from error
    tensors: dict[str, Tensor] = {}
    nodes = []
    inputs: list[str] = []
    outputs: list[str] = []
    for op in ordered:
        kind, name = op.get_type_name(), op.get_friendly_name()
        given = tuple(f"{name}:{number}" for number in range(op.get_output_size()))
        read = tuple(
            f"{value.get_source_output().get_node().get_friendly_name()}:{value.get_source_output().get_index()}"
            for value in op.inputs()
        )
        if kind == "Result":
            outputs += read
            continue
        for key, port in zip(given, op.outputs(), strict=True):
            if port.get_partial_shape().is_dynamic:
                raise UnsupportedError(f"{path}: {name!r} ({kind}) has no fixed size, so its work cannot be counted")
            dtype = _ir_dtype(port.get_element_type().get_type_name())
            tensors[key] = Tensor(tuple(port.get_shape()), dtype, kind == "Constant")
        if kind == "Parameter":
            inputs += given
        elif kind != "Constant":
            transposed = kind == "MatMul" and bool(op.get_attributes().get("transpose_a"))
            nodes.append(Node(name, kind, read, given, transposed))
    return Graph(tuple(nodes), tensors, tuple(inputs), tuple(outputs))


def _ir_dtype(name: str) -> str:
    from edgeattn.runtimes.openvino import DTYPES

    return DTYPES.get(name, name)


def read_tflite(path: Path, graph: str) -> Graph:
    """A signature of a TFLite file; raises :class:`~edgeattn.errors.BundleError` for what is none."""
    schema: Any = load_extra("ai_edge_litert.schema_py_generated", "tflite")
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    types = {code: name.lower() for name, code in vars(schema.TensorType).items() if isinstance(code, int)}
    try:
        model = schema.Model.GetRootAs(path.read_bytes(), 0)
        chosen = model.Subgraphs(_subgraph(model, graph))
        # A constant has data of its own; in a file beyond 2 GiB it stands behind the flatbuffer, at an offset.
        tensors = {}
        for index in range(chosen.TensorsLength()):
            tensor = chosen.Tensors(index)
            buffer = model.Buffers(tensor.Buffer())
            constant = buffer is not None and (buffer.DataLength() > 0 or buffer.Offset() > 1)
            shape = tuple(int(tensor.Shape(axis)) for axis in range(tensor.ShapeLength()))
            tensors[str(index)] = Tensor(shape, types.get(tensor.Type(), "float32"), constant)
        nodes = []
        for number in range(chosen.OperatorsLength()):
            op = chosen.Operators(number)
            code = model.OperatorCodes(op.OpcodeIndex())
            kind = names.get(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()), "CUSTOM")
            read = tuple(str(op.Inputs(i)) for i in range(op.InputsLength()) if op.Inputs(i) >= 0)
            given = tuple(str(op.Outputs(i)) for i in range(op.OutputsLength()))
            transposed = kind == "BATCH_MATMUL" and _adjoint(schema, op)
            nodes.append(Node(f"{kind} {number}", kind, read, given, transposed))
        inputs = tuple(str(chosen.Inputs(i)) for i in range(chosen.InputsLength()))
        outputs = tuple(str(chosen.Outputs(i)) for i in range(chosen.OutputsLength()))
    except Exception as error:  # struct.error, and what the flatbuffers package makes of damaged offsets
        raise BundleError(f"{path}: graph {graph!r} cannot be read as TFLite ({error})") from error
    return Graph(tuple(nodes), tensors, inputs, outputs)


def _subgraph(model: Any, graph: str) -> int:
    signatures = [model.SignatureDefs(i) for i in range(model.SignatureDefsLength())]
    by_name = {signature.SignatureKey().decode(): int(signature.SubgraphIndex()) for signature in signatures}
    return by_name.get(graph, 0)


def _adjoint(schema: Any, op: Any) -> bool:
    options = op.BuiltinOptions()
    if options is None:
        return False
    chosen = schema.BatchMatMulOptions()
    chosen.Init(options.Bytes, options.Pos)
    return bool(chosen.AdjX())


READERS: Mapping[Files, Callable[[Path, str], Graph]] = {"onnx": read_onnx, "ir": read_ir, "tflite": read_tflite}
"""By what an engine loads: ``(file, name of the graph)`` -> graph."""
