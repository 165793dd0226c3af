"""Merged key/value heads against heads whose weights were set to their means, brute force, and engines."""

from __future__ import annotations

import copy
import itertools
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import edgeattn.models.streaming_conformer as streaming
from edgeattn.attention.masks import chunk_mask
from edgeattn.attention.relative_bias import RelativeBiasAttention
from edgeattn.errors import InputError, UnsupportedError
from edgeattn.model import EdgeModel
from edgeattn.models.streaming_conformer.model import ConformerConfig, StreamingConformer
from edgeattn.models.streaming_conformer.step import StreamingStep, stream
from edgeattn.pruning.anatomy import Anatomy, Prunable, Unit
from edgeattn.pruning.apply import prune, reshape
from edgeattn.pruning.cut import Cut
from edgeattn.pruning.families import find_anatomy
from edgeattn.pruning.forms.kv_heads import grouping, head_weights, merge, repeated_means
from tests.pruning.families import prunable_of

HEADS, WIDTH, DIM = 6, 4, 12


class Owner(nn.Module):
    """A network with one attention."""

    def __init__(self, seed: int = 0, heads: int = HEADS) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.attention = RelativeBiasAttention(DIM, heads, WIDTH, 9, 4).double().eval()
            nn.init.normal_(self.attention.bias)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return cast(Tensor, self.attention(x, mask))


def unit_of(network: nn.Module) -> Unit:
    return next(unit for unit in find_anatomy(network).units if unit.kind == "attention")


def with_means(network: Owner, wanted: int, order: tuple[int, ...]) -> Owner:
    """All heads, each with the mean of its group's key and value weights: written out head by head."""
    made = copy.deepcopy(network)
    size = len(order) // wanted
    for layer in (made.attention.key, made.attention.value):
        for tensor in (layer.weight.data, layer.bias.data):
            heads = [tensor[head * WIDTH : (head + 1) * WIDTH].clone() for head in range(len(order))]
            for first in range(0, len(order), size):
                members = order[first : first + size]
                mean = torch.stack([heads[head] for head in members]).mean(0)
                for head in members:
                    tensor[head * WIDTH : (head + 1) * WIDTH] = mean
    return made


@given(st.sampled_from([1, 2, 3]), st.permutations(range(HEADS)), st.booleans())
def test_merged_heads_compute_what_all_heads_do_with_the_means(wanted: int, order: list[int], ordered: bool) -> None:
    network = Owner()
    anatomy = find_anatomy(network)
    key = unit_of(network).key
    places = tuple(order) if ordered else tuple(range(HEADS))
    expected = with_means(network, wanted, places)
    merge(network, anatomy, Cut(forms={"merged": {key: wanted}}), {key: places} if ordered else None)
    assert network.attention.kv_heads == wanted
    assert network.attention.key.weight.shape == (wanted * WIDTH, DIM)
    x = torch.randn(2, 13, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mask = chunk_mask(13, 4, 1).double()
    torch.testing.assert_close(network(x, mask), expected(x, mask), atol=1e-12, rtol=0)
    once = unit_of(network)  # and what was merged is found again, with fewer key/value heads
    assert (once.heads, once.groups, once.width) == (HEADS, wanted, HEADS // wanted * WIDTH)


def test_fewer_key_value_heads_attend_as_loops_say() -> None:
    network = Owner()
    merge(network, find_anatomy(network), Cut(forms={"merged": {unit_of(network).key: 2}}))
    attention = network.attention
    x = np.random.default_rng(0).standard_normal((7, DIM))
    with torch.no_grad():
        query, key, value = (
            layer(torch.from_numpy(x)).numpy() for layer in (attention.query, attention.key, attention.value)
        )
        bias = attention.relative_bias(7, 7).numpy()
        joined = np.zeros((7, HEADS * WIDTH))
        for head in range(HEADS):
            own = slice(head * WIDTH, (head + 1) * WIDTH)
            group = slice(head // 3 * WIDTH, (head // 3 + 1) * WIDTH)
            logits = query[:, own] @ key[:, group].T / np.sqrt(WIDTH) + bias[head]
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            joined[:, own] = weights / weights.sum(-1, keepdims=True) @ value[:, group]
        expected = attention.output(torch.from_numpy(joined)).numpy()
        got = network(torch.from_numpy(x)[None], torch.zeros(7, 7, dtype=torch.float64))[0].numpy()
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_merging_into_as_many_heads_changes_nothing() -> None:
    network = Owner()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    merge(network, find_anatomy(network), Cut(forms={"merged": {unit_of(network).key: HEADS}}))
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


# --- which heads ------------------------------------------------------------------------------------------------------


def loss_of(network: nn.Module, unit: Unit, wanted: int, order: tuple[int, ...]) -> float:
    """Squared distance of key and value weights from the means of their groups."""
    rows = head_weights(network, unit)
    return float((rows - repeated_means(rows, len(rows), wanted, order)).square().sum())


@given(st.integers(0, 2**31), st.sampled_from([1, 2, 3]))
def test_grouping_never_loses_more_than_heads_as_they_stand(seed: int, wanted: int) -> None:
    network = Owner(seed)
    unit = unit_of(network)
    order = grouping(network, unit, wanted)
    assert sorted(order) == list(range(HEADS))
    standing = loss_of(network, unit, wanted, tuple(range(HEADS)))
    assert loss_of(network, unit, wanted, order) <= standing * (1 + 1e-9)


@given(st.integers(0, 2**31))
def test_four_heads_in_two_groups_lose_the_least_that_any_grouping_does(seed: int) -> None:
    network = Owner(seed, heads=4)
    unit = unit_of(network)
    best = min(loss_of(network, unit, 2, order) for order in itertools.permutations(range(4)))
    assert loss_of(network, unit, 2, grouping(network, unit, 2)) == pytest.approx(best, rel=1e-9)


@given(st.permutations([0, 0, 1, 1, 2, 2]))
def test_equal_heads_are_found_wherever_they_stand(kinds: list[int]) -> None:
    network = Owner()
    for layer in (network.attention.key, network.attention.value):
        for tensor in (layer.weight.data, layer.bias.data):
            heads = tensor.reshape(HEADS, WIDTH, *tensor.shape[1:])
            heads.copy_(heads[torch.tensor(kinds)].clone())
    unit = unit_of(network)
    order = grouping(network, unit, 3)
    assert loss_of(network, unit, 3, order) == pytest.approx(0, abs=1e-12)
    expected = copy.deepcopy(network)
    merge(network, find_anatomy(network), Cut(forms={"merged": {unit.key: 3}}), {unit.key: order})
    x, mask = torch.ones(1, 5, DIM, dtype=torch.float64).cumsum(1), torch.zeros(5, 5, dtype=torch.float64)
    torch.testing.assert_close(network(x, mask), expected(x, mask), atol=1e-12, rtol=0)


def test_grouping_looks_at_the_heads_that_stay() -> None:
    network = Owner()
    for layer in (network.attention.key, network.attention.value):
        for tensor in (layer.weight.data, layer.bias.data):
            heads = tensor.reshape(HEADS, WIDTH, *tensor.shape[1:])
            heads[5] = heads[1]
    assert grouping(network, unit_of(network), 2, kept=(1, 2, 3, 5)) == (0, 3, 1, 2)


# --- the built-in model -----------------------------------------------------------------------------------------------


SMALL = ConformerConfig(dim=32, num_blocks=2, num_heads=4, head_dim=8, ffn_dim=48, channels=(4, 8))


@cache
def conformer() -> tuple[EdgeModel, Anatomy]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = StreamingConformer(SMALL).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("attention.bias"):
                nn.init.normal_(parameter)
    return streaming.edge_model(model, "0" * 64), find_anatomy(model)


def attentions(anatomy: Anatomy) -> list[Unit]:
    return [unit for unit in anatomy.units if unit.kind == "attention"]


def test_streaming_equals_offline_with_merged_heads_and_caches_shrink() -> None:
    model, anatomy = conformer()
    first, second = attentions(anatomy)
    cut = Cut({first.key: (0, 2, 3)}, forms={"merged": {first.key: 1, second.key: 2}})
    made = prune(Prunable(model, anatomy), cut)
    shapes = {state.input: state.shape for state in made.spec.graphs[0].states}
    assert shapes["kv_cache_0"] == (1, 1, SMALL.left, 16)
    assert shapes["kv_cache_1"] == (1, 2, SMALL.left, 16)
    network = copy.deepcopy(cast(StreamingConformer, made.network)).double()
    feats = torch.randn(377, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        offline, _ = network(feats[None], torch.tensor([377]))
        streamed = torch.cat(list(stream(StreamingStep(network).eval(), feats)))
    torch.testing.assert_close(streamed, offline[0], atol=1e-12, rtol=0)


def test_engines_agree_on_merged_heads_and_the_graph_gathers_nothing(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from edgeattn.converters.onnx import export_onnx
    from edgeattn.runtimes import open_session

    model, anatomy = conformer()
    made = reshape(model, anatomy, Cut(forms={"merged": {unit.key: 2 for unit in attentions(anatomy)}}))
    files = export_onnx(made, tmp_path)
    kinds = {node.op_type for node in onnx.load(files["step"]).graph.node}
    assert not kinds & {
        "Gather",
        "GatherND",
        "GatherElements",
        "ScatterND",
        "ScatterElements",
        "Expand",
        "Tile",
        "Where",
    }
    example = made.example["step"]
    with open_session("onnxruntime", files, made.spec, threads=1) as session:
        got = {name: np.array(value) for name, value in session.run(example).items()}
    for name, expected in made.run(example).items():
        np.testing.assert_allclose(got[name], expected, atol=1e-5)


def test_a_cut_gives_the_same_shapes_whatever_the_weights_and_orders_are() -> None:
    model, anatomy = conformer()
    cut = Cut(forms={"merged": {unit.key: 2 for unit in attentions(anatomy)}})
    made = reshape(model, anatomy, cut, {"kv-heads": {unit.key: (3, 0, 2, 1) for unit in attentions(anatomy)}})
    other = StreamingConformer(SMALL).eval()
    merge(other, find_anatomy(other), cut)
    other.load_state_dict(cast(nn.Module, made.network).state_dict())
    again = streaming.edge_model(other, "0" * 64)
    for name, value in made.run(made.example["step"]).items():
        np.testing.assert_array_equal(again.run(made.example["step"])[name], value)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 0, 1, 2, 3, 4), (1, 2, 3, 4, 5, 6)])
def test_an_order_that_is_none_is_refused(order: tuple[int, ...]) -> None:
    network = Owner()
    unit = unit_of(network)
    with pytest.raises(InputError, match="names each of its 6 key/value heads once"):
        merge(network, find_anatomy(network), Cut(forms={"merged": {unit.key: 2}}), {unit.key: order})


def test_groups_that_do_not_divide_are_refused() -> None:
    network = Owner()
    with pytest.raises(InputError, match="6 heads do not divide into 4 equal groups"):
        grouping(network, unit_of(network), 4)


def test_packed_projections_are_refused_by_name() -> None:
    given_prunable = prunable_of("GPT-2")
    unit = attentions(given_prunable.anatomy)[0]
    with pytest.raises(UnsupportedError, match=r"h\.0\.attn: .* three linear layers of their own \(gpt2\)"):
        prune(given_prunable, Cut(forms={"merged": {unit.key: 2}}))


class Plain(nn.Module):
    """Attention that takes as many key/value heads as query heads."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 2, 4
        self.query, self.key, self.value, self.output = (nn.Linear(8, 8) for _ in range(4))


def test_a_block_that_cannot_share_heads_is_named_with_its_class() -> None:
    network = nn.Sequential(Plain())
    with pytest.raises(UnsupportedError, match=r"^0 \(Plain\): its attention takes as many key/value heads"):
        merge(network, find_anatomy(network), Cut(forms={"merged": {"attention:0": 1}}))


def test_tied_projections_are_refused_with_their_names() -> None:
    network = Owner()
    unit = unit_of(network)
    anatomy = Anatomy((unit,))
    network.attention.value.weight = network.attention.key.weight
    with pytest.raises(UnsupportedError, match=r"weights attention\.key\.weight, attention\.value\.weight are tied"):
        merge(network, anatomy, Cut(forms={"merged": {unit.key: 2}}))
