"""GroupQueryAttention of ``com.microsoft``: causal attention with a cache, as genai's builder writes decoders.

The cache may be longer than what is valid in it: ``seqlens_k``, the place of each sequence's last key, says where new
keys go and what is seen. Semantics are those of ONNX Runtime's CPU kernel (gqa_attention_base.h).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from edgeattn.sources.onnx.ops.attention import merged_heads, repeated_heads, rotate, split_heads
from edgeattn.sources.onnx.ops.node import CONTRIB, Function, Node, NotImportableError, op

PAST, LENS, TOTAL, COS, PLACE, BIAS, SINK = 3, 5, 6, 7, 9, 10, 11  # inputs


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Where new keys stand among the old ones.

    Attributes:
        new: how many there are.
        held: places in the past, 0 without one.
        total: places in the present.
        prompt: whether nothing in the past counts.

    """

    new: int
    held: int
    total: int
    prompt: bool

    def start(self, last: Tensor) -> Tensor:
        """The place of the first new key, (batch, 1)."""
        return torch.zeros_like(last) if self.prompt else last + (1 - self.new)

    def present(self, past: Tensor | None, fresh: Tensor, start: Tensor) -> Tensor:
        """(batch, heads, total, d): the past up to ``start``, what is new, zeros."""
        if self.prompt or past is None:
            return F.pad(fresh, (0, 0, 0, self.total - self.new))
        places = torch.arange(self.total, dtype=start.dtype)[None, :]
        moved = torch.where(places < start + self.new, places - start + self.held, self.held + self.new)
        index = torch.where(places < start, places, moved).to(torch.int64)[:, None, :, None]
        rows = F.pad(torch.cat((past, fresh), 2), (0, 0, 0, 1))
        return torch.gather(rows, 2, index.expand(fresh.shape[0], fresh.shape[1], self.total, fresh.shape[3]))


def _cache(node: Node) -> Cache:
    new, total = node.shape()[1], int(node.static(TOTAL).reshape(-1)[0])
    held = node.shape(PAST)[2] if node.has(PAST) else 0
    return Cache(new=new, held=held, total=max(total, held), prompt=new == total)


def _check(node: Node) -> None:
    node.refuse("kv_cache_bit_width", 0)
    node.refuse("sliding_window_cache", 0)
    node.refuse("qk_output", 0)
    node.refuse("causal", 1)
    node.refuse("k_quant_type", "NONE")
    node.refuse("v_quant_type", "NONE")
    if any(node.has(i) for i in range(SINK + 1, 16)) or any(node.outputs[3:]):
        raise NotImportableError("scales of the cache, norms of queries and keys and the output qk are not imported")
    if node.integer("do_rotary") and not node.has(COS):
        raise NotImportableError("do_rotary without cos_cache")


@op("GroupQueryAttention", domain=CONTRIB)
def _grouped_query_attention(node: Node) -> Function:
    _check(node)
    heads, groups = node.integer("num_heads"), node.integer("kv_num_heads")
    packed = not node.has(1)
    size = node.shape()[2] // (heads + 2 * groups if packed else heads)
    node.told.update(head_sizes=(size, size, size), share=heads // groups)
    scale = node.number("scale") or 1.0 / math.sqrt(size)
    softcap, window = node.number("softcap"), node.integer("local_window_size", -1)
    turned, interleaved = bool(node.integer("do_rotary")), bool(node.integer("rotary_interleaved"))
    smooth, wanted, cache = bool(node.integer("smooth_softmax")), any(node.outputs[1:]), _cache(node)

    def apply(*inputs: Tensor | None) -> Tensor | tuple[Tensor, ...]:
        q, k, v, past_k, past_v, lens, _, cos, sin, place, bias, sink = (*inputs, *[None] * 12)[:12]
        assert q is not None
        assert lens is not None
        if packed:
            q, k, v = torch.split(q, [heads * size, groups * size, groups * size], -1)
        assert k is not None
        assert v is not None
        q, k, v = (split_heads(x, size) for x in (q, k, v))
        last = lens.reshape(-1, 1)
        start = cache.start(last)
        own = start + torch.arange(cache.new, dtype=last.dtype)[None, :]  # the places of queries and new keys
        if turned and cos is not None and sin is not None:
            # Padding behind the last key stands at place 1 in the kernel; what it makes is not read.
            at = place if place is not None else torch.where(own <= last, own, 1)
            tables = [F.embedding(at, table).unsqueeze(1) for table in (cos, sin)]
            q, k = (rotate(x, tables[0], tables[1], interleaved, 2 * cos.shape[-1]) for x in (q, k))
        k, v = (cache.present(past, fresh, start) for past, fresh in ((past_k, k), (past_v, v)))
        scores = torch.matmul(q * scale, repeated_heads(k, heads // groups).transpose(-1, -2))
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        if bias is not None:
            scores = scores + bias
        places = torch.arange(cache.total, dtype=last.dtype)
        seen = places <= own[:, :, None]
        if window > 0:
            seen = seen & (places > own[:, :, None] - window)
        scores = torch.where(seen[:, None], scores, -math.inf)
        weights = _weights(scores, sink, smooth)
        y = merged_heads(torch.matmul(weights, repeated_heads(v, heads // groups)))
        return (y, k, v) if wanted else y

    return apply


def _weights(scores: Tensor, sink: Tensor | None, smooth: bool) -> Tensor:
    """Softmax, with one more score that goes nowhere: that of each head's sink, or 0."""
    if sink is None and not smooth:
        return torch.softmax(scores, -1)
    rows = scores[..., :1]
    more = torch.zeros_like(rows) if sink is None else sink.reshape(1, -1, 1, 1).expand(rows.shape)
    return torch.softmax(torch.cat((scores, more), -1), -1)[..., :-1]
