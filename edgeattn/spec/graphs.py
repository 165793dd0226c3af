"""Tensors, states and graphs: their names, shapes and element types."""

from __future__ import annotations

import math
import typing
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgeattn.errors import InputError
from edgeattn.printable import excerpt

DType = Literal["float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]
DTYPES: tuple[str, ...] = typing.get_args(DType)
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

    @property
    def stored_outputs(self) -> dict[str, str]:
        """Output -> what ONNX and OpenVINO files call it, in the order of :attr:`output_names`.

        Inputs and outputs share their names there: an output that is called like an input gets ``_out`` at its end.
        """
        taken, stored = {*self.input_names, *self.output_names}, {}
        for name in self.output_names:
            stored[name] = name
            if name in self.input_names:
                while stored[name] in taken:
                    stored[name] += "_out"
                taken.add(stored[name])
        return stored

    def initial_states(self) -> dict[str, np.ndarray]:
        """Fresh arrays, keyed by the states' input names."""
        return {s.input: np.full(s.shape, s.initial, dtype=s.dtype) for s in self.states}
