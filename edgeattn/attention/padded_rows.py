"""What ``nn.TransformerEncoder`` gives at padded positions in inference: zeros.

Its kernels for inference take padded positions out of the batch (a nested tensor) and put zeros there after the last
layer, before the final norm. Where they cannot be taken, such as under torch.export or with gradients, the same module
gives other numbers at these positions, and whatever pools over them differs. A user who called the model in inference
has seen the zeros, so the reference and every traced program give them too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

KEPT = "_edgeattn_zeroes_padding"  # on an encoder whose packed layers were replaced: what it did before


@contextlib.contextmanager
def zeros_at_padding() -> Iterator[list[int]]:
    """Let every ``nn.TransformerEncoder`` put zeros where its kernels for inference would.

    Yields:
        the id of each encoder that did.
    """
    import torch

    kind = torch.nn.TransformerEncoder
    original, done = kind.forward, list[int]()

    def forward(
        self: torch.nn.TransformerEncoder,
        src: torch.Tensor,
        mask: torch.Tensor | None = None,
        src_key_padding_mask: torch.Tensor | None = None,
        is_causal: bool | None = None,
    ) -> torch.Tensor:
        result = original(self, src, mask, src_key_padding_mask, is_causal)
        if src_key_padding_mask is None or mask is not None or not _takes_out(self, src):
            return result
        done.append(id(self))
        return _zeroed(self, result, src_key_padding_mask)

    kind.forward = forward  # type: ignore[method-assign]
    try:
        yield done
    finally:
        kind.forward = original  # type: ignore[method-assign]


def _takes_out(encoder: Any, src: torch.Tensor) -> bool:
    """The conditions of ``TransformerEncoder.forward`` that do not depend on values (torch 2.13)."""
    able = getattr(encoder, KEPT, getattr(encoder, "use_nested_tensor", False))
    return bool(able) and not encoder.layers[0].training and src.dim() == 3


def _zeroed(encoder: Any, result: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
    """The result [batch, time, width] with the norm of zeros at padded positions.

    Padding that does not stand at the end of every row is left alone, as ``mask_check`` does.
    """
    import torch

    hidden = padding.to(result.dtype) if padding.dtype == torch.bool else (padding != 0).to(result.dtype)
    if getattr(encoder, "mask_check", True) and hidden.shape[1] > 1:
        shown_again = (hidden[:, :-1] - hidden[:, 1:]).amax()  # 1 where something is seen behind padding
        hidden = hidden * (1.0 - shown_again.clamp(0.0, 1.0))
    zeros = result.new_zeros(result.shape[-1])
    at_padding = zeros if encoder.norm is None else encoder.norm(zeros)
    return torch.where(hidden.unsqueeze(-1) > 0.5, at_padding, result)
