"""One call of any length on graphs of fixed sizes: the smallest that fits is chosen, inputs padded, outputs cut.

Pure numpy, so that the float32 source, the data and every engine do the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from edgeattn.errors import InputError
from edgeattn.spec import BucketSpec, GraphSpec, ModelSpec

Arrays = Mapping[str, np.ndarray]


def route(spec: ModelSpec, bucket: BucketSpec, inputs: Arrays) -> GraphSpec:
    """The smallest graph of a bucket into which inputs fit.

    Args:
        inputs: by name; those that are not padded, or are missing, are not looked at.

    Raises:
        InputError: for an axis of size 0, axes of one dimension in two sizes, or inputs longer than every graph.
    """
    sizes: dict[str, tuple[int, str]] = {}  # dimension -> size, and the input that has it
    for pad in bucket.pad:
        if pad.tensor not in inputs:
            continue
        shape = np.shape(inputs[pad.tensor])
        if len(shape) <= pad.axis:
            wanted = next(t for t in spec.graph(bucket.graphs[-1]).inputs if t.name == pad.tensor).shape
            raise InputError(f"input {pad.tensor!r} must have shape {wanted} or be shorter, got {shape}")
        size = shape[pad.axis]
        if size < 1:
            raise InputError(f"input {pad.tensor!r} has size 0 on axis {pad.axis} ({pad.dim}); at least 1 is needed")
        before, name = sizes.setdefault(pad.dim, (size, pad.tensor))
        if size != before:
            raise InputError(
                f"{pad.dim} is {before} in input {name!r} and {size} on axis {pad.axis} of {pad.tensor!r}; "
                "give both the same length"
            )
    graphs = [spec.graph(name) for name in bucket.graphs]
    for graph in graphs:
        room = bucket.sizes(graph)
        if all(size <= room[dim] for dim, (size, _) in sizes.items()):
            return graph
    largest = [bucket.sizes(graph) for graph in graphs]
    dim = next((d for d, (size, _) in sizes.items() if all(size > room[d] for room in largest)), None)
    if dim is None:  # each fits somewhere, and no graph has room for all of them
        given = ", ".join(f"{d} {size}" for d, (size, _) in sizes.items())
        raise InputError(f"no bucket of {bucket.name!r} has room for {given}; it has {', '.join(bucket.graphs)}")
    raise InputError(
        f"{dim} is {sizes[dim][0]}, longer than the largest bucket of {bucket.name!r}, "
        f"{max(room[dim] for room in largest)}; shorten the input or convert with a larger --bucket"
    )


def pad_inputs(bucket: BucketSpec, graph: GraphSpec, inputs: Arrays) -> dict[str, np.ndarray]:
    """The inputs of a call with every padded axis as long as ``graph`` has it; what fits already is handed through."""
    sizes = bucket.sizes(graph)
    padded = dict(inputs)
    for pad in bucket.pad:
        array = padded.get(pad.tensor)
        if array is None or np.shape(array)[pad.axis] == sizes[pad.dim]:
            continue
        widths = [(0, 0)] * np.ndim(array)
        widths[pad.axis] = (0, sizes[pad.dim] - np.shape(array)[pad.axis])
        padded[pad.tensor] = np.pad(array, widths, constant_values=_fill(np.asarray(array), pad.fill))
    return padded


def cut_inputs(bucket: BucketSpec, graph: GraphSpec, inputs: Arrays) -> dict[str, np.ndarray]:
    """Inputs of any length at the sizes of ``graph``: what is too long loses its end, what is too short is padded."""
    sizes = bucket.sizes(graph)
    cut = dict(inputs)
    for pad in bucket.pad:
        if pad.tensor in cut:
            cut[pad.tensor] = _first(cut[pad.tensor], pad.axis, sizes[pad.dim])
    return pad_inputs(bucket, graph, cut)


def cut_outputs(bucket: BucketSpec, inputs: Arrays, outputs: Arrays) -> dict[str, np.ndarray]:
    """The outputs of a padded call, as long as the inputs were before padding; views of the arrays given."""
    cut = dict(outputs)
    for axis in bucket.cut:
        if axis.tensor in cut and axis.like_tensor in inputs:
            cut[axis.tensor] = _first(cut[axis.tensor], axis.axis, np.shape(inputs[axis.like_tensor])[axis.like_axis])
    return cut


def run_padded(
    bucket: BucketSpec, graph: GraphSpec, inputs: Arrays, run: Callable[[dict[str, np.ndarray]], Arrays]
) -> dict[str, np.ndarray]:
    """One call of a graph of fixed sizes on inputs that fit into it: padded before, and its outputs cut after.

    Args:
        graph: as :func:`route` chooses it.
        run: a call of that graph, on inputs of its sizes.
    """
    return cut_outputs(bucket, inputs, run(pad_inputs(bucket, graph, inputs)))


def _first(array: np.ndarray, axis: int, size: int) -> np.ndarray:
    return array[(slice(None),) * axis + (slice(0, size),)]


def _fill(array: np.ndarray, fill: float) -> bool | int | float:
    return fill if array.dtype.kind == "f" else bool(fill) if array.dtype.kind == "b" else int(fill)
