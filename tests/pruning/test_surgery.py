"""Removing groups and layers: the right entries of every tensor, in one piece or not at all."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize

from edgeattn.errors import InputError, UnsupportedError
from edgeattn.pruning.anatomy import Anatomy, Setting, Slice, Stack, Unit
from edgeattn.pruning.apply import remove
from edgeattn.pruning.cut import Cut
from edgeattn.pruning.families import find_anatomy
from edgeattn.pruning.surgery import remove_groups
from tests.architectures import TRANSFORMERS, named


def unit(path: str, groups: int, *slices: Slice, settings: tuple[Setting, ...] = ()) -> Unit:
    return Unit(
        path=path, kind="feedforward", family="test", groups=groups, width=1, exit="", slices=slices, settings=settings
    )


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@st.composite
def packed(draw: st.DrawFn) -> tuple[int, list[tuple[int, int, int, tuple[int, ...]]]]:
    """Length of an axis, and sections of it: start, groups, width, groups that stay."""
    place, sections = 0, []
    for _ in range(draw(st.integers(1, 4))):
        place += draw(st.integers(0, 3))
        groups, width = draw(st.integers(1, 5)), draw(st.integers(1, 3))
        kept = draw(st.sets(st.integers(0, groups - 1), min_size=1))
        sections.append((place, groups, width, tuple(sorted(kept))))
        place += groups * width
    return place + draw(st.integers(0, 3)), sections


@given(packed(), st.sampled_from([0, 1]))
def test_sections_of_a_packed_weight_lose_their_own_entries(
    given_sections: tuple[int, list[tuple[int, int, int, tuple[int, ...]]]], axis: int
) -> None:
    size, sections = given_sections
    layer = nn.Linear(*((3, size) if axis == 0 else (size, 3)))
    before = layer.weight.detach().numpy().copy()
    cuts = [
        (unit(str(number), groups, Slice("", "weight", axis, width, start)), kept)
        for number, (start, groups, width, kept) in enumerate(sections)
    ]
    gone = [
        start + group * width + entry
        for start, groups, width, kept in sections
        for group in range(groups)
        for entry in range(width)
        if group not in kept
    ]
    remove_groups(layer, cuts)
    assert np.array_equal(layer.weight.detach().numpy(), np.delete(before, gone, axis))
    assert layer.weight.shape == (layer.out_features, layer.in_features)


def test_a_tensor_can_lose_entries_of_both_axes() -> None:
    layer = nn.Linear(6, 4, bias=False)
    before = layer.weight.detach().clone()
    remove_groups(
        layer,
        [
            (unit("rows", 2, Slice("", "weight", 0, 2)), (1,)),
            (unit("columns", 3, Slice("", "weight", 1, 2)), (0, 2)),
        ],
    )
    assert torch.equal(layer.weight, before[2:][:, [0, 1, 4, 5]])


class Pair(nn.Module):
    """Two layers that share their weight, and one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(4, 6)
        self.b.weight = self.a.weight
        self.register_buffer("order", torch.arange(6))
        self.width = 6


def test_tied_weights_are_cut_once_and_stay_tied() -> None:
    network = Pair()
    before = network.a.weight.detach().clone()
    both = unit("both", 3, Slice("a", "weight", 0, 2), Slice("b", "weight", 0, 2), Slice("", "order", 0, 2))
    remove_groups(network, [(both, (0, 2))])
    assert network.a.weight is network.b.weight
    assert torch.equal(network.a.weight, before[[0, 1, 4, 5]])
    assert cast(Tensor, network.order).tolist() == [0, 1, 4, 5]
    assert (network.a.out_features, network.b.out_features, network.c.out_features) == (4, 4, 6)


@pytest.mark.parametrize(
    "second",
    [
        unit("b", 3, Slice("b", "weight", 0, 2)),  # the same places, other groups
        unit("b", 2, Slice("b", "weight", 0, 2, 1)),  # places that overlap
        unit("b", 4, Slice("b", "weight", 0, 2)),  # beyond the end
    ],
)
def test_cuts_that_contradict_are_refused_before_anything_changes(second: Unit) -> None:
    network = Pair()
    before = state(network)
    first = unit("a", 3, Slice("a", "weight", 0, 2), Slice("a", "bias", 0, 2), settings=(Setting("", "width", 2),))
    with pytest.raises(UnsupportedError, match="share"):
        remove_groups(network, [(first, (0, 2)), (second, (0, 1))])
    assert same(before, state(network))
    assert network.width == 6
    assert network.a.weight is network.b.weight


def test_a_weight_that_is_computed_is_refused_before_anything_changes() -> None:
    network = Pair()
    parametrize.register_parametrization(network.c, "weight", nn.Identity())
    before = state(network)
    cuts = [(unit("a", 3, Slice("a", "weight", 0, 2)), (0,)), (unit("c", 3, Slice("c", "weight", 0, 2)), (0,))]
    with pytest.raises(UnsupportedError, match=r"c has no parameter 'weight' of its own"):
        remove_groups(network, cuts)
    assert same(before, state(network))


def test_parameters_stay_parameters_with_their_wish_for_gradients() -> None:
    network = Pair()
    network.c.requires_grad_(False)
    one = unit("a", 3, Slice("a", "bias", 0, 2), Slice("c", "bias", 0, 2))
    remove_groups(network, [(one, (1,))])
    assert isinstance(network.a.bias, nn.Parameter)
    assert (network.a.bias.requires_grad, network.c.bias.requires_grad) == (True, False)
    assert "order" in dict(network.named_buffers())


def test_numbers_follow_the_groups_that_stay() -> None:
    network = Pair()
    remove_groups(network, [(unit("a", 3, Slice("a", "weight", 0, 2), settings=(Setting("", "width", 2),)), (0, 1))])
    assert network.width == 4


# --- layers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    num_blocks: int
    dim: int


class Numbered(nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.inner.layer_idx = number  # type: ignore[assignment]


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Numbered(number) for number in range(4))
        self.num_layers = 4
        self.config = Sizes(4, 2)
        self.plain = SimpleNamespace(layer_types=["a", "b", "c", "d"], kinds=("e", "f", "g", "h"))


DEPTH = Stack(
    "layers",
    4,
    numbered=("layer_idx",),
    settings=(Setting("", "num_layers", 1), Setting("", "config.num_blocks", 1)),
    lists=(("", "plain.layer_types"), ("", "plain.kinds")),
)


def test_layers_that_stay_keep_their_order_and_are_numbered_anew() -> None:
    network = Deep()
    third, second = network.layers[3], network.layers[1]
    remove(network, Anatomy((), (DEPTH,)), Cut({}, {"layers": (1, 3)}))
    assert list(network.layers) == [second, third]
    assert [cast(Any, layer).inner.layer_idx for layer in network.layers] == [0, 1]
    assert (network.num_layers, network.config) == (2, Sizes(2, 2))
    assert (network.plain.layer_types, network.plain.kinds) == (["b", "d"], ("f", "h"))


def test_what_a_cut_says_about_layers_that_go_is_no_matter() -> None:
    network = nn.Module()
    network.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))
    units = tuple(
        Unit(
            path=f"layers.{n}",
            kind="feedforward",
            family="test",
            groups=2,
            width=1,
            exit=f"layers.{n}",
            slices=(Slice(f"layers.{n}", "weight", 1, 1),),
        )
        for n in range(2)
    )
    anatomy = Anatomy(units, (Stack("layers", 2),))
    remove(network, anatomy, Cut({"feedforward:layers.0": (0,), "feedforward:layers.1": (1,)}, {"layers": (1,)}))
    assert [tuple(cast(nn.Linear, layer).weight.shape) for layer in network.layers] == [(2, 1)]


@pytest.mark.parametrize(
    "cut", [Cut({"feedforward:nothing": (0,)}), Cut({}, {"layers": (4,)}), Cut({}, {"layers": ()})]
)
def test_a_cut_that_does_not_fit_changes_nothing(cut: Cut) -> None:
    network = Deep()
    before = state(network)
    with pytest.raises(InputError):
        remove(network, Anatomy((), (DEPTH,)), cut)
    assert same(before, state(network))
    assert len(network.layers) == 4


# --- transformers' own ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["BART", "GPT-2", "T5"])
def test_embeddings_and_heads_that_are_tied_stay_tied(name: str) -> None:
    pytest.importorskip(TRANSFORMERS, reason="the classes are those of transformers")
    network: Any = copy.deepcopy(named(name).build()[0])
    assert network.lm_head.weight is network.get_input_embeddings().weight
    anatomy = find_anatomy(network)
    neurons = Cut({u.key: tuple(range(4, u.groups)) for u in anatomy.units if u.kind == "feedforward"})
    remove(network, anatomy, neurons)
    assert network.lm_head.weight is network.get_input_embeddings().weight


def test_a_layer_with_transposed_weights_knows_its_sizes() -> None:
    pytest.importorskip(TRANSFORMERS, reason="the classes are those of transformers")
    network: Any = named("GPT-2").build()[0]
    anatomy = find_anatomy(network)
    attention = next(u for u in anatomy.units if u.kind == "attention")
    before = network.transformer.h[0].attn.c_attn.weight.detach().numpy().copy()
    remove(network, anatomy, Cut({attention.key: (0, 3)}))
    block = network.transformer.h[0].attn
    gone = [part * 32 + column for part in range(3) for column in range(8, 24)]
    assert np.array_equal(block.c_attn.weight.detach().numpy(), np.delete(before, gone, 1))
    assert (block.c_attn.nf, block.c_attn.nx, block.c_proj.nx, block.split_size, block.num_heads) == (48, 32, 16, 16, 2)
