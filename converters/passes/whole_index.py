"""Indexing that takes everything in order becomes a reshape.

Masks built by functions over index tensors (transformers' mask interface, ``vmap`` over positions) read the padding
mask as ``mask[batch[:, None, None, None], columns[None, None, None, :]]``, with both indices an ``arange`` over all of
it. That is GATHER_ND of booleans, which no GPU delegate takes and TensorRT runs apart, for what is only another shape.
"""

from __future__ import annotations

from typing import Any

import torch

from edgeattn.converters.passes.graph import Program, Writer, size

aten = torch.ops.aten
MAX_ELEMENTS = 2**22


def whole_index(program: Program) -> int:
    """Rewrite each ``index`` whose known indices name all elements in order; returns how many there were."""
    changed = 0
    for node in program.calls(aten.index.Tensor):
        arguments: tuple[Any, ...] = node.args
        source, indices = arguments
        values = [None if index is None else program.known(index) for index in indices]
        shape = size(source)
        if any(value is None for value in values) or source.meta["val"].numel() > MAX_ELEMENTS:
            continue
        places = torch.arange(source.meta["val"].numel()).reshape(shape)
        if torch.equal(places[tuple(values)].reshape(-1), places.reshape(-1)):
            Writer(program, node).finish(aten.reshape.default, source, list(size(node)))
            changed += 1
    return changed
