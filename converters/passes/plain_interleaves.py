"""``repeat_interleave`` by a tensor, as FastSpeech's length regulator repeats phonemes (Ren et al., 2019).

No engine has it. Where ``output_size`` says how many there are, place t comes from the first entry up to which the
repeats sum to more than t, which comparisons count. By a number it is a copy of heads:
:mod:`~edgeattn.converters.passes.repeated_heads`.
"""

from __future__ import annotations

from typing import Any

import torch

from edgeattn.converters.passes.graph import Program
from edgeattn.converters.passes.replacing import replace_calls

aten = torch.ops.aten


def plain_interleaves(program: Program) -> int:
    """Rewrite each such call whose size is known; returns how many there were."""
    return replace_calls(
        program, {aten.repeat_interleave.self_Tensor: _by_tensor, aten.repeat_interleave.Tensor: _places}
    )


def _by_tensor(
    x: torch.Tensor, repeats: torch.Tensor, dim: int | None = None, *, output_size: int | None = None
) -> Any:
    if dim is None:
        x, dim = x.flatten(), 0
    if repeats.shape != (x.shape[dim],):  # one number for all
        repeats = repeats.reshape(-1).expand(x.shape[dim])
    places = _places(repeats, output_size=output_size)
    return places if places is NotImplemented else x.index_select(dim, places)


def _places(repeats: torch.Tensor, *, output_size: int | None = None) -> Any:
    if not output_size or not repeats.numel():
        return NotImplemented
    ends = torch.cumsum(repeats.to(torch.float32), 0)  # whole numbers up to 2^24
    places = torch.arange(output_size, dtype=torch.float32)
    return (places[:, None] >= ends).sum(-1).clamp(max=len(repeats) - 1)
