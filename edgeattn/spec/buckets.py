"""One graph in several sizes: which axes are padded, which are cut."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgeattn.spec.graphs import GraphSpec, TensorSpec


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


def check_bucket(bucket: BucketSpec, graphs: Mapping[str, GraphSpec]) -> None:
    """Whether the graphs of a bucket are one graph in several sizes.

    Args:
        graphs: all graphs of the model, by name.

    Raises:
        ValueError: for an unknown graph or axis, a fill that its dtype cannot hold, or graphs that differ otherwise.
    """
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
