"""Reductions, softmax and normalisation."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from edgeattn.sources.onnx.ops.node import CONTRIB, Function, Node, NotImportableError, op, to_tensor

Reduction = Callable[[Tensor, list[int], bool], Tensor]


def _prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keep)
    return x


REDUCTIONS: dict[str, Reduction] = {
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keep, dtype=x.dtype),
    "ReduceL2": lambda x, axes, keep: torch.sqrt((x * x).sum(axes, keep, dtype=x.dtype)),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keep).log(),
    "ReduceLogSumExp": torch.logsumexp,
    "ReduceMax": torch.amax,
    "ReduceMean": torch.mean,
    "ReduceMin": torch.amin,
    "ReduceProd": _prod,
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keep, dtype=x.dtype),
    "ReduceSumSquare": lambda x, axes, keep: (x * x).sum(axes, keep, dtype=x.dtype),
}


@op(*REDUCTIONS)
def _reduce(node: Node) -> Function:
    given = node.ints("axes", 1)
    if not given and node.integer("noop_with_empty_axes"):
        given = None
        if node.op == "ReduceSumSquare":
            return lambda x, *_: x * x
        if node.op in ("ReduceL1", "ReduceL2"):
            return lambda x, *_: x.abs()
        return (lambda x, *_: x.log()) if node.op == "ReduceLogSum" else lambda x, *_: x
    axes = [a % node.rank() for a in given] if given else list(range(node.rank()))
    keep = bool(node.integer("keepdims", 1))
    function = REDUCTIONS[node.op]
    if not axes:  # a scalar
        return lambda x, *_: function(x.reshape(1), [0], False)
    if node.dtype().is_floating_point or node.op not in ("ReduceMean", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp"):
        return lambda x, *_: function(x, axes, keep)
    kept = node.dtype()
    return lambda x, *_: function(x.to(torch.float64), axes, keep).to(kept)


@op("Softmax", "LogSoftmax", "Hardmax")
def _softmax(node: Node) -> Function:
    old = node.opset < 13  # all axes from this one on are one
    axis = node.axis("axis", 1 if old else -1)
    shape = node.shape()
    flattened = old and axis != node.rank() - 1
    functions: dict[str, Callable[[Tensor, int], Tensor]] = {
        "Softmax": torch.softmax,
        "LogSoftmax": torch.log_softmax,
        "Hardmax": lambda x, dim: (
            torch.arange(x.shape[dim]).reshape([-1 if i == dim % x.ndim else 1 for i in range(x.ndim)])
            == x.argmax(dim, True)
        ).to(x.dtype),
    }
    function = functions[node.op]
    if not flattened:
        return lambda x: function(x, axis)
    return lambda x: function(x.flatten(axis), axis).reshape(shape)


class LayerNorm(nn.LayerNorm):
    """LayerNormalization, also with the mean and the inverse deviation as outputs."""

    def __init__(self, shape: tuple[int, ...], eps: float, weight: Tensor, bias: Tensor | None, extra: bool) -> None:
        super().__init__(shape, eps, bias=bias is not None)
        self.weight = nn.Parameter(weight.reshape(shape), requires_grad=False)
        if bias is not None:
            self.bias = nn.Parameter(bias.reshape(shape), requires_grad=False)
        self.extra = extra

    def forward(self, x: Tensor, *_: None) -> Tensor | tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        """Normalise the last axes."""
        y = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        if not self.extra:
            return y
        axes = list(range(x.ndim - len(self.normalized_shape), x.ndim))
        return y, *_moments(x, axes, self.eps)


def _moments(x: Tensor, axes: list[int], eps: float) -> tuple[Tensor, Tensor]:
    mean = x.mean(axes, keepdim=True)
    return mean, torch.rsqrt(((x - mean) ** 2).mean(axes, keepdim=True) + eps)


@op("LayerNormalization")
def _layer_normalization(node: Node) -> Function | nn.Module:
    axis = node.axis("axis", -1)
    eps = node.number("epsilon", 1e-5)
    shape = node.shape()[axis:]
    size = 1
    for n in shape:
        size *= n
    extra = any(node.outputs[1:])
    fixed = [i for i in (1, 2) if node.has(i)]
    if all(i in node.constants and node.constants[i].size == size for i in fixed):
        bias = to_tensor(node.static(2)) if node.has(2) else None
        return LayerNorm(shape, eps, to_tensor(node.static(1)), bias, extra)

    def apply(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
        y = F.layer_norm(x, shape, None, None, eps) * scale
        y = y if bias is None else y + bias
        return (y, *_moments(x, list(range(axis, x.ndim)), eps)) if extra else y

    return apply


@op("RMSNormalization")
@op("SimplifiedLayerNormalization")
@op("SimplifiedLayerNormalization", domain=CONTRIB)
def _rms_normalization(node: Node) -> Function:
    axis, eps = node.axis("axis", -1), node.number("epsilon", 1e-5)
    shape = node.shape()[axis:]
    axes = list(range(axis, node.rank()))
    extra = any(node.outputs[1:])

    def apply(x: Tensor, scale: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if not extra:
            return F.rms_norm(x, shape, None, eps) * scale
        inverse = torch.rsqrt((x * x).mean(axes, keepdim=True) + eps)
        return x * inverse * scale, inverse

    return apply


def _channels(x: Tensor, rank: int) -> Tensor:
    return x.reshape(1, -1, *[1] * (rank - 2))


@op("BatchNormalization")
def _batch_normalization(node: Node) -> Function:
    if node.integer("training_mode") or any(node.outputs[1:]):
        raise NotImportableError("training_mode is on: export the model in inference mode")
    eps = node.number("epsilon", 1e-5)
    return lambda x, scale, bias, mean, var: F.batch_norm(x, mean, var, scale, bias, False, 0.0, eps)


@op("InstanceNormalization")
def _instance_normalization(node: Node) -> Function:
    eps, rank = node.number("epsilon", 1e-5), node.rank()
    axes = list(range(2, rank))

    def apply(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        mean, inverse = _moments(x, axes, eps)
        return (x - mean) * inverse * _channels(scale, rank) + _channels(bias, rank)

    return apply


@op("GroupNormalization")
def _group_normalization(node: Node) -> Function:
    groups, eps = node.integer("num_groups"), node.number("epsilon", 1e-5)
    channels = node.shape()[1]

    def apply(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        if scale.shape[0] != channels:  # opset 18: one per group
            scale, bias = (t.repeat_interleave(channels // groups) for t in (scale, bias))
        return F.group_norm(x, groups, scale, bias, eps)

    return apply


@op("MeanVarianceNormalization")
def _mean_variance_normalization(node: Node) -> Function:
    axes = [a % node.rank() for a in node.ints("axes") or [0, 2, 3]]

    def apply(x: Tensor) -> Tensor:
        mean = x.mean(axes, keepdim=True)
        deviation = ((x * x).mean(axes, keepdim=True) - mean * mean).sqrt()
        return (x - mean) / (deviation + 1e-9)

    return apply


@op("LpNormalization")
def _lp_normalization(node: Node) -> Function:
    axis, p = node.axis("axis", -1), node.integer("p", 2)

    def apply(x: Tensor) -> Tensor:
        norm = x.abs().sum(axis, keepdim=True) if p == 1 else torch.sqrt((x * x).sum(axis, keepdim=True))
        return torch.where(norm == 0, torch.zeros_like(x), x / torch.where(norm == 0, torch.ones_like(norm), norm))

    return apply


@op("LRN")
def _local_response(node: Node) -> Function:
    size = node.count("size", node.integer("size"))
    alpha, beta, bias = node.number("alpha", 1e-4), node.number("beta", 0.75), node.number("bias", 1.0)
    before = (size - 1) // 2

    def apply(x: Tensor) -> Tensor:
        squares = F.pad(x * x, [0, 0] * (x.ndim - 2) + [before, size - 1 - before])
        total = sum(squares.narrow(1, i, x.shape[1]) for i in range(size))
        return x / (bias + alpha / size * total) ** beta

    return apply
