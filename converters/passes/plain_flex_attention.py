"""``flex_attention`` as attention with a mask, or with scores that its functions change.

The operator carries two traced functions of a score and of positions (batch, head, query, key). They are element by
element, so on grids of all positions they give all scores at once. Blocks only say where a mask holds something: like
torch without compilation, the mask function alone decides. Rows that see nothing give zeros.

Where ``score_mod`` changes nothing it is ``scaled_dot_product_attention``, which pass plain_attention writes out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from edgeattn.converters.passes.graph import Program, Writer, size
from edgeattn.converters.passes.plain_control import inline, replace_items

aten = torch.ops.aten
FLEX = "flex_attention"


def plain_flex_attention(program: Program) -> int:
    """Rewrite each ``flex_attention`` of which only the result is read; returns how many there were."""
    written = 0
    for node in [node for node in program.graph.nodes if node.op == "call_function" and str(node.target) == FLEX]:
        result = _attention(program, Writer(program, node), node.args)
        if result is not None and replace_items(program, node, [result, None, None]):
            written += 1
    return written


def _attention(program: Program, write: Writer, args: Sequence[Any]) -> Any:
    query, key, value, score_mod, block_mask, scale = args[:6]
    score_buffers, mask_buffers = args[7:9]
    batch, heads, rows, _ = size(query)
    shape = (batch, heads, rows, size(key)[-2])
    grids = [
        write.constant(torch.arange(length).reshape([-1 if axis == place else 1 for axis in range(4)]))
        for place, length in enumerate(shape)
    ]
    masks = inline(write, block_mask[-1], [*grids, *mask_buffers])
    if masks is None:
        return None
    seen = _known(program, write, masks[0])
    all_seen = program.known(seen)
    mask = None if all_seen is not None and bool(all_seen.all()) else seen
    if _gives_back_the_score(program, score_mod):
        if mask is not None and len(size(mask)) < 2:
            mask = write(aten.expand.default, mask, [rows, shape[-1]])
        more = {"scale": scale, "enable_gqa": size(key)[1] != heads}
        return write(aten.scaled_dot_product_attention.default, query, key, value, mask, 0.0, False, **more)
    groups = heads // size(key)[1]
    if groups > 1:
        key, value = (write(aten.repeat_interleave.self_int, part, groups, 1) for part in (key, value))
    scaled = write(aten.mul.Tensor, query, scale)
    scores = write(aten.matmul.default, scaled, write(aten.transpose.int, key, -2, -1))
    changed = inline(write, score_mod, [scores, *grids, *score_buffers])
    if changed is None or size(changed[0]) != shape:
        return None
    scores = changed[0]
    if mask is not None:
        hidden = write.constant(torch.tensor(-math.inf))
        scores = write(aten.where.self, mask, scores, hidden)
    weights = write(aten.softmax.int, scores, -1)
    empty = write(aten.isnan.default, weights)  # a row that sees nothing
    weights = write(aten.masked_fill.Scalar, weights, empty, 0.0)
    return write(aten.matmul.default, weights, value)


def _known(program: Program, write: Writer, node: torch.fx.Node) -> torch.fx.Node:
    """A mask of positions alone is a constant."""
    value = program.known(node)
    return node if value is None else write.constant(value)


def _gives_back_the_score(program: Program, body: Any) -> bool:
    module: Any = program.exported.graph_module
    graph = getattr(module, str(body.target)).graph
    first = next(node for node in graph.nodes if node.op == "placeholder")
    result = next(node for node in graph.nodes if node.op == "output").args[0]
    return (result[0] if isinstance(result, (tuple, list)) else result) is first
