"""Operations in other words for LiteRT alone, as decompositions that litert-torch runs on the traced program.

They are plain torch code, and stand here where the other engines have the operation itself. What each answers:

- ``convolution``: TRANSPOSE_CONV knows no third axis, no dilation beside a stride and few paddings, litert-torch 0.10
  pads zeros where ``output_padding`` adds places that have values, and CONV_3D has no groups;
- ``bmm`` of one batch: its converter makes FULLY_CONNECTED of A^T B^T and loses the left transpose ("324 != 8");
- ``grid_sampler`` with reflection: its converter compares int8 then ("failed to legalize operation 'tfl.equal'");
- ``pow`` and ``relu`` of many axes: the kernels take four and five, and both look at each number alone;
- ``topk`` and ``sort``: its own sort is one that LiteRT has no kernel for;
- sums by index and what else stands in :mod:`edgeattn.converters.litert_functions`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from edgeattn.converters.litert_functions import FUNCTIONS
from edgeattn.converters.transposed import convolved_otherwise
from edgeattn.errors import load_extra

aten = torch.ops.aten


@contextlib.contextmanager
def litert_forms() -> Iterator[None]:
    """Let litert-torch use :data:`FORMS`; its own tables are put back afterwards."""
    decompositions: Any = load_extra("litert_torch.fx_infra.decomp", "tflite")
    tables = (decompositions._pre_convert_decomp, decompositions._pre_lower_decomp)  # noqa: SLF001  # put back after
    saved = [{operator: table[operator] for operator in FORMS if operator in table} for table in tables]
    known = {operator: before[operator] for before in reversed(saved) for operator in before}
    own = {operator: _or_else(form, known.get(operator)) for operator, form in FORMS.items()}
    decompositions.update_pre_convert_decomp(own)
    try:
        yield
    finally:
        for table, before in zip(tables, saved, strict=True):
            for operator in own:
                table.pop(operator, None)
            table.update(before)


def _or_else(form: Callable[..., Any], before: Callable[..., Any] | None) -> Callable[..., Any]:
    """A form where it applies, else what litert-torch had."""

    def either(*args: Any, **kwargs: Any) -> Any:
        made = form(*args, **kwargs)
        return before(*args, **kwargs) if made is NotImplemented and before is not None else made

    return either


def _convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Any:
    axes = weight.dim() - 2
    if x.dim() != axes + 2:
        return NotImplemented
    step, pads, spread, extra = (
        list(given) * (axes if len(given) == 1 else 1) for given in (stride, padding, dilation, output_padding)
    )
    if not transposed:
        if axes < 3 or groups == 1:
            return NotImplemented
        return _by_planes(_padded(x, [(p, p) for p in pads]), weight, bias, step, spread, groups)
    if not convolved_otherwise(tuple(weight.shape[2:]), step, pads, extra, spread):
        return NotImplemented
    if axes < 3 and max(spread) == 1:  # the whole of it, and its margin cut off afterwards
        none, one = [0] * axes, [1] * axes
        whole = aten.convolution.default(x, weight, None, step, none, one, True, none, groups)
        made = _padded(whole, [(-p, e - p) for p, e in zip(pads, extra, strict=True)])
        return made if bias is None else made + bias.reshape(-1, *[1] * axes)
    for axis in range(axes):
        x = _with_zeros(x, axis + 2, step[axis])
    reach = [d * (k - 1) for d, k in zip(spread, weight.shape[2:], strict=True)]
    x = _padded(x, [(r - p, r - p + e) for r, p, e in zip(reach, pads, extra, strict=True)])
    # (C, M / groups, ...) of the transposed one is (M, C / groups, ...), mirrored, of a plain one.
    mirrored = weight.flip(tuple(range(2, axes + 2)))
    split = mirrored.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2)
    plain = split.reshape(-1, weight.shape[0] // groups, *weight.shape[2:])
    return aten.convolution.default(x, plain, bias, [1] * axes, [0] * axes, spread, False, [0] * axes, groups)


def _by_planes(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> torch.Tensor:
    """A grouped convolution over three axes as a sum of such over two, one for each plane of the kernel."""
    batch, channels, depth, *_ = x.shape
    depths = (depth - dilation[0] * (weight.shape[2] - 1) - 1) // stride[0] + 1
    total: torch.Tensor | None = None
    for plane in range(weight.shape[2]):
        first = plane * dilation[0]
        taken = x[:, :, first : first + (depths - 1) * stride[0] + 1 : stride[0]]
        maps = taken.transpose(1, 2).reshape(batch * depths, channels, *x.shape[3:])
        made = aten.convolution.default(
            maps,
            weight[:, :, plane],
            bias if plane == 0 else None,
            list(stride[1:]),
            [0, 0],
            list(dilation[1:]),
            False,
            [0, 0],
            groups,
        )
        total = made if total is None else total + made
    assert total is not None
    return total.reshape(batch, depths, *total.shape[1:]).transpose(1, 2)


def _padded(x: torch.Tensor, amounts: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Zeros at the ends of the last axes; below 0, that many places are cut off."""
    for axis, (before, after) in enumerate(amounts, x.dim() - len(amounts)):
        x = x.narrow(axis, max(-before, 0), x.shape[axis] - max(-before, 0) - max(-after, 0))
    ends = [max(amount, 0) for pair in reversed(amounts) for amount in pair]
    return aten.constant_pad_nd.default(x, ends, 0.0) if any(ends) else x


def _with_zeros(x: torch.Tensor, axis: int, step: int) -> torch.Tensor:
    """``step - 1`` zeros between the places of an axis."""
    if step == 1 or x.shape[axis] == 1:
        return x
    rows = x.reshape(math.prod(x.shape[:axis]), x.shape[axis], 1, math.prod(x.shape[axis + 1 :]))
    rows = torch.cat([rows, torch.zeros_like(rows).expand(-1, -1, step - 1, -1)], 2)
    spread = rows.reshape(*x.shape[:axis], x.shape[axis] * step, *x.shape[axis + 1 :])
    return spread.narrow(axis, 0, (x.shape[axis] - 1) * step + 1)


def _bmm(a: torch.Tensor, b: torch.Tensor) -> Any:
    if a.shape[0] != 1 or not a.is_floating_point():
        return NotImplemented
    return torch.ops.tfl.batch_matmul(a, b)


def _grid_sampler(x: torch.Tensor, grid: torch.Tensor, kind: int, padding: int, corners: bool) -> Any:
    if padding != 2 or kind == 2:  # torch's numbers: reflection, bicubic
        return NotImplemented
    turns = (grid + 1) / 4
    reflected = 1 - (4 * (turns - turns.floor()) - 2).abs()  # -1 and 1 are the edges, or the outer places with corners
    return aten.grid_sampler_2d.default(x, reflected, kind, 1, corners)


def _power(x: torch.Tensor, exponent: float) -> Any:
    if x.dim() <= 4:
        return NotImplemented
    return aten.pow.Tensor_Scalar(x.reshape(-1), exponent).reshape(x.shape)


def _relu(x: torch.Tensor) -> Any:
    return NotImplemented if x.dim() <= 5 else aten.relu.default(x.reshape(-1)).reshape(x.shape)


def _topk(
    x: torch.Tensor,
    k: int,
    dim: int = -1,
    largest: bool = True,
    sorted: bool = True,  # noqa: A002, ARG001  # torch's names; TOPK_V2 always sorts
) -> tuple[torch.Tensor, torch.Tensor]:
    turned = x.transpose(dim, -1) if x.ndim else x.reshape(1)
    # Of equal values TOPK_V2 takes the first, for the least too: that is what makes a sort by it stable.
    values, places = torch.ops.tfl.topk_v2(turned if largest else -turned, k)
    values, places = (values if largest else -values), places.to(torch.int64)
    if not x.ndim:
        return values.reshape(()), places.reshape(())
    return values.transpose(dim, -1), places.transpose(dim, -1)


def _sort(x: torch.Tensor, dim: int = -1, descending: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    return _topk(x, x.shape[dim] if x.ndim else 1, dim, descending)


def _stable_sort(
    x: torch.Tensor,
    *,
    stable: bool | None = None,  # noqa: ARG001
    dim: int = -1,
    descending: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    return _sort(x, dim, descending)


FORMS: Mapping[Any, Callable[..., Any]] = {
    aten.convolution.default: _convolution,
    aten.bmm.default: _bmm,
    aten.grid_sampler_2d.default: _grid_sampler,
    aten.pow.Tensor_Scalar: _power,
    aten.relu.default: _relu,
    aten.topk.default: _topk,
    aten.sort.default: _sort,
    aten.sort.stable: _stable_sort,
    **FUNCTIONS,
}
