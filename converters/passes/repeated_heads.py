"""A repeated axis by Concat, not by ``expand``: BROADCAST_TO makes LiteRT's GPU delegate refuse a model (LiteRT#9191).

The pattern is ``repeat_kv`` of grouped-query attention (Ainslie et al., 2023) in eager code: unsqueeze, expand,
reshape. ``scaled_dot_product_attention`` needs no copy at all, see
:mod:`~edgeattn.converters.passes.plain_attention`; here the copy is the model's own, and stays one:

    (B, G, 1, S, D) -> expand (B, G, n, S, D) -> reshape (B, G * n, S, D)
    becomes reshape (B * G, 1, S * D), Concat of n, reshape (B, G * n, S, D)

Three axes are enough for it, so nothing of rank five is left either.
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
    """Rewrite each expand of one axis that a reshape folds; returns how many there were."""
    changed = 0
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
