"""``view`` becomes ``reshape``: what an exporter decomposes before a view may be laid out otherwise than in eager mode.

torch 2.13's ONNX exporter replays the traced program on its own decompositions. Where these lay a tensor out otherwise
(attention's result, Swin's windows, relative shifts of Wav2Vec2-Conformer), a ``view`` that was legal in eager mode
dies: "Cannot view a tensor with shape ... and strides ... as a tensor with shape ...". A reshape copies where it must;
in an ONNX or TFLite file both are the same node.
"""

from __future__ import annotations

import torch

from edgeattn.converters.passes.graph import Program

aten = torch.ops.aten


def reshape_views(program: Program) -> int:
    """Turn every ``view`` into a ``reshape``; returns how many there were."""
    views = program.calls(aten.view.default, aten._unsafe_view.default)
    for node in views:
        node.target = aten.reshape.default
    return len(views)
