"""How far a changed model is from the one that it was made from: the oracle of every cut.

Both run on the example of the one before. What changed its shape is fitted as the change says, so that outputs can be
compared; a graph with states makes two steps where the first one tells little.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from edgeattn.model import EdgeModel
from edgeattn.pruning.anatomy import Anatomy
from edgeattn.pruning.cut import Cut
from edgeattn.pruning.forms.form import Fit
from edgeattn.spec import HIDDEN, GraphSpec

Oracle = Callable[[], contextlib.AbstractContextManager[Any]]
"""While open, the model before computes what the changed one does."""


def masked_difference(before: EdgeModel, after: EdgeModel, oracle: Oracle, anatomy: Anatomy, cut: Cut) -> float:
    """The largest difference to the masked original over all outputs that both have, relative to the largest beyond 1.

    A state that changed its size is zero at first in both. A graph with states makes two steps, the second from what
    the first one left. Infinite where only one of them is not finite.

    Args:
        before: the original.
        after: the same with the groups and layers of ``cut`` removed.
    """
    worst = 0.0
    for graph in after.spec.graphs:
        original = before.spec.graph(graph.name)
        names = names_before(anatomy, cut, original, graph)
        whole, smaller = dict(before.example[graph.name]), {}
        for tensor in graph.all_inputs:
            value = whole[names[tensor.name]]
            if value.shape != tensor.shape:
                whole[names[tensor.name]] = np.zeros_like(value)
                value = np.zeros(tensor.shape, tensor.dtype)
            smaller[tensor.name] = value
        for _ in range(2 if graph.states else 1):
            with oracle():
                wanted = before.run(whole, graph.name)
            got = after.run(smaller, graph.name)
            worst = max(worst, *(_relative(wanted[names[name]], got[name]) for name in graph.output_names), 0.0)
            whole |= {state.input: wanted[state.output] for state in original.states}
            smaller |= {state.input: got[state.output] for state in graph.states}
    return worst


def names_before(anatomy: Anatomy, cut: Cut, original: GraphSpec, graph: GraphSpec) -> dict[str, str]:
    """Name of each input and output -> its name in the original.

    Where there is one for each layer they are numbered, as caches are; without a layer those behind it move up.
    """
    numbers: dict[str, list[dict[str, int]]] = {}
    for which, spec in enumerate((original, graph)):
        for name in (*(tensor.name for tensor in spec.all_inputs), *spec.output_names):
            stem = name.rstrip("0123456789")
            if stem != name:
                numbers.setdefault(stem, [{}, {}])[which][name] = int(name[len(stem) :])
    before = {name: name for name in (*(tensor.name for tensor in graph.all_inputs), *graph.output_names)}
    # The caches of an encoder-decoder are its decoder's.
    stacks = sorted(cut.layers, key=lambda path: "decoder" in path.split("."))
    for stem, (all_names, left) in numbers.items():
        for path in stacks:
            kept, layers = cut.layers[path], anatomy.stack(path).layers
            if set(all_names.values()) == set(range(layers)) and set(left.values()) == set(range(len(kept))):
                before |= {name: f"{stem}{kept[number]}" for name, number in left.items()}
    return before


def fitted_difference(before: EdgeModel, after: EdgeModel, oracle: Oracle, fit: Fit) -> float:
    """Largest difference of the outputs of two models, relative to their largest beyond 1.

    Args:
        before: with the same groups and layers as ``after``.
        fit: how what changed its shape goes together.
    """
    worst = 0.0
    for graph in after.spec.graphs:
        example = before.example[graph.name]
        states = {state.input: state.output for state in graph.states} if fit == "fresh" else {}
        whole, small = {}, {}
        for tensor in graph.all_inputs:
            value = np.zeros_like(example[tensor.name]) if tensor.name in states else example[tensor.name]
            whole[tensor.name], small[tensor.name] = _fitted(value, tensor.shape, fit)
        stream = before.spec.stream
        if stream is not None and fit == "latest" and stream.bias in whole:
            hidden = whole[stream.bias].copy()
            hidden[..., : hidden.shape[-1] - small[stream.bias].shape[-1]] = HIDDEN
            whole[stream.bias] = hidden
        for _ in range(2 if states else 1):
            with oracle():
                wanted = before.run(whole, graph.name)
            got = after.run(small, graph.name)
            for name in got.keys() - set(states.values()):
                worst = max(worst, _relative(*_compared(wanted[name], got[name], fit)))
            whole |= {name: wanted[output] for name, output in states.items()}
            small |= {name: got[output] for name, output in states.items()}
    return worst


def _relative(wanted: np.ndarray, got: np.ndarray) -> float:
    """The largest difference of two outputs, relative to the largest beyond 1; 0 where a cut changed their size."""
    if wanted.shape != got.shape or got.dtype.kind != "f" or not got.size:
        return 0.0
    finite = np.isfinite(wanted)
    if not np.array_equal(finite, np.isfinite(got)):
        return math.inf
    scale = max(1.0, float(np.abs(wanted[finite]).max(initial=0.0)))
    return float(np.abs(wanted[finite] - got[finite]).max(initial=0.0)) / scale


def _fitted(value: np.ndarray, shape: tuple[int, ...], fit: Fit) -> tuple[np.ndarray, np.ndarray]:
    """An input of the model before, and the same of the one after, of ``shape``."""
    if value.shape == shape:
        return value, value
    if fit == "latest":
        return value, _end(value, shape)
    if fit == "repeated":
        small = value[tuple(map(slice, shape))]
        return _repeated(small, value.shape), small
    return np.zeros_like(value), np.zeros(shape, value.dtype)


def _compared(wanted: np.ndarray, got: np.ndarray, fit: Fit) -> tuple[np.ndarray, np.ndarray]:
    """Outputs of both models in one shape; what cannot be compared keeps its own."""
    if wanted.shape == got.shape:
        return wanted, got
    if fit == "latest":
        return _end(wanted, got.shape), got
    return (wanted, _repeated(got, wanted.shape)) if fit == "repeated" else (wanted, got)


def _end(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return value[tuple(slice(have - want, None) for have, want in zip(value.shape, shape, strict=True))]


def _repeated(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    for axis, many in enumerate(shape):
        value = np.repeat(value, many // value.shape[axis], axis)
    return value
