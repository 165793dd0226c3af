"""One ONNX node as its importer sees it, and the table that importers are entered in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

CONTRIB = "com.microsoft"
MAX_STEPS = 2**17  # of a sequence, a row of indices, a sum
Shape = tuple[int, ...]
Result = Tensor | tuple[Tensor | None, ...]


Function = Callable[..., Result]
"""What a node computes: its inputs in the order of the node, None where one is absent or was read on import."""


class NotImportableError(Exception):
    """This node cannot be expressed in torch with static shapes; the message says why."""


class TooManyStepsError(NotImportableError):
    """This node asks for more than a graph of an edge device does, of any engine."""


@dataclass(frozen=True)
class Node:
    """A node with all that is known of its inputs before it runs.

    Attributes:
        op: its type, for example ``MatMul``.
        domain: empty for the standard one.
        opset: version of that domain in the file.
        attributes: by name; tensors as arrays.
        shapes: of each input, None where it is absent.
        dtypes: of each input, None where it is absent.
        constants: inputs whose values are known.
        outputs: whether each output is wanted.
        wide: whether 8-bit integers that it makes may be int32: not every engine holds bytes between two nodes.
        taken: inputs that the importer has read; they do not reach the function.
        told: what the importer has found out beyond the attributes.
    """

    op: str
    domain: str
    opset: int
    attributes: Mapping[str, Any]
    shapes: tuple[Shape | None, ...]
    dtypes: tuple[torch.dtype | None, ...]
    constants: Mapping[int, np.ndarray]
    outputs: tuple[bool, ...]
    wide: bool = False
    taken: set[int] = field(default_factory=set)
    told: dict[str, Any] = field(default_factory=dict)

    def has(self, index: int) -> bool:
        """Whether an optional input is given."""
        return index < len(self.shapes) and self.shapes[index] is not None

    def shape(self, index: int = 0) -> Shape:
        """Shape of an input."""
        shape = self.shapes[index] if index < len(self.shapes) else None
        if shape is None:
            raise NotImportableError(f"input {index} is missing")
        return shape

    def rank(self, index: int = 0) -> int:
        """Number of axes of an input."""
        return len(self.shape(index))

    def dtype(self, index: int = 0) -> torch.dtype:
        """Type of an input."""
        dtype = self.dtypes[index] if index < len(self.dtypes) else None
        if dtype is None:
            raise NotImportableError(f"input {index} is missing")
        return dtype

    def axis(self, name: str = "axis", default: int = 0, rank: int | None = None) -> int:
        """An attribute that names an axis, counted from the front."""
        rank = self.rank() if rank is None else rank
        axis = self.integer(name, default)
        if not -rank <= axis <= rank:
            raise NotImportableError(f"{name} = {axis} is none of an input with {rank} axes")
        return axis + rank if axis < 0 else axis

    def integer(self, name: str, default: int = 0) -> int:
        """An integer attribute."""
        return int(self.attributes.get(name, default))

    def number(self, name: str, default: float = 0.0) -> float:
        """A float attribute."""
        return float(self.attributes.get(name, default))

    def text(self, name: str, default: str = "") -> str:
        """A string attribute."""
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    def refuse(self, name: str, *allowed: Any) -> None:
        """Refuse an attribute with a value that is not imported; the first one allowed is its default."""
        value = self.attributes.get(name, allowed[0])
        value = value.decode() if isinstance(value, bytes) else value
        if value not in allowed:
            raise NotImportableError(f"{name} = {value!r} is not imported")

    def static(self, index: int) -> np.ndarray:
        """The value of an input that shapes the graph, such as axes: it must be known on import."""
        if index not in self.constants:
            raise NotImportableError(f"input {index} must be constant")
        self.taken.add(index)
        return self.constants[index]

    def count(self, name: str, value: int) -> int:
        """A number of steps that Python makes one by one, which a graph of an edge device has few of."""
        if value > MAX_STEPS:
            raise TooManyStepsError(f"{name} = {value}; at most {MAX_STEPS} are read")
        return value

    def ints(self, name: str, index: int | None = None) -> list[int] | None:
        """Integers that older opsets give as an attribute and newer ones as input ``index``; None without them."""
        if name in self.attributes:
            value = self.attributes[name]
            return [int(v) for v in value] if isinstance(value, Sequence) else [int(value)]
        if index is not None and self.has(index):
            return [int(v) for v in self.static(index).reshape(-1)]
        return None

    def scalar(self, name: str, index: int, default: float) -> float:
        """One number that older opsets give as an attribute and newer ones as input ``index``."""
        if name in self.attributes:
            return self.number(name)
        return float(self.static(index).reshape(-1)[0]) if self.has(index) else default


Builder = Callable[[Node], "Function | torch.nn.Module"]
TABLE: dict[tuple[str, str], Builder] = {}
"""(domain, operator) -> what makes its torch function from a node. The one place where operators are listed."""


def op(*names: str, domain: str = "") -> Callable[[Builder], Builder]:
    """Enter a builder in the table."""

    def enter(builder: Builder) -> Builder:
        for name in names:
            assert (domain, name) not in TABLE, name
            TABLE[domain, name] = builder
        return builder

    return enter


def to_tensor(array: np.ndarray) -> Tensor:
    """A constant as torch holds it: 4-bit integers as 8-bit ones, 8-bit and bfloat16 floats as float32."""
    name = array.dtype.name
    if name in ("int4", "int2"):
        array = array.astype(np.int8)
    elif name in ("uint4", "uint2"):
        array = array.astype(np.uint8)
    elif name.startswith(("float8", "float4", "bfloat16")):
        array = array.astype(np.float32)
    elif array.dtype.kind in "OSU":
        raise NotImportableError("text tensors have no place in an edge model")
    array = np.ascontiguousarray(array).reshape(array.shape)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


TORCH_TYPES: dict[int, torch.dtype] = {  # onnx.TensorProto.DataType
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 4: torch.uint16,
    5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float16, 11: torch.float64, 12: torch.uint32, 13: torch.uint64,
    16: torch.bfloat16, 21: torch.uint8, 22: torch.int8,
}  # fmt: skip


def torch_type(element: int) -> torch.dtype:
    """The torch type for an ONNX element type."""
    if element not in TORCH_TYPES:
        raise NotImportableError(f"element type {element} has no counterpart in torch")
    return TORCH_TYPES[element]


def as_result(tensors: Sequence[Tensor | None]) -> Result:
    """Outputs of a node: a single one bare."""
    return tensors[0] if len(tensors) == 1 and tensors[0] is not None else tuple(tensors)
