"""Cuts: what they refuse, how they are written and read, and where a path is after one."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgeattn.errors import InputError
from edgeattn.pruning.anatomy import Anatomy, Stack, Unit
from edgeattn.pruning.cut import Cut, moved, snapped
from edgeattn.pruning.forms import check_cut, cut_from_json, cut_to_json, without_dropped
from edgeattn.pruning.surgery import remove_layers

LAYERS, HEADS, NEURONS = 4, 6, 20
STACK = Stack("net.layers", LAYERS, pinned=(0,))


def attention(layer: int) -> Unit:
    path = f"net.layers.{layer}.attention"
    return Unit(
        path=path,
        kind="attention",
        family="test",
        groups=HEADS,
        width=4,
        exit=f"{path}.out",
        slices=(),
        heads=HEADS,
        head_dim=4,
    )


def feedforward(layer: int) -> Unit:
    path = f"net.layers.{layer}.ffn"
    return Unit(path=path, kind="feedforward", family="test", groups=NEURONS, width=1, exit=f"{path}.second", slices=())


ANATOMY = Anatomy(tuple(unit(layer) for layer in range(LAYERS) for unit in (attention, feedforward)), (STACK,))
HEAD_KEY, NEURON_KEY = attention(1).key, feedforward(1).key

NAMES = st.text(min_size=1, max_size=12)
ASCENDING = st.sets(st.integers(0, 2**31 - 1), max_size=6).map(lambda numbers: tuple(sorted(numbers)))
CUTS = st.builds(
    Cut,
    st.dictionaries(NAMES, ASCENDING, max_size=4),
    st.dictionaries(NAMES, ASCENDING, max_size=4),
    st.fixed_dictionaries(
        {
            "merged": st.dictionaries(NAMES, st.integers(0, 2**31 - 1), max_size=4),
            "ranks": st.dictionaries(NAMES, st.integers(0, 2**31 - 1), max_size=4),
            "sparse": st.lists(NAMES, max_size=4).map(tuple),
            "left": st.none() | st.integers(0, 2**31 - 1),
        }
    ),
)


@given(CUTS)
def test_a_cut_is_read_as_it_was_written(cut: Cut) -> None:
    assert cut_from_json(json.loads(json.dumps(cut_to_json(cut))), "file") == cut
    assert cut.empty == (cut == Cut())


VALID = cut_to_json(
    Cut({"a": (0, 2)}, {"b": (1,)}, forms={"merged": {"a": 2}, "ranks": {"c": 8}, "sparse": ("d",), "left": 16})
)


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        [],
        {**VALID, "format": 2},
        {key: value for key, value in VALID.items() if key != "groups"},
        {key: value for key, value in VALID.items() if key != "layers"},
        {**VALID, "folded": {"a": 1}},
        {**VALID, "groups": {"a": [2, 0]}},
        {**VALID, "groups": {"a": [0, 0]}},
        {**VALID, "groups": {"a": "0"}},
        {**VALID, "groups": [["a", [0]]]},
        {**VALID, "layers": {"b": [True]}},
        {**VALID, "merged": {"a": 2.5}},
        {**VALID, "ranks": {"c": -1}},
        {**VALID, "ranks": {"c": 2**31}},
        {**VALID, "sparse": 3},
        {**VALID, "left": "16"},
    ],
)
def test_what_is_no_cut_is_refused_with_its_place(wrong: Any) -> None:
    with pytest.raises(InputError, match=r"^pruning\.json: "):
        cut_from_json(wrong, "pruning.json")


def test_a_cut_of_before_a_form_was_there_is_read() -> None:
    older = {key: value for key, value in VALID.items() if key != "ranks"} | {"not yet": []}
    assert cut_from_json(older, "pruning.json") == cut_from_json({**VALID, "ranks": {}}, "pruning.json")


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (Cut({"attention:nowhere": (0,)}), "unit"),
        (Cut({HEAD_KEY: ()}), "no head would be left"),
        (Cut({NEURON_KEY: ()}), "no neuron would be left"),
        (Cut({HEAD_KEY: (0, 6)}), "it has heads 0 to 5, got 0, 6"),
        (Cut({NEURON_KEY: (3, 1)}), "it has neurons 0 to 19, got 3, 1"),
        (Cut(layers={"net.nowhere": (0,)}), "stack of layers"),
        (Cut(layers={"net.layers": ()}), "no layer would be left"),
        (Cut(layers={"net.layers": (0, 4)}), "it has layers 0 to 3, got 0, 4"),
        (Cut(layers={"net.layers": (1, 2)}), r"net\.layers\.0: it must stay"),
        (Cut(forms={"merged": {"attention:nowhere": 2}}), "unit"),
        (Cut(forms={"merged": {NEURON_KEY: 2}}), "no key/value heads"),
        (Cut(forms={"merged": {HEAD_KEY: 4}}), "6 heads cannot be merged into 4 of equal groups; valid: 1, 2, 3, 6"),
        (
            Cut({HEAD_KEY: (0, 1, 2, 5)}, forms={"merged": {HEAD_KEY: 3}}),
            "4 heads cannot be merged into 3 .* valid: 1, 2, 4",
        ),
        (Cut(forms={"merged": {HEAD_KEY: 0}}), "valid: 1, 2, 3, 6"),
        (Cut(forms={"ranks": {"net.head": 0}}), "net.head: a rank is at least 1"),
        (Cut(forms={"ranks": {"net.head": 4}, "sparse": ("net.head",)}), "low rank and 2:4 sparse; take one"),
        (Cut(forms={"sparse": ("net.head", "net.head")}), "net.head: it is named twice"),
        (Cut(forms={"left": 0}), "at least 1 encoder frame, got 0"),
    ],
)
def test_a_cut_that_does_not_fit_is_refused(cut: Cut, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_cut(ANATOMY, cut)


def test_a_cut_that_fits_is_taken() -> None:
    groups = {HEAD_KEY: (0, 1, 2, 5), NEURON_KEY: (19,)}
    check_cut(
        ANATOMY,
        Cut(
            groups,
            {"net.layers": (0, 3)},
            forms={"merged": {HEAD_KEY: 2}, "ranks": {"net.head": 3}, "sparse": ("net.tail",), "left": 8},
        ),
    )


class Numbered(nn.Module):
    """A layer that knows its number, and one below it."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.inner = nn.Linear(1, 1)


@given(st.sets(st.integers(0, LAYERS - 1), min_size=1))
def test_a_path_leads_to_the_same_module_after_layers_are_left_out(kept: set[int]) -> None:
    net, network = nn.Module(), nn.Module()
    net.layers = nn.ModuleList(Numbered(number) for number in range(LAYERS))
    net.head, network.net = nn.Linear(1, 1), net
    before = dict(network.named_modules())
    cut = Cut(layers={"net.layers": tuple(sorted(kept))})
    remove_layers(network, STACK, cut.layers["net.layers"])
    for path, module in before.items():
        place = moved(cut, path)
        if place is None:
            assert int(path.split(".")[2]) not in kept
        elif path != "net.layers":
            assert network.get_submodule(place) is module


def test_what_a_dropped_layer_had_to_cut_is_left_out() -> None:
    cut = Cut(
        {HEAD_KEY: (0, 1), attention(2).key: (0, 1)},
        {"net.layers": (0, 2, 3)},
        forms={
            "merged": {HEAD_KEY: 1, attention(2).key: 1},
            "ranks": {"net.layers.1.ffn.second": 3, "net.layers.3.ffn.second": 3, "net.head": 3},
            "sparse": ("net.layers.1.attention.out", "net.layers.2.attention.out"),
        },
    )
    assert without_dropped(ANATOMY, cut) == replace(
        cut,
        groups={attention(2).key: (0, 1)},
        forms={
            "merged": {attention(2).key: 1},
            "ranks": {"net.layers.3.ffn.second": 3, "net.head": 3},
            "sparse": ("net.layers.2.attention.out",),
        },
    )


def test_a_count_snaps_up_to_the_multiple() -> None:
    assert [snapped(wanted, 384, 32) for wanted in (1, 32, 33, 288.0, 383.9)] == [32, 32, 64, 288, 384]
    assert snapped(0.1 * 3 * 10, 16, 1) == 3  # 3.0000000000000004
