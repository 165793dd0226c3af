"""Attention and rotary embedding as one operator: the standard's (opset 23 on) and ONNX Runtime's."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from edgeattn.sources.onnx.ops.node import CONTRIB, Function, Node, NotImportableError, op, to_tensor
from edgeattn.sources.onnx.ops.products import Linear


def _heads(x: Tensor, size: int) -> Tensor:
    """(N, T, heads * size) -> (N, heads, T, size): as many heads as there are, some may have been removed."""
    return x.reshape(x.shape[0], x.shape[1], x.shape[2] // size, size).transpose(1, 2)


def _merged(x: Tensor) -> Tensor:
    """(N, heads, T, d) -> (N, T, heads * d)."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], x.shape[1] * x.shape[3])


def _repeated(x: Tensor, groups: int) -> Tensor:
    """Key and value heads for grouped queries: each one ``groups`` times in a row."""
    return x if groups == 1 else torch.stack([x] * groups, 2).flatten(1, 2)


def _causal(queries: int, keys: int, offset: int) -> Tensor:
    """What each query must not see, (queries, keys) bool."""
    return torch.arange(keys)[None, :] > torch.arange(queries)[:, None] + offset


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
    softcap, causal = node.number("softcap"), bool(node.integer("is_causal"))
    mode = node.integer("qk_matmul_output_mode")
    valid = node.static(6).astype(np.int64) if node.has(6) else None
    wanted = node.outputs

    def apply(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, past_k: Tensor | None = None,
        past_v: Tensor | None = None, _valid: None = None,
    ) -> Tensor | tuple[Tensor | None, ...]:  # fmt: skip
        if flat:
            q, k, v = (_heads(x, size) for x, size in zip((q, k, v), sizes, strict=True))
        past = 0
        if past_k is not None and past_v is not None:
            past = past_k.shape[2]
            k, v = torch.cat((past_k, k), 2), torch.cat((past_v, v), 2)
        keys, values = _repeated(k, share), _repeated(v, share)
        scores = torch.matmul(q * scale, keys.transpose(-1, -2))
        seen = [scores]
        hidden = torch.zeros((), dtype=torch.bool)
        if mask is not None and mask.shape[-1] < scores.shape[-1]:  # opset 24: the rest is hidden
            value = False if mask.dtype == torch.bool else -math.inf
            mask = torch.nn.functional.pad(mask, (0, scores.shape[-1] - mask.shape[-1]), value=value)
        bias = mask
        if causal:
            hidden = _causal(scores.shape[-2], scores.shape[-1], past)
            bias = _joined(bias, ~hidden)
        if valid is not None:
            within = torch.arange(scores.shape[-1])[None, :] < torch.from_numpy(valid)[:, None]
            bias = _joined(bias, within[:, None, None, :])
        if bias is not None:
            scores = torch.where(bias, scores, -math.inf) if bias.dtype == torch.bool else scores + bias
        seen.append(scores)
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        seen.append(scores)
        weights = torch.softmax(scores, -1)
        if bias is not None:  # the standard: a row that sees nothing is 0
            unseen = bias.any(-1, True).logical_not() if bias.dtype == torch.bool else (bias == -math.inf).all(-1, True)
            weights = torch.where(unseen, 0.0, weights)
        seen.append(weights)
        y = torch.matmul(weights, values)
        result = (_merged(y) if flat else y, k, v, seen[mode])
        return result[: len(wanted)] if len(wanted) > 1 else result[0]

    if softcap and (causal or node.has(3)):
        raise NotImportableError("softcap together with a mask is not imported: opsets differ on their order")
    return apply


def _joined(bias: Tensor | None, visible: Tensor) -> Tensor:
    if bias is None:
        return visible
    return bias & visible if bias.dtype == torch.bool else torch.where(visible, bias, -math.inf)


@op("Attention", domain=CONTRIB)
def _fused_attention(node: Node) -> Function | nn.Module:
    """One product for queries, keys and values, as ONNX Runtime's optimizer writes BERT."""
    if node.has(4) or node.has(6) or "qkv_hidden_sizes" in node.attributes or any(node.outputs[1:]):
        raise NotImportableError("past, its length, other hidden sizes or the present are not imported")
    node.refuse("do_rotary", 0)
    size = node.shape(1)[1] // 3 // node.integer("num_heads")
    scale = node.number("scale") or 1.0 / math.sqrt(size)
    low = node.number("mask_filter_value", -10000.0)
    causal = bool(node.integer("unidirectional"))
    if node.has(3) and node.rank(3) != 2:
        raise NotImportableError(f"a mask of {node.rank(3)} axes is not imported, (batch, keys) is")

    def mixed(qkv: Tensor, mask: Tensor | None, extra: Tensor | None) -> Tensor:
        q, k, v = (_heads(t, size) for t in torch.split(qkv, qkv.shape[-1] // 3, -1))
        return _attend(q, k, v, scale, mask, extra, low, causal)

    if 1 in node.constants and (not node.has(2) or 2 in node.constants):
        node.told.update(head_sizes=(size, size, size), share=1)
        bias = to_tensor(node.static(2)) if node.has(2) else None
        return _Projected(Linear(to_tensor(node.static(1)).t().contiguous(), bias), mixed)

    def apply(
        x: Tensor, weight: Tensor, bias: Tensor | None = None, mask: Tensor | None = None, _past: None = None,
        extra: Tensor | None = None, *_: None,
    ) -> Tensor:  # fmt: skip
        return mixed(torch.nn.functional.linear(x, weight.t(), bias), mask, extra)

    return apply


class _Projected(nn.Module):
    """A linear layer for queries, keys and values, packed one after the other, and what is done with them."""

    def __init__(self, projection: Linear, mixed: Callable[[Tensor, Tensor | None, Tensor | None], Tensor]) -> None:
        super().__init__()
        self.projection = projection
        self._mixed = mixed

    def forward(
        self, x: Tensor, _weight: None = None, _bias: None = None, mask: Tensor | None = None, _past: None = None,
        extra: Tensor | None = None, *_: None,
    ) -> Tensor:  # fmt: skip
        """Attend."""
        return self._mixed(self.projection(x), mask, extra)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None, extra: Tensor | None, low: float, causal: bool
) -> Tensor:
    scores = torch.matmul(q * scale, k.transpose(-1, -2))
    if mask is not None:
        scores = scores + ((1 - mask.to(scores.dtype)) * low)[:, None, None, :]
    if extra is not None:
        scores = scores + extra
    if causal:
        scores = torch.where(_causal(q.shape[2], k.shape[2], k.shape[2] - q.shape[2]), low, scores)
    return _merged(torch.matmul(torch.softmax(scores, -1), v))


@op("MultiHeadAttention", domain=CONTRIB)
def _multi_head_attention(node: Node) -> Function:
    if any(node.has(i) for i in range(6, 10)) or any(node.outputs[1:]):
        raise NotImportableError("past and present are not imported")
    if node.rank() != 3 or not node.has(1) or not node.has(2):
        raise NotImportableError("packed queries, keys and values are not imported")
    heads = node.integer("num_heads")
    size = node.shape()[2] // heads
    value_size = node.shape(2)[3] if node.rank(2) == 4 else node.shape(2)[2] // heads
    scale = node.number("scale") or 1.0 / math.sqrt(size)
    node.told.update(head_sizes=(size, size, value_size), share=1)
    low, causal = node.number("mask_filter_value", -10000.0), bool(node.integer("unidirectional"))
    if node.has(4) and node.rank(4) != 2:
        raise NotImportableError(f"a mask of {node.rank(4)} axes is not imported, (batch, keys) is")

    def apply(
        q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, mask: Tensor | None = None,
        extra: Tensor | None = None, *_: None,
    ) -> Tensor:  # fmt: skip
        if bias is not None:
            width = q.shape[2]
            ours = bias[:width], bias[width : 2 * width], bias[2 * width :]
            q = q + ours[0]
            k = k + ours[1] if k.ndim == 3 else k + ours[1].reshape(1, k.shape[1], 1, -1)
            v = v + ours[2] if v.ndim == 3 else v + ours[2].reshape(1, v.shape[1], 1, -1)
        k, v = (t if t.ndim == 4 else _heads(t, n) for t, n in ((k, size), (v, value_size)))
        return _attend(_heads(q, size), k, v, scale, mask, extra, low, causal)

    return apply


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, size: int) -> Tensor:
    """Su et al. (2021), equation 34, on the first ``size`` values of the last axis; cos and sin fit half of it."""
    turned, kept = x[..., :size], x[..., size:]
    if interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned.chunk(2, -1)
    real, imaginary = cos * first - sin * second, sin * first + cos * second
    y = torch.stack((real, imaginary), -1).reshape(turned.shape) if interleaved else torch.cat((real, imaginary), -1)
    return torch.cat((y, kept), -1) if kept.shape[-1] else y


def _rotary(node: Node, cos_at: int, place_at: int) -> Function:
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
        y = _heads(x, head_size) if flat else x
        if place is not None:
            if scalar_place:
                place = place + torch.arange(length, device=x.device)[None, :]
            cos, sin = torch.nn.functional.embedding(place, cos), torch.nn.functional.embedding(place, sin)
        y = _rotate(y, cos.unsqueeze(1), sin.unsqueeze(1), interleaved, size)
        return _merged(y) if flat else y

    return apply


@op("RotaryEmbedding")
def _rotary_embedding(node: Node) -> Function:
    return _rotary(node, cos_at=1, place_at=3)


@op("RotaryEmbedding", domain=CONTRIB)
def _fused_rotary_embedding(node: Node) -> Function:
    node.refuse("scale", 1.0)
    return _rotary(node, cos_at=2, place_at=1)
