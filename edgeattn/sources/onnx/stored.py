"""Stored tensors: as many bytes as their shapes say, and numbers that are numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgeattn.errors import ModelError, UnsupportedError
from edgeattn.graphs.layers import module_path
from edgeattn.sources.onnx.values import describe
from edgeattn.sources.onnx.walk import graphs

if TYPE_CHECKING:
    import onnx

MAX_RANK = 16
NARROW = ("FLOAT8", "FLOAT4", "INT4", "UINT4", "INT2", "UINT2")  # beginnings of element types


def stored_bytes(tensor: onnx.TensorProto) -> int:
    """What a tensor of this shape and element type takes; types of four and two bits are packed.

    Raises:
        ModelError: for a type that holds no numbers, or a shape that is none.
    """
    import onnx

    kinds = onnx.TensorProto.DataType
    if tensor.data_type not in kinds.values() or tensor.data_type in (kinds.Value("UNDEFINED"), kinds.Value("STRING")):
        raise ModelError(f"tensor {tensor.name!r}: element type {tensor.data_type} is none that holds numbers")
    if len(tensor.dims) > MAX_RANK or any(n < 0 for n in tensor.dims):
        raise ModelError(f"tensor {tensor.name!r}: shape {list(tensor.dims)[:20]} is not one")
    count: int = math.prod(tensor.dims)
    name = kinds.Name(tensor.data_type)
    if name.endswith("INT4") or name == "FLOAT4E2M1":
        return (count + 1) // 2
    if name.endswith("INT2"):
        return (count + 3) // 4
    return count * int(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize)


def check_tensor(tensor: onnx.TensorProto) -> None:
    """A shape of terabytes over a few bytes must not reach a reader that allocates before it looks."""
    wanted = stored_bytes(tensor)
    if tensor.HasField("segment"):
        raise ModelError(f"tensor {tensor.name!r} is stored in segments, which nothing writes")
    if tensor.HasField("raw_data"):
        if len(tensor.raw_data) != wanted:
            raise ModelError(
                f"tensor {tensor.name!r}: {len(tensor.raw_data)} bytes, its shape {list(tensor.dims)} needs {wanted}"
            )
        return
    given = max(
        len(tensor.float_data), len(tensor.int32_data), len(tensor.int64_data), len(tensor.double_data),
        len(tensor.uint64_data),
    )  # fmt: skip
    if given > 2 * math.prod(tensor.dims) or given < math.prod(tensor.dims) // 8:
        raise ModelError(f"tensor {tensor.name!r}: {given} values, its shape is {list(tensor.dims)}")


def check_types(graph: onnx.GraphProto) -> None:
    """Floats and integers below 8 bits are weights that are widened once, and nothing that is made while a model runs.

    Raises:
        UnsupportedError: naming the node that makes them.
    """
    import onnx

    kinds = onnx.TensorProto.DataType
    narrow = {code for name, code in kinds.items() if name.startswith(NARROW)}
    for part in graphs(graph):
        stored = {tensor.name: tensor.data_type for tensor in part.initializer}
        for node in part.node:
            made = [a.i for a in node.attribute if a.name in ("to", "output_dtype")]
            if node.op_type == "QuantizeLinear" and len(node.input) > 2:
                made.append(stored.get(node.input[2], 0))
            found = next((kind for kind in made if kind in narrow), None)
            if found is not None and node.op_type in ("Cast", "QuantizeLinear"):
                raise UnsupportedError(
                    f"{describe(node)} makes {kinds.Name(found).lower()} while it runs, which no target here computes "
                    "with; give the model before that quantization"
                )


def check_numbers(graph: onnx.GraphProto) -> None:
    """NaN is no weight. Infinity may be: a mask that hides; that is judged where it is used.

    One NaN that nothing but a Where puts somewhere is what its author wants there.

    Raises:
        ModelError: naming the tensor, and the node that holds or reads it.
    """
    for tensor in graph.initializer:
        broken = _nan(tensor)
        readers = [pair for pair in enumerate(graph.node) if tensor.name in pair[1].input] if broken else []
        if broken and not _is_fill(tensor, [node for _, node in readers]):
            where = f", read by {_placed(*readers[0])}," if readers else ""
            raise _holds_nan(f"tensor {tensor.name!r}{where}", tensor, broken)
    for index, node in enumerate(graph.node):
        for attribute in node.attribute:
            for tensor in ([attribute.t] if attribute.HasField("t") else []) + list(attribute.tensors):
                broken = _nan(tensor)
                if broken and not _is_fill(tensor, [n for n in graph.node if set(n.input) & set(node.output)]):
                    raise _holds_nan(f"{attribute.name} of {_placed(index, node)}", tensor, broken)


def _nan(tensor: onnx.TensorProto) -> int:
    """How many of its numbers are none."""
    import onnx

    kinds = onnx.TensorProto
    if tensor.data_type not in (kinds.FLOAT, kinds.FLOAT16, kinds.DOUBLE, kinds.BFLOAT16):
        return 0
    return int(np.isnan(onnx.numpy_helper.to_array(tensor)).sum())


def _is_fill(tensor: onnx.TensorProto, readers: Sequence[onnx.NodeProto]) -> bool:
    return math.prod(tensor.dims) == 1 and bool(readers) and all(node.op_type == "Where" for node in readers)


def _holds_nan(what: str, tensor: onnx.TensorProto, broken: int) -> ModelError:
    return ModelError(f"{what} holds NaN at {broken} of {math.prod(tensor.dims)} places; retrain or repair it")


def _placed(index: int, node: onnx.NodeProto) -> str:
    """A node with its place in the file, its output and its module: many files name no node."""
    made = next((name for name in node.output if name), "")
    output = f", output {made!r}" if node.name and made else ""
    try:
        path = module_path(node)
    except (ValueError, LookupError, TypeError):  # metadata of another writer
        path = ""
    return f"{describe(node)} at position {index}{output}" + (f", of module {path}" if path else "")
