"""Additive attention masks: 0 where a key is seen, ``HIDDEN`` where it is not."""

from __future__ import annotations

import torch
from torch import Tensor

from edgeattn.spec import HIDDEN


def chunk_mask(frames: int, chunk: int, left_chunks: int, device: torch.device | None = None) -> Tensor:
    """Which keys each query sees when frames arrive in chunks.

    A query sees its own chunk whole and ``left_chunks`` chunks before it, in every layer, which is
    exactly what a stream with a cache of ``left_chunks * chunk`` frames sees (Zhang et al., "Unified
    Streaming and Non-streaming Two-pass End-to-end Model for Speech Recognition", 2020).

    Args:
        frames: T, number of encoder frames.
        chunk: encoder frames per chunk; 0 means the whole utterance is one chunk.
        left_chunks: chunks of left context.

    Returns:
        float32, shape (T, T), additive: 0 or ``HIDDEN``.

    Raises:
        ValueError: if an argument is negative.

    >>> (chunk_mask(4, 2, 0) == 0).int().tolist()
    [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    """
    if frames < 0 or chunk < 0 or left_chunks < 0:
        raise ValueError(f"expected non-negative sizes, got frames={frames} chunk={chunk} left_chunks={left_chunks}")
    if chunk == 0:
        return torch.zeros(frames, frames, device=device)
    index = torch.arange(frames, device=device) // chunk
    behind = index[:, None] - index[None, :]
    visible = (behind >= 0) & (behind <= left_chunks)
    return torch.where(visible, 0.0, HIDDEN)


def length_mask(lengths: Tensor, frames: int) -> Tensor:
    """Hides the padding of a batch.

    Args:
        lengths: int64, shape (B,), valid frames of each utterance.
        frames: T, padded length.

    Returns:
        float32, shape (B, 1, 1, T), additive: 0 or ``HIDDEN``.
    """
    valid = torch.arange(frames, device=lengths.device)[None, :] < lengths[:, None]
    return torch.where(valid, 0.0, HIDDEN)[:, None, None, :]


def cache_mask(frames_seen: int, left: int, chunk: int, valid: int | None = None) -> Tensor:
    """The bias that hides the part of a cache that is still empty, and the padding of a last chunk.

    Args:
        frames_seen: encoder frames before this chunk.
        left: L, cache length in encoder frames.
        chunk: C, encoder frames per chunk.
        valid: real frames in this chunk; all of them by default.

    Returns:
        float32, shape (1, 1, 1, L + C), additive: 0 or ``HIDDEN``.
    """
    bias = torch.zeros(1, 1, 1, left + chunk)
    bias[..., : max(0, left - frames_seen)] = HIDDEN
    if valid is not None:
        bias[..., left + valid :] = HIDDEN
    return bias
