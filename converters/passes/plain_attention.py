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
whether there are any, else the result is multiplied by "sees something". A row that only finite numbers hide, such as
the lowest float32, is uniform over these, as in torch: they drown the scores. A mask of numbers that is not read as
booleans (an input, a bias with holes) is taken apart by its values: -inf, what drowns, and the rest, which is added.

Grouped queries (``enable_gqa``, or K and V by ``expand``): the heads of one group become rows of one matrix,
(B, G, H/G * T, D) times (B, G, D, S), which is the same sum without a copy of K.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from edgeattn.converters.passes.finite_masks import Lowering, Scores, bias_of, less_one, narrow
from edgeattn.converters.passes.graph import DROWNS, LOWEST, Program, Writer, size, through
from edgeattn.converters.passes.masks import COPIES, Mask, may_hide, read_mask
from edgeattn.spec import HIDDEN

aten = torch.ops.aten
FINITE = torch.finfo(torch.float32).min
NO_FLOOR = -3e38  # below every score


def plain_attention(program: Program) -> int:
    """Write out every call of ``scaled_dot_product_attention``; returns how many there were."""
    calls = program.calls(aten.scaled_dot_product_attention.default)
    shared: dict[Any, _Bias] = {}
    for node in calls:
        _write_out(program, node, shared)
    return len(calls)


@dataclass(frozen=True)
class _Bias:
    """What happens to the scores, in this order, and what the result is multiplied by; None where nothing needs to be.

    Attributes:
        bias: added.
        floor: the scores are held at it from below; one number, or one for each score.
        deeper: added after that: among what is hidden, -inf lies deepest.
        sees: what the result is multiplied by, 0 for rows that see nothing.
    """

    bias: torch.fx.Node | None = None
    sees: torch.fx.Node | None = None
    floor: torch.fx.Node | float | None = None
    deeper: torch.fx.Node | None = None


def _write_out(program: Program, node: torch.fx.Node, shared: dict[Any, _Bias]) -> None:
    arguments: tuple[Any, ...] = node.args
    query, key, value = arguments[:3]
    given: dict[str, Any] = dict(zip(("attn_mask", "dropout_p", "is_causal"), arguments[3:], strict=False)) | dict(
        node.kwargs
    )
    write = Writer(program, node)
    scale = given.get("scale")
    scale = 1.0 / math.sqrt(size(query)[-1]) if scale is None else scale
    groups = 1
    if len(size(query)) == 4:
        source_key, source_value = _ungrouped(key), _ungrouped(value)
        if size(source_key)[1] == size(source_value)[1] and size(query)[1] % size(source_key)[1] == 0:
            key, value = source_key, source_value
            groups = size(query)[1] // size(key)[1]
    elif given.get("enable_gqa"):
        key, value = (_for_each_head(write, part, size(query)[-3]) for part in (key, value))
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
    if isinstance(bias.floor, float):
        scores = write(aten.clamp.default, scores, bias.floor)
    elif bias.floor is not None:
        scores = write(aten.maximum.default, scores, bias.floor)
    if bias.deeper is not None:
        scores = write(aten.add.Tensor, scores, bias.deeper)
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


def _for_each_head(write: Writer, node: Any, heads: int) -> Any:
    """K or V of any rank with each group (the third axis from the end) as often as it has heads."""
    *outer, groups, rows, width = size(node)
    if groups == heads:
        return node
    one = write(aten.unsqueeze.default, node, -3)
    copies = write(aten.expand.default, one, [*outer, groups, heads // groups, rows, width])
    return write(aten.reshape.default, copies, [*outer, heads, rows, width])


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
        return _of_mask(program, write, Mask(seen=write.constant(torch.ones(causal, dtype=torch.bool).tril())), dtype)
    if mask is None:
        return _Bias()
    if mask.meta["val"].dtype == torch.bool:
        return _of_mask(program, write, Mask(seen=mask), dtype)
    found = read_mask(program, mask, write)
    if found is not None:
        return _of_mask(program, write, found, dtype)
    value = program.known(mask)
    if value is not None:
        plain = _constant_numbers(write, value, dtype)
        return plain if plain is not None else _taken_apart(write, mask, dtype)
    lowered = Lowering(program).lower(mask, write)
    if lowered is not None and lowered.seen is not None and lowered.number is None:
        return _Bias(lowered.node, _sees(program, write, lowered.seen, dtype))
    return _taken_apart(write, mask, dtype) if may_hide(program, mask) else _Bias(mask)


def _of_mask(program: Program, write: Writer, mask: Mask, dtype: torch.dtype) -> _Bias:
    # What expand copies, Add broadcasts by itself.
    shown, seen = (part if part is None else narrow(part) for part in (mask.shown, mask.seen))
    known = None if seen is None else program.known(seen)
    if shown is None and known is not None and bool(known.all()):
        return _Bias()
    bias = bias_of(program, Mask(shown, mask.number, seen), dtype, write)
    sees = None if seen is None else _sees(program, write, seen, dtype)
    if shown is None:
        return _Bias(bias.node, sees)
    if seen is None:
        return _Bias(bias.node, sees, HIDDEN if bias.floor else None)
    if bias.readable:
        bias = Scores(write(aten.mul.Tensor, bias.node, 2.0), floor=True)
    deeper = write(aten.mul.Tensor, less_one(program, seen, dtype, write), -2 * HIDDEN)
    return _Bias(bias.node, sees, HIDDEN, deeper)


def _sees(program: Program, write: Writer, seen: torch.fx.Node, dtype: torch.dtype) -> torch.fx.Node | None:
    """1 for rows that see something, 0 for others; None where all do."""
    known = program.known(seen)
    if known is not None:
        some = known.any(-1, keepdim=True)
        return None if bool(some.all()) else write.constant(some.to(dtype))
    return write(aten.amax.default, write(aten.to.dtype, seen, dtype), [-1], True)


def _constant_numbers(write: Writer, value: torch.Tensor, dtype: torch.dtype) -> _Bias | None:
    """None where rows that see nothing tell the depths of what hides apart, or what is seen lies about as deep."""
    hidden = value <= LOWEST
    if bool(hidden.any()) and bool((value[~hidden] < HIDDEN / 2).any()):
        return None
    sees = ~torch.isneginf(value).all(-1, keepdim=True)
    uniform = hidden.all(-1, keepdim=True) & sees
    if bool(uniform.any()):
        rows = value[uniform.expand_as(value)].reshape(-1, value.shape[-1])
        if bool((rows > DROWNS).any()) or bool((rows != rows[:, :1]).any()):
            return None
    bias = write.constant(torch.where(hidden, HIDDEN * (2.0 if bool(uniform.any()) else 1.0), value).to(dtype))
    floor = HIDDEN if bool(uniform.any()) else None
    return _Bias(bias, None if bool(sees.all()) else write.constant(sees.to(dtype)), floor)


def _taken_apart(write: Writer, mask: torch.fx.Node, dtype: torch.dtype) -> _Bias:
    """A mask of any numbers, perhaps with -inf, by its values: float16 holds what becomes of it."""

    def number(value: float) -> torch.fx.Node:
        return write.constant(torch.tensor(value, dtype=dtype))

    finite = write(aten.ge.Scalar, mask, FINITE)  # a maximum over -inf is the lowest float on some engines
    plain = write(aten.gt.Scalar, mask, DROWNS)
    hidden = write(aten.where.self, finite, number(5 * HIDDEN), number(6 * HIDDEN))
    floor = write(aten.where.self, plain, number(NO_FLOOR), hidden)
    bias = write(aten.where.self, plain, mask, number(6 * HIDDEN))
    sees = write(aten.amax.default, write(aten.to.dtype, finite, dtype), [-1], True)
    return _Bias(bias, sees, floor)
