"""The streaming step against the offline pass under the chunk mask: one model, two ways to run it."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgeattn.models.streaming_conformer.model import ConformerConfig, StreamingConformer, encoder_frames
from edgeattn.models.streaming_conformer.step import StreamingStep, stream

SMALL = ConformerConfig(dim=32, num_blocks=2, num_heads=2, head_dim=8, ffn_dim=48, channels=(4, 8), vocabulary=7)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


@cache
def models(
    dtype: torch.dtype = torch.float64, config: ConformerConfig = SMALL
) -> tuple[StreamingConformer, StreamingStep]:
    torch.manual_seed(1)
    model = StreamingConformer(config)
    for block in model.blocks:
        torch.nn.init.normal_(block.attention.bias)  # type: ignore[union-attr,arg-type]
    model.mean.normal_()
    model = model.to(dtype).eval()
    return model, StreamingStep(model).eval()


def features(frames: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(frames, 40, dtype=dtype, generator=torch.Generator().manual_seed(frames))


def offline(model: StreamingConformer, feats: Tensor) -> Tensor:
    with torch.inference_mode():
        log_probs, lengths = model(feats[None], torch.tensor([len(feats)]))
    assert lengths.tolist() == [encoder_frames(len(feats))]
    result: Tensor = log_probs[0]
    return result


def streamed(step: StreamingStep, feats: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.cat(list(stream(step, feats)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=25, deadline=None)
@given(frames=st.integers(7, 400))
def test_streamed_equals_offline_for_every_length(dtype: torch.dtype, frames: int) -> None:
    model, step = models(dtype)
    feats = features(frames, dtype)
    torch.testing.assert_close(streamed(step, feats), offline(model, feats), atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_streamed_equals_offline_over_600_chunks(dtype: torch.dtype) -> None:
    model, step = models(dtype)
    feats = features(600 * SMALL.shift + 3, dtype)
    got = streamed(step, feats)
    assert len(got) == 4800
    # The offline pass needs attention over all frames at once: compare where its window suffices, at the end.
    window = SMALL.shift * 60 + 3
    tail = offline(model, feats[-window:])[-SMALL.chunk * 8 :]
    torch.testing.assert_close(got[-SMALL.chunk * 8 :], tail, atol=TOLERANCE[dtype], rtol=0)
    head = offline(model, feats[:window])
    torch.testing.assert_close(got[: len(head)], head, atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize(("chunk", "left_chunks"), [(4, 4), (8, 1), (16, 2)])
def test_streamed_equals_offline_for_other_chunks(chunk: int, left_chunks: int) -> None:
    config = ConformerConfig(
        dim=32, num_blocks=2, num_heads=2, head_dim=8, ffn_dim=48, channels=(4, 8), chunk=chunk, left_chunks=left_chunks
    )
    model, step = models(torch.float64, config)
    feats = features(377)
    torch.testing.assert_close(streamed(step, feats), offline(model, feats), atol=1e-12, rtol=0)


def test_what_a_hidden_cache_holds_changes_nothing() -> None:
    _, step = models()
    feats = features(SMALL.window)[None]
    hidden = torch.zeros(1, 1, 1, SMALL.left + SMALL.chunk, dtype=torch.float64)
    hidden[..., : SMALL.left] = -1e4
    clean = step.empty_states()
    poisoned = {name: torch.full_like(t, 1e3) if name.startswith("kv") else t for name, t in clean.items()}
    with torch.inference_mode():
        expected, got = step(feats, hidden, **clean), step(feats, hidden, **poisoned)
    assert torch.equal(expected["log_probs"], got["log_probs"])


def test_an_unhidden_empty_cache_is_noticed() -> None:
    """The mask matters: without it the first chunk differs, so the tests above can fail."""
    model, step = models()
    feats = features(SMALL.window)
    bias = torch.zeros(1, 1, 1, SMALL.left + SMALL.chunk, dtype=torch.float64)
    with torch.inference_mode():
        got = step(feats[None], bias, **step.empty_states())["log_probs"][0]
    assert (got - offline(model, feats)).abs().max() > 1e-3


def test_frames_beyond_the_window_change_nothing_before() -> None:
    model, step = models()
    feats = features(10 * SMALL.shift + 3)
    changed = feats.clone()
    changed[5 * SMALL.shift + 3 :] += 5.0
    for run in (streamed(step, feats), offline(model, feats)), (streamed(step, changed), offline(model, changed)):
        assert run[0].shape == run[1].shape
    before = 5 * SMALL.chunk
    assert torch.equal(streamed(step, feats)[:before], streamed(step, changed)[:before])
    torch.testing.assert_close(offline(model, feats)[:before], offline(model, changed)[:before], atol=1e-12, rtol=0)
    assert not torch.equal(streamed(step, feats)[before:], streamed(step, changed)[before:])


def test_an_utterance_is_the_same_alone_and_in_a_batch() -> None:
    model, _ = models()
    long, short = features(203), features(90)
    padded = torch.nn.functional.pad(short, (0, 0, 0, 113), value=9.0)
    with torch.inference_mode():
        both, lengths = model(torch.stack([long, padded]), torch.tensor([203, 90]))
    assert lengths.tolist() == [50, 21]
    torch.testing.assert_close(both[0], offline(model, long), atol=1e-12, rtol=0)
    torch.testing.assert_close(both[1, :21], offline(model, short), atol=1e-12, rtol=0)


def test_full_context_sees_everything() -> None:
    model, _ = models()
    feats = features(203)
    changed = feats.clone()
    changed[-8:] += 5.0
    with torch.inference_mode():
        first, _ = model(feats[None], torch.tensor([203]), 0, 0)
        second, _ = model(changed[None], torch.tensor([203]), 0, 0)
    assert not torch.equal(first[0, 0], second[0, 0])


def test_features_of_another_shape_are_refused() -> None:
    model, _ = models()
    with pytest.raises(ValueError, match=r"shape \(B, T, 40\), got \(1, 50, 80\)"):
        model(torch.zeros(1, 50, 80, dtype=torch.float64), torch.tensor([50]))


def test_too_few_frames_give_nothing() -> None:
    _, step = models()
    assert list(stream(step, features(6))) == []


def test_the_built_in_size() -> None:
    model = StreamingConformer(ConformerConfig())
    assert 1.0e6 <= sum(parameter.numel() for parameter in model.parameters()) <= 1.5e6
    assert (model.config.window, model.config.shift, model.config.left) == (35, 32, 32)
