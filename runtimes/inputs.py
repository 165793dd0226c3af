"""What a run is given and gives: checked by name, shape and dtype."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgeattn.errors import BundleError, InputError, UnsupportedError
from edgeattn.runtimes.faults import first_line
from edgeattn.spec import GraphSpec, TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

Arrays = dict[str, np.ndarray]


def read_input(tensor: TensorSpec, value: object) -> np.ndarray:
    """What a caller gave for an input, as an array of its dtype; the shape is not looked at.

    Arrays of any layout and byte order are taken, and what numpy makes an array of (lists of numbers, scalars). A dtype
    is widened inside its kind (float16 -> float32, int32 -> int64) and never narrowed or turned into another kind.

    Raises:
        InputError: for another dtype, a masked array (what is hidden would come back), or what is no array.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise InputError(
            f"input {tensor.name!r} is a masked array, and engines know no masks: fill it (array.filled(0)) and tell "
            "the model in the input that it has for that"
        )
    try:
        array = np.asarray(value)
    except Exception as error:  # ragged lists, and whatever the __array__ of another library raises
        raise InputError(
            f"input {tensor.name!r} must be an array of {tensor.dtype}{list(tensor.shape)}; numpy cannot make one of "
            f"the {type(value).__name__} given ({first_line(error):.200})"
        ) from error
    wanted = np.dtype(tensor.dtype)
    if array.dtype.kind != wanted.kind or not np.can_cast(array.dtype, wanted, "safe"):
        given = (
            array.dtype if isinstance(value, (np.ndarray, np.generic)) else f"{type(value).__name__} ({array.dtype})"
        )
        raise InputError(f"input {tensor.name!r} must be {tensor.dtype}, got {given}")
    return np.asarray(array, dtype=wanted, order="C")


def read_inputs(graph: GraphSpec, inputs: Mapping[str, object]) -> Arrays:
    """Every input and state of ``graph`` by name, in the graph's order, as :func:`read_input` gives them.

    Raises:
        InputError: for a missing or unknown name, and as :func:`read_input`.
    """
    if not isinstance(inputs, Mapping):
        raise InputError(
            f"graph {graph.name!r} takes a mapping of names to arrays, got {type(inputs).__name__}; it needs "
            f"{', '.join(graph.input_names)}"
        )
    for name in inputs:
        if name not in graph.input_names:
            near = difflib.get_close_matches(str(name), graph.input_names, n=1)
            hint = f", did you mean {near[0]!r}?" if near else "."
            raise InputError(
                f"graph {graph.name!r} has no input {name!r:.80}{hint} It takes {', '.join(graph.input_names)}"
            )
    for name in graph.input_names:
        if name not in inputs:
            given = ", ".join(map(str, inputs)) or "nothing"
            raise InputError(f"graph {graph.name!r} needs input {name!r}; given: {given}")
    return {tensor.name: read_input(tensor, inputs[tensor.name]) for tensor in graph.all_inputs}


def check_inputs(graph: GraphSpec, inputs: Mapping[str, object]) -> Arrays:
    """Every input and state of ``graph`` as contiguous arrays of the right dtype and shape, in the graph's order.

    Raises:
        InputError: for a wrong shape, and as :func:`read_inputs`.
    """
    arrays = read_inputs(graph, inputs)
    return {tensor.name: tensor.check(arrays[tensor.name]) for tensor in graph.all_inputs}


def check_finite(kind: Literal["input", "output"], arrays: Mapping[str, np.ndarray], where: str) -> None:
    """Refuse NaN and infinity.

    Args:
        arrays: by tensor name.
        where: graph and step, for the message.

    Raises:
        InputError: if an input holds one.
        UnsupportedError: if an output does.
    """
    for name, array in arrays.items():
        if array.dtype.kind != "f" or np.isfinite(array).all():
            continue
        place = tuple(int(index) for index in np.argwhere(~np.isfinite(array))[0])
        found = f"{where}: {kind} {name!r} holds {array[place]} at {list(place)}"
        if kind == "input":
            raise InputError(f"{found}; every input must be finite here (check_finite)")
        raise UnsupportedError(
            f"{found} although its inputs are finite: it overflows in this precision, or divides by zero; compare with "
            "the source, or convert it with a wider precision (fp32)"
        )


def check_names(
    path: Path, graph: GraphSpec, inputs: Found, outputs: Found, stored: Mapping[str, str] | None = None
) -> None:
    """Hold a loaded model file to the spec that it came with.

    Args:
        path: the file, for the message.
        inputs: what the engine found, by name.
        outputs: likewise.
        stored: output of the spec -> its name in the file, if not the same.

    Raises:
        BundleError: if a name of the spec is missing in the file, or has another shape or dtype there.
    """
    for kind, wanted, found in (("input", graph.all_inputs, inputs), ("output", graph.all_outputs, outputs)):
        names = stored if stored is not None and kind == "output" else {}
        held = tuple(replace(tensor, name=names.get(tensor.name, tensor.name)) for tensor in wanted)
        for tensor in held:
            if tensor.name not in found:
                there = ", ".join(found) or "none"
                raise BundleError(
                    f"{path}: has no {kind} {tensor.name!r}; its {kind}s: {there}. Convert the model again"
                )
            dtype, shape = found[tensor.name]
            if (dtype, shape) != (tensor.dtype, tensor.shape):
                raise BundleError(
                    f"{path}: {kind} {tensor.name!r} is {dtype}{list(shape)}, the spec says "
                    f"{tensor.dtype}{list(tensor.shape)}. Convert the model again"
                )
        extra = sorted(set(found) - {tensor.name for tensor in held})
        if extra and kind == "input":
            raise BundleError(
                f"{path}: takes an input {extra[0]!r} that the spec does not have. Convert the model again"
            )


Found = dict[str, tuple[str, tuple[int, ...]]]
"""What a model file holds: tensor name -> dtype, shape; -1 stands for a size that is not fixed."""
