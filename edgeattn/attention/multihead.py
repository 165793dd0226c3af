"""Multi-head attention that computes what ``torch.nn.MultiheadAttention`` computes, with layers that can be cut.

torch's block keeps its projections in one packed parameter, multiplies by the output layer's weight without calling the
layer, and insists on heads that fill its embedding. Here every projection is a layer of its own and the number of heads
is free: heads can be masked, measured and removed one by one.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional


class MultiheadAttention(nn.Module):
    """Attention of Vaswani et al. (2017), with the interface of ``torch.nn.MultiheadAttention``.

    Transformer layers of torch take their slow path around it: the fast one reads packed weights.

    Args:
        dim: D, width of queries and of the output.
        num_heads: H; pruning removes heads one by one.
        head_dim: d, width of one head.
        key_dim: width of the keys' input.
        value_dim: width of the values' input.
        bias: whether the projections have one.
        dropout: probability that a weight of attention is dropped in training.
        batch_first: whether sequences are (B, T, D); otherwise (T, B, D).
    """

    in_proj_weight: None = None  # read by torch's layers before they decide against the fast path
    in_proj_bias: None = None
    _qkv_same_embed_dim = False

    heads: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int,
        *,
        key_dim: int,
        value_dim: int,
        bias: bool = True,
        dropout: float = 0.0,
        batch_first: bool = False,
    ) -> None:
        super().__init__()
        self.embed_dim, self.kdim, self.vdim = dim, key_dim, value_dim
        self.num_heads, self.head_dim = num_heads, head_dim
        self.num_key_value_heads = num_heads  # fewer once heads are merged (Ainslie et al., 2023)
        self.dropout, self.batch_first = dropout, batch_first
        self.q = nn.Linear(dim, num_heads * head_dim, bias)
        self.k = nn.Linear(key_dim, num_heads * head_dim, bias)
        self.v = nn.Linear(value_dim, num_heads * head_dim, bias)
        self.out = nn.Linear(num_heads * head_dim, dim, bias)
        self.all_heads = num_heads
        # Numbers of the heads that are there: a caller that was written for all of them may give a mask for each.
        self.register_buffer("heads", torch.arange(num_heads), persistent=False)
        self.head_weights: Tensor | None = None
        """(H,) or (B, H): how much a head counts in the averaged weights; None while all count the same."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of L queries over S keys.

        Args:
            query: (B, L, D) if ``batch_first``, else (L, B, D); (L, D) without a batch.
            key: (B, S, key_dim), likewise.
            value: (B, S, value_dim), likewise.
            key_padding_mask: (B, S), True or -inf where a key is hidden.
            need_weights: whether the weights are returned.
            attn_mask: (L, S) or (B * H, L, S), True or -inf where a key is hidden from a query; other numbers are added
                to the logits. H may be the number of heads before any was removed.
            average_attn_weights: return the mean of the weights over the heads that are there.
            is_causal: a hint that ``attn_mask`` is causal; the mask itself is what counts.

        Returns:
            the output, in the layout of ``query``, and the weights (B, L, S), or (B, H, L, S) without the average, or
            None.

        Raises:
            ValueError: for ``is_causal`` without a mask, or a mask of another shape.
        """
        if is_causal and attn_mask is None:
            raise ValueError("is_causal is a hint about attn_mask; give the mask")
        batched = query.ndim == 3
        if not batched:
            query, key, value = query[None], key[None], value[None]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        q = self._split(self.q(query), self.num_heads)
        k, v = (self._split(x, self.num_key_value_heads) for x in (self.k(key), self.v(value)))
        if self.num_key_value_heads != self.num_heads:
            k, v = (x.repeat_interleave(self.num_heads // self.num_key_value_heads, 1) for x in (k, v))
        mask = self._mask(q, k, key_padding_mask, attn_mask)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            logits = torch.matmul(q * math.sqrt(1.0 / self.head_dim), k.transpose(-2, -1))
            weights = torch.softmax(logits if mask is None else logits + mask, dim=-1)
            weights = functional.dropout(weights, dropout) if dropout else weights
            mixed = torch.matmul(weights, v)
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, mask, dropout)
        output = self.out(mixed.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = self._average(weights)
        if not batched:
            return output[0], None if weights is None else weights[0]
        return output if self.batch_first else output.transpose(0, 1), weights

    def _split(self, x: Tensor, heads: int) -> Tensor:
        """(B, T, H * d) -> (B, H, T, d)."""
        return x.reshape(x.shape[0], x.shape[1], heads, self.head_dim).transpose(1, 2)

    def _average(self, weights: Tensor) -> Tensor:
        if self.head_weights is None:
            return weights.mean(1)
        share = self.head_weights / self.head_weights.sum(-1, keepdim=True)
        return (weights * share[..., None, None]).sum(1)

    def _mask(self, q: Tensor, k: Tensor, padding: Tensor | None, attention: Tensor | None) -> Tensor | None:
        """Both masks as one that is added to the logits, broadcastable to (B, H, L, S)."""
        batch, queries, keys = q.shape[0], q.shape[2], k.shape[2]
        mask = None
        if attention is not None:
            mask = _additive(attention, q.dtype)
            if mask.ndim == 3 and mask.shape[0] == batch * self.num_heads:
                mask = mask.reshape(batch, self.num_heads, queries, keys)
            elif mask.ndim == 3 and mask.shape[0] == batch * self.all_heads:
                mask = mask.reshape(batch, self.all_heads, queries, keys).index_select(1, self.heads)
            elif mask.shape != (queries, keys):
                raise ValueError(
                    f"attn_mask must be {(queries, keys)} or {(batch * self.num_heads, queries, keys)}, "
                    f"got {tuple(mask.shape)}"
                )
        if padding is None:
            return mask
        if padding.shape != (batch, keys):
            raise ValueError(f"key_padding_mask must be {(batch, keys)}, got {tuple(padding.shape)}")
        hidden = _additive(padding, q.dtype)[:, None, None]
        return hidden if mask is None else mask + hidden


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as numbers to add: -inf where a boolean one is True."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))
    return mask.to(dtype)


def from_torch(block: nn.MultiheadAttention) -> MultiheadAttention:
    """The same attention with layers of its own: outputs within rounding of the block's.

    Weights are copied. The result is in the block's mode, training or eval.

    Raises:
        ValueError: for a block with ``add_bias_kv`` or ``add_zero_attn``, which attends to a key that no layer makes.
    """
    if block.bias_k is not None or block.bias_v is not None or block.add_zero_attn:
        raise ValueError("add_bias_kv and add_zero_attn attend to a key that no layer makes")
    bias = block.in_proj_bias is not None
    made = MultiheadAttention(
        block.embed_dim, block.num_heads, block.head_dim, key_dim=block.kdim, value_dim=block.vdim,
        bias=bias, dropout=block.dropout, batch_first=block.batch_first,
    )  # fmt: skip
    together = cast("Tensor | None", block.in_proj_weight)
    if together is None:
        packed = [cast(Tensor, getattr(block, f"{name}_proj_weight")) for name in "qkv"]
    else:
        packed = list(together.chunk(3))
    with torch.no_grad():
        for layer, weight in zip((made.q, made.k, made.v, made.out), (*packed, block.out_proj.weight), strict=True):
            layer.weight.copy_(weight)
        if bias:
            biases = (*block.in_proj_bias.chunk(3), block.out_proj.bias)
            for layer, values in zip((made.q, made.k, made.v, made.out), biases, strict=True):
                layer.bias.copy_(values)
    for source, layers in ((block.out_proj.weight, (made.out,)), (packed[0], (made.q, made.k, made.v))):
        for layer in layers:
            layer.requires_grad_(source.requires_grad)
    return made.train(block.training)
