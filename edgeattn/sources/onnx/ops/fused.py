"""What ONNX Runtime's and Optimum's optimizers make of several operators: one of ``com.microsoft``."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from edgeattn.sources.onnx.ops.node import CONTRIB, TABLE, Function, Node, NotImportableError, op

Activation = Callable[[Tensor], Tensor]


def _activation(name: str, a: float | None, b: float | None) -> Activation:
    """An activation and its two numbers, the standard's where they are not given."""
    if name == "LeakyRelu":
        return lambda x: F.leaky_relu(x, 0.01 if a is None else a)
    if name == "Elu":
        return lambda x: F.elu(x, 1.0 if a is None else a)
    if name == "Clip":
        return lambda x: torch.clamp(x, a, b)
    if name == "HardSigmoid":
        slope, offset = 0.2 if a is None else a, 0.5 if b is None else b
        return lambda x: torch.clamp(slope * x + offset, 0.0, 1.0)
    plain: dict[str, Activation] = {
        "": lambda x: x, "Relu": torch.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Softplus": F.softplus,
        "Softsign": F.softsign, "Selu": F.selu, "HardSwish": F.hardswish,
    }  # fmt: skip
    if name not in plain:
        raise NotImportableError(f"activation = {name!r} is not imported")
    return plain[name]


class _Activated(nn.Module):
    """A layer of torch, what is added to its output, and an activation."""

    def __init__(self, layer: nn.Module, activation: Activation) -> None:
        super().__init__()
        self.layer = layer
        self._activation = activation

    def forward(self, x: Tensor, _weight: None = None, _bias: None = None, extra: Tensor | None = None) -> Tensor:
        """Apply the layer."""
        y = self.layer(x)
        return self._activation(y if extra is None else y + extra)


def _activated(node: Node, plain: str, activation: Activation) -> Function | nn.Module:
    """The operator ``plain`` of the standard on the node's first inputs, then an activation."""
    made = TABLE["", plain](node)
    if isinstance(made, nn.Module):
        return _Activated(made, activation)

    def apply(x: Tensor, w: Tensor, bias: Tensor | None = None, extra: Tensor | None = None) -> Tensor:
        y = made(x, w) if bias is None else made(x, w, bias)
        assert isinstance(y, Tensor)
        return activation(y if extra is None else y + extra)

    return apply


@op("FusedConv", domain=CONTRIB)
def _fused_conv(node: Node) -> Function | nn.Module:
    numbers = [float(v) for v in node.attributes.get("activation_params", [])]
    return _activated(node, "Conv", _activation(node.text("activation"), *[*numbers, None, None][:2]))


@op("FusedGemm", domain=CONTRIB)
def _fused_gemm(node: Node) -> Function | nn.Module:
    a, b = (node.attributes.get(f"activation_{name}") for name in ("alpha", "beta"))
    return _activated(node, "Gemm", _activation(node.text("activation"), a, b))


@op("FusedMatMul", "TransposeMatMul", domain=CONTRIB)
def _fused_matmul(node: Node) -> Function:
    alpha = node.number("alpha", 1.0)
    turns = [_turn(node.rank(i), node.integer(f"transBatch{x}"), node.integer(f"trans{x}")) for i, x in enumerate("AB")]

    def apply(a: Tensor, b: Tensor) -> Tensor:
        product = torch.matmul(a.permute(turns[0]), b.permute(turns[1]))
        return product if alpha == 1.0 else product * alpha

    return apply


def _turn(rank: int, batch: int, last: int) -> list[int]:
    """Order of axes: the first one behind the batch's, the last two swapped."""
    order = list(range(rank))
    if batch and rank > 2:
        order = [*order[1:-1], 0, order[-1]]
    if last and rank > 1:
        order[-2:] = order[:-3:-1]
    return order


@op("Gelu", domain=CONTRIB)
def _gelu(_node: Node) -> Function:
    return F.gelu


@op("FastGelu", domain=CONTRIB)
def _fast_gelu(_node: Node) -> Function:
    return lambda x, bias=None: F.gelu(x if bias is None else x + bias, approximate="tanh")


@op("BiasGelu", domain=CONTRIB)
def _bias_gelu(_node: Node) -> Function:
    return lambda x, bias: F.gelu(x + bias)


@op("QuickGelu", domain=CONTRIB)
def _quick_gelu(node: Node) -> Function:
    alpha = node.number("alpha", 1.702)
    return lambda x: x * torch.sigmoid(alpha * x)


@op("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=CONTRIB)
def _skip_layer_normalization(node: Node) -> Function:
    eps = node.number("epsilon", 1e-12 if node.op == "SkipLayerNormalization" else 1e-6)
    shape = node.shape()[-1:]
    simplified = node.op.startswith("SkipSimplified")
    wanted = node.outputs
    if any(wanted[1:3]):
        raise NotImportableError("the mean and the inverse deviation are not imported")

    def apply(x: Tensor, skip: Tensor, gamma: Tensor, *rest: Tensor | None) -> Tensor | tuple[Tensor | None, ...]:
        beta, bias = (None, *rest, None)[:2] if simplified else (*rest, None, None)[:2]
        total = x + skip if bias is None else x + skip + bias
        y = F.rms_norm(total, shape, gamma, eps) if simplified else F.layer_norm(total, shape, gamma, beta, eps)
        return (y, None, None, total)[: len(wanted)] if len(wanted) > 1 else y

    return apply


@op("EmbedLayerNormalization", domain=CONTRIB)
def _embed_layer_normalization(node: Node) -> Function:
    eps = node.number("epsilon", 1e-12)
    length = node.shape()[1]
    wanted = len(node.outputs)
    if node.integer("mask_index_type"):
        node.refuse("mask_index_type", 0, 1)

    def apply(
        ids: Tensor, segments: Tensor | None, words: Tensor, places: Tensor, kinds: Tensor | None,
        gamma: Tensor, beta: Tensor, mask: Tensor | None = None, positions: Tensor | None = None,
    ) -> Tensor | tuple[Tensor | None, ...]:  # fmt: skip
        total = F.embedding(ids, words)
        total = total + (places[:length] if positions is None else F.embedding(positions, places))
        if segments is not None and kinds is not None:
            total = total + F.embedding(segments, kinds)
        y = F.layer_norm(total, total.shape[-1:], gamma, beta, eps)
        if wanted == 1:
            return y
        none = torch.zeros(ids.shape[0], dtype=torch.int32, device=ids.device)
        index = none if mask is None else (mask == 1).to(torch.int32).sum(1, dtype=torch.int32)
        return (y, index, total)[:wanted]

    return apply
