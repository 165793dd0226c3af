"""2:4 sparsity: in every four consecutive inputs of a row two weights are zero, which GPUs since Ampere run faster.

Mishra et al., "Accelerating Sparse Deep Neural Networks" (2021, arXiv 2104.08378): the two of largest magnitude stay.
How much of the magnitude stays depends on which inputs stand together; where their order is free, it is searched for
as in Pool and Yu, "Channel Permutations for N:M Sparsity" (NeurIPS 2021).
"""

from __future__ import annotations

import itertools
from typing import Any, cast

import torch
from torch import Tensor, nn

from edgeattn.errors import InputError, UnsupportedError
from edgeattn.pruning.anatomy import Anatomy, Slice, Unit
from edgeattn.pruning.cut import Cut, groups_kept, linears, moved
from edgeattn.pruning.forms import kv_heads, low_rank
from edgeattn.pruning.forms.form import Change, Form, Planning, some, with_weights
from edgeattn.pruning.linear import dense, linear_at, owners, reorder
from edgeattn.targets import supports_2_4

FIELD = "sparse"
"""Paths of linear layers whose weight has two zeros in every four inputs."""
PATTERN = "2:4"
KEPT, GROUP = 2, 4
ROUNDS = 64  # of the search at most: what is gained comes early, and a round's work grows with the square of the inputs
BLOCK = 2**22  # numbers of one intermediate of the search: 16 MiB, about what a cache holds


def mask_2_4(weight: Tensor) -> Tensor:
    """Which weights stay: the two of largest magnitude of every four inputs, the first of equal ones.

    Args:
        weight: (outputs, inputs), inputs divisible by four.

    Returns:
        bool, the same shape, exactly two in every four true.
    """
    split = weight.detach().abs().reshape(-1, GROUP)
    places = split.sort(dim=1, descending=True, stable=True).indices[:, :KEPT]
    mask = torch.zeros_like(split, dtype=torch.bool).scatter_(1, places, True)
    return mask.reshape(weight.shape)


def kept_magnitude(weight: Tensor) -> float:
    """Sum of the magnitudes that :func:`mask_2_4` keeps, in float64."""
    return float((weight.detach().abs().double() * mask_2_4(weight)).sum())


def channel_order(weight: Tensor, rounds: int = ROUNDS) -> Tensor:
    """An order of the inputs in which 2:4 keeps more of the magnitude, never less than as they stand.

    Groups of four meet in pairs, each with each; the eight inputs of two are divided again in the best of the 35 ways.
    This ends when no pair gains any more, or after that many rounds.

    Args:
        weight: (outputs, inputs), inputs divisible by four.
        rounds: in each of which every group meets one other, at most.

    Returns:
        int64, (inputs,): a permutation of the inputs.
    """
    columns = weight.detach().abs().float().T.contiguous()
    order = torch.arange(len(columns)).reshape(-1, GROUP)
    changed = torch.zeros(len(order), dtype=torch.int64)  # the round in which a group changed last
    met = torch.full((len(order), len(order)), -1)  # the round in which two met last
    idle = 0
    for number in range(rounds):
        if idle == _meetings(len(order)):
            break
        pairs = _round(len(order), number)
        one, other = pairs.T
        pairs = pairs[torch.maximum(changed[one], changed[other]) > met[one, other]]
        idle += 1
        if len(pairs):
            eight = order[pairs].reshape(len(pairs), 2 * GROUP)
            best, gains = _divide(columns, eight)
            order[pairs[gains]] = best[gains].reshape(-1, 2, GROUP)
            met[pairs[:, 0], pairs[:, 1]] = number
            # A gain makes both new to all others, not to each other: of eight the best division is found at once.
            changed[pairs[gains]] = number
            idle = 0 if gains.any() else idle
    found = order.reshape(-1)
    better = kept_magnitude(weight[:, found]) > kept_magnitude(weight)
    return found if better else torch.arange(len(found))


def _meetings(groups: int) -> int:
    """Rounds in which each of that many groups meets each other once."""
    return groups - 1 + groups % 2


def _round(groups: int, number: int) -> Tensor:
    """Pairs of a round of a round-robin tournament, (pairs, 2)."""
    even = groups + groups % 2
    circle = [0, *(1 + (place + number) % (even - 1) for place in range(even - 1))] if even > 1 else []
    pairs = [(circle[place], circle[-1 - place]) for place in range(even // 2)]
    return torch.tensor([pair for pair in pairs if max(pair) < groups], dtype=torch.int64).reshape(-1, 2)


PAIRS = tuple(itertools.combinations(range(2 * GROUP), 2))
HALVES = tuple(
    half
    for first in itertools.combinations(range(2 * GROUP), GROUP)
    if 0 in first
    for half in (first, tuple(place for place in range(2 * GROUP) if place not in first))
)
"""The 35 ways to divide eight into two groups of four, one group after the other; the way they stand is first."""


def _divide(columns: Tensor, eight: Tensor) -> tuple[Tensor, Tensor]:
    """The best division of each eight inputs, (pairs, 8), and whether it keeps more than the present one, (pairs,).

    Args:
        columns: magnitudes, (inputs, outputs).
    """
    one, other = torch.tensor(PAIRS).T
    low = torch.tensor([PAIRS.index((half[0], half[1])) for half in HALVES])
    high = torch.tensor([PAIRS.index((half[2], half[3])) for half in HALVES])
    kept = torch.zeros(len(HALVES), len(eight), dtype=torch.float64)
    rows = max(1, BLOCK // (len(eight) * len(HALVES)))
    for start in range(0, columns.shape[1], rows):
        block = columns[:, start : start + rows][eight.T]  # 8, pairs, rows
        larger = torch.maximum(block[one], block[other])
        both = block[one] + block[other]
        # the two largest of four are the larger ones of both pairs, or both of one pair
        two = torch.maximum(larger[low] + larger[high], torch.maximum(both[low], both[high]))
        kept += two.sum(-1)
    of_division = kept.T.reshape(len(eight), -1, 2).sum(-1)
    most, choice = of_division.max(1)
    orders = torch.tensor(HALVES).reshape(-1, 2 * GROUP)
    return eight.gather(1, orders[choice]), most > of_division[:, 0] * (1 + 1e-6)


def sparsify(
    network: nn.Module, anatomy: Anatomy, cut: Cut, permute: bool = True, shapes_only: bool = False
) -> dict[str, Tensor]:
    """Make the layers that a cut names 2:4 sparse, in place.

    Args:
        network: with the cut's groups and layers removed and heads merged already; the cut names paths of the original.
        permute: first put the neurons of a feed-forward, and the entries of each value head, in an order that keeps
            more, where the layer that they leave through is among those named. It changes nothing that is computed.
        shapes_only: check the layers and change nothing, for a network whose weights are loaded afterwards: sparse
            weights have the shapes and names of dense ones.

    Returns:
        path of the original -> the weight as it was before masking, in the order of before the permutation, with the
        removed weights zero, (outputs, inputs): what the sparse network computes.

    Raises:
        InputError: if a path is no linear layer or has a number of inputs that four does not divide, or a weight is
            tied.
    """
    check(anatomy, cut)
    layers = {path: linear_at(network, cast(str, moved(cut, path))) for path in sparse(anatomy, cut)}
    for path, layer in layers.items():
        inputs = dense(layer).shape[1]
        if inputs % GROUP:
            raise InputError(f"{path}: it has {inputs} inputs, 2:4 sparsity needs a multiple of {GROUP}; leave it out")
        names = owners(network, cast(Tensor, layer.weight))
        if len(names) > 1:
            raise InputError(f"{path}: its weight is tied ({', '.join(names)}); it cannot be made sparse")
    if shapes_only:
        return {}
    before = {path: dense(layer).clone() for path, layer in layers.items()}
    places = {path: _identity(weight) for path, weight in before.items()}
    if permute:
        for unit in anatomy.units:
            if unit.exit in layers:
                _permute(network, anatomy, cut, unit, places)
    for path, layer in layers.items():
        with torch.no_grad():
            weight = dense(layer)
            mask = mask_2_4(weight)
            weight.mul_(mask)
            rows, columns = places[path]
            before[path][rows[:, None], columns[None, :]] = weight
    return before


def _identity(weight: Tensor) -> tuple[Tensor, Tensor]:
    outputs, inputs = weight.shape
    return torch.arange(outputs), torch.arange(inputs)


def _permute(
    network: nn.Module, anatomy: Anatomy, cut: Cut, unit: Unit, places: dict[str, tuple[Tensor, Tensor]]
) -> None:
    """Put what enters a unit's exit in the order that keeps most, and follow it in the layers that make it.

    Args:
        places: path of a layer that becomes sparse -> where its rows and columns came from; changed.
    """
    pieces = free_slices(cut, unit)
    tensors = [getattr(network.get_submodule(cast(str, moved(cut, p.module))), p.tensor, None) for p in pieces]
    # A layer that became two has no weight, and the order of a tied one is not free.
    if not pieces or not all(isinstance(t, Tensor) and len(owners(network, t)) == 1 for t in tensors):
        return
    weight = dense(network.get_submodule(cast(str, moved(cut, unit.exit))))
    width = unit.head_dim if unit.kind == "attention" else weight.shape[1]
    parts = range(0, weight.shape[1], width)
    order = torch.cat([start + channel_order(weight[:, start : start + width]) for start in parts])
    stay = groups_kept(anatomy, cut, unit.key)
    for piece, tensor in zip(pieces, tensors, strict=True):
        start = piece.start * stay // unit.groups  # the sections before it were cut as this one was
        reorder(cast(Tensor, tensor), piece.axis, start, order)
        if piece.tensor == "weight" and piece.module in places:
            rows, columns = places[piece.module]
            if piece.module == unit.exit:
                places[piece.module] = rows, columns[order]
            else:
                reorder(rows, 0, start, order)


def free_slices(cut: Cut, unit: Unit) -> tuple[Slice, ...]:
    """Slices whose entries may change places together: all of a feed-forward; values and exit of an attention.

    Of an attention within each head only, and none where query heads share a value head: all of them would have to
    follow it. None of cross-attention either, whose values may be handed from one graph to another, nor of blocks that
    share weights.
    """
    if unit.kind == "feedforward":
        return unit.slices
    values = [piece for piece in unit.slices if unit.entries and piece.module == unit.entries[-1]]
    if (
        not values
        or unit.cross
        or unit.tied
        or unit.key in cut.forms.get(kv_heads.FIELD, {})
        or unit.width != unit.head_dim
        or unit.head_dim % GROUP
    ):
        return ()
    last = max(piece.start for piece in values)  # a packed layer holds the values last
    exits = [piece for piece in unit.slices if piece.module == unit.exit and piece.tensor == "weight"]
    return (*(piece for piece in values if piece.start == last), *exits)


# --- the form ---------------------------------------------------------------------------------------------------------


def parse(text: str) -> str:
    """The one pattern that there is.

    Raises:
        InputError: for another.
    """
    if text != PATTERN:
        raise InputError(f"sparsity must be {PATTERN}, got {text!r}")
    return text


def plan(_: str, cut: Cut, planning: Planning) -> Cut:
    """Every projection of a unit that stays whose inputs four divides.

    Raises:
        UnsupportedError: for a target without kernels for it.
    """
    capability = planning.target.compute_capability
    if capability is None or not supports_2_4(capability):
        raise UnsupportedError(
            f"{planning.target.name} has no kernels for 2:4 sparsity, which NVIDIA GPUs from compute capability 8.0 on "
            "have; leave sparsity out for it"
        )
    network = planning.given.network
    paths = linears(planning.given.anatomy, cut)
    return cut.with_part(FIELD, tuple(p for p in paths if dense(linear_at(network, p)).shape[1] % GROUP == 0))


def check(_: Anatomy, cut: Cut) -> None:
    """Refuse layers that are named twice, or get a low rank too.

    Raises:
        InputError: naming the layer.
    """
    paths: tuple[str, ...] = cut.forms.get(FIELD, ())
    both = [path for path in cut.forms.get(low_rank.FIELD, {}) if path in paths]
    if both:
        raise InputError(f"{both[0]}: it is asked to be of low rank and 2:4 sparse; take one of them")
    twice = [path for number, path in enumerate(paths) if path in paths[:number]]
    if twice:
        raise InputError(f"{twice[0]}: it is named twice among the sparse layers")


def sparse(_: Anatomy, cut: Cut) -> tuple[str, ...]:
    """Paths of the original, of layers that stay."""
    return tuple(path for path in cut.forms.get(FIELD, ()) if moved(cut, path) is not None)


def apply(network: nn.Module, anatomy: Anatomy, cut: Cut, _: Any = None) -> Change:
    """Make sparse in place; gives the dense weights that compute the same."""
    weights = sparsify(network, anatomy, cut)
    return Change({cast(str, moved(cut, path)): (weight, None) for path, weight in weights.items()})


def shape(network: nn.Module, anatomy: Anatomy, cut: Cut) -> None:
    """Nothing but a look whether the layers can be sparse."""
    sparsify(network, anatomy, cut, shapes_only=True)


def words(_: nn.Module, anatomy: Anatomy, cut: Cut) -> str:
    """For errors."""
    return f"once {some(sparse(anatomy, cut))} are sparse"


def _paths(data: Any) -> tuple[str, ...]:
    """JSON back."""
    return tuple(str(path) for path in data)


SPARSITY = Form(
    key="sparsity", field=FIELD, empty=[], parse=parse, plan=plan, check=check, stays=sparse, apply=apply, shape=shape,
    oracle=with_weights, words=words, to_json=list, from_json=_paths,
)  # fmt: skip
