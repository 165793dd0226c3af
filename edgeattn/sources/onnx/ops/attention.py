"""Attention and rotary embedding as one operator: the standard's (opset 23 on) and ONNX Runtime's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from edgeattn.sources.onnx.ops.node import Function, Node, NotImportableError, op, torch_type


def split_heads(x: Tensor, size: int) -> Tensor:
    """(N, T, heads * size) -> (N, heads, T, size): as many heads as there are, some may have been removed."""
    return x.reshape(x.shape[0], x.shape[1], x.shape[2] // size, size).transpose(1, 2)


def merged_heads(x: Tensor) -> Tensor:
    """(N, heads, T, d) -> (N, T, heads * d)."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], x.shape[1] * x.shape[3])


def repeated_heads(x: Tensor, groups: int) -> Tensor:
    """Key and value heads for grouped queries: each one ``groups`` times in a row."""
    return x if groups == 1 else torch.stack([x] * groups, 2).flatten(1, 2)


def beyond(queries: int, keys: int, offset: int) -> Tensor:
    """What each query must not see, (queries, keys) bool."""
    return torch.arange(keys)[None, :] > torch.arange(queries)[:, None] + offset


@dataclass(frozen=True, kw_only=True)
class Sight:
    """Which keys a query sees by its place.

    Attributes:
        causal: none behind its own place.
        left: how many before its own place, -1 for all.
        right: how many behind it, -1 for all.
    """

    causal: bool
    left: int
    right: int

    @classmethod
    def of(cls, node: Node) -> Sight:
        """As the attributes say."""
        left, right = (node.integer(f"{side}_window_size", -1) for side in ("left", "right"))
        return cls(causal=bool(node.integer("is_causal")), left=left, right=right)

    @property
    def whole(self) -> bool:
        """Whether every key is seen."""
        return not self.causal and self.left < 0 and self.right < 0

    def seen(self, queries: int, keys: int, offset: int | Tensor) -> Tensor:
        """(queries, keys) bool; the first query stands at ``offset``, of shape (batch, 1, 1, 1) where it varies."""
        own = torch.arange(queries)[:, None] + offset
        places = torch.arange(keys)
        right = 0 if self.causal else self.right
        limits = [places <= own + right] if right >= 0 else []
        if self.left >= 0:
            limits.append(places >= own - self.left)
        return limits[0] if len(limits) == 1 else limits[0] & limits[1]


@op("Attention")
def _attention(node: Node) -> Function:
    node.refuse("qk_matmul_output_mode", 0, 1, 2, 3)
    flat = node.rank() == 3
    node.count("q_num_heads", node.integer("q_num_heads"))
    q_heads = node.integer("q_num_heads") if flat else node.shape()[1]
    kv_heads = node.integer("kv_num_heads") if flat else node.shape(1)[1]
    size = node.shape()[2] // q_heads if flat else node.shape()[3]
    sizes = [size, *(node.shape(i)[2] // kv_heads if flat else node.shape(i)[3] for i in (1, 2))]
    share = q_heads // kv_heads
    node.told.update(head_sizes=tuple(sizes), share=share)
    scale = node.number("scale") or 1.0 / math.sqrt(size)
    softcap, sight = node.number("softcap"), Sight.of(node)
    mode, wanted = node.integer("qk_matmul_output_mode"), node.outputs
    precision = torch_type(node.integer("softmax_precision")) if "softmax_precision" in node.attributes else None

    def apply(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, past_k: Tensor | None = None,
        past_v: Tensor | None = None, lengths: Tensor | None = None,
    ) -> Tensor | tuple[Tensor | None, ...]:  # fmt: skip
        if flat:
            q, k, v = (split_heads(x, size) for x, size in zip((q, k, v), sizes, strict=True))
        past = 0
        if past_k is not None and past_v is not None:
            past = past_k.shape[2]
            k, v = torch.cat((past_k, k), 2), torch.cat((past_v, v), 2)
        keys, values = repeated_heads(k, share), repeated_heads(v, share)
        scores = torch.matmul(q * scale, keys.transpose(-1, -2))
        scores = softcap * torch.tanh(scores / softcap) if softcap else scores
        bias = _bias(mask, sight, scores.shape[-2:], past, lengths)
        hidden = scores
        if bias is not None:
            hidden = torch.where(bias, scores, -math.inf) if bias.dtype == torch.bool else scores + bias
        weights = torch.softmax(hidden if precision is None else hidden.to(precision), -1).to(q.dtype)
        if bias is not None and (mask is not None or lengths is not None or past + q.shape[2] > k.shape[2]):
            weights = torch.where(_unseen(bias), 0.0, weights)  # the standard: a row that sees nothing is 0
        y = torch.matmul(weights, values)
        result = (merged_heads(y) if flat else y, k, v, (scores, scores, hidden, weights)[mode])
        return result[: len(wanted)] if len(wanted) > 1 else result[0]

    return apply


def _bias(
    mask: Tensor | None, sight: Sight, shape: Sequence[int], past: int, lengths: Tensor | None
) -> Tensor | None:  # fmt: skip
    """What is seen, or what is added to the scores; None where there is nothing to hide."""
    queries, keys = shape
    if mask is not None and mask.shape[-1] < keys:  # opset 24: the rest is hidden
        value = False if mask.dtype == torch.bool else -math.inf
        mask = F.pad(mask, (0, keys - mask.shape[-1]), value=value)
    ends = None if lengths is None else lengths.reshape(-1, 1, 1, 1)
    bias = mask
    if not sight.whole:
        bias = _joined(bias, sight.seen(queries, keys, past if ends is None or past else ends - queries))
    return bias if ends is None else _joined(bias, torch.arange(keys) < ends)


def _joined(bias: Tensor | None, visible: Tensor) -> Tensor:
    if bias is None:
        return visible
    return bias & visible if bias.dtype == torch.bool else torch.where(visible, bias, -math.inf)


def _unseen(bias: Tensor) -> Tensor:
    """Rows that see nothing."""
    return bias.any(-1, True).logical_not() if bias.dtype == torch.bool else (bias == -math.inf).all(-1, True)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, size: int) -> Tensor:
    """Su et al. (2021), equation 34, on the first ``size`` values of the last axis; cos and sin fit half of it."""
    turned, kept = x[..., :size], x[..., size:]
    if interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned.chunk(2, -1)
    real, imaginary = cos * first - sin * second, sin * first + cos * second
    y = torch.stack((real, imaginary), -1).reshape(turned.shape) if interleaved else torch.cat((real, imaginary), -1)
    return torch.cat((y, kept), -1) if kept.shape[-1] else y


def rotary(node: Node, cos_at: int, place_at: int) -> Function:
    """Rotary embedding of a node whose tables and places are these inputs."""
    flat = node.rank() == 3
    heads = node.integer("num_heads")
    half = node.shape(cos_at)[-1]
    size = node.integer("rotary_embedding_dim") or 2 * half
    interleaved = bool(node.integer("interleaved"))
    if flat and not heads:
        if place_at != 1:
            raise NotImportableError("num_heads is missing")
        heads = node.shape()[2] // (2 * half)
    head_size = node.shape()[2] // heads if flat else node.shape()[3]
    scalar_place = node.has(place_at) and node.shape(place_at) == (1,) and place_at == 1
    length = node.shape()[1] if flat else node.shape()[2]

    def apply(*inputs: Tensor | None) -> Tensor:
        x, cos, sin = inputs[0], inputs[cos_at], inputs[cos_at + 1]
        assert x is not None
        assert cos is not None
        assert sin is not None
        place = inputs[place_at] if place_at < len(inputs) else None
        y = split_heads(x, head_size) if flat else x
        if place is not None:
            if scalar_place:
                place = place + torch.arange(length, device=x.device)[None, :]
            cos, sin = torch.nn.functional.embedding(place, cos), torch.nn.functional.embedding(place, sin)
        y = rotate(y, cos.unsqueeze(1), sin.unsqueeze(1), interleaved, size)
        return merged_heads(y) if flat else y

    return apply


@op("RotaryEmbedding")
def _rotary_embedding(node: Node) -> Function:
    return rotary(node, cos_at=1, place_at=3)
