"""The other forms of cutting, after groups and layers are gone: merged heads, low rank, 2:4 and less left context.

They change what a network computes, so that masking is no oracle of them. Instead each is compared with the network
before it whose weights were replaced by what the form says they are: the means of merged heads repeated, the product of
two layers, zeros where 2:4 has them; and a shorter context with the whole one whose dropped frames are hidden.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import numpy as np
from torch import Tensor, nn

from edgeattn.errors import UnsupportedError
from edgeattn.model import EdgeModel
from edgeattn.pruning.anatomy import Anatomy
from edgeattn.pruning.context import shorten
from edgeattn.pruning.cut import Cut, moved, without_dropped
from edgeattn.pruning.grouped import merge, projections, repeated_means
from edgeattn.pruning.linear import bias_of, dense, linear_at
from edgeattn.pruning.lowrank import LowRank, factorise, product
from edgeattn.pruning.sparsity import sparsify
from edgeattn.spec import HIDDEN


@dataclass(frozen=True)
class Guide:
    """What makes the forms lose less; none of it changes a shape.

    Attributes:
        moments: linear layer's path -> second moments of its inputs once groups and layers are gone, (inputs, inputs).
        orders: attention's key -> the order in which its key/value heads are merged; see ``grouped.grouping``.
    """

    moments: Mapping[str, Tensor] = field(default_factory=dict)
    orders: Mapping[str, Sequence[int]] = field(default_factory=dict)


def has_forms(cut: Cut) -> bool:
    """Whether a cut asks for more than removing groups and layers."""
    return bool(cut.merged or cut.ranks or cut.sparse) or cut.left is not None


def shape_forms(network: nn.Module, anatomy: Anatomy, cut: Cut) -> None:
    """Give a network the modules and shapes that a cut's forms have, in place, for weights that are loaded afterwards.

    Args:
        network: the original with the cut's groups and layers removed.

    Raises:
        InputError: if the cut does not fit.
        UnsupportedError: if a block cannot merge heads.
    """
    merge(network, anatomy, cut)
    factorise(network, anatomy, cut, shapes_only=True)
    sparsify(network, anatomy, cut, shapes_only=True)
    if cut.left is not None:
        shorten(network, cut.left)


def form(
    plain: EdgeModel, anatomy: Anatomy, cut: Cut, guide: Guide | None = None, tolerance: float = 1e-4
) -> EdgeModel:
    """A model with a cut's forms applied and checked.

    Args:
        plain: the model with the cut's groups and layers removed; it keeps its weights.
        anatomy: of the original, whose paths the cut names.
        tolerance: largest difference of an output to the oracle, relative to its largest beyond 1.

    Raises:
        InputError: if the cut does not fit.
        UnsupportedError: if a block cannot be changed so, does not run then, or computes something else.
    """
    chosen = guide or Guide()
    kept = without_dropped(anatomy, cut)
    made = plain
    if any(number < _heads(anatomy, kept, key) for key, number in kept.merged.items()):
        blocks = [
            cast(nn.Module, plain.network).get_submodule(_place(kept, key.partition(":")[2])) for key in kept.merged
        ]
        what = f"once key/value heads of {_some(kept.merged)} ({type(blocks[0]).__name__}) are merged"

        def merging(network: nn.Module) -> Replaced:
            return merged_weights(network, anatomy, kept, chosen.orders)

        made = _changed(made, merging, what, "anew" if chosen.orders else "repeated", tolerance)
    if kept.ranks or kept.sparse:

        def thinning(network: nn.Module) -> Replaced:
            return thin_weights(network, anatomy, kept, chosen.moments)

        what = f"once {_some([*kept.ranks, *kept.sparse])} are of low rank or sparse"
        made = _changed(made, thinning, what, "anew", tolerance)
    if cut.left is not None:
        left = cut.left

        def shortening(network: nn.Module) -> Replaced:
            shorten(network, left)
            return {}

        made = _changed(made, shortening, f"with a left context of {left} frames", "latest", tolerance)
    return made


def _some(places: Iterable[str]) -> str:
    names = [place.partition(":")[2] or place for place in places]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _place(cut: Cut, path: str) -> str:
    return cast(str, moved(cut, path))


def _heads(anatomy: Anatomy, cut: Cut, key: str) -> int:
    return len(cut.groups.get(key, range(anatomy.unit(key).groups)))


# --- oracles ----------------------------------------------------------------------------------------------------------


Replaced = Mapping[str, tuple[Tensor, Tensor | None]]
"""Path of a linear layer -> weight (outputs, inputs) and bias (outputs,) that it has in the oracle, None as it is."""

Fit = Literal["repeated", "latest", "anew"]
"""How a state goes with the one before: its heads serve a group each; it is the end; both start at zero, because what
they hold stands in another order, and what the second step makes of them is compared."""


def merged_weights(network: nn.Module, anatomy: Anatomy, cut: Cut, orders: Mapping[str, Sequence[int]]) -> Replaced:
    """Merge heads in place; gives the key and value layers that compute the same with all heads."""
    replaced: dict[str, tuple[Tensor, Tensor | None]] = {}
    for key, wanted in cut.merged.items():
        heads, order = _heads(anatomy, cut, key), orders.get(key)
        for path in (path for _, *paths in projections(anatomy.unit(key)) for path in paths):
            place = moved(cut, path)
            if place is not None:
                layer = linear_at(network, place)
                bias = bias_of(layer)
                replaced[place] = (
                    repeated_means(dense(layer), heads, wanted, order),
                    None if bias is None else repeated_means(bias.detach(), heads, wanted, order),
                )
    merge(network, anatomy, cut, orders)
    return replaced


def thin_weights(network: nn.Module, anatomy: Anatomy, cut: Cut, moments: Mapping[str, Tensor]) -> Replaced:
    """Factorise and make sparse in place; gives the layers that compute the same with one dense weight each."""
    factorise(network, anatomy, cut, moments)
    layers = {path: cast(LowRank, network.get_submodule(_place(cut, path))) for path in cut.ranks}
    weights = {path: product(layer) for path, layer in layers.items()} | sparsify(network, anatomy, cut)
    return {_place(cut, path): (weight, None) for path, weight in weights.items()}


def _changed(
    before: EdgeModel, change: Callable[[nn.Module], Replaced], what: str, fit: Fit, tolerance: float
) -> EdgeModel:
    """The model of a changed copy, compared with the model before whose weights are replaced."""
    assert before.network is not None, "a model that was cut has a network"
    assert before.rebuild is not None, "a model that was cut can be made again"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch copies its own trees by their old names
        network = copy.deepcopy(before.network)
    replaced = change(network)
    try:
        after = before.rebuild(network)
        with with_weights(before.network, replaced):
            difference = _difference(before, after, fit)
    except Exception as error:
        raise UnsupportedError(
            f"{before.spec.name}: the network does not run {what} ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}); leave that out"
        ) from error
    if not difference <= tolerance:
        raise UnsupportedError(
            f"{before.spec.name}: {what}, outputs differ by {difference:.1e} from those that its weights should give: "
            "a block computes otherwise than its layers' names say; leave that out"
        )
    return after


@contextlib.contextmanager
def with_weights(network: nn.Module, replaced: Replaced) -> Iterator[None]:
    """While open, linear layers of a network have other weights of the same shape."""
    places: list[tuple[Tensor, Tensor]] = []
    for path, (weight, bias) in replaced.items():
        layer = linear_at(network, path)
        places.append((dense(layer), weight))
        if bias is not None:
            places.append((cast(Tensor, bias_of(layer)).detach(), bias))
    originals = [tensor.clone() for tensor, _ in places]
    for tensor, value in places:
        tensor.copy_(value)
    try:
        yield
    finally:
        for (tensor, _), original in zip(places, originals, strict=True):
            tensor.copy_(original)


def _difference(before: EdgeModel, after: EdgeModel, fit: Fit) -> float:
    """Largest difference of the outputs of two models, relative to their largest beyond 1."""
    worst = 0.0
    for graph in after.spec.graphs:
        example = before.example[graph.name]
        states = {state.input: state.output for state in graph.states} if fit == "anew" else {}
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
            wanted, got = before.run(whole, graph.name), after.run(small, graph.name)
            for name in got.keys() - set(states.values()):
                worst = max(worst, _relative(*_compared(wanted[name], got[name], fit)))
            whole |= {name: wanted[output] for name, output in states.items()}
            small |= {name: got[output] for name, output in states.items()}
    return worst


def _relative(wanted: np.ndarray, got: np.ndarray) -> float:
    """Largest difference, relative to the largest that is wanted beyond 1; 0 for numbers that are not floating."""
    if got.dtype.kind != "f":
        return 0.0
    finite = np.isfinite(wanted)
    scale = max(1.0, float(np.abs(wanted[finite]).max(initial=0.0)))
    return float(np.abs(got - wanted)[finite].max(initial=0.0)) / scale


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
    """Outputs of both models in one shape; of what cannot be compared nothing is left."""
    if wanted.shape == got.shape:
        return wanted, got
    if fit == "latest":
        return _end(wanted, got.shape), got
    return (wanted, _repeated(got, wanted.shape)) if fit == "repeated" else (wanted[:0], wanted[:0])


def _end(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return value[tuple(slice(have - want, None) for have, want in zip(value.shape, shape, strict=True))]


def _repeated(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    for axis, many in enumerate(shape):
        value = np.repeat(value, many // value.shape[axis], axis)
    return value
