"""Calls of a model with gradients, several samples at once where it treats those of a batch apart."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeattn.distillation import Tensors, training
from edgeattn.model import Arrays, one_thread
from edgeattn.pruning.anatomy import Prunable, masked

SAME = 1e-4  # largest difference of outputs in a batch and alone, relative to their largest beyond 1


@contextlib.contextmanager
def measuring(given: Prunable) -> Iterator[None]:
    """Gradients on; torch's fast path of attention, which passes masks by, off; one thread for streams."""
    few = one_thread() if given.model.spec.stream is not None else contextlib.nullcontext()
    with training(), few:
        yield


def call(given: Prunable, graph: str, inputs: Tensors) -> Tensors:
    """Float outputs and next states of one call, gradients kept."""
    names = {tensor.name for tensor in given.model.spec.graph(graph).all_inputs}
    outputs = given.model.modules[graph](**{name: value for name, value in inputs.items() if name in names})
    return {name: value for name, value in outputs.items() if value.is_floating_point()}


def tensors(*rows: Arrays) -> tuple[Tensors, int]:
    """One or more samples as a batch along the first axis, and how many."""
    joined = {
        name: torch.from_numpy(
            np.ascontiguousarray(np.concatenate([row[name] for row in rows]) if len(rows) > 1 else rows[0][name]).copy()
        )
        for name in rows[0]
    }
    return joined, len(rows)


def spread_evenly(rows: Sequence[Any], count: int) -> list[Any]:
    """At most ``count`` of them, evenly."""
    taken = min(count, len(rows))
    return [rows[index * len(rows) // taken] for index in range(taken)]


def batches(given: Prunable, graph: str, rows: Sequence[Arrays], most: int) -> list[list[int]]:
    """Numbers of the samples of each call: several where the model treats those of a batch apart, else one by one.

    That it does is tried with masks of their own for two samples: outputs must be those of the two alone.
    """
    if most < 2 or len(rows) < 2 or not _takes_batches(given, graph, rows[0], rows[1]):
        return [[number] for number in range(len(rows))]
    made: list[list[int]] = []
    for number, row in enumerate(rows):
        shapes = {name: value.shape for name, value in row.items()}
        last = made[-1] if made else []
        if last and len(last) < most and shapes == {name: value.shape for name, value in rows[last[0]].items()}:
            last.append(number)
        else:
            made.append([number])
    return made


def _takes_batches(given: Prunable, graph: str, first: Arrays, second: Arrays) -> bool:
    rng = torch.Generator().manual_seed(0)
    masks = {unit.key: torch.rand(2, unit.groups, generator=rng) + 0.5 for unit in given.anatomy.units}
    with contextlib.suppress(Exception), torch.no_grad():  # a graph of one fixed size refuses in a way of its own
        with masked(given.network, given.anatomy, masks):
            both = call(given, graph, tensors(first, second)[0])
        for index, row in enumerate((first, second)):
            with masked(given.network, given.anatomy, {key: mask[index] for key, mask in masks.items()}):
                alone = call(given, graph, tensors(row)[0])
            if not all(_is_part(both[name], value, index) for name, value in alone.items()):
                return False
        return True
    return False


def _is_part(both: Tensor, value: Tensor, index: int) -> bool:
    """Whether a value is one half of that of two samples."""
    if not value.ndim or both.shape != (2 * len(value), *value.shape[1:]):
        return False
    largest = max(1.0, float(value[value.isfinite()].abs().max())) if value.isfinite().any() else 1.0
    return torch.allclose(both[index * len(value) : (index + 1) * len(value)], value, rtol=SAME, atol=SAME * largest)
