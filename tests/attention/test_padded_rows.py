"""What is put at padded positions is what torch's kernels for inference put there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgeattn.attention.padded_rows import zeros_at_padding
from edgeattn.model import attention_fast_path


def encoder(norm: bool = False, nested: bool = True) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    last = nn.LayerNorm(8) if norm else None
    if last is not None:
        nn.init.normal_(last.bias)
    return nn.TransformerEncoder(layer, 2, last, enable_nested_tensor=nested).eval()


PADDING = torch.tensor([[0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 0, 0]]).bool()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_padded_rows_are_those_of_inference(norm: bool, nested: bool) -> None:
    module, x = encoder(norm, nested), torch.randn(3, 4, 8)
    scattered = torch.tensor([[0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]]).bool()
    for padding in (PADDING, torch.zeros(3, 4).masked_fill(PADDING, float("-inf")), scattered):
        with torch.no_grad():
            expected = module(x, src_key_padding_mask=padding)
            with attention_fast_path(False):
                got = module(x, src_key_padding_mask=padding)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_only_encoders_that_take_padding_out_are_told_and_torch_is_left_as_it_was() -> None:
    forward = nn.TransformerEncoder.forward
    x, several = torch.randn(3, 4, 8), [encoder(), encoder(nested=False)]
    with attention_fast_path(False), zeros_at_padding() as done:
        for module in several:
            module(x, src_key_padding_mask=PADDING)
            module(x)
    assert done == [id(several[0])]
    assert nn.TransformerEncoder.forward is forward
