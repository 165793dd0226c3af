"""Grouped-query attention from multi-head attention: key/value heads of a group become one, their mean.

After Ainslie et al., "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints" (2023,
arXiv 2305.13245), section 2.1: the projections of the key and value heads of each group are mean-pooled. Queries stay.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from edgeattn.errors import InputError, UnsupportedError
from edgeattn.pruning.anatomy import Anatomy, Unit
from edgeattn.pruning.cut import Cut, check_cut, moved, without_dropped
from edgeattn.pruning.linear import bias_of, dense, fresh_parameter, owners, reorder

KEYS_BY_HEADS = ("WhisperAttention",)
"""Classes of transformers that view keys and values, and nothing else, with ``num_heads``."""


def merge(network: nn.Module, anatomy: Anatomy, cut: Cut, orders: Mapping[str, Sequence[int]] | None = None) -> None:
    """Merge key/value heads as a cut says, in place.

    Args:
        network: with the cut's groups and layers removed already; the cut names units of the original.
        orders: attention's key -> its key/value heads, numbered as they are in this network, in the order in which
            consecutive ones are merged: see :func:`grouping`. By default they are merged as they stand.

    Raises:
        InputError: if the cut or an order does not fit.
        UnsupportedError: naming the class of a block that cannot share a key/value head between query heads.
    """
    check_cut(anatomy, cut)
    for key, wanted in without_dropped(anatomy, cut).merged.items():
        unit = anatomy.unit(key)
        heads = len(cut.groups.get(key, range(unit.groups)))
        order = None if orders is None else orders.get(key)
        if order is not None and sorted(order) != list(range(heads)):
            raise InputError(f"{unit.path}: an order names each of its {heads} key/value heads once, got {list(order)}")
        if wanted == heads:
            continue
        blocks = list(_blocks(network, cut, unit))
        for block, _, _ in blocks:
            _share(unit, block, heads // wanted)
        if order is not None:
            _reorder(network, cut, unit, torch.tensor(order))
        for layer in (layer for _, *layers in blocks for layer in layers):
            weight, bias = dense(layer), bias_of(layer)
            layer.weight = fresh_parameter(cast(Tensor, layer.weight), _means(weight, heads, wanted))
            if bias is not None:
                layer.bias = fresh_parameter(bias, _means(bias.detach(), heads, wanted))
            cast(nn.Linear, layer).out_features = len(layer.weight)


def _blocks(network: nn.Module, cut: Cut, unit: Unit) -> Iterator[tuple[nn.Module, nn.Module, nn.Module]]:
    """The attention blocks of a unit, several where they share weights, each with its key and value projection."""
    for query, *paths in projections(unit):
        place = moved(cut, query)
        if place is None:  # of a layer that is left out
            continue
        block = network.get_submodule(place.rpartition(".")[0])
        layers = [network.get_submodule(cast(str, moved(cut, path))) for path in paths]
        for path, layer in zip(paths, layers, strict=True):
            if not isinstance(layer, nn.Linear):
                raise UnsupportedError(
                    f"{path} ({type(layer).__name__}): it is no plain linear layer; its heads cannot be merged"
                )
            names = owners(network, layer.weight)
            if len(names) > 1:
                raise UnsupportedError(f"{path}: the weights {', '.join(names)} are tied; its heads cannot be merged")
        yield block, layers[0], layers[1]


def projections(unit: Unit) -> tuple[tuple[str, str, str], ...]:
    """Paths of the query, key and value projections of each block of an attention unit.

    Raises:
        UnsupportedError: where one layer makes several of them.
    """
    if len(unit.entries) % 3 or not unit.entries:
        raise UnsupportedError(
            f"{unit.path}: queries, keys and values do not come from three linear layers of their own ({unit.family}); "
            "its key/value heads cannot be merged"
        )
    return tuple(zip(unit.entries[::3], unit.entries[1::3], unit.entries[2::3], strict=True))


def _share(unit: Unit, block: nn.Module, factor: int) -> None:
    """Tell a block that ``factor`` times as many query heads as before share a key/value head."""
    state: Any = block
    implementation = getattr(getattr(block, "config", None), "_attn_implementation", None)
    if isinstance(getattr(block, "kv_heads", None), int):
        return  # it counts its key/value heads by the rows of its key projection
    if isinstance(getattr(block, "num_key_value_groups", None), int):
        state.num_key_value_groups *= factor
    elif implementation == "sdpa":
        # transformers.integrations.sdpa_attention repeats keys and values for a block that has this
        state.num_key_value_groups = factor * unit.heads // unit.groups
        if type(block).__name__ in KEYS_BY_HEADS:
            state.num_heads //= factor
    elif not isinstance(getattr(block, "num_key_value_heads", None), int):
        raise UnsupportedError(
            f"{unit.path} ({type(block).__name__}): its attention {f'({implementation}) ' if implementation else ''}"
            "takes as many key/value heads as query heads; they cannot be merged. Blocks of edgeattn, torch's own and "
            "those of transformers that run through sdpa can"
        )
    if isinstance(getattr(block, "num_key_value_heads", None), int):
        state.num_key_value_heads //= factor


def _reorder(network: nn.Module, cut: Cut, unit: Unit, order: Tensor) -> None:
    """Put the heads of a unit in another order, which changes nothing that it computes."""
    done = set()
    for piece in unit.slices:
        place = moved(cut, piece.module)
        if place is None:
            continue
        tensor = getattr(network.get_submodule(place), piece.tensor)
        if (id(tensor), piece.axis, piece.start) not in done:  # a shared one is put in order once
            done.add((id(tensor), piece.axis, piece.start))
            rows = (order[:, None] * piece.width + torch.arange(piece.width)[None, :]).reshape(-1)
            reorder(tensor, piece.axis, piece.start, rows)


def _means(rows: Tensor, heads: int, wanted: int) -> Tensor:
    """(heads * d, ...) -> (wanted * d, ...): the mean of consecutive heads."""
    width = len(rows) // heads
    return rows.reshape(wanted, heads // wanted, width, *rows.shape[1:]).mean(1).reshape(-1, *rows.shape[1:])


def repeated_means(rows: Tensor, heads: int, wanted: int, order: Sequence[int] | None = None) -> Tensor:
    """Weights of as many heads as before, of which those of a group are equal: what merged heads compute.

    Args:
        rows: weight or bias of a key or value projection, (heads * d, ...).
        order: see :func:`merge`.

    Returns:
        the same shape as ``rows``, heads where they were.
    """
    places = torch.arange(heads) if order is None else torch.tensor(order)
    split = rows.reshape(heads, -1, *rows.shape[1:])
    means = _means(split[places].reshape(rows.shape), heads, wanted).reshape(wanted, -1, *rows.shape[1:])
    made = torch.empty_like(split)
    made[places] = means.repeat_interleave(heads // wanted, 0)
    return made.reshape(rows.shape)


def grouping(network: nn.Module, unit: Unit, wanted: int, kept: Sequence[int] | None = None) -> tuple[int, ...]:
    """An order of key/value heads in which those that are merged lose least: similar weights become neighbours.

    The loss is the sum of squared distances of the key and value weights from the means of their groups. Starting from
    the heads as they stand, two of different groups change places as long as that helps: never worse than the start.

    Args:
        network: that the unit was found in, before anything is removed.
        unit: an attention.
        wanted: key/value heads that are left.
        kept: key/value heads that stay before the others are merged, ascending; None for all.

    Returns:
        positions in ``kept``, of which each ``len(kept) / wanted`` consecutive ones are merged, ascending in each.

    Raises:
        InputError: if the heads do not divide into so many groups.
        UnsupportedError: if keys and values have no layers of their own.
    """
    chosen = list(range(unit.groups) if kept is None else kept)
    if wanted < 1 or len(chosen) % wanted:
        raise InputError(f"{unit.path}: {len(chosen)} heads do not divide into {wanted} equal groups")
    list(_blocks(network, Cut(), unit))
    heads = head_weights(network, unit)[chosen]
    products = heads @ heads.T
    size = len(chosen) // wanted
    groups = [list(range(start, start + size)) for start in range(0, len(chosen), size)]

    def similar(members: Sequence[int]) -> float:
        # the sum of squares of all weights is constant: what a group keeps of it is that of its mean
        index = torch.tensor(members)
        return float(products[index[:, None], index[None, :]].sum()) / size

    improved = True
    while improved:
        improved = False
        for a, b in itertools.combinations(range(wanted), 2):
            before = similar(groups[a]) + similar(groups[b])
            for i, j in itertools.product(range(size), range(size)):
                one, other = list(groups[a]), list(groups[b])
                one[i], other[j] = other[j], one[i]
                after = similar(one) + similar(other)
                if after > before * (1 + 1e-9):
                    groups[a], groups[b], before, improved = one, other, after, True
    return tuple(head for group in sorted(sorted(group) for group in groups) for head in group)


def head_weights(network: nn.Module, unit: Unit) -> Tensor:
    """Key and value weights, biases included, of each key/value head: (groups, numbers), float64."""
    parts = []
    for layer in (network.get_submodule(path) for _, *paths in projections(unit) for path in paths):
        bias = bias_of(layer)
        parts.append(dense(layer).double().reshape(unit.groups, -1))
        if bias is not None:
            parts.append(bias.detach().double().reshape(unit.groups, -1))
    return torch.cat(parts, 1)
