"""The view that torch 2.13's ONNX exporter dies on, with and without the pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeattn.converters.passes.plain_attention import plain_attention
from edgeattn.converters.passes.reshape_views import reshape_views
from edgeattn.guards.silence import silenced
from tests.converters.passes.tracing import Pass, traced


class Merged(nn.Module):
    """Heads merged as T5, Swin and Wav2Vec2-Conformer do."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(32, 96)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (part.view(1, 10, 4, 8).transpose(1, 2) for part in self.projection(x).chunk(3, -1))
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return mixed.transpose(1, 2).contiguous().view(1, 10, 32)


def exported(*passes: Pass) -> list[str]:
    program, _ = traced(Merged(), {"x": torch.randn(1, 10, 32)}, *passes)
    with silenced():
        made = torch.onnx.export(program, dynamo=True, verbose=False)
    assert made is not None
    return [node.op_type for node in made.model_proto.graph.node]


def test_a_view_that_the_exporter_lays_out_otherwise_is_exported() -> None:
    pytest.importorskip("onnxscript", reason="needs edgeattn[convert]")
    with pytest.raises(Exception, match=r"Cannot view a tensor with shape .* and strides"):
        exported(plain_attention)
    assert "Reshape" in exported(plain_attention, reshape_views)
