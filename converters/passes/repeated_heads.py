"""A repeated axis by Concat, not by ``expand``: BROADCAST_TO makes LiteRT's GPU delegate refuse a model (LiteRT#9191).

The pattern is ``repeat_kv`` of grouped-query attention (Ainslie et al., 2023) in eager code: unsqueeze, expand,
reshape. ``scaled_dot_product_attention`` needs no copy at all, see
:mod:`~edgeattn.converters.passes.plain_attention`; here the copy is the model's own, and stays one:

    (B, G, 1, S, D) -> expand (B, G, n, S, D) -> reshape (B, G * n, S, D)
    becomes reshape (B * G, 1, S * D), Concat of n, reshape (B, G * n, S, D)

Three axes are enough for it, so nothing of rank five is left either. ``repeat_interleave`` by a number is the same. Of
a single head (multi-query attention) LiteRT's converter makes a BROADCAST_TO and loses its shape where a product reads
it transposed: the numbers are wrong.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from edgeattn.converters.passes.graph import Program, Writer, size, through
from edgeattn.converters.passes.masks import COPIES

aten = torch.ops.aten
MAX_COPIES = 32  # beyond, a Concat of that many inputs is no better


def repeated_heads(program: Program) -> int:
    """Rewrite each expand of one axis that a reshape folds, and each interleave; returns how many there were."""
    changed = sum(_interleaved(program, node) for node in program.calls(aten.repeat_interleave.self_int))
    for node in program.calls(aten.reshape.default, aten.view.default):
        expanded: Any = through(node.args[0], COPIES)
        if getattr(expanded, "target", None) is not aten.expand.default:
            continue
        before, after = size(expanded.args[0]), size(expanded)
        grown = [axis for axis, (old, new) in enumerate(zip(before, after[-len(before) :], strict=True)) if old != new]
        if len(before) != len(after) or len(grown) != 1 or not 1 < after[grown[0]] <= MAX_COPIES:
            continue
        axis = grown[0]
        write = Writer(program, node)
        flat = [math.prod(before[:axis]), 1, math.prod(before[axis + 1 :])]
        once = write(aten.reshape.default, expanded.args[0], flat)
        write.finish(aten.reshape.default, write(aten.cat.default, [once] * after[axis], 1), list(size(node)))
        changed += 1
    return changed


def _interleaved(program: Program, node: torch.fx.Node) -> bool:
    given: tuple[Any, ...] = (*node.args, node.kwargs.get("dim"))
    source, repeats, dim = given[:3]
    if not node.meta["val"].is_floating_point() or not 1 < repeats <= MAX_COPIES or not node.meta["val"].numel():
        return False  # a mask stays what the passes on masks know
    before = size(source)
    axis = len(before) - 1 if dim is None else dim % len(before)  # without an axis that is how the flat one counts
    write = Writer(program, node)
    once = write(aten.reshape.default, source, [math.prod(before[: axis + 1]), 1, math.prod(before[axis + 1 :])])
    write.finish(aten.reshape.default, write(aten.cat.default, [once] * repeats, 1), list(size(node)))
    return True
