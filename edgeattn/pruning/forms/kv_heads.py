"""Key/value heads: those of a group become one, their mean, so that multi-head attention is grouped-query attention.

After Ainslie et al., "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints" (2023,
arXiv 2305.13245), section 2.1: the projections of the key and value heads of each group are mean-pooled. Queries stay.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from edgeattn.errors import InputError, UnsupportedError, unknown_name
from edgeattn.pruning.anatomy import Anatomy, Unit
from edgeattn.pruning.cut import Cut, groups_kept, moved, staying
from edgeattn.pruning.forms.form import Change, Form, Planning, Study, count, counts, some, with_weights
from edgeattn.pruning.linear import bias_of, dense, fresh_parameter, linear_at, owners, reorder

FIELD = "merged"
"""Attention's key -> key/value heads that the heads which stay are merged into."""

KEYS_BY_HEADS = ("WhisperAttention",)
"""Classes of transformers that view keys and values, and nothing else, with ``num_heads``."""


def plan(asked: int, cut: Cut, planning: Planning) -> Cut:
    """Every attention that has more heads than were asked for has that many."""
    anatomy = planning.given.anatomy
    stay = staying(anatomy, cut)
    keys = [unit.key for unit in anatomy.units if unit.kind == "attention" and unit.key in stay]
    return cut.with_part(FIELD, {key: asked for key in keys if groups_kept(anatomy, cut, key) > asked})


def check(anatomy: Anatomy, cut: Cut) -> None:
    """Refuse units without key/value heads, and numbers of heads that do not divide those that stay.

    Raises:
        InputError: naming the unit, what was asked and what is valid.
    """
    for key, heads in cut.forms.get(FIELD, {}).items():
        if key not in {unit.key for unit in anatomy.units}:
            raise InputError(unknown_name("unit", key, [unit.key for unit in anatomy.units]))
        unit = anatomy.unit(key)
        if unit.kind != "attention":
            raise InputError(f"{unit.path}: a feed-forward has no key/value heads to merge")
        there = groups_kept(anatomy, cut, key)
        valid = [number for number in range(1, there + 1) if there % number == 0]
        if heads not in valid:
            raise InputError(
                f"{unit.path}: {there} heads cannot be merged into {heads} of equal groups; "
                f"valid: {', '.join(map(str, valid))}"
            )


def merged(anatomy: Anatomy, cut: Cut) -> dict[str, int]:
    """Attention's key -> heads that it has afterwards, of layers that stay and where that is fewer."""
    stay = staying(anatomy, cut)
    asked: Mapping[str, int] = cut.forms.get(FIELD, {})
    return {key: n for key, n in asked.items() if key in stay and n < groups_kept(anatomy, cut, key)}


def study(asked: Study) -> dict[str, tuple[int, ...]]:
    """Attention's key -> the order in which its heads are merged: similar ones side by side."""
    given, cut = asked.given, asked.cut
    return {
        key: grouping(given.network, given.anatomy.unit(key), heads, cut.groups.get(key))
        for key, heads in merged(given.anatomy, cut).items()
    }


def apply(network: nn.Module, anatomy: Anatomy, cut: Cut, orders: Mapping[str, Sequence[int]] | None) -> Change:
    """Merge heads in place; gives the key and value layers that compute the same with all heads."""
    weights: dict[str, tuple[Tensor, Tensor | None]] = {}
    for key, wanted in merged(anatomy, cut).items():
        heads, order = groups_kept(anatomy, cut, key), (orders or {}).get(key)
        for path in (path for _, *paths in projections(anatomy.unit(key)) for path in paths):
            place = moved(cut, path)
            if place is not None:
                layer = linear_at(network, place)
                bias = bias_of(layer)
                weights[place] = (
                    repeated_means(dense(layer), heads, wanted, order),
                    None if bias is None else repeated_means(bias.detach(), heads, wanted, order),
                )
    merge(network, anatomy, cut, orders)
    return Change(weights, "fresh" if orders else "repeated")


def words(network: nn.Module, anatomy: Anatomy, cut: Cut) -> str:
    """For errors: with the class of the first block."""
    paths = [anatomy.unit(key).path for key in merged(anatomy, cut)]
    block = network.get_submodule(cast(str, moved(cut, paths[0])))
    return f"once key/value heads of {some(paths)} ({type(block).__name__}) are merged"


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
    check(anatomy, cut)
    for key, wanted in merged(anatomy, cut).items():
        unit, heads = anatomy.unit(key), groups_kept(anatomy, cut, key)
        order = None if orders is None else orders.get(key)
        if order is not None and sorted(order) != list(range(heads)):
            raise InputError(f"{unit.path}: an order names each of its {heads} key/value heads once, got {list(order)}")
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
        InputError: if the heads do not divide into that many groups.
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


KV_HEADS = Form(
    key="kv-heads", field=FIELD, empty={}, parse=count("kv-heads"), plan=plan, check=check, stays=merged, study=study,
    apply=apply, shape=merge, oracle=with_weights, words=words, to_json=dict, from_json=counts,
)  # fmt: skip
