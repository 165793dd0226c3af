"""Attention with relative bias against loops and softmax written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgeattn.attention.masks import chunk_mask
from edgeattn.attention.relative_bias import RelativeBiasAttention, initial_bias


def attention(heads: int = 3, ahead: int = 4, behind: int = 9) -> RelativeBiasAttention:
    torch.manual_seed(0)
    made = RelativeBiasAttention(12, heads, 5, behind, ahead).double().eval()
    torch.nn.init.normal_(made.bias)
    return made


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (4, 4), (3, 11), (8, 40), (30, 30)])
def test_relative_bias_is_the_table_entry_of_each_distance(queries: int, keys: int) -> None:
    made = attention()
    bias = made.relative_bias(queries, keys)
    assert bias.shape == (3, queries, keys)
    for query in range(queries):
        for key in range(keys):
            distance = min(9, max(-4, query + keys - queries - key))
            assert torch.equal(bias[:, query, key], made.bias[:, distance + 4])


def softmax_attention(made: RelativeBiasAttention, x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    def linear(layer: torch.nn.Linear, value: np.ndarray) -> np.ndarray:
        return np.asarray(value @ layer.weight.detach().numpy().T + layer.bias.detach().numpy())

    frames, width, table = len(x), made.head_dim, made.bias.detach().numpy()
    query, key, value = linear(made.query, x), linear(made.key, x), linear(made.value, x)
    joined = np.zeros((frames, made.num_heads * width))
    for head in range(made.num_heads):
        part = slice(head * width, (head + 1) * width)
        for i in range(frames):
            logits = np.zeros(frames)
            for j in range(frames):
                distance = min(made.max_behind, max(-made.max_ahead, i - j)) + made.max_ahead
                logits[j] = query[i, part] @ key[j, part] / np.sqrt(width) + table[head, distance] + mask[i, j]
            weights = np.exp(logits - logits.max())
            joined[i, part] = weights / weights.sum() @ value[:, part]
    return linear(made.output, joined)


def test_attention_is_softmax_over_biased_and_masked_logits() -> None:
    made = attention()
    x = np.random.default_rng(0).standard_normal((13, 12))
    mask = chunk_mask(13, 4, 1).double()
    with torch.inference_mode():
        got = made(torch.from_numpy(x)[None], mask)[0].numpy()
    np.testing.assert_allclose(got, softmax_attention(made, x, mask.numpy()), atol=1e-12)


def test_a_step_is_the_last_rows_of_the_whole() -> None:
    made = attention()
    x = torch.randn(1, 9, 12, dtype=torch.float64)
    with torch.inference_mode():
        whole = made(x, torch.zeros(9, 9, dtype=torch.float64))
        _, cache = made.step(x[:, :6], torch.zeros(1, 3, 6, 10, dtype=torch.float64), torch.full((1, 3, 6, 12), -1e4))
        last, following = made.step(x[:, 6:], cache, made.relative_bias(3, 9)[None])
    torch.testing.assert_close(last, whole[:, 6:], atol=1e-12, rtol=0)
    assert following.shape == cache.shape


def test_the_first_bias_is_a_slope_per_head_and_flat_for_the_last() -> None:
    table = initial_bias(4, max_behind=5, max_ahead=2)
    assert table.shape == (4, 8)
    torch.testing.assert_close(table[0], -0.4 * torch.tensor([2.0, 1, 0, 1, 2, 3, 4, 5]))
    assert (table[-1] == 0).all()
