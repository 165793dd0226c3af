"""Attention as ONNX Runtime's optimizer, Olive and genai's builder write it: one operator of ``com.microsoft``.

Semantics are those of ONNX Runtime's CPU kernels (contrib_ops/cpu/bert): a padding mask adds ``mask_filter_value``,
what is later in the sequence than a query is left out whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from edgeattn.sources.onnx.ops.attention import beyond, merged_heads, rotary, split_heads
from edgeattn.sources.onnx.ops.node import CONTRIB, Function, Node, NotImportableError, op, to_tensor
from edgeattn.sources.onnx.ops.products import Linear
from edgeattn.sources.onnx.ops.quantized import centred

LOW = -10000.0  # mask_filter_value that kernels take where the node has none
# With causal, what a mask hides weighs nothing, but more than what is not seen at all: that is -10,000 in engines.
ABOVE = -1000.0
Mixed = Callable[..., "Tensor | tuple[Tensor, ...]"]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How scores are made and hidden.

    Attributes:
        scale: of the products of queries and keys.
        low: what is added where a mask hides.
        causal: whether a query sees itself and what is before it alone.
    """

    scale: float
    low: float
    causal: bool

    @classmethod
    def of(cls, node: Node, size: int) -> Scores:
        """As a node with heads of ``size`` says."""
        causal, low = bool(node.integer("unidirectional")), node.number("mask_filter_value", LOW)
        low = max(low, ABOVE) if causal else low
        return cls(scale=node.number("scale") or 1.0 / math.sqrt(size), low=low, causal=causal)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, extra: Tensor | None, past: int
    ) -> Tensor:  # fmt: skip
        """(N, heads, T, d) each -> (N, T, heads * d); ``extra`` is added to the scores, ``past`` keys come first."""
        scores = torch.matmul(q * self.scale, k.transpose(-1, -2))
        if mask is not None:
            seen = _seen(mask, k.shape[2], q.shape[0])
            scores = scores + torch.where(seen, 0.0, self.low)
        if extra is not None:
            scores = scores + extra
        if self.causal and q.shape[2] > 1:
            scores = torch.where(beyond(q.shape[2], k.shape[2], past), -math.inf, scores)
        return merged_heads(torch.matmul(torch.softmax(scores, -1), v))


def _check_mask(node: Node, index: int, batch: int) -> None:
    if not node.has(index):
        return
    shape = node.shape(index)
    if len(shape) > 3 or (len(shape) == 1 and shape[0] not in (batch, 2 * batch)):
        raise NotImportableError(
            f"a mask of shape {list(shape)} is not imported; (batch), (2 * batch), (batch, keys) and "
            "(batch, queries, keys) are"
        )


def _seen(mask: Tensor, keys: int, batch: int) -> Tensor:
    """What a mask lets through, broadcast to (batch, 1, queries, keys)."""
    if mask.ndim == 1:
        places = torch.arange(keys, dtype=mask.dtype)
        ends = mask[:batch].reshape(batch, 1, 1, 1)
        seen = places < ends
        return seen if mask.shape[0] == batch else seen & (places >= mask[batch:].reshape(batch, 1, 1, 1))
    return (mask > 0).unsqueeze(1) if mask.ndim == 3 else (mask > 0)[:, None, None, :]


def _packed_sizes(node: Node, width: int) -> tuple[list[int], list[int]]:
    """Widths of queries, keys and values in a packed product, and of their heads."""
    if node.integer("past_present_share_buffer") or node.integer("do_rotary"):
        raise NotImportableError("a past that shares its buffer with the present, or do_rotary, is not imported")
    heads = node.integer("num_heads")
    widths = node.ints("qkv_hidden_sizes") or [width // 3] * 3
    return widths, [w // heads for w in widths]


def _parted(packed: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """Queries, keys and values of as many heads as there are: pruning takes some out."""
    heads = packed.shape[-1] // sum(sizes)
    return torch.split(packed, [heads * size for size in sizes], -1)


def _mixing(node: Node, width: int) -> Mixed:
    """Attention on a packed product (N, T, queries + keys + values), a mask, a past and a bias of the scores."""
    _, sizes = _packed_sizes(node, width)
    scores = Scores.of(node, sizes[0])
    wanted = len(node.outputs) > 1 and node.outputs[1]

    def mixed(
        qkv: Tensor, mask: Tensor | None, past: Tensor | None, extra: Tensor | None
    ) -> Tensor | tuple[Tensor, ...]:
        q, k, v = (split_heads(t, n) for t, n in zip(_parted(qkv, sizes), sizes, strict=True))
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        y = scores.attend(q, k, v, mask, extra, k.shape[2] - q.shape[2])
        return (y, torch.stack((k, v))) if wanted else y

    return mixed


@op("Attention", domain=CONTRIB)
def _fused_attention(node: Node) -> Function | nn.Module:
    """One product for queries, keys and values, as ONNX Runtime's optimizer writes BERT."""
    if node.has(6):
        raise NotImportableError("past_sequence_length is not imported")
    _check_mask(node, 3, node.shape()[0])
    mixed = _mixing(node, node.shape(1)[1])
    if 1 in node.constants and (not node.has(2) or 2 in node.constants):
        node.told.update(head_sizes=tuple(_packed_sizes(node, node.shape(1)[1])[1]), share=1)
        bias = to_tensor(node.static(2)) if node.has(2) else None
        return _Projected(Linear(to_tensor(node.static(1)).t().contiguous(), bias), mixed)

    def apply(
        x: Tensor, weight: Tensor, bias: Tensor | None = None, mask: Tensor | None = None, past: Tensor | None = None,
        extra: Tensor | None = None, *_: None,
    ) -> Tensor | tuple[Tensor, ...]:  # fmt: skip
        return mixed(F.linear(x, weight.t(), bias), mask, past, extra)

    return apply


class _Projected(nn.Module):
    """A linear layer for queries, keys and values, packed one after the other, and what is done with them."""

    def __init__(self, projection: Linear, mixed: Mixed) -> None:
        super().__init__()
        self.projection = projection
        self._mixed = mixed

    def forward(
        self, x: Tensor, _weight: None = None, _bias: None = None, mask: Tensor | None = None,
        past: Tensor | None = None, extra: Tensor | None = None, *_: None,
    ) -> Tensor | tuple[Tensor, ...]:  # fmt: skip
        """Attend."""
        return self._mixed(self.projection(x), mask, past, extra)


@op("QAttention", domain=CONTRIB)
def _quantized_attention(node: Node) -> Function:
    """:func:`_fused_attention` with 8-bit input and weight."""
    _check_mask(node, 5, node.shape()[0])
    mixed = _mixing(node, node.shape(1)[1])

    def apply(
        x: Tensor, weight: Tensor, bias: Tensor, x_scale: Tensor, w_scale: Tensor, mask: Tensor | None = None,
        xz: Tensor | None = None, wz: Tensor | None = None, past: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, ...]:  # fmt: skip
        product = centred(x, xz, 3, 2) @ centred(weight, wz, 2, 1)
        return mixed(product * (x_scale.reshape(()) * w_scale) + bias, mask, past, None)

    return apply


@op("MultiHeadAttention", domain=CONTRIB)
def _multi_head_attention(node: Node) -> Function:
    if node.has(8) or node.has(9) or any(node.outputs[3:]):
        raise NotImportableError("past_sequence_length, cache_indirection and the output qk are not imported")
    heads, batch = node.integer("num_heads"), node.shape()[0]
    packed, pair = node.rank() == 5, node.has(1) and node.rank(1) == 5
    size = node.shape()[4] if packed else node.shape()[2] // heads
    if packed or pair:
        value_size = size
    elif not node.has(1) or not node.has(2):
        raise NotImportableError("queries without keys and values are not imported")
    else:
        value_size = node.shape(2)[3] if node.rank(2) == 4 else node.shape(2)[2] // heads
        node.told.update(head_sizes=(size, size, value_size), share=1)
    _check_mask(node, 4, batch)
    scores = Scores.of(node, size)
    wanted = any(node.outputs[1:])
    sizes = [size, size, value_size]

    def apply(
        q: Tensor, k: Tensor | None = None, v: Tensor | None = None, bias: Tensor | None = None,
        mask: Tensor | None = None, extra: Tensor | None = None, past_k: Tensor | None = None,
        past_v: Tensor | None = None, *_: None,
    ) -> Tensor | tuple[Tensor, ...]:  # fmt: skip
        if packed:
            q, k, v = (part.flatten(2) for part in q.unbind(3))
        elif pair and k is not None:
            k, v = (part.flatten(2) for part in k.unbind(3))
        assert k is not None
        assert v is not None
        added = (None, None, None) if bias is None else _parted(bias, sizes)
        q, k, v = (_biased(*one) for one in zip((q, k, v), added, sizes, strict=True))
        past = 0
        if past_k is not None and past_v is not None:
            past = past_k.shape[2]
            k, v = torch.cat((past_k, k), 2), torch.cat((past_v, v), 2)
        y = scores.attend(q, k, v, mask, extra, past)
        return (y, k, v) if wanted else y

    return apply


def _biased(x: Tensor, bias: Tensor | None, size: int) -> Tensor:
    """Heads (N, heads, T, size) of (N, T, heads * size), or what are heads already; bias added."""
    if x.ndim == 3:
        return split_heads(x if bias is None else x + bias, size)
    return x if bias is None else x + bias.reshape(1, x.shape[1], 1, size)


@op("RotaryEmbedding", domain=CONTRIB)
def _fused_rotary_embedding(node: Node) -> Function:
    node.refuse("is_packed_batching", 0)
    node.refuse("scale", 1.0)
    return rotary(node, cos_at=2, place_at=1)
