"""Example inputs for an ONNX graph: sizes for its open dimensions, values that its operators can take."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeattn.errors import ModelError, UnsupportedError
from edgeattn.model import Arrays
from edgeattn.sources.examples import first_sample, fitted
from edgeattn.sources.onnx.external import folders_of
from edgeattn.sources.onnx.stored import MAX_RANK
from edgeattn.spec import DTYPES

if TYPE_CHECKING:
    import onnx

LENGTH = 16  # of a sequence whose length is open
IMAGE = 224  # pixels
SAMPLES = 16_000  # one second of audio
IDS = 100  # below this, ids of a table whose size is not known
MAX_BYTES = 2**30  # of all example inputs in a file
MAX_ELEMENTS = 2**26  # of one input
WIDENED = {"float16": "float32", "bfloat16": "float32", "float64": "float32"}

SIZES: tuple[tuple[str, int], ...] = (
    (r"batch|^n$|^b$|num_(images|samples_in_batch)", 1),
    (r"channel", 3),
    (r"height|width|image|pixel|^h$|^w$", IMAGE),
    (r"audio|wav|samples", SAMPLES),
    (r"head", 4),
    (r"past|cache|mem", LENGTH),
    (r"seq|len|time|frame|token|position|step|patch|text|^s$|^t$|^l$", LENGTH),
)
"""Names of open dimensions that exporters use -> an example size; another name of axis 0 is a batch."""
NAMELESS = re.compile(r"[\W\d_]*|none|null|unk|unknown|dynamic|dyn|any", re.IGNORECASE)
"""What exporters write for a size that they do not know: every one is an unknown of its own."""

FORWARDING = frozenset((
    "Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Expand", "Clip", "Slice", "Concat",
    "Max", "Min",
))  # fmt: skip


@dataclass(frozen=True)
class Opened:
    """An input as the file declares it: sizes, None where one is open, and the names of open dimensions by axis."""

    name: str
    dtype: str
    sizes: tuple[int | None, ...]
    names: Mapping[int, str]


def declared_inputs(graph: onnx.GraphProto) -> list[Opened]:
    """The inputs of a graph that are no initializers.

    Raises:
        ModelError: for a size of zero.
        UnsupportedError: for an element type that edge models have not.
    """
    stored = {tensor.name for tensor in graph.initializer}
    return [_declared(value) for value in graph.input if value.name not in stored]


def _declared(value: onnx.ValueInfoProto) -> Opened:
    import onnx

    kind = value.type.tensor_type
    types = onnx.TensorProto.DataType
    name = types.Name(kind.elem_type) if kind.elem_type in types.values() else "?"
    dtype = "?" if name in ("UNDEFINED", "STRING", "?") else str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    dtype = WIDENED.get(dtype, dtype)
    if dtype not in DTYPES:
        raise UnsupportedError(f"input {value.name!r} is {name.lower()}; edge engines take {', '.join(DTYPES)}")
    if len(kind.shape.dim) > MAX_RANK:
        raise ModelError(f"input {value.name[:80]!r} has {len(kind.shape.dim)} axes, at most {MAX_RANK} are read")
    sizes: list[int | None] = []
    names = {}
    for axis, dim in enumerate(kind.shape.dim):
        which = dim.WhichOneof("value")
        if which == "dim_value":
            if dim.dim_value < 1 and dim.dim_value != -1:
                raise ModelError(f"input {value.name!r}: axis {axis} has size {dim.dim_value}; sizes are positive")
            sizes.append(dim.dim_value if dim.dim_value > 0 else None)
            continue
        if which == "dim_param" and not NAMELESS.fullmatch(dim.dim_param.strip()):
            names[axis] = dim.dim_param.strip()
        sizes.append(None)
    given = list(names.values())
    batch = {name for name in given if given.count(name) > 1 and re.search(SIZES[0][0], name.lower())}
    return Opened(value.name, dtype, tuple(sizes), {i: name for i, name in names.items() if name not in batch})


def example_shapes(inputs: Iterable[Opened]) -> dict[str, tuple[int, ...]]:
    """A size for every open dimension: one per name, whatever inputs it stands in."""
    known: dict[str, int] = {}
    shapes = {}
    for given in inputs:
        shape = []
        for axis, size in enumerate(given.sizes):
            if size is not None:
                shape.append(size)
                continue
            name = given.names.get(axis, "")
            if name:
                known.setdefault(name, _size(name, known, given, axis))
                shape.append(known[name])
            else:
                shape.append(_unnamed(given, axis))
        shapes[given.name] = tuple(shape)
        if math.prod(shape) > MAX_ELEMENTS:
            raise ModelError(
                f"input {given.name[:80]!r} of shape {shape} has more than {MAX_ELEMENTS} values, which no edge model "
                "takes"
            )
    return shapes


def _size(name: str, known: Mapping[str, int], given: Opened, axis: int) -> int:
    terms = [term.strip() for term in name.split("+")]
    if len(terms) > 1 and all(terms):  # "past_sequence_length + 1", as Hugging Face's exporter writes
        sizes = (known.get(term) or _size(term, known, given, axis) for term in terms)
        return sum(int(t) if re.fullmatch("[0-9]{1,9}", t) else size for t, size in zip(terms, sizes, strict=True))
    for pattern, size in SIZES:
        if re.search(pattern, name.lower()):
            return size
    return _unnamed(given, axis)


def _unnamed(given: Opened, axis: int) -> int:
    if axis == 0 and len(given.sizes) > 1:
        return 1
    if given.dtype == "float32" and len(given.sizes) == 4:
        return 3 if axis == 1 else IMAGE
    return LENGTH


def named_dims(inputs: Iterable[Opened], example: Arrays) -> dict[str, dict[int, str]]:
    """Input -> axis -> name, for the dimensions that the file leaves open under a name.

    A name that has several sizes in the example is no name of a dimension.
    """
    listed = [given for given in inputs if given.name in example]
    sizes: dict[str, set[int]] = {}
    for given in listed:
        for axis, name in given.names.items():
            sizes.setdefault(name, set()).add(example[given.name].shape[axis])
    kept = {given.name: {axis: name for axis, name in given.names.items() if len(sizes[name]) == 1} for given in listed}
    return {name: names for name, names in kept.items() if names}


def example_values(graph: onnx.GraphProto, inputs: Iterable[Opened], shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
    """Deterministic values: ids within their table, masks that hide nothing, positions in order, floats normal."""
    bounds = _table_rows(graph)
    return {given.name: _values(given, shapes[given.name], bounds.get(given.name)) for given in inputs}


def _values(given: Opened, shape: tuple[int, ...], rows: int | None) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(given.name.encode()))
    dtype, name = np.dtype(given.dtype), given.name.lower()
    if dtype == np.bool_:
        return np.ones(shape, dtype)
    if "mask" in name:
        return np.ones(shape, dtype)
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if "position" in name and shape and (rows is None or shape[-1] <= rows):
        return np.ascontiguousarray(np.broadcast_to(np.arange(shape[-1]), shape)).astype(dtype)
    if rows is None:
        wide = IDS if re.search(r"ids?\b|token", name) and dtype.itemsize > 1 else 2
        return rng.integers(1, wide, shape).astype(dtype)
    return rng.integers(0, min(rows, np.iinfo(dtype).max), shape).astype(dtype)


def _table_rows(graph: onnx.GraphProto) -> dict[str, int]:
    """Input -> rows of the smallest constant table that it is an index into."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            constants.update((node.output[0], a.t) for a in node.attribute if a.HasField("t"))
        if node.op_type in ("DequantizeLinear", "Transpose", "Cast", "Identity") and node.input[0] in constants:
            constants[node.output[0]] = constants[node.input[0]]  # the table of a quantized file
    rows: dict[str, int] = {}
    sources = {value.name: {value.name} for value in graph.input if value.name not in constants}
    for node in graph.node:
        if node.op_type in ("Gather", "GatherBlockQuantized", "EmbedLayerNormalization") and len(node.input) > 1:
            for table, index in _lookups(node):
                if table in constants and constants[table].dims:
                    axis = next((a.i for a in node.attribute if a.name in ("axis", "gather_axis")), 0)
                    size = int(constants[table].dims[axis])
                    for source in sources.get(index, ()):
                        rows[source] = min(rows.get(source, size), size)
        if node.op_type in FORWARDING:
            found = set().union(*(sources.get(name, set()) for name in node.input))
            if found:
                sources[node.output[0]] = found
    return rows


def _lookups(node: onnx.NodeProto) -> list[tuple[str, str]]:
    if node.op_type in ("Gather", "GatherBlockQuantized"):
        return [(node.input[0], node.input[1])]
    given = [*node.input, *[""] * 9]
    return [(given[2], given[0]), (given[3], given[8]), (given[4], given[1])]


def side_file(path: Path) -> Path | None:
    """``NAME.npz`` beside ``NAME.onnx``: example inputs that the user gives.

    Raises:
        ModelError: if it links out of the folders of the file.
    """
    beside = path.with_suffix(".npz")
    if not beside.is_file():
        return None
    if not any(beside.resolve().is_relative_to(home) for home in folders_of(path)):
        raise ModelError(f"{beside}: links out of the model's folder; copy it there, or move it away")
    return beside


def read_side_file(file: Path, inputs: Iterable[Opened]) -> Arrays:
    """Example inputs from an npz whose arrays are named like the inputs.

    Raises:
        ModelError: for a missing name, or a shape or type that the file's input does not take.
    """
    try:
        with np.load(file, allow_pickle=False) as archive:
            held = sum(info.file_size for info in archive.zip.infolist())
            if held > MAX_BYTES:
                raise ValueError(f"{held} bytes, at most {MAX_BYTES} are read")
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:
        raise ModelError(f"{file}: not an npz with example inputs: {error}") from error
    return {given.name: _taken(file, given, arrays) for given in inputs}


def read_sample(file: Path, inputs: Sequence[Opened]) -> Arrays | None:
    """The first sample of ``--data`` as example inputs; None where the file has arrays of other names.

    A sample has the input's shape, or lacks its leading axis of 1.

    Raises:
        ModelError: for an array that the file's input does not take.
    """
    sample = first_sample(file, [given.name for given in inputs])
    if sample is None:
        return None
    for given in inputs:
        if sample[given.name].ndim == len(given.sizes) - 1:
            sample[given.name] = sample[given.name][None]
    return {given.name: _taken(file, given, sample) for given in inputs}


def _taken(file: Path, given: Opened, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    if given.name not in arrays:
        raise ModelError(f"{file}: has no array {given.name!r}; it has {', '.join(sorted(arrays))}")
    array = arrays[given.name]
    fits = len(array.shape) == len(given.sizes) and all(
        size in (None, n) and n > 0 for n, size in zip(array.shape, given.sizes, strict=True)
    )
    kind = np.dtype(given.dtype)
    if not fits or array.dtype.kind != kind.kind:
        shape = [given.names.get(i, size or "?") for i, size in enumerate(given.sizes)]
        raise ModelError(
            f"{file}: {given.name!r} is {array.dtype}{list(array.shape)}, the model takes {given.dtype}{shape}"
        )
    with np.errstate(over="ignore"):
        made = np.ascontiguousarray(array).reshape(array.shape).astype(kind)
    if kind.kind == "f" and not np.array_equal(np.isfinite(made), np.isfinite(array)):
        raise ModelError(f"{file}: {given.name!r} holds values beyond {given.dtype}, as which the model is read")
    return made


def bound_arrays(
    bound: Mapping[str, np.ndarray], fixed: Sequence[Opened], inputs: Sequence[Opened], example: Arrays
) -> Arrays:
    """The constants of inputs that the user binds, in the sizes of an example of the others.

    Raises:
        InputError: for a value that its input does not take.
    """
    sizes = {n: example[g.name].shape[axis] for g in inputs if g.name in example for axis, n in g.names.items()}
    guessed = example_shapes(fixed)
    made = {}
    for given in fixed:
        value = bound[given.name]
        own = value.shape if value.ndim == len(given.sizes) and value.size > 1 else guessed[given.name]
        named = [given.names.get(axis, "") for axis in range(len(given.sizes))]
        shape = tuple(
            int(size or sizes.get(name, guess)) for size, name, guess in zip(given.sizes, named, own, strict=True)
        )
        made[given.name] = fitted(given.name, value, shape, np.dtype(given.dtype))
    return made
