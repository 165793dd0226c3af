"""Operators that move values or make them from sizes: their shapes are known on import, and only tensors are left."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from edgeattn.sources.onnx.ops.node import (
    Function,
    Node,
    NotImportableError,
    Result,
    as_result,
    op,
    to_tensor,
    torch_type,
)


class Reshape(nn.Module):
    """Other axes for the same values; ``target``, the sizes, changes when heads or neurons are removed."""

    def __init__(self, target: Sequence[int]) -> None:
        super().__init__()
        self.target = list(target)

    def forward(self, x: Tensor, *_: None) -> Tensor:
        """Reshape."""
        return x.reshape(self.target)


class Expand(nn.Module):
    """Repeated along axes of size 1; ``target``, the sizes, changes when heads are removed."""

    def __init__(self, target: Sequence[int]) -> None:
        super().__init__()
        self.target = list(target)

    def forward(self, x: Tensor, *_: None) -> Tensor:
        """Expand."""
        return x.expand(self.target)


class Split(nn.Module):
    """Pieces along an axis; their ``sizes`` change when heads or neurons are removed."""

    def __init__(self, axis: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.axis = axis
        self.sizes = list(sizes)

    def forward(self, x: Tensor, *_: None) -> Result:
        """Split."""
        return as_result(torch.split(x, self.sizes, self.axis))


class Narrow(nn.Module):
    """Neighbours along axes, from ``starts`` to before ``ends``, which change when heads or neurons are removed."""

    def __init__(self, axes: Sequence[int], starts: Sequence[int], ends: Sequence[int]) -> None:
        super().__init__()
        self.axes = tuple(axes)
        self.starts = list(starts)
        self.ends = list(ends)

    def forward(self, x: Tensor, *_: None) -> Tensor:
        """Cut."""
        for axis, start, end in zip(self.axes, self.starts, self.ends, strict=True):
            x = _cut(x, axis, range(start, end))
        return x


@op("Shape")
def _shape(node: Node) -> Function:
    rank = node.rank()
    start, end = node.integer("start"), node.integer("end", rank)
    node.taken.add(0)
    sizes = torch.tensor(node.shape()[start:end], dtype=torch.int64)  # both are clamped, as Python does
    return lambda _: sizes.clone()


@op("Size")
def _size(node: Node) -> Function:
    node.taken.add(0)
    count = math.prod(node.shape())
    return lambda _: torch.tensor(count, dtype=torch.int64)


@op("Constant")
def _constant(node: Node) -> Function:
    for name, dtype in (("value_float", np.float32), ("value_int", np.int64)):
        if name in node.attributes:
            single = torch.from_numpy(np.array(node.attributes[name], dtype))
            return single.clone
    for name, dtype in (("value_floats", np.float32), ("value_ints", np.int64)):
        if name in node.attributes:
            several = torch.from_numpy(np.array(node.attributes[name], dtype))
            return several.clone
    if "value" in node.attributes:
        value = to_tensor(node.attributes["value"])
        return value.clone
    raise NotImportableError("a Constant that is no tensor")


@op("ConstantOfShape")
def _constant_of_shape(node: Node) -> Function:
    sizes = [int(v) for v in node.static(0)]
    value = to_tensor(np.asarray(node.attributes.get("value", np.zeros(1, np.float32)))).reshape(())
    fill, dtype = value.item(), value.dtype
    return lambda _: torch.full(sizes, fill, dtype=dtype)


@op("Range")
def _arange(node: Node) -> Function:
    start, limit, delta = (node.static(i).reshape(-1)[0].item() for i in range(3))
    dtype = node.dtype()
    return lambda *_: torch.arange(start, limit, delta, dtype=dtype)


@op("EyeLike")
def _eye_like(node: Node) -> Function:
    node.taken.add(0)
    rows, columns = node.shape()
    offset = node.integer("k")
    dtype = torch_type(node.integer("dtype")) if "dtype" in node.attributes else node.dtype()

    def apply(_: Tensor) -> Tensor:
        grid = torch.arange(columns)[None, :] - torch.arange(rows)[:, None]
        return (grid == offset).to(dtype)

    return apply


@op("Reshape")
def _reshape(node: Node) -> Function | nn.Module:
    given, wanted = node.shape(), [int(v) for v in node.static(1)]
    if not node.integer("allowzero"):
        wanted = [given[i] if v == 0 else v for i, v in enumerate(wanted)]
    if -1 in wanted:
        others = math.prod(v for v in wanted if v != -1)
        wanted[wanted.index(-1)] = math.prod(given) // others if others else 0
    target = tuple(wanted)
    if target == given:
        return lambda x, _: x
    return Reshape(target)


@op("Flatten")
def _flatten(node: Node) -> nn.Module:
    axis = node.axis("axis", 1)
    shape_ = node.shape()
    target = (math.prod(shape_[:axis]), math.prod(shape_[axis:]))
    return Reshape(target)


@op("Squeeze")
def _squeeze(node: Node) -> nn.Module:
    given, axes = node.shape(), node.ints("axes", 1)
    dropped = {i for i, n in enumerate(given) if n == 1} if axes is None else {a % len(given) for a in axes}
    if any(given[axis] != 1 for axis in dropped):
        raise NotImportableError(f"axes {axes} of shape {given} are not of size 1")
    target = tuple(n for i, n in enumerate(given) if i not in dropped)
    return Reshape(target)


@op("Unsqueeze")
def _unsqueeze(node: Node) -> nn.Module:
    axes = node.ints("axes", 1) or []
    rank = node.rank() + len(axes)
    inserted = {a % rank for a in axes}
    sizes = iter(node.shape())
    target = tuple(1 if i in inserted else next(sizes) for i in range(rank))
    return Reshape(target)


@op("Transpose")
def _transpose(node: Node) -> Function:
    order = node.ints("perm")
    axes = tuple(order if order is not None else reversed(range(node.rank())))
    return lambda x: x.permute(axes)


@op("Concat")
def _concat(node: Node) -> Function:
    axis = node.axis("axis")
    return lambda *inputs: torch.cat(inputs, axis) if len(inputs) > 1 else inputs[0]


@op("Split")
def _split(node: Node) -> nn.Module:
    axis = node.axis("axis")
    sizes = node.ints("split", 1)
    if sizes is None:
        count = node.integer("num_outputs", len(node.outputs))
        node.count("num_outputs", count)
        each = -(-node.shape()[axis] // count)
        sizes = [each] * (count - 1) + [node.shape()[axis] - each * (count - 1)]
    return Split(axis, sizes)


@op("Slice")
def _slices(node: Node) -> Function | nn.Module:
    given = node.shape()
    starts, ends = node.ints("starts", 1), node.ints("ends", 2)
    if starts is None or ends is None:
        raise NotImportableError("starts and ends must be constant")
    axes = node.ints("axes", 3) or list(range(len(starts)))
    steps = node.ints("steps", 4) or [1] * len(starts)
    cuts = []
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        place = axis % len(given)
        indices = range(*slice(start, end if step > 0 or end >= -given[place] else None, step).indices(given[place]))
        cuts.append((place, indices))
    if len({place for place, _ in cuts}) == len(cuts) and all(cut.step == 1 and len(cut) for _, cut in cuts):
        return Narrow([place for place, _ in cuts], [cut.start for _, cut in cuts], [cut.stop for _, cut in cuts])

    def apply(x: Tensor, *_: Tensor) -> Tensor:
        for axis, indices in cuts:
            x = _cut(x, axis, indices)
        return x

    return apply


def _cut(x: Tensor, axis: int, indices: range) -> Tensor:
    if len(indices) == 0:
        return x.narrow(axis, 0, 0)
    if indices.step < 0:
        x = x.flip(axis)
        last = x.shape[axis] - 1
        indices = range(last - indices.start, last - indices[-1] + 1, -indices.step)
    key = [slice(None)] * axis + [slice(indices.start, indices[-1] + 1, indices.step)]
    return x[tuple(key)]


@op("Expand")
def _expand(node: Node) -> Function | nn.Module:
    target = np.broadcast_shapes(node.shape(), tuple(int(v) for v in node.static(1)))
    if target == node.shape():
        return lambda x, _: x
    return Expand(target)


@op("Tile")
def _tile(node: Node) -> Function:
    repeats = [int(v) for v in node.static(1)]
    return lambda x, _: x.repeat(repeats)


@op("Pad")
def _pad(node: Node) -> Function:
    mode = node.text("mode", "constant")
    pads = node.ints("pads", 1) or []
    axes = node.ints("axes", 3) or list(range(node.rank()))
    rank, count = node.rank(), len(axes)
    amounts = {a % rank: (pads[i], pads[i + count]) for i, a in enumerate(axes)}
    value = node.attributes.get("value", 0.0)
    if node.has(2):
        value = node.static(2).reshape(-1)[0].item()
    if mode == "constant":
        widths = [n for axis in reversed(range(rank)) for n in amounts.get(axis, (0, 0))]
        while len(widths) > 2 and widths[-2:] == [0, 0]:
            widths = widths[:-2]
        if node.dtype() == torch.bool:
            return lambda x, *_: F.pad(x.to(torch.uint8), widths, value=float(value)).to(torch.bool)
        return lambda x, *_: F.pad(x, widths, value=value)
    for axis, around in amounts.items():
        node.count("pads", node.shape()[axis] + sum(max(0, amount) for amount in around))
    picks = [(axis, _reflected(node.shape()[axis], *amounts[axis], mode)) for axis in amounts if any(amounts[axis])]

    def apply(x: Tensor, *_: Tensor) -> Tensor:
        for axis, indices in picks:
            x = torch.index_select(x, axis, torch.tensor(indices, dtype=torch.int64, device=x.device))
        return x

    return apply


def _reflected(length: int, before: int, after: int, mode: str) -> list[int]:
    modes = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}
    if mode not in modes:
        raise NotImportableError(f"mode = {mode!r} is not imported")
    indices = np.arange(length)
    kept = indices[max(0, -before) : length - max(0, -after)]
    return [int(v) for v in np.pad(kept, (max(0, before), max(0, after)), mode=modes[mode])]  # type: ignore[call-overload]


@op("DepthToSpace")
def _depth_to_space(node: Node) -> Function:
    n, c, h, w = node.shape()
    block = node.integer("blocksize")
    parts = c // block**2
    if node.text("mode", "DCR") == "DCR":
        shape_, order = (n, block, block, parts, h, w), (0, 3, 4, 1, 5, 2)
    else:
        shape_, order = (n, parts, block, block, h, w), (0, 1, 4, 2, 5, 3)
    return lambda x: x.reshape(shape_).permute(order).reshape(n, parts, h * block, w * block)


@op("SpaceToDepth")
def _space_to_depth(node: Node) -> Function:
    n, c, h, w = node.shape()
    block = node.integer("blocksize")
    shape_ = (n, c, h // block, block, w // block, block)
    return lambda x: x.reshape(shape_).permute(0, 3, 5, 1, 2, 4).reshape(n, c * block**2, h // block, w // block)


@op("Trilu")
def _trilu(node: Node) -> Function:
    offset = int(node.static(1).reshape(-1)[0]) if node.has(1) else 0
    upper = bool(node.integer("upper", 1))
    rows, columns = node.shape()[-2:]

    def apply(x: Tensor, *_: Tensor) -> Tensor:
        if x.dtype == torch.bool or not x.dtype.is_floating_point:
            grid = torch.arange(columns)[None, :] - torch.arange(rows)[:, None]
            seen = grid >= offset if upper else grid <= offset
            return torch.where(seen.to(x.device), x, torch.zeros_like(x))
        return torch.triu(x, offset) if upper else torch.tril(x, offset)

    return apply


@op("NonZero")
def _nonzero(node: Node) -> Function:
    found = np.stack(np.nonzero(node.static(0))).astype(np.int64)
    return lambda _: torch.from_numpy(found.copy())


@op("ReverseSequence")
def _reverse_sequence(node: Node) -> Function:
    lengths = [int(v) for v in node.static(1)]
    batch, time = node.integer("batch_axis", 1), node.integer("time_axis", 0)

    def apply(x: Tensor, _: Tensor) -> Tensor:
        rows = []
        for index, length in enumerate(lengths):
            row = x.narrow(batch, index, 1)
            kept = row.narrow(time, length, x.shape[time] - length)
            rows.append(torch.cat((row.narrow(time, 0, length).flip(time), kept), time))
        return torch.cat(rows, batch)

    return apply


@op("CenterCropPad")
def _center_crop_pad(node: Node) -> Function:
    sizes = [int(v) for v in node.static(1)]
    axes = node.ints("axes") or list(range(node.rank()))

    def apply(x: Tensor, _: Tensor) -> Tensor:
        for axis, wanted in zip(axes, sizes, strict=True):
            place = axis % x.ndim
            got = x.shape[place]
            if got > wanted:
                x = x.narrow(place, (got - wanted) // 2, wanted)
            elif got < wanted:
                before = (wanted - got) // 2
                x = F.pad(x, [0, 0] * (x.ndim - 1 - place) + [before, wanted - got - before])
        return x

    return apply
