"""What a student is trained on: runs of inputs, step after step, checked against the original."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from edgeattn.errors import DataError
from edgeattn.model import Arrays, EdgeModel
from edgeattn.spec import BucketSpec

TARGET = "target_"  # prefix of what an output should be, among the inputs of a run

Run = tuple[Arrays, ...]
"""Inputs of one step after another, without states, with ``target_NAME`` where a loss of the user's wants it."""


def checked_runs(model: EdgeModel, name: str, runs: Sequence[Run]) -> list[Run]:
    """Runs that fit a graph of the original, without arrays that it does not take; targets stay.

    Raises:
        DataError: naming the run and the input.
        InputError: for a graph that is not there.
    """
    graph = model.spec.graph(name)
    bucket = _bucket(model, name)
    free = {(pad.tensor, pad.axis) for pad in bucket.pad} if bucket is not None else set()
    free |= {(tensor, axis) for tensor, axes in model.dims.get(name, {}).items() for axis in axes}
    outputs = {TARGET + tensor.name for tensor in graph.outputs}
    checked = []
    for number, run in enumerate(runs):
        if not run:
            raise DataError(f"run {number} of graph {name!r} is empty")
        for arrays in run:
            for tensor in graph.inputs:
                where = f"run {number} of graph {name!r}: input {tensor.name!r}"
                if tensor.name not in arrays:
                    raise DataError(f"{where} is missing; it holds {', '.join(arrays) or 'nothing'}")
                array = arrays[tensor.name]
                fits = array.ndim == len(tensor.shape) and all(
                    size == wanted or (tensor.name, axis) in free
                    for axis, (size, wanted) in enumerate(zip(array.shape, tensor.shape, strict=True))
                )
                if not fits or array.dtype != np.dtype(tensor.dtype):
                    raise DataError(
                        f"{where} is {array.dtype} {array.shape}, the model takes {tensor.dtype} {tensor.shape}"
                    )
                if array.dtype.kind == "f" and np.isnan(array).any():
                    raise DataError(f"{where} holds NaN")
        kept = {tensor.name for tensor in graph.inputs} | outputs
        checked.append(tuple({key: array for key, array in arrays.items() if key in kept} for arrays in run))
    return checked


def _bucket(model: EdgeModel, graph: str) -> BucketSpec | None:
    return next((bucket for bucket in model.spec.buckets if graph in bucket.graphs), None)


def stacked(arrays: Sequence[np.ndarray], target: bool = False) -> np.ndarray:
    """Arrays of one sample each along the first axis; targets may lack the batch axis."""
    if len(arrays) == 1 and not target:
        return arrays[0]
    first = arrays[0]
    if first.ndim and first.shape[0] == 1:
        return np.concatenate(arrays)
    return np.stack(arrays) if target else np.concatenate(arrays)


def as_tensor(array: np.ndarray) -> Tensor:
    """A tensor of an array, which may be read-only."""
    contiguous = np.asarray(array, order="C")  # ascontiguousarray would give a scalar an axis
    return torch.from_numpy(contiguous if contiguous.flags.writeable else contiguous.copy())
