"""Low-rank factorisation: a linear layer becomes two whose product is the best approximation of its weight.

With ``U S V^T`` the singular value decomposition of the weight ``W``, the rank-r matrix nearest to it in the Frobenius
norm keeps the r largest singular values, and the distance is the root of the sum of the squares of the others (Eckart
and Young, 1936). What matters is the distance of the outputs: where the second moments ``C = E[x x^T]`` of the layer's
inputs are known, ``W C^(1/2)`` is decomposed instead (as SVD-LLM does, Wang et al. 2024, arXiv 2403.07378, section
3.1), which minimises the mean square error of the outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from edgeattn.errors import InputError
from edgeattn.pruning.anatomy import Anatomy
from edgeattn.pruning.cut import Cut, linears, moved
from edgeattn.pruning.forms.form import Change, Form, Planning, Study, counts, share, some, with_weights
from edgeattn.pruning.linear import bias_of, dense, linear_at, owners, put
from edgeattn.pruning.moments import second_moments

FIELD = "ranks"
"""Linear layer's path -> rank of the two layers that replace it."""


class LowRank(nn.Module):
    """``second(first(x))`` in the place of one linear layer: (..., inputs) -> (..., outputs).

    Attributes:
        path: of that layer in the original, for errors.
        first: (inputs) -> (rank), without bias.
        second: (rank) -> (outputs), with the bias of the layer.
    """

    def __init__(self, path: str, inputs: int, rank: int, outputs: int, bias: bool, like: Tensor) -> None:
        super().__init__()
        self.path = path
        self.first = nn.Linear(inputs, rank, bias=False, device=like.device, dtype=like.dtype)
        self.second = nn.Linear(rank, outputs, bias=bias, device=like.device, dtype=like.dtype)

    def __getattr__(self, name: str) -> Any:
        if name == "weight":  # T5 asks its feed-forward's for a dtype
            raise AttributeError(f"{self.path}: its owner reads its weight, so that it cannot become two layers")
        return super().__getattr__(name)

    @property
    def in_features(self) -> int:
        """Inputs of the layer that it replaces."""
        return self.first.in_features

    @property
    def out_features(self) -> int:
        """Its outputs."""
        return self.second.out_features

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        y: Tensor = self.second(self.first(x))
        return y


def largest_rank(inputs: int, outputs: int) -> int:
    """The largest rank at which two layers multiply less than one; 0 where none does.

    >>> largest_rank(128, 128), largest_rank(128, 384), largest_rank(64, 1)
    (63, 95, 0)
    """
    return (inputs * outputs - 1) // (inputs + outputs)


def rank_for(layer: nn.Module, share: float, multiple: int = 1) -> int:
    """The largest rank at which two layers multiply at most a share of what the one does.

    Args:
        layer: ``nn.Linear`` or transformers' ``Conv1D``.
        share: of the multiplications that stay, in (0, 1).
        multiple: the rank is a multiple of it, rounded down, where there is one.

    Returns:
        the rank, at least 1; 0 where no rank pays.

    Raises:
        InputError: for a share outside (0, 1).
    """
    if not 0 < share < 1:
        raise InputError(f"a share of the multiplications to keep lies in (0, 1), got {share}")
    outputs, inputs = dense(layer).shape
    most = largest_rank(inputs, outputs)
    rank = min(most, int(share * inputs * outputs / (inputs + outputs)))
    return min(most, max(1, rank // multiple * multiple or rank))


def factors(weight: Tensor, rank: int, moments: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Two matrices whose product is the best approximation of a weight of a rank.

    Args:
        weight: (outputs, inputs).
        rank: at most the smaller of both.
        moments: E[x x^T] of the inputs, (inputs, inputs), symmetric and positive semidefinite; None for the identity.

    Returns:
        (outputs, rank) and (rank, inputs), float64. The scale of each singular value is shared evenly, so that what
        flows between the layers keeps a range that int8 and float16 hold.
    """
    exact = weight.detach().to(torch.float64)
    left, values, _ = torch.linalg.svd(exact @ _root(moments) if moments is not None else exact, full_matrices=False)
    # The rows kept are those of the projection on the r strongest output directions. That is the truncated
    # decomposition times the inverse root of the moments, without inverting what may be singular.
    left, values = left[:, :rank], values[:rank]
    scale = values.clamp_min(values[0] * 1e-6 if values[0] > 0 else 1.0).sqrt()
    return left * scale, (left.T @ exact) / scale[:, None]


def _root(moments: Tensor) -> Tensor:
    """A square root of a positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(moments.detach().to(torch.float64))
    root: Tensor = vectors * values.clamp_min(0.0).sqrt()
    return root


def factorise(
    network: nn.Module,
    anatomy: Anatomy,
    cut: Cut,
    moments: Mapping[str, Tensor] | None = None,
    shapes_only: bool = False,
) -> None:
    """Replace the layers that a cut gives a rank by two each, in place.

    Args:
        network: with the cut's groups and layers removed already; the cut names paths of the original.
        moments: linear layer's path in the original -> E[x x^T] of its inputs in this network, (inputs, inputs).
        shapes_only: leave the new weights as they are drawn, for a network whose weights are loaded afterwards.

    Raises:
        InputError: if a path is no linear layer, a rank does not pay, a weight is tied, or moments do not fit.
    """
    check(anatomy, cut)
    for path, rank in ranks(anatomy, cut).items():
        layer = linear_at(network, cast(str, moved(cut, path)))
        weight = dense(layer)
        outputs, inputs = weight.shape
        most = largest_rank(inputs, outputs)
        if rank > most:
            advice = f"the largest that pays is {most}" if most else "no rank pays, leave it whole"
            raise InputError(f"{path}: rank {rank} of a layer of {inputs} to {outputs} saves nothing; {advice}")
        names = owners(network, cast(Tensor, layer.weight))
        if len(names) > 1:
            raise InputError(f"{path}: its weight is tied ({', '.join(names)}); it cannot become two layers")
        given = (moments or {}).get(path)
        if given is not None and given.shape != (inputs, inputs):
            raise InputError(f"{path}: moments must be of shape ({inputs}, {inputs}), got {tuple(given.shape)}")
        bias = bias_of(layer)
        made = LowRank(path, inputs, rank, outputs, bias is not None, weight)
        if not shapes_only:
            with torch.no_grad():
                second, first = factors(weight, rank, given)
                made.first.weight.copy_(first)
                made.second.weight.copy_(second)
                if bias is not None:
                    made.second.bias.copy_(bias)
        for parameter in made.parameters():
            parameter.requires_grad_(cast(Tensor, layer.weight).requires_grad)
        put(network, layer, made.train(layer.training))


def product(layer: LowRank) -> Tensor:
    """The weight that two layers have together, (outputs, inputs)."""
    return (layer.second.weight.detach().double() @ layer.first.weight.detach().double()).to(layer.first.weight.dtype)


# --- the form ---------------------------------------------------------------------------------------------------------


def plan(asked: float, cut: Cut, planning: Planning) -> Cut:
    """Every projection of a unit that stays gets the rank that keeps a share of its multiplications, where one pays."""
    network = planning.given.network
    found = {path: rank_for(linear_at(network, path), asked) for path in linears(planning.given.anatomy, cut)}
    return cut.with_part(FIELD, {path: rank for path, rank in found.items() if rank})


def check(_: Anatomy, cut: Cut) -> None:
    """Refuse ranks below 1.

    Raises:
        InputError: naming the layer.
    """
    for path, rank in cut.forms.get(FIELD, {}).items():
        if rank < 1:
            raise InputError(f"{path}: a rank is at least 1, got {rank}")


def ranks(_: Anatomy, cut: Cut) -> dict[str, int]:
    """Path of the original -> rank, of layers that stay."""
    return {path: rank for path, rank in cut.forms.get(FIELD, {}).items() if moved(cut, path) is not None}


def study(asked: Study) -> dict[str, Tensor]:
    """Path of the original -> E[x x^T] of what the layer reads; nothing without data."""
    samples = asked.samples()
    return second_moments(asked.model, asked.cut, ranks(asked.given.anatomy, asked.cut), samples) if samples else {}


def apply(network: nn.Module, anatomy: Anatomy, cut: Cut, moments: Mapping[str, Tensor] | None) -> Change:
    """Factorise in place; gives the layers that compute the same with one weight each."""
    factorise(network, anatomy, cut, moments)
    places = [cast(str, moved(cut, path)) for path in ranks(anatomy, cut)]
    return Change({place: (product(cast(LowRank, network.get_submodule(place))), None) for place in places})


def shape(network: nn.Module, anatomy: Anatomy, cut: Cut) -> None:
    """Two layers for one, their weights still to be loaded."""
    factorise(network, anatomy, cut, shapes_only=True)


def words(_: nn.Module, anatomy: Anatomy, cut: Cut) -> str:
    """For errors."""
    return f"once {some(list(ranks(anatomy, cut)))} are of low rank"


RANK = Form(
    key="rank", field=FIELD, empty={}, parse=share("rank"), plan=plan, check=check, stays=ranks, study=study,
    apply=apply, shape=shape, oracle=with_weights, words=words, to_json=dict, from_json=counts,
)  # fmt: skip
