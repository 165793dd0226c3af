"""What a model is, to every room and every engine: names, shapes, states, front end, decoding.

All of it is frozen, needs nothing beyond the standard library and numpy, and goes through JSON unchanged
(:func:`to_json`, :func:`from_json`), because the same objects are written into a bundle's manifest.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, TypeVar

import numpy as np

from edgeattn.errors import LONGEST_NAME, InputError
from edgeattn.printable import excerpt

T = TypeVar("T")

DType = Literal["float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]
DTYPES: tuple[str, ...] = typing.get_args(DType)

MAX_SAMPLE_RATE = 384_000  # Hz, of the fastest audio converters

HIDDEN = -1e4
"""Additive attention bias of a position that must not be seen. Finite: -inf turns a fully hidden row into NaN, and
-1e4 still fits float16."""
HIDES = -1e3  # a bias at most that low hides: exp of it is 0 in float32 beside any score of use
HALF_MAX = 65504.0  # largest finite float16

MAX_NAME = 4_096  # characters; generated ones of deep modules have some hundreds


def check_name(kind: str, name: str) -> None:
    """Refuse a name that a terminal would obey, or that a reader could not tell from another.

    Tokens and labels are no names: they may be a line end or a space without width, and are made printable where they
    are printed.

    Raises:
        InputError: for characters that are not printable, or more than :data:`MAX_NAME`.
    """
    if len(name) > MAX_NAME:
        raise InputError(f"the name of a {kind} has {len(name)} characters, more than {MAX_NAME}: {excerpt(name)}")
    if not name.isprintable():
        raise InputError(f"the name of a {kind} must be printable, got {excerpt(name)}")


@dataclass(frozen=True)
class TensorSpec:
    """One named tensor with a static shape."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        check_name("tensor", self.name)
        if self.dtype not in DTYPES:
            raise ValueError(f"tensor {self.name!r}: dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if any(size < 1 for size in self.shape):
            raise ValueError(f"tensor {self.name!r}: sizes must be positive, got {self.shape}")

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def check(self, value: np.ndarray) -> np.ndarray:
        """Return ``value`` as a C-contiguous array of this dtype and shape.

        Raises:
            InputError: if shape or dtype differ. Only a widening inside one kind (int32 -> int64) is done.
        """
        array = np.asarray(value)
        if array.shape != self.shape:
            raise InputError(f"input {self.name!r} must have shape {self.shape}, got {array.shape}")
        wanted = np.dtype(self.dtype)
        if array.dtype.kind != wanted.kind or not np.can_cast(array.dtype, wanted, "safe"):
            raise InputError(f"input {self.name!r} must be {self.dtype}, got {array.dtype}")
        return np.asarray(array, dtype=wanted, order="C")  # ascontiguousarray would make a scalar one-dimensional


@dataclass(frozen=True)
class StateSpec:
    """A tensor that a step hands to the next one: output ``output`` becomes input ``input``."""

    input: str
    output: str
    shape: tuple[int, ...]
    dtype: DType = "float32"
    initial: float = 0.0

    def __post_init__(self) -> None:
        TensorSpec(self.input, self.dtype, self.shape)  # its checks are ours
        check_name("state", self.output)
        if not math.isfinite(self.initial):
            raise ValueError(f"state {self.input!r}: initial must be finite, got {self.initial}")

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return TensorSpec(self.input, self.dtype, self.shape).nbytes


@dataclass(frozen=True)
class GraphSpec:
    """One graph of a model. ``inputs`` and ``outputs`` leave the states out: those stand in ``states`` alone."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: tuple[StateSpec, ...] = ()

    def __post_init__(self) -> None:
        check_name("graph", self.name)
        for kind, names in (("input", self.input_names), ("output", self.output_names)):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"graph {self.name!r}: {kind} names must differ, twice: {', '.join(twice)}")

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of all that the engine takes: inputs, then states."""
        return tuple(t.name for t in self.inputs) + tuple(s.input for s in self.states)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of all that the engine gives: outputs, then next states."""
        return tuple(t.name for t in self.outputs) + tuple(s.output for s in self.states)

    @property
    def all_inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs, then states, as tensors."""
        return self.inputs + tuple(TensorSpec(s.input, s.dtype, s.shape) for s in self.states)

    @property
    def all_outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs, then next states, as tensors."""
        return self.outputs + tuple(TensorSpec(s.output, s.dtype, s.shape) for s in self.states)

    def initial_states(self) -> dict[str, np.ndarray]:
        """Fresh arrays, keyed by the states' input names."""
        return {s.input: np.full(s.shape, s.initial, dtype=s.dtype) for s in self.states}


@dataclass(frozen=True)
class FbankConfig:
    """Log mel filter bank energies as Kaldi defines them (feature-fbank.h): povey window, pre-emphasis, no dither."""

    sample_rate: int = 8_000  # Hz
    num_mel: int = 40
    frame_length: int = 200  # samples, 25 ms at 8 kHz
    hop_length: int = 80  # samples, 10 ms at 8 kHz
    preemphasis: float = 0.97
    low_hz: float = 20.0
    high_hz: float = 3_600.0  # Nyquist - 400 Hz

    def __post_init__(self) -> None:
        if not 0 < self.sample_rate <= MAX_SAMPLE_RATE:
            raise ValueError(f"sample_rate must be in 1..{MAX_SAMPLE_RATE} Hz, got {self.sample_rate}")
        if not 2 <= self.frame_length <= self.sample_rate:
            raise ValueError(f"frame_length must be in 2..{self.sample_rate} samples, got {self.frame_length}")
        if not 1 <= self.hop_length <= self.frame_length:
            raise ValueError(f"hop_length must be in 1..{self.frame_length} samples, got {self.hop_length}")
        if not 1 <= self.num_mel <= self.frame_length:
            raise ValueError(f"num_mel must be in 1..{self.frame_length}, got {self.num_mel}")
        if not 0 <= self.low_hz < self.high_hz <= self.sample_rate / 2:
            raise ValueError(
                f"0 <= low_hz < high_hz <= {self.sample_rate / 2:g} must hold, got {self.low_hz}, {self.high_hz}"
            )
        if not 0 <= self.preemphasis <= 1:
            raise ValueError(f"preemphasis must be in 0..1, got {self.preemphasis}")

    @property
    def frame_seconds(self) -> Fraction:
        """Hop between two frames, exact."""
        return Fraction(self.hop_length, self.sample_rate)


@dataclass(frozen=True)
class CtcGreedy:
    """Best label per frame, repeats merged, blanks dropped (Graves et al. 2006, section 3.2)."""

    tokens: tuple[str, ...]
    blank: int = 0
    hidden: tuple[str, ...] = ()  # recognised but never shown, for example "<unk>"

    def __post_init__(self) -> None:
        if not 0 <= self.blank < len(self.tokens):
            raise ValueError(f"blank must be an index of the {len(self.tokens)} tokens, got {self.blank}")
        strange = sorted(set(self.hidden) - set(self.tokens))
        if strange:
            raise ValueError(f"hidden must name tokens, {strange[0]!r} is none")


@dataclass(frozen=True, kw_only=True)
class StreamSpec:
    """How samples become steps of a streaming graph, and its scores become words.

    A step reads ``window`` feature frames and moves on by ``shift`` frames; it yields ``chunk`` encoder frames
    that see ``left`` cached ones. ``bias`` names the input of shape [1, 1, 1, left + chunk] that hides the part of
    the cache that is still empty (0 visible, :data:`HIDDEN` hidden).
    """

    frontend: FbankConfig
    decoder: CtcGreedy
    window: int
    shift: int
    chunk: int
    left: int
    features: str = "feats"
    bias: str = "att_bias"
    scores: str = "log_probs"

    def __post_init__(self) -> None:
        if min(self.window, self.shift, self.chunk) < 1 or self.left < 0:
            raise ValueError(
                "window, shift and chunk must be at least 1 and left at least 0, "
                f"got {self.window}, {self.shift}, {self.chunk}, {self.left}"
            )
        if self.shift > self.window:
            raise ValueError(f"shift must be at most the window of {self.window} frames, got {self.shift}")

    @property
    def hop_seconds(self) -> Fraction:
        """Audio time from one step to the next, exact."""
        return self.shift * self.frontend.frame_seconds

    @property
    def encoder_frame_seconds(self) -> Fraction:
        """Audio time of one encoder frame, exact."""
        return self.hop_seconds / self.chunk


@dataclass(frozen=True)
class PaddedAxis:
    """An axis of an input that may be shorter than the graph's; what is missing at its end is ``fill``.

    Axes of one ``dim`` ("seq") have one size in a call.
    """

    tensor: str
    axis: int
    dim: str
    fill: float = 0.0


@dataclass(frozen=True)
class CutAxis:
    """An axis of an output that is as long as an axis of an input, and is cut to what that was before padding."""

    tensor: str
    axis: int
    like_tensor: str
    like_axis: int


@dataclass(frozen=True)
class BucketSpec:
    """Graphs that are one graph in several sizes; a call runs the first, which is the smallest, that it fits into.

    Attributes:
        name: of the graph that they stand for; no graph has it.
        graphs: names, smallest first. They differ in the sizes of padded and cut axes alone.
        pad: of their inputs.
        cut: of their outputs.
    """

    name: str
    graphs: tuple[str, ...]
    pad: tuple[PaddedAxis, ...]
    cut: tuple[CutAxis, ...] = ()

    def sizes(self, graph: GraphSpec) -> dict[str, int]:
        """Dimension -> size of one of the graphs."""
        shapes = {tensor.name: tensor.shape for tensor in graph.inputs}
        return {pad.dim: shapes[pad.tensor][pad.axis] for pad in self.pad}


@dataclass(frozen=True)
class ModelSpec:
    """A model: its graphs, what it is for, and for a streaming one how it is driven."""

    name: str
    task: str
    graphs: tuple[GraphSpec, ...]
    stream: StreamSpec | None = None
    buckets: tuple[BucketSpec, ...] = ()

    def __post_init__(self) -> None:
        check_name("model", self.name)
        check_name("task", self.task)
        for bucket in self.buckets:
            check_name("bucket", bucket.name)
            for pad in bucket.pad:
                check_name("dimension", pad.dim)
        names = [graph.name for graph in self.graphs]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"model {self.name!r} needs graphs with different names, got {names}")
        if self.stream is not None:
            _check_stream(self.stream, self.graphs[0])
        taken = [*names, *(bucket.name for bucket in self.buckets)]
        if len(set(taken)) != len(taken):
            raise ValueError(f"model {self.name!r}: buckets and graphs need different names, got {taken}")
        parts = [name for bucket in self.buckets for name in bucket.graphs]
        if len(set(parts)) != len(parts):
            raise ValueError(f"model {self.name!r}: a graph is part of one bucket at most, got {parts}")
        for bucket in self.buckets:
            _check_bucket(bucket, {graph.name: graph for graph in self.graphs})

    def bucket(self, name: str | None = None) -> BucketSpec | None:
        """The bucket of that name; without a name the one that the first graph is part of. None if there is none."""
        for bucket in self.buckets:
            if bucket.name == name or (name is None and self.graphs[0].name in bucket.graphs):
                return bucket
        return None

    def units(self) -> dict[str, tuple[GraphSpec, ...]]:
        """What a caller sees as one graph -> the graphs that it is, smallest first where it has several sizes."""
        units: dict[str, tuple[GraphSpec, ...]] = {}
        for graph in self.graphs:
            bucket = next((bucket for bucket in self.buckets if graph.name in bucket.graphs), None)
            if bucket is None:
                units[graph.name] = (graph,)
            else:
                units[bucket.name] = tuple(self.graph(name) for name in bucket.graphs)
        return units

    def graph(self, name: str | None = None) -> GraphSpec:
        """The graph of that name; without a name the only one, or the first.

        Raises:
            InputError: if there is none of that name.
        """
        if name is None:
            return self.graphs[0]
        for graph in self.graphs:
            if graph.name == name:
                return graph
        bucket = self.bucket(name)
        if bucket is not None:
            raise InputError(f"{name!r} has several sizes here; name one of {', '.join(bucket.graphs)}")
        raise InputError(f"model {self.name!r} has no graph {name!r}; it has {', '.join(g.name for g in self.graphs)}")


def _check_bucket(bucket: BucketSpec, graphs: Mapping[str, GraphSpec]) -> None:
    where = f"bucket {bucket.name!r}"
    unknown = [name for name in bucket.graphs if name not in graphs]
    if unknown or not bucket.graphs:
        raise ValueError(f"{where} names the graphs {list(bucket.graphs)}; there are {', '.join(graphs)}")
    parts = [graphs[name] for name in bucket.graphs]
    inputs = {tensor.name: tensor for tensor in parts[0].inputs}
    outputs = {tensor.name: tensor for tensor in parts[0].outputs}
    padded = [(pad.tensor, pad.axis) for pad in bucket.pad]
    cut = [(axis.tensor, axis.axis) for axis in bucket.cut]
    for kind, tensors, axes in (("pad", inputs, padded), ("cut", outputs, cut)):
        if len(set(axes)) != len(axes):
            raise ValueError(f"{where}: {kind} names an axis twice: {axes}")
        for name, axis in axes:
            if name not in tensors or not 0 <= axis < len(tensors[name].shape):
                raise ValueError(f"{where}: {kind} names axis {axis} of {name!r}; there are {', '.join(tensors)}")
    if not padded:
        raise ValueError(f"{where} pads no axis")
    for one in bucket.cut:
        if (one.like_tensor, one.like_axis) not in padded:
            raise ValueError(
                f"{where}: {one.tensor!r} is cut like axis {one.like_axis} of {one.like_tensor!r}, unpadded"
            )
    _check_fills(bucket, inputs)
    first = [_without_axes(graph, padded, cut) for graph in parts]
    if any(other != first[0] for other in first):
        raise ValueError(f"{where}: graphs {', '.join(bucket.graphs)} differ in more than the sizes of its axes")
    for graph in parts:
        _check_sizes(bucket, graph)
    volumes = [math.prod(bucket.sizes(graph).values()) for graph in parts]
    if volumes != sorted(volumes) or len({tuple(bucket.sizes(graph).items()) for graph in parts}) != len(parts):
        raise ValueError(f"{where}: graphs must stand smallest first, each of another size")


def _check_fills(bucket: BucketSpec, inputs: Mapping[str, TensorSpec]) -> None:
    for pad in bucket.pad:
        dtype = np.dtype(inputs[pad.tensor].dtype)
        if not math.isfinite(pad.fill) or (dtype.kind != "f" and not _holds(dtype, pad.fill)):
            raise ValueError(f"bucket {bucket.name!r}: {pad.tensor!r} is {dtype} and cannot be filled with {pad.fill}")


def _holds(dtype: np.dtype, value: float) -> bool:
    if dtype.kind == "b":
        return value in (0.0, 1.0)
    return value == int(value) and np.iinfo(dtype).min <= value <= np.iinfo(dtype).max


def _check_sizes(bucket: BucketSpec, graph: GraphSpec) -> None:
    shapes = {tensor.name: tensor.shape for tensor in (*graph.inputs, *graph.outputs)}
    sizes = bucket.sizes(graph)
    for pad in bucket.pad:
        if shapes[pad.tensor][pad.axis] != sizes[pad.dim]:
            raise ValueError(f"bucket {bucket.name!r}: {pad.dim!r} has two sizes in graph {graph.name!r}")
    for cut in bucket.cut:
        if shapes[cut.tensor][cut.axis] != shapes[cut.like_tensor][cut.like_axis]:
            raise ValueError(
                f"bucket {bucket.name!r}: {cut.tensor!r} is not as long as {cut.like_tensor!r} in graph {graph.name!r}"
            )


def _without_axes(graph: GraphSpec, pad: list[tuple[str, int]], cut: list[tuple[str, int]]) -> GraphSpec:
    """The graph with size 1 on these axes and without its name."""

    def plain(tensors: tuple[TensorSpec, ...], axes: list[tuple[str, int]]) -> tuple[TensorSpec, ...]:
        return tuple(
            dataclasses.replace(t, shape=tuple(1 if (t.name, i) in axes else size for i, size in enumerate(t.shape)))
            for t in tensors
        )

    return GraphSpec("", plain(graph.inputs, pad), plain(graph.outputs, cut), graph.states)


def _check_stream(stream: StreamSpec, graph: GraphSpec) -> None:
    inputs, outputs = {t.name: t for t in graph.inputs}, {t.name: t for t in graph.outputs}
    wanted = (
        (inputs, stream.features, (1, stream.window, stream.frontend.num_mel)),
        (inputs, stream.bias, (1, 1, 1, stream.left + stream.chunk)),
        (outputs, stream.scores, (1, stream.chunk, len(stream.decoder.tokens))),
    )
    for tensors, name, shape in wanted:
        if name not in tensors or tensors[name].shape != shape or tensors[name].dtype != "float32":
            raise ValueError(
                f"a stream needs {name!r} of float32 {shape} in graph {graph.name!r}, "
                f"got {tensors.get(name, 'none of that name')}"
            )


def to_json(value: Any) -> Any:
    """A dataclass (or a container of them) as plain JSON values.

    JSON has no infinity and no NaN: such a figure (the SQNR of equal arrays) becomes null, as an absent one does.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def from_json(kind: type[T], data: Any, where: str = "") -> T:
    """Read a dataclass back from JSON values, strictly.

    Raises:
        InputError: for a missing, unknown or wrongly typed field, naming its place (``spec.graphs[0].name``).
    """
    return typing.cast(T, _read(kind, data, where or kind.__name__))


def _read(kind: Any, data: Any, where: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(typing.cast(type, kind), data, where)
    if kind is Any:
        return data
    if origin is Literal:
        if not isinstance(data, (str, int)) or data not in args:
            raise InputError(f"{where}: expected one of {', '.join(map(str, args))}, got {excerpt(data)}")
        return data
    if origin in (typing.Union, types.UnionType):
        if data is None and type(None) in args:
            return None
        return _read(next(arg for arg in args if arg is not type(None)), data, where)
    if origin is tuple:
        return _read_tuple(args, data, where)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(data, dict):
            raise InputError(f"{where}: expected an object, got {type(data).__name__}")
        return {key: _read(args[1], item, f"{where}.{key[:LONGEST_NAME]}") for key, item in data.items()}
    if kind is float:
        return _read_float(data, where)
    if not isinstance(data, kind) or (kind is int and isinstance(data, bool)):
        raise InputError(f"{where}: expected {kind.__name__}, got {excerpt(data)}")
    return data


def _read_tuple(args: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(data, list):
        raise InputError(f"{where}: expected a list, got {type(data).__name__}")
    kinds = args[:1] * len(data) if args[-1] is Ellipsis else args
    if len(kinds) != len(data):
        raise InputError(f"{where}: expected a list of {len(kinds)}, got {len(data)}")
    return tuple(_read(kinds[i], item, f"{where}[{i}]") for i, item in enumerate(data))


def _read_float(data: Any, where: str) -> float:
    if not isinstance(data, (int, float)) or isinstance(data, bool):
        raise InputError(f"{where}: expected float, got {excerpt(data)}")
    try:
        value = float(data)
    except OverflowError as error:
        raise InputError(f"{where}: the number is too large") from error
    if not math.isfinite(value):
        raise InputError(f"{where}: expected a finite number, got {value}")
    return value


def _read_dataclass(kind: type, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected an object, got {type(data).__name__}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(set(data) - set(fields))
    if unknown:
        near = difflib.get_close_matches(unknown[0][:LONGEST_NAME], fields, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"{where}: unknown field {excerpt(unknown[0])}; known: {', '.join(fields)}{hint}")
    missing = [
        name
        for name, field in fields.items()
        if name not in data and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise InputError(f"{where}: field {missing[0]!r} is missing")
    hints = typing.get_type_hints(kind)
    values = {name: _read(hints[name], item, f"{where}.{name}") for name, item in data.items()}
    try:
        return kind(**values)
    except (ValueError, OverflowError, InputError) as error:
        raise InputError(f"{where}: {error}") from error
