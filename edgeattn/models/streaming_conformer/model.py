"""A streaming Conformer for connected words, trained with CTC.

The block follows Gulati et al., "Conformer" (2020) with LayerNorm in place of BatchNorm, a causal depthwise
convolution, chunked attention (Zhang et al., 2020) and a learned relative bias in place of position tables.
Two forwards share the weights: :class:`StreamingConformer` runs whole utterances under the chunk mask,
:class:`StreamingStep` runs one chunk with carried state. They agree to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from edgeattn.attention.masks import chunk_mask, length_mask
from edgeattn.attention.relative_bias import RelativeBiasAttention
from edgeattn.models.streaming_conformer.vocabulary import TOKENS

SUBSAMPLING = 4  # feature frames per encoder frame
RIGHT_CONTEXT = 3  # feature frames that the last encoder frame of a chunk needs beyond its own four


@dataclass(frozen=True)
class ConformerConfig:
    """Sizes of the model. Lengths are in encoder frames of 40 ms."""

    num_mel: int = 40
    vocabulary: int = len(TOKENS)
    dim: int = 128
    num_blocks: int = 4
    num_heads: int = 4
    head_dim: int = 32
    ffn_dim: int = 384
    kernel: int = 9
    channels: tuple[int, int] = (32, 64)
    max_behind: int = 79
    max_ahead: int = 15
    dropout: float = 0.15
    chunk: int = 8
    left_chunks: int = 4

    @property
    def left(self) -> int:
        """L, cache length in encoder frames."""
        return self.chunk * self.left_chunks

    @property
    def window(self) -> int:
        """W, feature frames that one step reads."""
        return SUBSAMPLING * self.chunk + RIGHT_CONTEXT

    @property
    def shift(self) -> int:
        """Feature frames between two steps."""
        return SUBSAMPLING * self.chunk


def encoder_frames(feature_frames: int) -> int:
    """Encoder frames that ``feature_frames`` give, 0 when too few.

    >>> [encoder_frames(n) for n in (6, 7, 10, 11, 35)]
    [0, 1, 1, 2, 8]
    """
    return max(0, (feature_frames - RIGHT_CONTEXT) // SUBSAMPLING)


class Subsampling(nn.Module):
    """Two unpadded 3x3 convolutions of stride 2, then a projection: (B, T, F) -> (B, (T - 3) // 4, D)."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        first, second = config.channels
        self.conv1 = nn.Conv2d(1, first, 3, stride=2)
        self.conv2 = nn.Conv2d(first, second, 3, stride=2)
        bins = ((config.num_mel - 1) // 2 - 1) // 2
        self.project = nn.Linear(second * bins, config.dim)
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, feats: Tensor) -> Tensor:
        """(B, T, F) normalised features -> (B, T', D)."""
        x = torch.relu(self.conv2(torch.relu(self.conv1(feats.unsqueeze(1)))))
        batch, channels, frames, bins = x.shape
        projected: Tensor = self.norm(self.project(x.permute(0, 2, 1, 3).reshape(batch, frames, channels * bins)))
        return projected


class LockedDropout(nn.Module):
    """Dropout with one mask for all frames of an utterance (Gal and Ghahramani, 2016).

    Drawing one random number per channel, not per element, takes a third off a training step on a CPU.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        if not self.training or self.probability == 0:
            return x
        return x * nn.functional.dropout(x.new_ones(x.shape[0], 1, x.shape[2]), self.probability)


class FeedForward(nn.Module):
    """LayerNorm, widen, SiLU, narrow: (B, T, D) -> (B, T, D)."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, hidden)
        self.contract = nn.Linear(hidden, dim)
        self.dropout = LockedDropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D), without the residual."""
        y: Tensor = self.contract(self.dropout(nn.functional.silu(self.expand(self.norm(x)))))
        return y


class CausalConvolution(nn.Module):
    """The Conformer's convolution module, looking back only.

    The cache holds what comes out of the gate: a zero cache then equals the zero padding of the offline pass.
    """

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, 2 * dim)
        self.depthwise = nn.Conv1d(dim, dim, kernel, groups=dim)
        self.norm2 = nn.LayerNorm(dim)
        self.contract = nn.Linear(dim, dim)

    def step(self, x: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        """One chunk: x (B, C, D), cache (B, K - 1, D) -> output (B, C, D), next cache (B, K - 1, D)."""
        value, gate = self.expand(self.norm(x)).chunk(2, dim=-1)
        seen = torch.cat([cache, value * torch.sigmoid(gate)], dim=1)
        mixed = self.depthwise(seen.transpose(1, 2)).transpose(1, 2)
        return self.contract(nn.functional.silu(self.norm2(mixed))), seen[:, x.shape[1] :]

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D), without the residual."""
        return self.step(x, x.new_zeros(x.shape[0], self.kernel - 1, x.shape[2]))[0]


class ConformerBlock(nn.Module):
    """Half feed-forward, attention, convolution, half feed-forward, LayerNorm."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.ffn1 = FeedForward(config.dim, config.ffn_dim, config.dropout)
        self.attention_norm = nn.LayerNorm(config.dim)
        self.attention = RelativeBiasAttention(
            config.dim, config.num_heads, config.head_dim, config.max_behind, config.max_ahead
        )
        self.convolution = CausalConvolution(config.dim, config.kernel)
        self.ffn2 = FeedForward(config.dim, config.ffn_dim, config.dropout)
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = LockedDropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Whole utterances: x (B, T, D), mask broadcastable to (B, H, T, T) -> (B, T, D)."""
        x = x + 0.5 * self.dropout(self.ffn1(x))
        x = x + self.dropout(self.attention(self.attention_norm(x), mask))
        x = x + self.dropout(self.convolution(x))
        x = x + 0.5 * self.dropout(self.ffn2(x))
        y: Tensor = self.norm(x)
        return y

    def step(self, x: Tensor, bias: Tensor, kv_cache: Tensor, conv_cache: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One chunk: x (1, C, D), bias (1, H, C, L + C), kv (1, G, L, 2 d), conv (1, K - 1, D)."""
        x = x + 0.5 * self.ffn1(x)
        attended, next_kv = self.attention.step(self.attention_norm(x), kv_cache, bias)
        x = x + attended
        mixed, next_conv = self.convolution.step(x, conv_cache)
        x = x + mixed
        x = x + 0.5 * self.ffn2(x)
        return self.norm(x), next_kv, next_conv


class StreamingConformer(nn.Module):
    """The whole model, for training and offline use.

    ``mean`` and ``scale`` (float32, shape (F,)) are the global cepstral-style normalisation of the features,
    inside the graph so that a runtime feeds plain log mel energies.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(config.num_mel))
        self.register_buffer("scale", torch.ones(config.num_mel))
        self.subsampling = Subsampling(config)
        self.blocks = nn.ModuleList(ConformerBlock(config) for _ in range(config.num_blocks))
        self.classify = nn.Linear(config.dim, config.vocabulary)

    @property
    def left_contexts(self) -> tuple[int, ...]:
        """Left contexts, in encoder frames, that it can be shortened to: whole chunks, at least one."""
        return tuple(self.config.chunk * chunks for chunks in range(1, self.config.left_chunks))

    def shorten_left(self, left: int) -> None:
        """Read ``left`` cached encoder frames from now on, one of :attr:`left_contexts`."""
        if left not in self.left_contexts:
            raise ValueError(f"left must be one of {self.left_contexts}, got {left}")
        self.config = replace(self.config, left_chunks=left // self.config.chunk)

    def encode(self, feats: Tensor, lengths: Tensor, chunk: int, left_chunks: int) -> tuple[Tensor, Tensor]:
        """Encoder output under the chunk mask.

        Args:
            feats: float, shape (B, T, F), log mel energies.
            lengths: int64, shape (B,), valid feature frames.
            chunk: encoder frames per chunk; 0 for the whole utterance.
            left_chunks: chunks of left context in every layer.

        Returns:
            encoded (B, T', D) and its lengths (B,), int64.

        Raises:
            ValueError: if ``feats`` has another rank or another number of mel bins.
        """
        if feats.ndim != 3 or feats.shape[2] != self.config.num_mel:
            raise ValueError(f"feats must have shape (B, T, {self.config.num_mel}), got {tuple(feats.shape)}")
        x = self.subsampling((feats - self.mean) * self.scale)
        out_lengths = ((lengths - RIGHT_CONTEXT) // SUBSAMPLING).clamp(min=0)
        frames = x.shape[1]
        mask = (chunk_mask(frames, chunk, left_chunks, x.device) + length_mask(out_lengths, frames)).to(x.dtype)
        for block in self.blocks:
            x = block(x, mask)
        return x, out_lengths

    def forward(
        self, feats: Tensor, lengths: Tensor, chunk: int | None = None, left_chunks: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Log probabilities of whole utterances, as a stream of the same chunk size would give them.

        Args and errors: see :meth:`encode`; chunk and left context default to the configuration.

        Returns:
            log_probs (B, T', V) and lengths (B,), int64.
        """
        chunk = self.config.chunk if chunk is None else chunk
        left_chunks = self.config.left_chunks if left_chunks is None else left_chunks
        encoded, out_lengths = self.encode(feats, lengths, chunk, left_chunks)
        return torch.log_softmax(self.classify(encoded), dim=-1), out_lengths
