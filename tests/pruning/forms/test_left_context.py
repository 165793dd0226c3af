"""A shorter left context against the whole one whose dropped frames are hidden, and streaming against offline."""

from __future__ import annotations

import copy
from functools import cache
from typing import cast

import numpy as np
import pytest
import torch
from torch import nn

import edgeattn.models.streaming_conformer as streaming
from edgeattn.errors import InputError
from edgeattn.model import EdgeModel
from edgeattn.models.streaming_conformer.model import ConformerConfig, StreamingConformer
from edgeattn.models.streaming_conformer.step import StreamingStep, stream
from edgeattn.pruning.anatomy import Prunable
from edgeattn.pruning.apply import prune
from edgeattn.pruning.cut import Cut
from edgeattn.pruning.families import find_anatomy
from edgeattn.pruning.forms.left_context import left_contexts, shorten
from edgeattn.spec import HIDDEN

CHUNK, LEFT = 8, 32
SMALL = ConformerConfig(dim=32, num_blocks=2, num_heads=2, head_dim=8, ffn_dim=48, channels=(4, 8))


@cache
def conformer() -> EdgeModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = StreamingConformer(SMALL).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("attention.bias"):
                nn.init.normal_(parameter)
    return streaming.edge_model(model, "0" * 64)


def shortened(left: int) -> EdgeModel:
    model = conformer()
    assert model.network is not None
    return prune(Prunable(model, find_anatomy(model.network)), Cut(forms={"left": left}))


def test_one_chunk_fewer_at_a_time_down_to_one() -> None:
    assert left_contexts(cast(nn.Module, conformer().network)) == (8, 16, 24)
    assert left_contexts(cast(nn.Module, shortened(16).network)) == (8,)
    assert left_contexts(cast(nn.Module, shortened(8).network)) == ()


@pytest.mark.parametrize("left", [8, 16, 24])
def test_it_computes_what_the_whole_context_does_with_the_dropped_frames_hidden(left: int) -> None:
    whole, made = conformer(), shortened(left)
    assert made.spec.stream is not None
    assert made.spec.stream.left == left
    example = dict(whole.example["step"])
    small = {name: value[:, :, -left:] if name.startswith("kv_cache") else value for name, value in example.items()}
    small["att_bias"] = np.zeros((1, 1, 1, left + CHUNK), np.float32)
    example["att_bias"] = np.zeros((1, 1, 1, LEFT + CHUNK), np.float32)
    example["att_bias"][..., : LEFT - left] = HIDDEN
    expected, got = whole.run(example), made.run(small)
    assert got.keys() == expected.keys()
    for name, value in got.items():
        kept = expected[name][:, :, -left:] if name.startswith("next_kv") else expected[name]
        np.testing.assert_allclose(value, kept, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("left", [8, 24])
def test_streaming_equals_offline_at_the_new_context(left: int) -> None:
    network = copy.deepcopy(cast(StreamingConformer, shortened(left).network)).double()
    feats = torch.randn(500, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        offline, _ = network(feats[None], torch.tensor([500]))
        streamed = torch.cat(list(stream(StreamingStep(network).eval(), feats)))
        longer, _ = network(feats[None], torch.tensor([500]), left_chunks=4)
    torch.testing.assert_close(streamed, offline[0], atol=1e-12, rtol=0)
    assert not torch.allclose(offline, longer, atol=1e-3)  # the context is long enough to matter


def test_the_original_keeps_its_context() -> None:
    shortened(8)
    assert conformer().spec.stream is not None
    assert cast(StreamingConformer, conformer().network).config.left == LEFT


@pytest.mark.parametrize("left", [4, 12, 32, 40])
def test_a_context_that_is_no_shorter_number_of_chunks_is_refused_with_the_valid_ones(left: int) -> None:
    model = conformer()
    assert model.network is not None
    with pytest.raises(InputError, match=f"left context of {left} encoder frames: .* fewer than now: 8, 16, 24"):
        prune(Prunable(model, find_anatomy(model.network)), Cut(forms={"left": left}))


def test_a_context_of_one_chunk_cannot_be_shorter() -> None:
    network = copy.deepcopy(cast(nn.Module, shortened(8).network))
    with pytest.raises(InputError, match="none, it is one chunk already"):
        shorten(network, 8)


def test_the_model_itself_takes_no_other_context() -> None:
    with pytest.raises(ValueError, match=r"left must be one of \(8, 16, 24\), got 32"):
        StreamingConformer(SMALL).shorten_left(32)


def test_a_model_that_does_not_stream_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="Sequential has no left context to shorten"):
        shorten(nn.Sequential(), 8)
