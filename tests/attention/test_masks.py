"""Masks against their definition, entry by entry."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeattn.attention.masks import cache_mask, chunk_mask, length_mask
from edgeattn.spec import HIDDEN


@settings(max_examples=40, deadline=None)
@given(frames=st.integers(0, 40), chunk=st.integers(1, 9), left=st.integers(0, 4))
def test_a_query_sees_its_chunk_and_the_chunks_left_of_it(frames: int, chunk: int, left: int) -> None:
    mask = chunk_mask(frames, chunk, left)
    for query in range(frames):
        start = query // chunk * chunk
        for key in range(frames):
            seen = start - left * chunk <= key < start + chunk
            assert mask[query, key] == (0.0 if seen else HIDDEN)


def test_chunk_zero_means_the_whole_utterance() -> None:
    assert torch.equal(chunk_mask(5, 0, 0), torch.zeros(5, 5))


@pytest.mark.parametrize("sizes", [(-1, 1, 1), (1, -1, 1), (1, 1, -1)])
def test_negative_sizes_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="non-negative"):
        chunk_mask(*sizes)


def test_padding_of_a_batch_is_hidden() -> None:
    mask = length_mask(torch.tensor([2, 0, 3]), 3)
    assert mask.shape == (3, 1, 1, 3)
    assert (mask[:, 0, 0] == 0).tolist() == [[True, True, False], [False] * 3, [True] * 3]


@pytest.mark.parametrize(("seen", "hidden"), [(0, 6), (2, 4), (5, 1), (6, 0), (100, 0)])
def test_the_empty_part_of_a_cache_is_hidden(seen: int, hidden: int) -> None:
    mask = cache_mask(seen, left=6, chunk=2)
    assert mask.shape == (1, 1, 1, 8)
    assert (mask == HIDDEN).flatten().tolist() == [True] * hidden + [False] * (8 - hidden)


def test_the_padding_of_a_last_chunk_is_hidden() -> None:
    assert (cache_mask(8, left=2, chunk=3, valid=1) == HIDDEN).flatten().tolist() == [False] * 3 + [True] * 2


def test_the_mask_survives_float16() -> None:
    assert torch.isfinite(torch.tensor(HIDDEN).half())
