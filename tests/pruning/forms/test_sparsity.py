"""2:4 sparsity against brute force, the unpermuted network, and TensorRT's builder."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgeattn.errors import InputError
from edgeattn.pruning.anatomy import Anatomy
from edgeattn.pruning.apply import prune
from edgeattn.pruning.cut import Cut
from edgeattn.pruning.families import find_anatomy
from edgeattn.pruning.forms.sparsity import _meetings, _round, channel_order, kept_magnitude, mask_2_4, sparsify
from edgeattn.pruning.linear import dense
from tests.pruning.blocks import Attention, FeedForward
from tests.pruning.families import prunable_of


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 2**31))
def test_the_mask_keeps_the_most_of_all_masks(outputs: int, groups: int, seed: int) -> None:
    weight = drawn(outputs, 4 * groups, seed=seed)
    mask = mask_2_4(weight)
    assert (mask.reshape(-1, 4).sum(1) == 2).all()
    best = sum(
        max(sum(abs(float(four[place])) for place in pair) for pair in itertools.combinations(range(4), 2))
        for four in weight.double().reshape(-1, 4)
    )
    assert kept_magnitude(weight) == pytest.approx(best, rel=1e-12)


def test_of_equal_weights_the_first_two_stay() -> None:
    assert mask_2_4(torch.ones(2, 4)).tolist() == [[True, True, False, False]] * 2
    assert mask_2_4(torch.zeros(1, 4)).sum() == 2


@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 2**31), st.integers(0, 20))
def test_an_order_never_keeps_less_than_none(outputs: int, groups: int, seed: int, rounds: int) -> None:
    weight = drawn(outputs, 4 * groups, seed=seed) ** 3
    order = channel_order(weight, rounds)
    assert sorted(order.tolist()) == list(range(4 * groups))
    assert kept_magnitude(weight[:, order]) >= kept_magnitude(weight)


@settings(max_examples=20)
@given(st.integers(1, 6), st.integers(0, 2**31))
def test_of_eight_inputs_the_best_order_is_found(outputs: int, seed: int) -> None:
    weight = drawn(outputs, 8, seed=seed)
    best = max(
        kept_magnitude(weight[:, [*half, *(place for place in range(8) if place not in half)]])
        for half in itertools.combinations(range(8), 4)
    )
    assert kept_magnitude(weight[:, channel_order(weight)]) == pytest.approx(best, rel=1e-6)


def test_of_twelve_inputs_no_two_groups_can_be_divided_better() -> None:
    weight = drawn(5, 12, seed=3)
    order = channel_order(weight)
    for one, other in itertools.combinations(range(3), 2):
        eight = torch.cat([order[4 * one : 4 * one + 4], order[4 * other : 4 * other + 4]])
        there = kept_magnitude(weight[:, eight])
        for half in itertools.combinations(range(8), 4):
            divided = eight[[*half, *(place for place in range(8) if place not in half)]]
            assert kept_magnitude(weight[:, divided]) <= there * (1 + 1e-6)


def test_an_order_finds_what_can_be_kept_whole() -> None:
    # of every row the inputs of one half are zero: interleaved, nothing has to go
    weight = torch.zeros(2, 8)
    weight[0, :4], weight[1, 4:] = drawn(4).abs() + 1, drawn(4, seed=1).abs() + 1
    assert kept_magnitude(weight) < 0.7 * float(weight.sum())
    assert kept_magnitude(weight[:, channel_order(weight)]) == pytest.approx(float(weight.sum()))


@pytest.mark.parametrize("groups", [1, 2, 3, 6, 7])
def test_every_two_groups_meet_once(groups: int) -> None:
    met = [tuple(sorted(pair)) for number in range(_meetings(groups)) for pair in _round(groups, number).tolist()]
    assert sorted(met) == list(itertools.combinations(range(groups), 2))
    for number in range(_meetings(groups)):
        members = _round(groups, number).reshape(-1).tolist()
        assert len(members) == len(set(members))


# --- in a network -----------------------------------------------------------------------------------------------------


class Both(nn.Module):
    """An attention and a feed-forward of 8 neurons."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.attention, self.feedforward = Attention(), FeedForward()
            self.feedforward.expand, self.feedforward.contract = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        attended = x + cast(Tensor, self.attention(x))
        return attended + cast(Tensor, self.feedforward(attended))


EXITS = ("attention.output", "feedforward.contract")


def test_the_sparse_network_is_the_original_with_the_same_weights_zero() -> None:
    network, expected = Both(), Both()
    zeroed = sparsify(
        network, find_anatomy(network), Cut(forms={"sparse": (*EXITS, "feedforward.expand", "attention.value")})
    )
    for path, weight in zeroed.items():
        original = expected.get_submodule(path)
        assert ((weight == 0) | (weight == dense(original))).all()
        assert (dense(network.get_submodule(path)).reshape(-1, 4) == 0).sum(1).ge(2).all()
        dense(original).copy_(weight)
    x = drawn(2, 5, 8)
    torch.testing.assert_close(network(x), expected(x), atol=1e-6, rtol=0)


def test_permuted_and_not_masked_the_network_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    network, original = Both(), Both()
    monkeypatch.setattr(
        "edgeattn.pruning.forms.sparsity.mask_2_4", lambda weight: torch.ones_like(weight, dtype=torch.bool)
    )
    monkeypatch.setattr(
        "edgeattn.pruning.forms.sparsity.channel_order", lambda weight: torch.arange(weight.shape[1]).flip(0)
    )
    sparsify(network, find_anatomy(network), Cut(forms={"sparse": EXITS}))
    for path in (*EXITS, "feedforward.expand", "attention.value"):
        assert not torch.equal(dense(network.get_submodule(path)), dense(original.get_submodule(path)))
    x = drawn(2, 5, 8)
    torch.testing.assert_close(network(x), original(x), atol=1e-6, rtol=0)


def test_permuting_keeps_more_and_only_where_the_exit_is_named() -> None:
    kept = {}
    for permute in (False, True):
        network = Both()
        sparsify(network, find_anatomy(network), Cut(forms={"sparse": EXITS}), permute=permute)
        kept[permute] = [float(dense(network.get_submodule(path)).abs().sum()) for path in EXITS]
    assert all(after >= before for before, after in zip(kept[False], kept[True], strict=True))
    assert sum(kept[True]) > 1.01 * sum(kept[False])
    network = Both()
    sparsify(network, find_anatomy(network), Cut(forms={"sparse": ("feedforward.expand",)}))
    assert torch.equal(network.feedforward.expand.bias, Both().feedforward.expand.bias)


def test_neurons_whose_layer_is_tied_stay_in_order() -> None:
    network = Both()
    network.again = nn.Linear(8, 8)
    network.again.weight = network.feedforward.expand.weight
    before = network.again.weight.detach().clone()
    sparsify(network, Anatomy(find_anatomy(Both()).units), Cut(forms={"sparse": ("feedforward.contract",)}))
    assert torch.equal(network.again.weight, before)
    assert (dense(network.feedforward.contract).reshape(-1, 4) == 0).sum(1).ge(2).all()


def test_shapes_only_changes_nothing() -> None:
    network = Both()
    assert sparsify(network, find_anatomy(network), Cut(forms={"sparse": EXITS}), shapes_only=True) == {}
    expected = Both().state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())


def test_sparse_after_neurons_and_heads_are_gone() -> None:
    given_prunable = prunable_of("GPT-2")  # packed projections: values start elsewhere once heads are gone
    heads, neurons = (
        next(u for u in given_prunable.anatomy.units if u.kind == kind) for kind in ("attention", "feedforward")
    )
    cut = Cut({heads.key: (0, 3), neurons.key: tuple(range(16))}, forms={"sparse": (heads.exit, neurons.exit)})
    made = cast(nn.Module, prune(given_prunable, cut).network)
    for path, inputs in ((heads.exit, 16), (neurons.exit, 16)):
        weight = dense(made.get_submodule(path))
        assert weight.shape[1] == inputs
        assert (weight.reshape(-1, 4) == 0).sum(1).ge(2).all()


class Tied(Both):
    def __init__(self) -> None:
        super().__init__()
        self.feedforward.contract.weight = self.feedforward.expand.weight


@pytest.mark.parametrize(
    ("network", "path", "message"),
    [
        (Both(), "feedforward.nowhere", "linear layer 'feedforward.nowhere'"),
        (nn.Sequential(nn.Linear(10, 4)), "0", "0: it has 10 inputs, 2:4 sparsity needs a multiple of 4"),
        (Tied(), "feedforward.contract", r"its weight is tied \(feedforward\.expand\.weight, "),
    ],
)
def test_what_cannot_be_sparse_is_refused(network: nn.Module, path: str, message: str) -> None:
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(InputError, match=message):
        sparsify(network, Anatomy(()), Cut(forms={"sparse": (path,)}))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.slow
def test_tensorrt_builds_the_sparse_network_with_sparse_kernels_allowed(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    from edgeattn.converters.onnx import export_onnx
    from edgeattn.converters.tensorrt import to_tensorrt
    from edgeattn.runtimes.tensorrt_build import BuildRecipe, recipe_from_build
    from edgeattn.sources import from_module

    network = Both().eval()
    sparsify(network, find_anatomy(network), Cut(forms={"sparse": EXITS}))
    (tmp_path / "made").mkdir()
    files = export_onnx(from_module(network, {"x": drawn(1, 16, 8)}, "sparse"), tmp_path)
    artifact = to_tensorrt(files, tmp_path / "made", "fp16", recipe=BuildRecipe(sparsity=True))
    assert artifact.build is not None
    assert artifact.build["checked"]["ok"] is True
    assert artifact.build["recipe"]["sparsity"] is True
    assert recipe_from_build(artifact.build).sparsity
