"""Multi-head self-attention with a learned bias per head and distance.

The bias replaces a position table (Raffel et al., "Exploring the Limits of Transfer Learning", 2020,
section 2.1, without the logarithmic buckets). A table of positions ends a stream when it runs out; a bias
that depends on the distance alone is one constant for a fixed chunk and left context, so a stream never ends.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class RelativeBiasAttention(nn.Module):
    """Self-attention whose logits are ``q k / sqrt(d) + bias[head, query - key]``.

    There may be fewer key/value heads than query heads (Ainslie et al., "GQA", 2023): query head h reads key/value head
    ``h * kv_heads // num_heads``.

    Args:
        dim: D, width of the residual stream.
        num_heads: H; may differ between layers of one model, pruning removes heads one by one.
        head_dim: d, width of one head.
        max_behind: largest distance of a key in the past with a bias of its own; farther keys share it.
        max_ahead: the same for keys in the future.
    """

    def __init__(self, dim: int, num_heads: int, head_dim: int, max_behind: int, max_ahead: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.max_behind = max_behind
        self.max_ahead = max_ahead
        self.query = nn.Linear(dim, num_heads * head_dim)
        self.key = nn.Linear(dim, num_heads * head_dim)
        self.value = nn.Linear(dim, num_heads * head_dim)
        self.output = nn.Linear(num_heads * head_dim, dim)
        self.bias = nn.Parameter(initial_bias(num_heads, max_behind, max_ahead))

    @property
    def kv_heads(self) -> int:
        """G, key/value heads: as many as the key projection has rows for."""
        return self.key.out_features // self.head_dim

    def relative_bias(self, queries: int, keys: int) -> Tensor:
        """The bias of the last ``queries`` positions towards ``keys`` positions.

        Args:
            queries: Q; the queries are the last Q of the keys.
            keys: K >= Q.

        Returns:
            shape (H, Q, K): entry (h, i, j) is the bias of distance ``(i + K - Q) - j``.
        """
        # Row i of the result is a window of one vector, shifted by one from row to row: gathering
        # Q + K - 1 values and unfolding is several times cheaper in backward than gathering Q * K.
        distances = torch.arange(keys - 1, -queries, -1, device=self.bias.device)
        index = distances.clamp(-self.max_ahead, self.max_behind) + self.max_ahead
        return self.bias[:, index].unfold(1, keys, 1).flip(1)

    def _heads(self, x: Tensor) -> Tensor:
        batch, frames, width = x.shape
        return x.reshape(batch, frames, width // self.head_dim, self.head_dim).transpose(1, 2)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        batch, heads, frames, width = query.shape
        if self.kv_heads < heads:
            # The query heads of one key/value head follow each other: as rows of one matrix they need no copy of it.
            rows = heads // self.kv_heads * frames
            query = query.reshape(batch, self.kv_heads, rows, width)
            bias = bias.reshape(*bias.shape[:-3], self.kv_heads, rows, bias.shape[-1])
        # The scale sits on the query: logits stay small before the product, which int8 and fp16 need.
        logits = torch.matmul(query * (1.0 / math.sqrt(self.head_dim)), key.transpose(-2, -1)) + bias
        mixed = torch.matmul(torch.softmax(logits, dim=-1), value)
        mixed = mixed.reshape(batch, heads, frames, width) if self.kv_heads < heads else mixed
        joined: Tensor = self.output(mixed.transpose(1, 2).reshape(batch, frames, heads * width))
        return joined

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Attention over whole utterances.

        Args:
            x: shape (B, T, D).
            mask: additive, broadcastable to (B, H, T, T).

        Returns:
            shape (B, T, D).
        """
        frames = x.shape[1]
        bias = self.relative_bias(frames, frames) + mask
        return self._attend(self._heads(self.query(x)), self._heads(self.key(x)), self._heads(self.value(x)), bias)

    def step(self, x: Tensor, cache: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of one chunk over its cache.

        Args:
            x: shape (1, C, D).
            cache: shape (1, G, L, 2 d), keys then values of the last L frames.
            bias: shape (1, H, C, L + C): ``relative_bias(C, L + C)`` plus the mask of the empty cache.

        Returns:
            output (1, C, D) and the next cache (1, G, L, 2 d).
        """
        chunk = x.shape[1]
        fresh = torch.cat([self._heads(self.key(x)), self._heads(self.value(x))], dim=-1)
        seen = torch.cat([cache, fresh], dim=2)
        key, value = seen[..., : self.head_dim], seen[..., self.head_dim :]
        return self._attend(self._heads(self.query(x)), key, value, bias), seen[:, :, chunk:]


def initial_bias(num_heads: int, max_behind: int, max_ahead: int) -> Tensor:
    """Start values of the bias: a slope per head, from local to global.

    Slopes as in ALiBi (Press et al., 2022) but flatter, and 0 for the last head: words last 10 to 20 frames.

    Returns:
        float32, shape (H, max_ahead + 1 + max_behind), first entry the farthest key ahead.
    """
    distance = torch.arange(-max_ahead, max_behind + 1, dtype=torch.float32).abs()
    slopes = torch.tensor([0.4 * 0.5**head for head in range(num_heads)])
    slopes[-1] = 0.0
    return -slopes[:, None] * distance[None, :]
