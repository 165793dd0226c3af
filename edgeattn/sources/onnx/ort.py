"""ONNX Runtime's own format (.ort) as an ONNX model: the same graph in a flatbuffer.

Fields are those of onnxruntime/core/flatbuffers/schema/ort.fbs, by their place in a table; the bindings that ONNX
Runtime ships change sys.path when they are imported. Bytes are read in Python, so that a damaged offset is an
exception, and every count is looked at before anything is walked.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn.errors import EdgeattnError, ModelError, UnsupportedError, load_extra
from edgeattn.guards.confined import regular_file
from edgeattn.sources.onnx.read import MAX_DEPTH, MAX_NODES, checked
from edgeattn.sources.onnx.stored import MAX_RANK

if TYPE_CHECKING:
    import onnx

MAX_BYTES = 2**31 - 1  # offsets of a flatbuffer
MAX_LISTED = 1_000_000  # entries of any list but raw bytes
MARK = b"ORTM"
FLOAT, INT, STRING, TENSOR, GRAPH, FLOATS, INTS, STRINGS, TENSORS, GRAPHS = range(1, 11)  # AttributeType


def read_ort(path: Path) -> onnx.ModelProto:
    """Read a file.

    Raises:
        ModelError: for a file that is none, damaged, or made to harm; one line says what and where.
        UnsupportedError: for what has no place in an edge model, by name.
    """
    load_extra("flatbuffers", "convert")
    regular_file(path, ModelError)
    if path.stat().st_size > MAX_BYTES:
        raise ModelError(f"{path}: {path.stat().st_size / 2**30:.1f} GiB; at most 2 GiB are read")
    data = path.read_bytes()
    if data[4:8] != MARK:
        raise ModelError(f"{path}: not in ONNX Runtime's format: it lacks the mark ORTM")
    try:
        model = _Reader(data).model()
    except EdgeattnError as error:
        raise type(error)(f"{path}: {error}; the .onnx that it was made from is read as well") from error
    except Exception as error:  # struct.error, and what the flatbuffers package makes of damaged offsets
        raise ModelError(f"{path}: damaged or cut off ({type(error).__name__}: {str(error)[:100]})") from error
    return checked(model, path)


class _Table:
    """A table of a flatbuffer; fields by their place in the schema."""

    def __init__(self, data: bytes, position: int) -> None:
        flatbuffers: Any = load_extra("flatbuffers.table", "convert")
        self.types: Any = load_extra("flatbuffers.number_types", "convert")
        self.table = flatbuffers.Table(data, position)
        self.data = data

    def place(self, field: int) -> int:
        """Where a field stands; 0 where it is absent."""
        offset = int(self.table.Offset(4 + 2 * field))
        return offset + self.table.Pos if offset else 0

    def number(self, field: int, kind: str, default: int = 0) -> Any:
        """A scalar."""
        place = self.place(field)
        return self.table.Get(getattr(self.types, f"{kind}Flags"), place) if place else default

    def text(self, field: int) -> str:
        """A string, empty where it is absent."""
        place = self.place(field)
        return self.table.String(place).decode("utf-8", "replace") if place else ""

    def inner(self, field: int) -> _Table | None:
        """A table."""
        place = self.place(field)
        return _Table(self.data, self.table.Indirect(place)) if place else None

    def length(self, field: int) -> int:
        """Of a list."""
        place = self.place(field)
        return int(self.table.VectorLen(place - self.table.Pos)) if place else 0

    def starts(self, field: int, most: int = MAX_LISTED) -> Iterator[int]:
        """Places of a list's entries, of 4 bytes each."""
        count = self.length(field)
        if count > most:
            raise ModelError(f"a list in it has {count} entries; at most {most} are read")
        start = self.table.Vector(self.place(field) - self.table.Pos) if count else 0
        yield from range(start, start + 4 * count, 4)

    def tables(self, field: int) -> Iterator[_Table]:
        """A list of tables."""
        for start in self.starts(field):
            yield _Table(self.data, self.table.Indirect(start))

    def texts(self, field: int) -> list[str]:
        """A list of strings."""
        return [self.table.String(start).decode("utf-8", "replace") for start in self.starts(field)]

    def array(self, field: int, dtype: type[np.generic]) -> np.ndarray:
        """A list of numbers."""
        count = self.length(field)
        if not count:
            return np.zeros(0, dtype)
        return np.frombuffer(self.data, dtype, count, self.table.Vector(self.place(field) - self.table.Pos))


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.nodes = 0
        self.held = 0

    def model(self) -> onnx.ModelProto:
        import onnx

        root = _Table(self.data, int(np.frombuffer(self.data, np.uint32, 1)[0]))
        given = root.inner(1)
        graph = given.inner(7) if given is not None else None
        if given is None or graph is None:
            raise ModelError("it has no graph; it holds a training checkpoint, or is damaged")
        made = onnx.ModelProto()
        made.ir_version = max(3, int(given.number(0, "Int64")))
        made.producer_name, made.producer_version = given.text(2), given.text(3)
        for entry in given.tables(1):
            made.opset_import.add(domain=entry.text(0), version=int(entry.number(1, "Int64")))
        self.graph(graph, made.graph, 0)
        made.graph.name = "main"
        return made

    def graph(self, given: _Table, made: onnx.GraphProto, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise ModelError(f"bodies of If and Loop are nested more than {MAX_DEPTH} deep")
        made.name = f"body_{depth}"
        for tensor in given.tables(0):
            self.tensor(tensor, made.initializer.add())
        known = {}
        for port in given.tables(1):
            known[port.text(0)] = port
        for names, ports in ((given.texts(5), made.input), (given.texts(6), made.output)):
            for name in names:
                _port(name, known.get(name), ports.add())
        for node in given.tables(2):
            self.nodes += 1
            if self.nodes > MAX_NODES:
                raise ModelError(f"it has more than {MAX_NODES} nodes")
            self.node(node, made.node.add(), depth)

    def node(self, given: _Table, made: onnx.NodeProto, depth: int) -> None:
        made.name, made.domain, made.op_type = given.text(0), given.text(2), given.text(5)
        if given.number(6, "Int32"):
            raise UnsupportedError(f"node {made.name!r} ({made.op_type}) was compiled for one engine")
        made.input.extend(given.texts(8))
        made.output.extend(given.texts(9))
        for attribute in given.tables(10):
            self.attribute(attribute, made.attribute.add(), depth)

    def attribute(self, given: _Table, made: onnx.AttributeProto, depth: int) -> None:
        made.name = given.text(0)
        kind = int(given.number(2, "Int32"))
        made.type = kind  # type: ignore[assignment]  # the same numbers
        if kind == FLOAT:
            made.f = float(given.number(3, "Float32"))
        elif kind == INT:
            made.i = int(given.number(4, "Int64"))
        elif kind == STRING:
            made.s = given.text(5).encode()
        elif kind == FLOATS:
            made.floats.extend(given.array(8, np.float32).tolist())
        elif kind == INTS:
            made.ints.extend(given.array(9, np.int64).tolist())
        elif kind == STRINGS:
            made.strings.extend(text.encode() for text in given.texts(10))
        elif kind == TENSOR:
            self.tensor(_there(given.inner(6), made.name), made.t)
        elif kind == GRAPH:
            self.graph(_there(given.inner(7), made.name), made.g, depth + 1)
        elif kind == TENSORS:
            for tensor in given.tables(11):
                self.tensor(tensor, made.tensors.add())
        elif kind == GRAPHS:
            for graph in given.tables(12):
                self.graph(graph, made.graphs.add(), depth + 1)
        else:
            raise UnsupportedError(f"attribute {made.name!r} is of kind {kind}, no number, text, tensor or graph")

    def tensor(self, given: _Table, made: onnx.TensorProto) -> None:
        made.name, made.data_type = given.text(0), int(given.number(3, "Int32"))
        if given.length(2) > MAX_RANK:
            raise ModelError(f"tensor {made.name!r} has {given.length(2)} axes")
        made.dims.extend(given.array(2, np.int64).tolist())
        if given.length(5):
            made.string_data.extend(text.encode() for text in given.texts(5))
            return
        if given.number(6, "Int64", -1) >= 0:
            raise UnsupportedError(f"tensor {made.name!r} lies in another file, as of a training checkpoint")
        raw = given.array(4, np.uint8)
        self.held += raw.size
        if self.held > len(self.data):  # several tensors on the same bytes: a small file would become a large model
            raise ModelError(f"its tensors hold more than the {len(self.data)} bytes of the file")
        made.raw_data = raw.tobytes()


def _there(given: _Table | None, name: str) -> _Table:
    if given is None:
        raise ModelError(f"attribute {name!r} is empty")
    return given


def _port(name: str, given: _Table | None, made: onnx.ValueInfoProto) -> None:
    made.name = name
    kind = given.inner(2) if given is not None else None
    if kind is None:
        return
    if kind.number(1, "Uint8") != 1:
        raise UnsupportedError(f"{name!r} is a sequence or a map; edge engines take tensors")
    tensor = kind.inner(2)
    if tensor is None:
        return
    made.type.tensor_type.elem_type = int(tensor.number(0, "Int32"))
    shape = tensor.inner(1)
    if shape is None:
        return
    made.type.tensor_type.shape.SetInParent()
    for dimension in shape.tables(0):
        dim, value = made.type.tensor_type.shape.dim.add(), dimension.inner(0)
        if value is not None and value.number(0, "Int8") == 1:
            dim.dim_value = int(value.number(1, "Int64"))
        elif value is not None and value.number(0, "Int8") == 2:
            dim.dim_param = value.text(2)
