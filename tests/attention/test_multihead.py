"""Attention with a layer per projection computes what torch's packed one computes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgeattn.attention.multihead import MultiheadAttention, from_torch

TOLERANCE = 1e-6  # of float32

MASKS = ("none", "causal", "boolean", "added", "per head")
PADDINGS = ("none", "boolean", "added")


def inputs(
    batch: int | None, queries: int, keys: int, dim: int, key_dim: int, value_dim: int, batch_first: bool
) -> tuple[Tensor, Tensor, Tensor]:
    def draw(length: int, width: int) -> Tensor:
        if batch is None:
            return torch.randn(length, width)
        return torch.randn(batch, length, width) if batch_first else torch.randn(length, batch, width)

    return draw(queries, dim), draw(keys, key_dim), draw(keys, value_dim)


def attention_mask(kind: str, batch: int, heads: int, queries: int, keys: int) -> Tensor | None:
    if kind == "none":
        return None
    if kind == "causal":
        return torch.ones(queries, keys, dtype=torch.bool).triu(1)
    shape = (batch * heads, queries, keys) if kind == "per head" else (queries, keys)
    hidden = torch.rand(shape) < 0.3
    hidden[..., 0] = False
    return torch.randn(shape) if kind == "added" else hidden


def padding_mask(kind: str, batch: int | None, keys: int) -> Tensor | None:
    if kind == "none":
        return None
    shape = (keys,) if batch is None else (batch, keys)
    hidden = torch.rand(shape) < 0.3
    hidden[..., 0] = False
    return hidden if kind == "boolean" else torch.zeros(shape).masked_fill(hidden, float("-inf"))


@pytest.mark.filterwarnings("ignore:Support for mismatched")  # torch says so of masks of two kinds, and takes them
@given(
    seed=st.integers(0, 2**31),
    batch=st.sampled_from([None, 1, 3]),
    heads=st.sampled_from([1, 2, 4]),
    widths=st.sampled_from([(8, 8, 8), (8, 6, 5)]),
    batch_first=st.booleans(),
    bias=st.booleans(),
    need_weights=st.booleans(),
    average=st.booleans(),
    mask=st.sampled_from(MASKS),
    padding=st.sampled_from(PADDINGS),
)
@settings(max_examples=150)
def test_outputs_and_weights_are_those_of_torch(
    seed: int,
    batch: int | None,
    heads: int,
    widths: tuple[int, int, int],
    batch_first: bool,
    bias: bool,
    need_weights: bool,
    average: bool,
    mask: str,
    padding: str,
) -> None:
    torch.manual_seed(seed)
    dim, key_dim, value_dim = widths
    block = nn.MultiheadAttention(dim, heads, 0.0, bias, kdim=key_dim, vdim=value_dim, batch_first=batch_first).eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    own = from_torch(block)
    sequences = inputs(batch, 4, 6, dim, key_dim, value_dim, batch_first)
    options: dict[str, Any] = {
        "key_padding_mask": padding_mask(padding, batch, 6),
        "attn_mask": attention_mask(mask, batch or 1, heads, 4, 6),
        "need_weights": need_weights,
        "average_attn_weights": average,
    }
    with torch.no_grad():
        wanted, weights = block(*sequences, **options)
        got, own_weights = own(*sequences, **options)
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max() <= TOLERANCE
    assert (own_weights is None) == (weights is None)
    if weights is not None:
        assert own_weights.shape == weights.shape
        assert (own_weights - weights).abs().max() <= TOLERANCE


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_torchs_layers_run_around_it_in_eval_and_in_training(norm_first: bool, activation: str) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        16, 4, 32, dropout=0.0, activation=activation, batch_first=True, norm_first=norm_first
    )
    own = copy.deepcopy(layer)
    own.self_attn = from_torch(layer.self_attn)  # type: ignore[assignment]
    x, hidden = torch.randn(2, 5, 16), torch.tensor([[False] * 5, [False, False, False, True, True]])
    for training in (False, True):
        with torch.no_grad():  # without gradients the fast path would be taken
            wanted = layer.train(training)(x, src_key_padding_mask=hidden)
            got = own.train(training)(x, src_key_padding_mask=hidden)
        assert (got - wanted)[~hidden].abs().max() <= 2e-6


def test_dropout_acts_in_training_alone() -> None:
    torch.manual_seed(0)
    own = from_torch(nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True))
    x = torch.randn(1, 6, 8)
    assert own.training
    assert not torch.equal(own(x, x, x)[0], own(x, x, x)[0])
    own.eval()
    assert torch.equal(own(x, x, x)[0], own(x, x, x)[0])


def test_a_mask_for_all_heads_gives_those_that_stay_their_own() -> None:
    torch.manual_seed(0)
    block = nn.MultiheadAttention(8, 4, batch_first=True).eval()
    x, mask = torch.randn(2, 5, 8), torch.randn(8, 5, 5)
    own, kept = from_torch(block), [1, 3]
    rows = [head * 2 + entry for head in kept for entry in range(2)]
    with torch.no_grad():
        masked = copy.deepcopy(own)
        gone = [row for row in range(8) if row not in rows]
        masked.out.weight[:, gone] = 0.0
        wanted, _ = masked(x, x, x, attn_mask=mask)
        for layer in (own.q, own.k, own.v):
            layer.weight, layer.bias = nn.Parameter(layer.weight[rows]), nn.Parameter(layer.bias[rows])
        own.out.weight = nn.Parameter(own.out.weight[:, rows])
        own.num_heads = own.num_key_value_heads = 2
        own.heads = torch.tensor(kept)
        got, _ = own(x, x, x, attn_mask=mask)
    assert (got - wanted).abs().max() <= TOLERANCE


def test_fewer_key_heads_serve_their_query_heads_in_turn() -> None:
    torch.manual_seed(0)
    own = MultiheadAttention(8, 4, 2, key_dim=8, value_dim=8, batch_first=True).eval()
    grouped = copy.deepcopy(own)
    x = torch.randn(1, 5, 8)
    with torch.no_grad():
        for layer, fewer in ((own.k, grouped.k), (own.v, grouped.v)):
            heads = layer.weight.reshape(2, 2, 2, 8)[:, :1], layer.bias.reshape(2, 2, 2)[:, :1]
            layer.weight.copy_(heads[0].expand(2, 2, 2, 8).reshape(8, 8))
            layer.bias.copy_(heads[1].expand(2, 2, 2).reshape(8))
            fewer.weight, fewer.bias = nn.Parameter(heads[0].reshape(4, 8)), nn.Parameter(heads[1].reshape(4))
        grouped.num_key_value_heads = 2
        assert (own(x, x, x)[0] - grouped(x, x, x)[0]).abs().max() <= TOLERANCE


def test_head_weights_say_how_much_each_counts_in_the_average() -> None:
    torch.manual_seed(0)
    own = from_torch(nn.MultiheadAttention(8, 4, batch_first=True)).eval()
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        each = own(x, x, x, average_attn_weights=False)[1]
        own.head_weights = torch.tensor([[0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
        got = own(x, x, x)[1]
    assert (got[0] - each[0, [1, 3]].mean(0)).abs().max() <= TOLERANCE
    assert (got[1] - each[1].mean(0)).abs().max() <= TOLERANCE


@pytest.mark.parametrize("extra", [{"add_bias_kv": True}, {"add_zero_attn": True}])
def test_a_key_that_no_layer_makes_is_refused(extra: dict[str, bool]) -> None:
    with pytest.raises(ValueError, match="add_bias_kv and add_zero_attn"):
        from_torch(nn.MultiheadAttention(8, 2, **extra))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"is_causal": True}, "is a hint about attn_mask"),
        ({"attn_mask": torch.zeros(4, 4)}, r"attn_mask must be \(5, 5\) or \(4, 5, 5\), got \(4, 4\)"),
        ({"attn_mask": torch.zeros(3, 5, 5)}, r"got \(3, 5, 5\)"),
        ({"key_padding_mask": torch.zeros(2, 4)}, r"key_padding_mask must be \(2, 5\), got \(2, 4\)"),
    ],
)
def test_masks_of_another_shape_are_refused(options: dict[str, Any], why: str) -> None:
    own = from_torch(nn.MultiheadAttention(8, 2, batch_first=True)).eval()
    x = torch.randn(2, 5, 8)
    with pytest.raises(ValueError, match=why):
        own(x, x, x, **options)
