"""What is known of the tensors of an ONNX graph, and its nodes run one by one in torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from edgeattn.errors import ModelError
from edgeattn.sources.onnx.ops import TABLE, Function, Node, NotImportableError, to_tensor
from edgeattn.sources.onnx.ops.node import Shape, torch_type

if TYPE_CHECKING:
    import onnx

STANDARD = ("", "ai.onnx")
LARGEST = 2**31 - 1  # of an attribute
SHOWN = 200  # characters of a name in a message
TYPES_TO_ONNX = {
    torch.float32: 1, torch.uint8: 2, torch.int8: 3, torch.uint16: 4, torch.int16: 5, torch.int32: 6, torch.int64: 7,
    torch.bool: 9, torch.float16: 10, torch.float64: 11, torch.uint32: 12, torch.uint64: 13, torch.bfloat16: 16,
}  # fmt: skip


@dataclass(frozen=True)
class Value:
    """A tensor: static shape, torch type, and its values where they are known."""

    shape: Shape
    dtype: torch.dtype
    constant: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def constant_value(array: np.ndarray) -> Value:
    """A tensor whose values are known."""
    sample = to_tensor(array.reshape(-1)[:1])
    return Value(array.shape, sample.dtype, array)


def initializers(graph: onnx.GraphProto) -> dict[str, Value]:
    """The constants of a graph; arrays look into the file's bytes without a copy."""
    import onnx

    return {tensor.name: constant_value(onnx.numpy_helper.to_array(tensor)) for tensor in graph.initializer}


def declared(value: onnx.ValueInfoProto) -> Value:
    """A tensor as its value_info says, every size known."""
    kind = value.type.tensor_type
    return Value(tuple(dim.dim_value for dim in kind.shape.dim), torch_type(kind.elem_type))


def opsets(model: onnx.ModelProto) -> dict[str, int]:
    """Domain -> version; the standard domain under the empty name."""
    return {"" if entry.domain in STANDARD else entry.domain: entry.version for entry in model.opset_import}


def describe(node: onnx.NodeProto) -> str:
    """A node for a message; one without a name is known by what it makes."""
    domain = "" if node.domain in STANDARD else f"{node.domain}."
    name = node.name or next((o for o in node.output if o), "?")
    kind = f"{domain}{node.op_type}"
    return f"node {name[:SHOWN]!r} ({kind[:SHOWN] if kind.isprintable() else ascii(kind)[:SHOWN]})"


def make_node(
    proto: onnx.NodeProto,
    versions: Mapping[str, int],
    values: Mapping[str, Value],
    limit: int | None = None,
    wide: bool = False,
) -> Node:
    """A node with what is known of its inputs.

    Args:
        wide: whether it may make int32 of 8-bit integers.
        limit: constants of more elements than this, or floats of more than 16, are treated as unknown; None knows all.
    """
    import onnx

    attributes: dict[str, Any] = {}
    for attribute in proto.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        numbers = value if isinstance(value, list) else [value]
        if proto.op_type != "Constant" and any(isinstance(n, int) and abs(n) > LARGEST for n in numbers):
            raise ModelError(
                f"{describe(proto)}: {attribute.name[:SHOWN]} = {str(value)[:40]} is no size of an edge model"
            )
        attributes[attribute.name] = onnx.numpy_helper.to_array(value) if attribute.HasField("t") else value
    domain = "" if proto.domain in STANDARD else proto.domain
    given = [values[name] if name else None for name in proto.input]
    known = {i: v.constant for i, v in enumerate(given) if v is not None and v.constant is not None}
    return Node(
        op=proto.op_type,
        domain=domain,
        opset=versions.get(domain, 1),
        attributes=attributes,
        shapes=tuple(None if v is None else v.shape for v in given),
        dtypes=tuple(None if v is None else v.dtype for v in given),
        constants={i: array for i, array in known.items() if limit is None or _shapes_graph(array, limit)},
        outputs=tuple(bool(name) for name in proto.output),
        wide=wide,
    )


def _shapes_graph(array: np.ndarray, limit: int) -> bool:
    """Whether a constant may be a shape, axes, pads, a bound: weights would only make the walk slow."""
    return array.size <= (limit if array.dtype.kind in "iub" else 16)


def build(node: Node) -> Function | torch.nn.Module:
    """The torch function of a node.

    Raises:
        NotImportableError: if its operator is not in the table, or not with these attributes and inputs.
    """
    builder = TABLE.get((node.domain, node.op))
    if builder is None:
        raise NotImportableError("this operator is not imported")
    try:
        return builder(node)
    except (LookupError, ValueError, RuntimeError, TypeError, ArithmeticError, MemoryError) as error:
        raise NotImportableError(f"{type(error).__name__}: {error}") from error


def outputs_of(result: Any, names: list[str]) -> Iterator[tuple[str, Tensor]]:
    """The wanted outputs by name."""
    given = result if isinstance(result, (tuple, list)) else (result,)
    for name, tensor in zip(names, given, strict=False):
        if name:
            yield name, tensor


def constant_inputs(node: Node) -> list[Tensor | None] | None:
    """Tensors to run a node on if all that its function reads is known, else None."""
    inputs: list[Tensor | None] = []
    for index, shape in enumerate(node.shapes):
        if shape is None or index in node.taken:
            inputs.append(None)
        elif index in node.constants:
            inputs.append(to_tensor(node.constants[index]))
        else:
            return None
    return inputs


def without_constant(value: Value) -> Value:
    """Only shape and type."""
    return replace(value, constant=None)
