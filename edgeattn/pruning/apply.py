"""A model with a cut applied: copied, cut, made a model again, and compared with the masked original."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from edgeattn.errors import UnsupportedError
from edgeattn.model import EdgeModel
from edgeattn.pruning.anatomy import Anatomy, masked, skipped
from edgeattn.pruning.cut import Cut, without_dropped
from edgeattn.pruning.families import find
from edgeattn.pruning.surgery import remove

ORACLE = 1e-4  # largest difference of an output of the pruned and the masked network, relative to its largest beyond 1


@dataclass(frozen=True)
class Subject:
    """A model that can be cut, and what was found in it.

    Attributes:
        model: the source; where it holds ``nn.MultiheadAttention``, a copy with a block that can be cut.
    """

    model: EdgeModel
    anatomy: Anatomy

    @property
    def network(self) -> nn.Module:
        """The module that is cut."""
        assert self.model.network is not None, "checked by subject()"
        return self.model.network


def subject(model: EdgeModel) -> Subject:
    """Look for what can be cut.

    Raises:
        UnsupportedError: for a model without modules of its own, or in which nothing is found.
    """
    if model.network is None or model.rebuild is None:
        raise UnsupportedError(
            f"{model.spec.name}: it came as a graph, whose heads and neurons have no names any more; prune the torch "
            "module or the Hugging Face directory that it was exported from. Quantizing and converting it still work"
        )
    anatomy = find(model.network)
    if not anatomy.units:
        what = "; ".join(f"{found.path} ({found.kind}): {found.why}" for found in anatomy.unknown)
        raise UnsupportedError(f"{model.spec.name}: no attention block or feed-forward was found{what and ': ' + what}")
    return Subject(model, anatomy)


def copied(network: nn.Module) -> nn.Module:
    """A copy of a network; the original keeps its weights.

    Raises:
        UnsupportedError: if it cannot be copied.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch copies its own trees by their old names
            return copy.deepcopy(network)
    except Exception as error:
        raise UnsupportedError(
            f"the network cannot be copied ({type(error).__name__}: {error}); pruning needs a module that "
            "copy.deepcopy takes"
        ) from error


def prune(given: Subject, cut: Cut) -> EdgeModel:
    """The model with a cut applied; its outputs are those of the original with what was cut masked to zero.

    Raises:
        InputError: if the cut does not fit.
        UnsupportedError: if the pruned network does not run, or computes something else than the masked one: the family
            of the block is not understood, and nothing of it is kept.
    """
    network = copied(given.network)
    remove(network, given.anatomy, cut)
    assert given.model.rebuild is not None, "checked by subject()"
    try:
        pruned = given.model.rebuild(network)
        difference = oracle_difference(given, cut, pruned)
    except Exception as error:
        raise UnsupportedError(
            f"{given.model.spec.name}: the network does not run once {described(cut)} are cut "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); it is left whole"
        ) from error
    if not difference <= ORACLE:
        raise UnsupportedError(
            f"{given.model.spec.name}: once {described(cut)} are cut, outputs differ from those with the same parts "
            f"masked by {difference:.1e}: a block computes otherwise than its layers' names say; it is left whole"
        )
    return pruned


def described(cut: Cut) -> str:
    """The places of a cut, in words."""
    places = [*(key.partition(":")[2] for key in cut.groups), *cut.layers]
    more = f" and {len(places) - 4} more" if len(places) > 4 else ""
    return f"{', '.join(places[:4])}{more}" or "no parts"


def oracle_difference(given: Subject, cut: Cut, pruned: EdgeModel) -> float:
    """The largest difference to the masked original over all outputs that both have, relative to the largest beyond 1.

    Inputs are the original's example. A state that changed its size starts at zero in both; where layers are left out,
    and the states of the others with them have other names, all do, and next states are not compared.
    """
    worst = 0.0
    for graph in pruned.spec.graphs:
        states = {state.input for state in graph.states} if cut.layers else set()
        example = given.model.example[graph.name]
        shapes = {tensor.name: tensor.shape for tensor in graph.all_inputs}
        whole, smaller = {}, {}
        for name, value in example.items():
            same = name not in states and shapes.get(name) == value.shape
            whole[name] = value if same else np.zeros_like(value)
        for tensor in graph.all_inputs:
            same = tensor.name not in states and whole[tensor.name].shape == tensor.shape
            smaller[tensor.name] = whole[tensor.name] if same else np.zeros(tensor.shape, tensor.dtype)
        with masked_cut(given, cut):
            wanted = given.model.run(whole, graph.name)
        for name, got in pruned.run(smaller, graph.name).items():
            other = wanted[name]
            moved = cut.layers and name in {state.output for state in graph.states}
            if not moved and other.shape == got.shape and got.dtype.kind == "f":
                scale = max(1.0, float(np.abs(other[np.isfinite(other)]).max(initial=0.0)))
                worst = max(worst, float(np.abs(got - other)[np.isfinite(other)].max(initial=0.0)) / scale)
    return worst


@contextlib.contextmanager
def masked_cut(given: Subject, cut: Cut) -> Iterator[None]:
    """While open, what a cut removes is masked in the original."""
    masks = cut_masks(given.anatomy, without_dropped(given.anatomy, cut))
    gone = {
        path: tuple(number for number in range(given.anatomy.stack(path).layers) if number not in kept)
        for path, kept in cut.layers.items()
    }
    with masked(given.network, given.anatomy, masks), skipped(given.network, gone):
        yield


def cut_masks(anatomy: Anatomy, cut: Cut) -> dict[str, torch.Tensor]:
    """Unit's key -> (groups,), 1 where a group stays."""
    masks: dict[str, torch.Tensor] = {}
    for key, kept in cut.groups.items():
        mask = torch.zeros(anatomy.unit(key).groups)
        mask[list(kept)] = 1.0
        masks[key] = mask
    return masks
