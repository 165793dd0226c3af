"""Low-rank factorisation against Eckart and Young's closed form, numpy, and the network with the dense product."""

from __future__ import annotations

import copy
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from edgeattn.errors import InputError, UnsupportedError
from edgeattn.pruning.anatomy import Anatomy
from edgeattn.pruning.apply import prune
from edgeattn.pruning.cut import Cut
from edgeattn.pruning.forms.low_rank import LowRank, factorise, factors, largest_rank, product, rank_for
from tests.pruning.families import prunable_of

EMPTY = Anatomy(())


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SIZES = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda sizes: st.tuples(st.just(sizes[0]), st.just(sizes[1]), st.integers(1, min(sizes)))
)


@given(SIZES, st.integers(0, 2**31))
def test_the_error_is_the_root_of_the_dropped_singular_values_squared(sizes: tuple[int, int, int], seed: int) -> None:
    outputs, inputs, rank = sizes
    weight = drawn(outputs, inputs, seed=seed)
    second, first = factors(weight, rank)
    assert (second.shape, first.shape) == ((outputs, rank), (rank, inputs))
    dropped = np.linalg.svd(weight.numpy(), compute_uv=False)[rank:]
    error = float((weight - second @ first).norm())
    assert error == pytest.approx(np.sqrt((dropped**2).sum()), rel=1e-6, abs=1e-9)


@given(SIZES, st.integers(0, 2**31))
def test_with_moments_the_output_error_is_the_least_there_is(sizes: tuple[int, int, int], seed: int) -> None:
    outputs, inputs, rank = sizes
    weight, samples = drawn(outputs, inputs, seed=seed), drawn(3 * inputs, inputs, seed=seed + 1) * torch.rand(inputs)
    second, first = factors(weight, rank, samples.T @ samples / len(samples))
    # Eckart and Young on the outputs themselves: no matrix of this rank comes closer than their own decomposition
    exact = (samples @ weight.T).numpy()
    least = np.sqrt((np.linalg.svd(exact, compute_uv=False)[rank:] ** 2).sum())
    error = float(np.linalg.norm(exact - (samples @ (second @ first).T).numpy()))
    assert error == pytest.approx(least, rel=1e-6, abs=1e-7 * float(np.linalg.norm(exact)))


def test_moments_of_fewer_samples_than_inputs_are_no_trouble() -> None:
    weight, samples = drawn(6, 8), drawn(3, 8, seed=1)  # of rank 3: no inverse
    second, first = factors(weight, 3, samples.T @ samples)
    np.testing.assert_allclose(samples @ (second @ first).T, samples @ weight.T, atol=1e-10)


def test_a_weight_of_zeros_stays_zero() -> None:
    second, first = factors(torch.zeros(4, 6), 2)
    assert torch.equal(second @ first, torch.zeros(4, 6, dtype=torch.float64))


def test_both_layers_share_the_scale_evenly() -> None:
    weight = torch.diag(torch.tensor([100.0, 1.0, 0.01]))
    second, first = factors(weight, 2)
    np.testing.assert_allclose(second.norm(dim=0), [10.0, 1.0])
    np.testing.assert_allclose(first.norm(dim=1), [10.0, 1.0])


@given(st.integers(1, 600), st.integers(1, 600))
def test_the_largest_rank_is_the_last_that_multiplies_less(inputs: int, outputs: int) -> None:
    rank = largest_rank(inputs, outputs)
    assert rank * (inputs + outputs) < inputs * outputs
    assert (rank + 1) * (inputs + outputs) >= inputs * outputs


@given(st.integers(2, 200), st.integers(2, 200), st.floats(0.01, 0.99))
def test_a_share_gives_the_largest_rank_within_it(inputs: int, outputs: int, share: float) -> None:
    rank = rank_for(nn.Linear(inputs, outputs), share)
    budget = share * inputs * outputs
    assert rank <= largest_rank(inputs, outputs)
    assert rank * (inputs + outputs) <= budget or rank <= 1
    assert (rank + 1) * (inputs + outputs) > budget


def test_a_rank_snaps_down_to_a_multiple_where_there_is_one() -> None:
    layer = nn.Linear(128, 384)  # 96 share one multiplication each
    assert [rank_for(layer, 0.5, multiple) for multiple in (1, 16, 32, 64)] == [48, 48, 32, 48]
    assert rank_for(nn.Linear(64, 1), 0.5) == 0


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, float("nan")])
def test_a_share_outside_of_0_to_1_is_refused(share: float) -> None:
    with pytest.raises(InputError, match=r"lies in \(0, 1\)"):
        rank_for(nn.Linear(8, 8), share)


class Pair(nn.Module):
    """A layer under two names, and one of transformers' kind, whose weight is transposed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one = nn.Linear(8, 12)
        self.same = self.one
        self.turned = Conv1D(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.turned(self.one(x) + self.same(x)))


class Conv1D(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


def test_a_layer_becomes_two_that_compute_its_approximation() -> None:
    network = Pair().eval()
    approximated = copy.deepcopy(network)
    for layer, rank, turned in ((approximated.one, 4, False), (approximated.turned, 3, True)):
        weight = layer.weight.detach().T if turned else layer.weight.detach()
        left, values, right = np.linalg.svd(weight.double().numpy(), full_matrices=False)
        near = torch.from_numpy((left[:, :rank] * values[:rank]) @ right[:rank]).float()
        layer.weight.data.copy_(near.T if turned else near)
    factorise(network, EMPTY, Cut(forms={"ranks": {"one": 4, "turned": 3}}))
    assert isinstance(network.one, LowRank)
    assert network.same is network.one
    assert (network.one.in_features, network.one.out_features) == (8, 12)
    assert not network.one.first.training
    x = torch.randn(5, 8)
    torch.testing.assert_close(network(x), approximated(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(product(network.one), approximated.one.weight.detach(), atol=1e-6, rtol=0)


def test_moments_reach_their_layer() -> None:
    network = Pair()
    moments = torch.diag(torch.tensor([1.0, 1.0, 0, 0, 0, 0, 0, 0]))
    weight = network.one.weight.detach().clone()
    factorise(network, EMPTY, Cut(forms={"ranks": {"one": 2}}), {"one": moments})
    # two inputs are all that ever comes, and two ranks hold them exactly
    torch.testing.assert_close(product(cast(LowRank, network.one))[:, :2], weight[:, :2], atol=1e-5, rtol=0)


def test_shapes_only_makes_the_modules_that_weights_are_loaded_into() -> None:
    made, loaded = Pair(), Pair()
    cut = Cut(forms={"ranks": {"one": 4, "turned": 3}})
    factorise(made, EMPTY, cut)
    factorise(loaded, EMPTY, cut, shapes_only=True)
    loaded.load_state_dict(made.state_dict())
    x = torch.randn(5, 8)
    assert torch.equal(loaded(x), made(x))


def tied() -> nn.Module:
    network = nn.Module()
    network.embedding, network.head = nn.Embedding(30, 20), nn.Linear(20, 30, bias=False)
    network.head.weight = network.embedding.weight
    return network


@pytest.mark.parametrize(
    ("network", "ranks", "moments", "message"),
    [
        (Pair(), {"two": 1}, {}, "linear layer 'two'"),
        (Pair(), {"one": 5}, {}, "one: rank 5 of a layer of 8 to 12 saves nothing; the largest that pays is 4"),
        (nn.Sequential(nn.Linear(9, 1)), {"0": 1}, {}, "0: rank 1 .* no rank pays"),
        (Pair(), {"one": 2}, {"one": torch.eye(7)}, r"one: moments must be of shape \(8, 8\), got \(7, 7\)"),
        (tied(), {"head": 4}, {}, r"head: its weight is tied \(embedding.weight, head.weight\)"),
    ],
)
def test_what_cannot_be_factorised_is_refused(
    network: nn.Module, ranks: dict[str, int], moments: dict[str, Tensor], message: str
) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(InputError, match=message):
        factorise(network, EMPTY, Cut(forms={"ranks": ranks}), moments)
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_layer_whose_owner_reads_its_weight_is_named() -> None:
    given = prunable_of("T5")
    path = next(unit.exit for unit in given.anatomy.units if unit.kind == "feedforward")
    with pytest.raises(UnsupportedError, match=rf"{path}: its owner reads its weight"):
        prune(given, Cut(forms={"ranks": {path: 4}}))


def test_moments_lower_the_error_of_what_they_were_taken_of() -> None:
    given = prunable_of("BERT")
    path = next(unit for unit in given.anatomy.units if unit.kind == "feedforward").entries[0]
    seen: list[Tensor] = []

    def note(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0].detach().reshape(-1, args[0].shape[-1]).double())

    handle = given.network.get_submodule(path).register_forward_pre_hook(note)
    given.model.run(given.model.example["main"])
    handle.remove()
    x = seen[0]
    layer = cast(nn.Linear, given.network.get_submodule(path))
    errors = []
    for found in ({}, {"rank": {path: x.T @ x / len(x)}}):
        made = prune(given, Cut(forms={"ranks": {path: 6}}), found)
        weight = product(cast(LowRank, cast(nn.Module, made.network).get_submodule(path))).double()
        errors.append(float((x @ (weight - layer.weight.detach().double()).T).norm()))
    assert errors[1] < 0.8 * errors[0]


def test_with_neurons_gone_ranks_are_those_of_what_is_left() -> None:
    given = prunable_of("BERT")
    unit = next(unit for unit in given.anatomy.units if unit.kind == "feedforward")
    made = prune(given, Cut({unit.key: tuple(range(8))}, forms={"ranks": {unit.entries[0]: 4, unit.exit: 6}}))
    exit_layer = cast(LowRank, cast(nn.Module, made.network).get_submodule(unit.exit))
    assert (exit_layer.in_features, exit_layer.first.out_features) == (8, 6)
    with pytest.raises(InputError, match="rank 7 of a layer of 8 to 32 saves nothing; the largest that pays is 6"):
        prune(given, Cut({unit.key: tuple(range(8))}, forms={"ranks": {unit.exit: 7}}))
