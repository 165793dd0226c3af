"""Matrix products, convolutions, pooling, resizing."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from edgeattn.sources.onnx.ops.node import Function, Node, NotImportableError, op, to_tensor


class Linear(nn.Linear):
    """A product with a constant matrix, and a constant added to it: weight (out, in), bias (out)."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)  # type: ignore[assignment]

    def forward(self, x: Tensor, *_: None) -> Tensor:
        """Linear map of the last axis."""
        return F.linear(x, self.weight, self.bias)


@op("MatMul")
def _matmul(node: Node) -> Function | nn.Module:
    weight = node.constants.get(1)
    if weight is not None and weight.ndim == 2 and weight.dtype.kind == "f" and 0 not in node.constants:
        node.taken.add(1)
        return Linear(to_tensor(weight).t().contiguous(), None)
    if not node.dtype().is_floating_point:
        return _integer_product
    return torch.matmul


def _integer_product(a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a.to(torch.float64), b.to(torch.float64)).to(a.dtype)


@op("Gemm")
def _gemm(node: Node) -> Function | nn.Module:
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)
    turn_a, turn_b = node.integer("transA"), node.integer("transB")
    weight, bias = node.constants.get(1), node.constants.get(2)
    columns = node.shape(1)[0 if turn_b else 1]
    plain = weight is not None and weight.dtype.kind == "f" and not turn_a and 0 not in node.constants
    if plain and (not node.has(2) or (bias is not None and bias.size in (1, columns) and bias.ndim < 2)):
        assert weight is not None
        node.taken.update((1, 2))
        matrix = to_tensor(weight) if turn_b else to_tensor(weight).t().contiguous()
        matrix = matrix if alpha == 1.0 else matrix * alpha
        vector = None if bias is None else (to_tensor(bias) * beta).reshape(-1).expand(columns).contiguous()
        return Linear(matrix, vector)

    def apply(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        product = torch.matmul(a.t() if turn_a else a, b.t() if turn_b else b)
        product = product if alpha == 1.0 else product * alpha
        if c is None:
            return product
        return product + (c if beta == 1.0 else c * beta)

    return apply


@op("Einsum")
def _einsum(node: Node) -> Function:
    equation = node.text("equation").replace(" ", "")
    return lambda *inputs: torch.einsum(equation, *inputs)


@op("Det")
def _determinant(_node: Node) -> Function:
    determinant: Function = torch.linalg.det
    return determinant


def paddings(node: Node, sizes: Sequence[int], kernel: Sequence[int]) -> list[tuple[int, int]]:
    """Padding before and after each spatial axis, from ``pads`` or ``auto_pad``."""
    count = len(kernel)
    strides = node.ints("strides") or [1] * count
    dilations = node.ints("dilations") or [1] * count
    mode = node.text("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        pads = node.ints("pads") or [0] * (2 * count)
        return [(pads[i], pads[i + count]) for i in range(count)]
    if mode == "VALID":
        return [(0, 0)] * count
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise NotImportableError(f"auto_pad = {mode!r} is not imported")
    result = []
    for size, extent, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + (extent - 1) * dilation + 1 - size)
        small, large = total // 2, total - total // 2
        result.append((small, large) if mode == "SAME_UPPER" else (large, small))
    return result


def _even(pads: list[tuple[int, int]]) -> bool:
    return all(before == after for before, after in pads)


def _widths(pads: list[tuple[int, int]]) -> list[int]:
    return [n for pair in reversed(pads) for n in pair]


CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
MAX_POOLS: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def spatial(node: Node) -> int:
    """Number of spatial axes, 1 to 3."""
    count = node.rank() - 2
    if count not in CONVOLUTIONS:
        raise NotImportableError(f"an input of {node.rank()} axes is not imported, 3 to 5 are")
    return count


def convolution(node: Node, weight: int = 1) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """The convolution of a Conv-like node; ``weight`` is the index of its weight."""
    count = spatial(node)
    pads = paddings(node, node.shape()[2:], node.shape(weight)[2:])
    strides, dilations = node.ints("strides") or [1] * count, node.ints("dilations") or [1] * count
    groups = node.integer("group", 1)
    even = _even(pads)
    inside = [before for before, _ in pads] if even else [0] * count

    def apply(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        x = x if even else F.pad(x, _widths(pads))
        return CONVOLUTIONS[count](x, w, bias, strides, inside, dilations, groups)

    return apply


@op("Conv")
def _conv(node: Node) -> Function | nn.Module:
    apply = convolution(node)
    count = spatial(node)
    pads = paddings(node, node.shape()[2:], node.shape(1)[2:])
    if 1 in node.constants and (not node.has(2) or 2 in node.constants) and _even(pads):
        kind: Any = {1: Conv1d, 2: Conv2d, 3: Conv3d}[count]
        weight = to_tensor(node.static(1))
        groups = node.integer("group", 1)
        module: nn.Module = kind(
            weight.shape[1] * groups,
            weight.shape[0],
            tuple(weight.shape[2:]),
            stride=tuple(node.ints("strides") or [1] * count),
            padding=tuple(before for before, _ in pads),
            dilation=tuple(node.ints("dilations") or [1] * count),
            groups=groups,
            bias=node.has(2),
            device="meta",
        )
        module.weight = nn.Parameter(weight, requires_grad=False)
        if node.has(2):
            module.bias = nn.Parameter(to_tensor(node.static(2)), requires_grad=False)
        return module
    return apply


class Conv1d(nn.Conv1d):
    """Conv with constant weights; further inputs are absent."""

    def forward(self, x: Tensor, *_: None) -> Tensor:
        """Convolve."""
        return super().forward(x)


class Conv2d(nn.Conv2d):
    """Conv with constant weights; further inputs are absent."""

    def forward(self, x: Tensor, *_: None) -> Tensor:
        """Convolve."""
        return super().forward(x)


class Conv3d(nn.Conv3d):
    """Conv with constant weights; further inputs are absent."""

    def forward(self, x: Tensor, *_: None) -> Tensor:
        """Convolve."""
        return super().forward(x)


@op("ConvTranspose")
def _conv_transpose(node: Node) -> Function:
    count = spatial(node)
    kernel, sizes = node.shape(1)[2:], node.shape()[2:]
    strides, dilations = node.ints("strides") or [1] * count, node.ints("dilations") or [1] * count
    extra = node.ints("output_padding") or [0] * count
    groups = node.integer("group", 1)
    mode, wanted = node.text("auto_pad", "NOTSET"), node.ints("output_shape")
    full = [
        stride * (size - 1) + more + (extent - 1) * dilation + 1
        for stride, size, more, extent, dilation in zip(strides, sizes, extra, kernel, dilations, strict=True)
    ]
    if wanted is not None or mode in ("SAME_UPPER", "SAME_LOWER"):
        target = (wanted or [s * n for s, n in zip(strides, sizes, strict=True)])[-count:]
        totals = [f - t for f, t in zip(full, target, strict=True)]
        pads = [(t // 2, t - t // 2) if mode == "SAME_UPPER" else (t - t // 2, t // 2) for t in totals]
    else:
        given = node.ints("pads") or [0] * (2 * count)
        pads = [(given[i], given[i + count]) for i in range(count)] if mode != "VALID" else [(0, 0)] * count
    even = _even(pads) and all(before >= 0 for before, _ in pads)
    inside = [before for before, _ in pads] if even else [0] * count

    def apply(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        y = TRANSPOSED[count](x, w, bias, strides, inside, extra, groups, dilations)
        return y if even else F.pad(y, [-n for n in _widths(pads)])

    return apply


@op("MaxPool")
def _max_pool(node: Node) -> Function:
    if any(node.outputs[1:]):
        raise NotImportableError("the indices of MaxPool are not imported")
    count = spatial(node)
    kernel = node.ints("kernel_shape") or []
    strides, dilations = node.ints("strides") or [1] * count, node.ints("dilations") or [1] * count
    pads = paddings(node, node.shape()[2:], kernel)
    pads = _ceiled(node, pads, kernel, strides, dilations)
    inside = _even(pads) and all(2 * before <= k for (before, _), k in zip(pads, kernel, strict=True))

    def apply(x: Tensor) -> Tensor:
        if inside:
            return MAX_POOLS[count](x, kernel, strides, [before for before, _ in pads], dilations)
        low = -math.inf if x.dtype.is_floating_point else torch.iinfo(x.dtype).min
        return MAX_POOLS[count](F.pad(x, _widths(pads), value=low), kernel, strides, 0, dilations)

    return apply


def _ceiled(
    node: Node, pads: list[tuple[int, int]], kernel: list[int], strides: list[int], dilations: list[int]
) -> list[tuple[int, int]]:
    """Padding that makes ``ceil_mode`` a plain pool: the last window starts inside the input or its first padding."""
    if not node.integer("ceil_mode"):
        return pads
    result = []
    for size, (before, after), extent, stride, dilation in zip(
        node.shape()[2:], pads, kernel, strides, dilations, strict=True
    ):
        reach = (extent - 1) * dilation + 1
        steps = -(-(size + before + after - reach) // stride)
        if steps * stride >= size + before:
            steps -= 1
        result.append((before, max(after, steps * stride + reach - size - before)))
    return result


@op("AveragePool")
def _average_pool(node: Node) -> Function:
    count = spatial(node)
    kernel = node.ints("kernel_shape") or []
    strides, dilations = node.ints("strides") or [1] * count, node.ints("dilations") or [1] * count
    given = paddings(node, node.shape()[2:], kernel)
    pads = _ceiled(node, given, kernel, strides, dilations)
    counted = bool(node.integer("count_include_pad"))
    channels = node.shape()[1]
    shape = (channels, 1, *kernel)

    def sums(x: Tensor) -> Tensor:
        weight = torch.ones(shape, dtype=x.dtype, device=x.device)
        return CONVOLUTIONS[count](x, weight, None, strides, 0, dilations, channels)

    # Where each window covers padding, it is divided by what it covers: known from the shapes.
    ones = torch.ones(1, channels, *node.shape()[2:])
    if counted:
        covered = F.pad(F.pad(ones, _widths(given), value=1.0), _widths(_beyond(given, pads)))
    else:
        covered = F.pad(ones, _widths(pads))
    counts = sums(covered)
    if bool((counts == math.prod(kernel)).all()) and set(dilations) == {1} and count < 3:
        pool: Callable[..., Tensor] = F.avg_pool1d if count == 1 else F.avg_pool2d
        return lambda x: pool(F.pad(x, _widths(pads)) if any(_widths(pads)) else x, kernel, strides)
    counts = counts[:1, :1].clone()
    return lambda x: sums(F.pad(x, _widths(pads))) / counts.to(x)


def _beyond(inner: list[tuple[int, int]], outer: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(o[0] - i[0], o[1] - i[1]) for i, o in zip(inner, outer, strict=True)]


@op("LpPool")
def _lp_pool(node: Node) -> Function:
    count, p = spatial(node), node.integer("p", 2)
    kernel = node.ints("kernel_shape") or []
    strides, dilations = node.ints("strides") or [1] * count, node.ints("dilations") or [1] * count
    pads = _ceiled(node, paddings(node, node.shape()[2:], kernel), kernel, strides, dilations)
    channels = node.shape()[1]

    def apply(x: Tensor) -> Tensor:
        weight = torch.ones((channels, 1, *kernel), dtype=x.dtype, device=x.device)
        powers = F.pad(x.abs() ** p, _widths(pads))
        return CONVOLUTIONS[count](powers, weight, None, strides, 0, dilations, channels) ** (1.0 / p)

    return apply


@op("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def _global_pool(node: Node) -> Function:
    axes = list(range(2, node.rank()))
    if node.op == "GlobalAveragePool":
        return lambda x: x.mean(axes, keepdim=True)
    if node.op == "GlobalMaxPool":
        return lambda x: x.amax(axes, keepdim=True)
    p = node.integer("p", 2)
    return lambda x: (x.abs() ** p).sum(axes, keepdim=True) ** (1.0 / p)


@op("Resize")
def _resize(node: Node) -> Function:
    mode = node.text("mode", "nearest")
    given = node.shape()
    axes = [a % node.rank() for a in node.ints("axes") or range(node.rank())]
    scales, sizes = _resize_target(node, axes)
    node.refuse("keep_aspect_ratio_policy", "stretch")
    how = node.text("coordinate_transformation_mode", "half_pixel")
    nearest = node.text("nearest_mode", "round_prefer_floor")
    if how in ("tf_crop_and_resize", "half_pixel_symmetric") or mode not in ("nearest", "linear", "cubic"):
        raise NotImportableError(f"mode {mode!r} with {how!r} is not imported")
    if mode == "cubic" or node.integer("antialias"):
        node.refuse("antialias", 0)
        node.refuse("exclude_outside", 0)
    changed = [axis for axis in range(len(given)) if sizes[axis] != given[axis] or scales[axis] != 1.0]
    if mode == "linear" and changed == [2, 3] and len(given) == 4 and how in ("half_pixel", "align_corners"):
        if how == "align_corners":
            return lambda x, *_: F.interpolate(x, sizes[2:], mode="bilinear", align_corners=True)
        if all(sizes[a] == given[a] * scales[a] for a in changed):
            return lambda x, *_: F.interpolate(x, sizes[2:], mode="bilinear", align_corners=False)
    picks: list[tuple[int, list[int] | None, Tensor | None]] = []
    for axis in changed:
        node.count("sizes", sizes[axis] if mode == "nearest" else sizes[axis] + given[axis] * sizes[axis] // 2**9)
        places = _coordinates(how, given[axis], sizes[axis], scales[axis])
        if mode == "nearest":
            picks.append((axis, _nearest(places, nearest, given[axis]), None))
        else:
            coefficient = node.number("cubic_coeff_a", -0.75)
            picks.append((axis, None, _weights(places, given[axis], mode, coefficient)))

    def apply(x: Tensor, *_: Tensor) -> Tensor:
        for axis, indices, matrix in picks:
            if indices is not None:
                x = torch.index_select(x, axis, torch.tensor(indices, dtype=torch.int64, device=x.device))
            else:
                assert matrix is not None
                x = torch.matmul(x.transpose(axis, -1), matrix.to(x)).transpose(axis, -1)
        return x

    return apply


def _resize_target(node: Node, axes: list[int]) -> tuple[list[float], list[int]]:
    given = node.shape()
    scales, sizes = [1.0] * len(given), list(given)
    factors = node.static(2) if node.has(2) and node.shape(2) != (0,) else None
    node.taken.update((1, 2))
    if factors is not None:
        for axis, factor in zip(axes, factors, strict=True):
            scales[axis] = float(factor)
            sizes[axis] = math.floor(given[axis] * float(factor))
    else:
        for axis, size in zip(axes, node.static(3), strict=True):
            sizes[axis] = int(size)
            scales[axis] = int(size) / given[axis]
    return scales, sizes


def _coordinates(how: str, length: int, size: int, scale: float | np.float32) -> np.ndarray:
    places = np.arange(size, dtype=np.float32)  # as ONNX Runtime does: nearest is decided by rounding
    scale = np.float32(scale)
    if how == "asymmetric":
        return places / scale
    if how == "align_corners":
        return places * (length - 1) / (size - 1) if size > 1 else np.zeros(1, np.float32)
    if how == "pytorch_half_pixel" and size <= 1:
        return np.zeros(size, np.float32)
    if how not in ("half_pixel", "pytorch_half_pixel"):
        raise NotImportableError(f"coordinate_transformation_mode = {how!r} is not imported")
    return (places + 0.5) / scale - 0.5


def _nearest(places: np.ndarray, mode: str, length: int) -> list[int]:
    functions: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "floor": np.floor,
        "ceil": np.ceil,
        "round_prefer_floor": lambda v: np.ceil(v - 0.5),
        "round_prefer_ceil": lambda v: np.floor(v + 0.5),
    }
    if mode not in functions:
        raise NotImportableError(f"nearest_mode = {mode!r} is not imported")
    return [int(v) for v in np.clip(functions[mode](places), 0, length - 1)]


def _weights(places: np.ndarray, length: int, mode: str, a: float) -> Tensor:
    """Matrix (length, size) whose column is the share of each input value in an output value."""
    matrix = np.zeros((length, len(places)))
    base = np.floor(places).astype(int)
    for column, (place, first) in enumerate(zip(places, base, strict=True)):
        t = place - first
        if mode == "linear":
            shares = [(first, 1 - t), (first + 1, t)]
        else:
            shares = [(first + k, _cubic(abs(t - k), a)) for k in (-1, 0, 1, 2)]
        for row, share in shares:
            matrix[min(max(row, 0), length - 1), column] += share
    return torch.from_numpy(matrix.astype(np.float32))


def _cubic(distance: float, a: float) -> float:
    # Keys (1981), equation 4.
    if distance <= 1:
        return ((a + 2) * distance - (a + 3)) * distance**2 + 1
    return a * (((distance - 5) * distance + 8) * distance - 4) if distance < 2 else 0.0


@op("GridSample")
def _grid_sample(node: Node) -> Function:
    modes = {
        "linear": "bilinear",
        "bilinear": "bilinear",
        "nearest": "nearest",
        "cubic": "bicubic",
        "bicubic": "bicubic",
    }
    mode = modes[node.text("mode", "linear")]
    padding, corners = node.text("padding_mode", "zeros"), bool(node.integer("align_corners"))
    return functools.partial(F.grid_sample, mode=mode, padding_mode=padding, align_corners=corners)
