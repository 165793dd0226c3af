"""``scaled_dot_product_attention`` written out: scale on Q, a finite mask, grouped heads without copies.

Left to the exporters, one call becomes what each of them likes:

- torch 2.13's ONNX exporter lays K out by Reshape-Transpose-Reshape, multiplies Q and K, chooses the mask by Where
  between 0 and -inf, and looks for NaN after the softmax in every layer (IsNaN, Where). Its other way, by torch's own
  decomposition of the CPU kernel, dies on the result's strides ("Cannot view a tensor with shape ... and strides ...":
  Swin, T5, Wav2Vec2-Conformer, Wav2Vec2-BERT).
- -inf is no float16 number on most GPU delegates, and a row that sees nothing is NaN there;
- grouped K and V are expanded: BROADCAST_TO is refused by LiteRT's GPU delegate (LiteRT#9191), and the copy costs
  memory traffic everywhere.

So the call is written out before any exporter sees it, in the form that the engines' own patterns fuse (TensorRT,
"Multi-Head Attention Fusion": MatMul, pointwise, Softmax, MatMul; scale on Q, see TensorRT#4537):

    softmax((Q * scale) K^T + bias) V

with bias 0 or -1e4. Rows that see nothing give zeros, as torch's own kernels do: where a mask is known, it is known
whether there are any, else the result is multiplied by "sees something".

Grouped queries (``enable_gqa``, or K and V by ``expand``): the heads of one group become rows of one matrix,
(B, G, H/G * T, D) times (B, G, D, S), which is the same sum without a copy of K.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from edgeattn.converters.passes.graph import LOWEST, Program, Writer, size, through
from edgeattn.converters.passes.masks import COPIES, read_mask
from edgeattn.spec import HIDDEN

aten = torch.ops.aten
FINITE = torch.finfo(torch.float32).min


def plain_attention(program: Program) -> int:
    """Write out every call of ``scaled_dot_product_attention``; returns how many there were."""
    calls = program.calls(aten.scaled_dot_product_attention.default)
    shared: dict[Any, _Bias] = {}
    for node in calls:
        _write_out(program, node, shared)
    return len(calls)


@dataclass(frozen=True)
class _Bias:
    """What is added to the scores, and what the result is multiplied by; None where nothing needs to be."""

    bias: torch.fx.Node | None
    sees: torch.fx.Node | None
    floor: bool = False  # hidden scores are all set to one number: rows that see nothing become uniform


def _write_out(program: Program, node: torch.fx.Node, shared: dict[Any, _Bias]) -> None:
    arguments: tuple[Any, ...] = node.args
    query, key, value = arguments[:3]
    given: dict[str, Any] = dict(zip(("attn_mask", "dropout_p", "is_causal"), arguments[3:], strict=False)) | dict(
        node.kwargs
    )
    write = Writer(program, node)
    scale = given.get("scale") or 1.0 / math.sqrt(size(query)[-1])
    groups = 1
    if len(size(query)) == 4:
        source_key, source_value = _ungrouped(key), _ungrouped(value)
        if size(source_key)[1] == size(source_value)[1] and size(query)[1] % size(source_key)[1] == 0:
            key, value = source_key, source_value
            groups = size(query)[1] // size(key)[1]
    rows, columns = size(query)[-2], size(key)[-2]
    mask = given.get("attn_mask")
    causal = (rows, columns) if given.get("is_causal") else None
    at = (mask, causal)
    if at not in shared:
        shared[at] = _bias_of(program, write, mask, causal, query)
    bias = shared[at]
    whole = size(query)
    scaled = write(aten.mul.Tensor, query, scale)
    if groups > 1:
        batch, heads, _, width = whole
        scaled = write(aten.reshape.default, scaled, [batch, heads // groups, groups * rows, width])
    scores = write(aten.matmul.default, scaled, write(aten.transpose.int, key, -2, -1))
    folded = size(scores)
    apart = groups > 1 and bias.bias is not None
    if apart:
        scores = write(aten.reshape.default, scores, [*whole[:-1], columns])
    if bias.bias is not None:
        scores = write(aten.add.Tensor, scores, bias.bias)
    if bias.floor:
        scores = write(aten.clamp.default, scores, HIDDEN)
    weights = write(aten.softmax.int, scores, -1)
    if apart:
        weights = write(aten.reshape.default, weights, list(folded))
    result: tuple[Any, ...] = (aten.matmul.default, weights, value)
    if groups > 1:
        result = (aten.reshape.default, write(*result), [*whole[:-1], size(value)[-1]])
    if bias.sees is not None:
        result = (aten.mul.Tensor, write(*result), bias.sees)
    node.kwargs = {}
    write.finish(*result)


def _ungrouped(node: Any) -> Any:
    """K or V before ``repeat_kv``: (B, G, 1, S, D) expanded along the third axis and folded into heads."""
    folded = node
    if folded.op != "call_function" or folded.target not in (aten.reshape.default, aten.view.default):
        return node
    expanded = through(folded.args[0], COPIES)
    if getattr(expanded, "target", None) is not aten.expand.default:
        return node
    source = expanded.args[0]
    before, after = size(source), size(expanded)
    if len(before) != 5 or before[2] != 1 or before[:2] + before[3:] != after[:2] + after[3:]:
        return node
    if size(folded) != (after[0], after[1] * after[2], *after[3:]):
        return node
    # The axis of size 1 came by unsqueeze or by indexing with None.
    inner = through(source, (aten.slice.Tensor,)) if size(through(source, (aten.slice.Tensor,))) == before else source
    wanted = (before[0], before[1], *before[3:])
    if getattr(inner, "target", None) is aten.unsqueeze.default and size(inner.args[0]) == wanted:
        return inner.args[0]
    return node


def _bias_of(
    program: Program, write: Writer, mask: torch.fx.Node | None, causal: tuple[int, int] | None, query: torch.fx.Node
) -> _Bias:
    dtype = query.meta["val"].dtype
    if causal is not None:
        return _constant_bias(write, torch.ones(causal, dtype=torch.bool).tril(), dtype)
    if mask is None:
        return _Bias(None, None)
    value = program.known(mask)
    if value is not None:
        if value.dtype == torch.bool:
            return _constant_bias(write, value, dtype)
        return _constant_numbers(write, value, dtype)
    if mask.meta["val"].dtype == torch.bool:
        return _seen_bias(program, write, mask, dtype, infinite=True)
    found = read_mask(program, mask, write)
    if found is not None:
        return _seen_bias(program, write, found.seen, dtype, found.infinite)
    if mask.op == "placeholder":
        # The caller writes the mask, perhaps with -inf.
        highest = write(aten.amax.default, mask, [-1], True)
        sees = write(aten.to.dtype, write(aten.ge.Scalar, highest, FINITE), dtype)
        return _Bias(write(aten.clamp.default, mask, HIDDEN), sees)
    return _Bias(mask, None)


def _seen_bias(program: Program, write: Writer, seen: torch.fx.Node, dtype: torch.dtype, infinite: bool) -> _Bias:
    known = program.known(seen)
    if known is not None and infinite:
        return _constant_bias(write, known, dtype)
    # What expand copies, Add broadcasts by itself.
    seen = _narrow(seen)
    ones = write(aten.to.dtype, seen, dtype)
    bias = write(aten.mul.Tensor, write(aten.sub.Tensor, ones, 1.0), -HIDDEN * (1.0 if infinite else 2.0))
    if not infinite:
        return _Bias(bias, None, floor=True)
    return _Bias(bias, write(aten.amax.default, ones, [-1], True))


def _narrow(mask: Any) -> Any:
    while mask.target is aten.expand.default and mask.args[0].meta["val"].ndim == mask.meta["val"].ndim:
        mask = mask.args[0]
    return mask


def _constant_bias(write: Writer, seen: torch.Tensor, dtype: torch.dtype) -> _Bias:
    bias = None if bool(seen.all()) else write.constant(torch.where(seen, 0.0, HIDDEN).to(dtype))
    sees = seen.any(-1, keepdim=True)
    return _Bias(bias, None if bool(sees.all()) else write.constant(sees.to(dtype)))


def _constant_numbers(write: Writer, value: torch.Tensor, dtype: torch.dtype) -> _Bias:
    hidden = value <= LOWEST
    sees = ~torch.isneginf(value).all(-1, keepdim=True)
    uniform = bool((hidden.all(-1, keepdim=True) & sees).any())
    bias = write.constant(torch.where(hidden, HIDDEN * (2.0 if uniform else 1.0), value).to(dtype))
    return _Bias(bias, None if bool(sees.all()) else write.constant(sees.to(dtype)), floor=uniform)
