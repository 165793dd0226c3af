"""A .tflite file as plain facts, whatever the file holds: tensors, operators, names; every size checked.

The accessors of the schema that ai-edge-litert ships read bytes in Python, so that a damaged offset is an exception.
Nothing is unpacked before its count is known, and nothing reaches the interpreter before all of it was read here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeattn.errors import EdgeattnError, ModelError, UnsupportedError, load_extra
from edgeattn.guards.confined import regular_file

MAX_BYTES = 2**31 - 1  # offsets of a flatbuffer
MAX_OPERATORS = 100_000
MAX_TENSORS = 200_000
MAX_PORTS = 1_000  # inputs, or outputs
MAX_RANK = 16
MAX_NAME = 16_384  # of a tensor made of several, which converters name after all of them
SHOWN = 80  # characters of a name that are kept
MAX_VALUES = 2**29  # of one tensor
NUMPY: Mapping[str, Any] = {
    "FLOAT32": np.float32, "FLOAT16": np.float16, "FLOAT64": np.float64, "INT8": np.int8, "UINT8": np.uint8,
    "INT16": np.int16, "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_, "INT4": np.int8,
}  # fmt: skip
"""Element types that are read -> as numpy holds them; INT4 is stored two in a byte."""


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One tensor of a subgraph.

    Attributes:
        kind: its element type, as the schema calls it.
        data: as stored; None for what an operator makes.
        scales: of its quantization, one or one per step of ``axis``; empty for none.
        zeros: zero-points, as many; where a scale is one block's, both have the tensor's shape.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    data: np.ndarray | None
    scales: np.ndarray
    zeros: np.ndarray
    axis: int

    @property
    def quantized(self) -> bool:
        """Whether its integers stand for real numbers."""
        return self.scales.size > 0 and self.kind in ("INT8", "UINT8", "INT16", "INT32", "INT64", "INT4")

    def real(self, stored: np.ndarray) -> np.ndarray:
        """What stored numbers stand for: (q - zero) * scale, or themselves."""
        if not self.quantized:
            return stored.astype(np.float32) if self.kind in ("FLOAT16", "FLOAT64") else stored
        wide = [1] * stored.ndim
        if self.scales.size > 1:
            wide[self.axis] = self.scales.size
        if self.scales.ndim > 1:  # in blocks
            wide = list(self.scales.shape)
        scales, zeros = self.scales.reshape(wide or ()), self.zeros.reshape(wide or ())
        made: np.ndarray = ((stored.astype(np.float64) - zeros) * scales).astype(np.float32)
        return made

    def stored(self, real: np.ndarray) -> np.ndarray:
        """What stands for real numbers, rounded to even and cut off at the ends as LiteRT does."""
        if not self.quantized:
            return real.astype(NUMPY[self.kind])
        ends = np.iinfo(NUMPY[self.kind])
        steps = np.round(real.astype(np.float64) / self.scales[0]) + self.zeros[0]
        made: np.ndarray = np.clip(steps, ends.min, ends.max).astype(NUMPY[self.kind])
        return made


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One operator of a subgraph.

    Attributes:
        kind: as the schema calls it; of a custom one its own name.
        inputs: indices of tensors, -1 where one is absent.
        options: the accessor of its options; None without.
    """

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Any


@dataclass(frozen=True, kw_only=True)
class Graph:
    """What a file computes.

    Attributes:
        inputs: name -> index of the tensor.
        outputs: name -> index of the tensor.
        open: names of inputs with a size that may vary.
    """

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    open: tuple[str, ...]


def read_tflite(path: Path) -> Graph:
    """Read a file.

    Raises:
        ModelError: for a file that is no TFLite, cut off, or made to harm; one line says what and where.
        UnsupportedError: for what has no place in an edge model: several signatures, states inside, sparse weights.
    """
    schema: Any = load_extra("ai_edge_litert.schema_py_generated", "tflite")
    regular_file(path, ModelError)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ModelError(f"{path}: {size / 2**30:.1f} GiB; at most 2 GiB are read")
    data = path.read_bytes()
    if len(data) < 8 or data[4:8] != b"TFL3":
        raise ModelError(f"{path}: not a TFLite model: it lacks the mark TFL3")
    try:
        return _Reader(schema, schema.Model.GetRootAs(data, 0), data).graph()
    except EdgeattnError as error:
        raise type(error)(f"{path}: {error}") from error
    except Exception as error:  # struct.error, and what the flatbuffers package makes of damaged offsets
        raise ModelError(f"{path}: damaged or cut off ({type(error).__name__}: {str(error)[:100]})") from error


class _Reader:
    def __init__(self, schema: Any, model: Any, file: bytes) -> None:
        self.model = model
        self.schema = schema
        self.file = file
        self.kinds = _names(schema.BuiltinOperator)
        self.types = _names(schema.TensorType)
        self.options = _names(schema.BuiltinOptions)
        self.details = _names(schema.QuantizationDetails)

    def graph(self) -> Graph:
        signatures = self.model.SignatureDefsLength()
        if signatures > 1:
            raise UnsupportedError(f"it has {signatures} signatures, one is read: convert each graph to a file")
        if not self.model.SubgraphsLength():
            raise ModelError("it has no graph")
        signature = self.model.SignatureDefs(0) if signatures else None
        index = 0 if signature is None else _within(signature.SubgraphIndex(), self.model.SubgraphsLength(), "subgraph")
        subgraph = self.model.Subgraphs(index)
        count = _bounded(subgraph.TensorsLength(), MAX_TENSORS, "tensors")
        tensors = tuple(self.tensor(subgraph, i, count) for i in range(count))
        operators = tuple(
            self.operator(subgraph.Operators(i), count)
            for i in range(_bounded(subgraph.OperatorsLength(), MAX_OPERATORS, "operators"))
        )
        inputs, outputs = (self.ports(subgraph, signature, kind, tensors) for kind in ("Inputs", "Outputs"))
        if not outputs or not operators:
            raise ModelError("it has no operators, or no outputs")
        varying = tuple(name for name, i in inputs.items() if self.varies(subgraph.Tensors(i)))
        return Graph(tensors=tensors, operators=operators, inputs=inputs, outputs=outputs, open=varying)

    def tensor(self, subgraph: Any, index: int, count: int) -> Tensor:
        tensor = subgraph.Tensors(index)
        name = _text(tensor.Name())[-SHOWN:]
        kind = self.types.get(tensor.Type(), str(tensor.Type()))
        rank = _bounded(tensor.ShapeLength(), MAX_RANK, "axes")
        shape = tuple(int(tensor.Shape(i)) for i in range(rank))
        if any(n < 0 for n in shape):
            raise ModelError(f"tensor {name!r}: shape {list(shape)} is not one")
        if math.prod(shape) > MAX_VALUES:
            raise ModelError(f"tensor {name!r}: shape {list(shape)} has more values than an edge model")
        if tensor.IsVariable():
            raise UnsupportedError(
                f"tensor {name!r} is a state inside the file; a model's states are inputs and outputs"
            )
        if tensor.Sparsity() is not None:
            raise UnsupportedError(f"tensor {name!r} is sparse: store the weights dense")
        data = self.data(tensor.Buffer(), name, kind, shape)
        scales, zeros, axis = _quantization(tensor.Quantization(), name, shape)
        blocks = self.blocks(tensor.Quantization())
        if blocks is not None:
            scales = self.block_scales(subgraph.Tensors(_within(blocks.Scales(), count, "tensor")), name, shape)
            zeros, axis = np.zeros_like(scales), -1
            if blocks.ZeroPoints() > 0:
                raise UnsupportedError(f"tensor {name!r} has a zero-point for each block; symmetric ones are read")
        return Tensor(name=name, kind=kind, shape=shape, data=data, scales=scales, zeros=zeros, axis=axis)

    def blocks(self, given: Any) -> Any:
        """How a tensor is quantized in blocks of its last axis; None for one that is not."""
        if given is None or self.details.get(given.DetailsType()) in (None, "NONE"):
            return None
        if self.details[given.DetailsType()] != "BlockwiseQuantization":
            raise UnsupportedError(f"{self.details[given.DetailsType()]} is not read")
        found, details = self.schema.BlockwiseQuantization(), given.Details()
        found.Init(details.Bytes, details.Pos)
        return found

    def block_scales(self, tensor: Any, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A scale for each value of a tensor that has one for each block of its last axis."""
        rank = _bounded(tensor.ShapeLength(), MAX_RANK, "axes")
        sizes = tuple(int(tensor.Shape(i)) for i in range(rank))
        kind = self.types.get(tensor.Type(), "")
        fits = len(sizes) == len(shape) and len(shape) > 0 and sizes[:-1] == shape[:-1] and sizes[-1] > 0
        if not fits or shape[-1] % sizes[-1] or kind not in ("FLOAT16", "FLOAT32"):
            raise ModelError(f"tensor {name!r}: scales {list(sizes)} in blocks of its shape {list(shape)}")
        scales = self.data(tensor.Buffer(), name, kind, sizes)
        if scales is None:
            raise ModelError(f"tensor {name!r}: the scales of its blocks are not stored")
        return np.repeat(scales.astype(np.float64), shape[-1] // sizes[-1], axis=-1)

    def data(self, index: int, name: str, kind: str, shape: tuple[int, ...]) -> np.ndarray | None:
        buffer = self.model.Buffers(_within(index, self.model.BuffersLength(), "buffer"))
        behind = buffer.Offset() > 1  # the flatbuffer, at an offset of the file
        given = int(buffer.Size() if behind else buffer.DataLength())
        if not given:
            return None
        if behind and buffer.Offset() + given > len(self.file):
            raise ModelError(f"tensor {name!r}: bytes {buffer.Offset()} and {given} more of a file of {len(self.file)}")
        if kind not in NUMPY:
            raise UnsupportedError(f"tensor {name!r} is {kind.lower()}; read are {', '.join(NUMPY).lower()}")
        count = math.prod(shape)
        wanted = (count + 1) // 2 if kind == "INT4" else count * np.dtype(NUMPY[kind]).itemsize
        if given != wanted:
            raise ModelError(f"tensor {name!r}: {given} bytes, its shape {list(shape)} needs {wanted}")
        raw = np.frombuffer(self.file, np.uint8, given, buffer.Offset()) if behind else buffer.DataAsNumpy()
        if kind == "INT4":
            halves = np.stack([raw << 4, raw & 0xF0], axis=-1).reshape(-1)[:count]
            return (halves.view(np.int8) >> 4).reshape(shape)
        if kind == "BOOL":
            raw = raw != 0
        made: np.ndarray = raw.view(NUMPY[kind]).reshape(shape)
        return made

    def operator(self, operator: Any, tensors: int) -> Operator:
        code = self.model.OperatorCodes(
            _within(operator.OpcodeIndex(), self.model.OperatorCodesLength(), "operator code")
        )
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        kind = self.kinds.get(number, f"operator {number}")
        if kind == "CUSTOM":
            kind = _text(code.CustomCode()) or kind
        ports = []
        for key in ("Inputs", "Outputs"):
            count = _bounded(getattr(operator, f"{key}Length")(), MAX_TENSORS, "inputs of an operator")
            indices = tuple(int(getattr(operator, key)(i)) for i in range(count))
            for index in indices:
                if index != -1:
                    _within(index, tensors, "tensor")
            ports.append(indices)
        if not ports[1] or -1 in ports[1]:
            raise ModelError(f"an operator {kind} makes nothing")
        options = operator.BuiltinOptions()
        return Operator(kind=kind, inputs=ports[0], outputs=ports[1], options=self.read(options, operator))

    def read(self, options: Any, operator: Any) -> Any:
        name = self.options.get(operator.BuiltinOptionsType(), "")
        accessor = getattr(self.schema, name, None)
        if options is None or accessor is None:
            return None
        made = accessor()
        made.Init(options.Bytes, options.Pos)
        return made

    def ports(self, subgraph: Any, signature: Any, kind: str, tensors: tuple[Tensor, ...]) -> dict[str, int]:
        if signature is None:
            count = _bounded(getattr(subgraph, f"{kind}Length")(), MAX_PORTS, kind.lower())
            indices = [_within(int(getattr(subgraph, kind)(i)), len(tensors), "tensor") for i in range(count)]
            named = [(_plain(tensors[i].name) or f"{kind.lower()}_{i}", i) for i in indices]
        else:
            count = _bounded(getattr(signature, f"{kind}Length")(), MAX_PORTS, kind.lower())
            entries = [getattr(signature, kind)(i) for i in range(count)]
            named = [(_text(e.Name()), _within(int(e.TensorIndex()), len(tensors), "tensor")) for e in entries]
        made: dict[str, int] = {}
        for name, index in named:
            if name in made or not name:
                raise ModelError(f"two {kind.lower()} are named {name!r}")
            if tensors[index].kind not in NUMPY:
                raise UnsupportedError(f"{kind.lower()[:-1]} {name!r} is {tensors[index].kind.lower()}, no numbers")
            made[name] = index
        return made

    def varies(self, tensor: Any) -> bool:
        count = _bounded(tensor.ShapeSignatureLength(), MAX_RANK, "axes")
        return any(tensor.ShapeSignature(i) < 0 for i in range(count))


def _names(enumeration: Any) -> dict[int, str]:
    return {code: name for name, code in vars(enumeration).items() if isinstance(code, int)}


def _bounded(count: int, most: int, what: str) -> int:
    if not 0 <= count <= most:
        raise ModelError(f"it has {count} {what}, at most {most} are read")
    return int(count)


def _within(index: int, count: int, what: str) -> int:
    if not 0 <= index < count:
        raise ModelError(f"{what} {index} is not there: it has {count}")
    return int(index)


def _text(raw: bytes | None) -> str:
    if raw is not None and len(raw) > MAX_NAME:
        raise ModelError(f"a name in it has {len(raw)} bytes; at most {MAX_NAME} are read")
    return "" if raw is None else raw.decode("utf-8", "replace")


def _plain(name: str) -> str:
    """``x`` of ``serving_default_x:0``, as TensorFlow calls the input of a signature."""
    return name.removeprefix("serving_default_").removesuffix(":0")


def _quantization(given: Any, name: str, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, int]:
    none = np.zeros(0)
    if given is None or not given.ScaleLength():
        return none, none, 0
    count, axis = given.ScaleLength(), int(given.QuantizedDimension())
    if count > 1 and not (0 <= axis < len(shape) and shape[axis] == count):
        raise ModelError(f"tensor {name!r}: {count} scales along axis {axis} of shape {list(shape)}")
    scales = np.asarray(given.ScaleAsNumpy(), np.float64)
    zeros = np.asarray(given.ZeroPointAsNumpy(), np.float64) if given.ZeroPointLength() else np.zeros(count)
    if zeros.shape != scales.shape or not np.isfinite(scales).all():
        raise ModelError(f"tensor {name!r}: {len(scales)} scales and {len(zeros)} zero-points")
    return scales, zeros, axis
