"""Known-bad models for preflight, one or more per rule, each with a good twin."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._higher_order_ops.while_loop import while_loop as torch_while_loop
from torch.nn import functional

from edgeattn.model import EdgeModel, Graph
from edgeattn.sources.modules import from_graphs

ENGINES = ("openvino", "litert", "tensorrt", "onnxruntime")
Function = Callable[..., Any]


class Apply(nn.Module):
    """A function as a module, so that it has a path."""

    def __init__(self, function: Function, **tensors: Tensor) -> None:
        super().__init__()
        self.function = function
        self.names = tuple(tensors)
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs, *(self.get_buffer(name) for name in self.names))


class Block(nn.Module):
    """A linear layer, then the function two modules deep at ``encoder.odd``."""

    def __init__(self, odd: nn.Module, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size)
        self.odd = odd

    def forward(self, x: Tensor, *others: Tensor) -> Any:
        return self.odd(self.linear(x), *others)


class Nested(nn.Module):
    """``encoder.odd`` applies the function to a linear layer of the input."""

    def __init__(self, odd: nn.Module, size: int) -> None:
        super().__init__()
        self.encoder = Block(odd, size)

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"y": self.encoder(x)}


PLACE = "encoder.odd"


def odd(function: Function, shape: tuple[int, ...] = (1, 8, 16), **tensors: Tensor) -> Graph:
    """The function at :data:`PLACE` of a model that takes ``x`` of a shape."""
    torch.manual_seed(0)
    return Graph(Nested(Apply(function, **tensors), shape[-1]), {"x": torch.randn(shape)})


@dataclass(frozen=True)
class Case:
    """A rule with a model that it names and one that it does not.

    Attributes:
        severity: per engine on which the rule speaks.
        precisions: that are asked for.
        place: the module path that the row names.
    """

    rule: str
    bad: Callable[[], Graph]
    good: Callable[[], Graph]
    severity: Mapping[str, str]
    precisions: tuple[str, ...] = ("fp32",)
    place: str = PLACE
    calibrated: bool = True

    def model(self, good: bool = False) -> EdgeModel:
        """The bad model, or its twin."""
        return from_graphs({"main": self.good() if good else self.bad()}, "case")


def everywhere(severity: str, *engines: str) -> dict[str, str]:
    """One severity for some engines, or all."""
    return dict.fromkeys(engines or ENGINES, severity)


EXPORTED = ("openvino", "tensorrt", "onnxruntime")


def plain() -> Graph:
    """What no rule has a word for."""
    return odd(lambda x: torch.relu(x) + x)


def chosen_by_sum(x: Tensor) -> Tensor:
    return x * 2 if x.sum() > 0 else x  # the line that a row names


def attention(x: Tensor, scale: float | Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """Plain attention over (1, H, L, D), scaled on the queries or, with a scale, on the scores."""
    query = x / math.sqrt(x.shape[-1]) if scale is None else x
    scores = query @ x.transpose(-1, -2)
    if scale is not None:
        scores = scores * scale
    if mask is not None:
        scores = scores + mask
    return torch.softmax(scores, -1) @ x


def layer_norm(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred * torch.rsqrt((centred * centred).mean(-1, keepdim=True) + 1e-6)


def rms_norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6)


class Stepped(nn.Module):
    """A decoder step whose position comes from a table."""

    def __init__(self, table: bool) -> None:
        super().__init__()
        self.wpe = nn.Embedding(64, 16)
        self.mix = nn.Linear(16, 16)
        self.table = table

    def forward(self, x: Tensor, position: Tensor, cache: Tensor) -> dict[str, Tensor]:
        if self.table:
            x = x + self.wpe(position + 2)
        new = torch.cat([cache, x], 1)[:, -8:]
        return {"y": self.mix(new.mean(1)), "next_cache": new}


def stepped(table: bool) -> Graph:
    """A graph with a state."""
    torch.manual_seed(0)
    inputs = {
        "x": torch.randn(1, 1, 16),
        "position": torch.zeros(1, 1, dtype=torch.int32),
        "cache": torch.randn(1, 8, 16),
    }
    return Graph(Stepped(table), inputs, states={"cache": "next_cache"})


class Pooled(nn.Module):
    """Means over all positions, the padded ones among them or not."""

    def __init__(self, nested: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=nested)

    def forward(self, x: Tensor, padding: Tensor) -> dict[str, Tensor]:
        return {"mean": self.encoder(x, src_key_padding_mask=padding).mean(1)}


def pooled(nested: bool) -> Graph:
    """A batch with one padded position."""
    torch.manual_seed(0)
    return Graph(Pooled(nested), {"x": torch.randn(1, 4, 16), "padding": torch.tensor([[False, False, False, True]])})


class Handed(nn.Module):
    """Gives its input back beside its output."""

    def __init__(self, back: bool) -> None:
        super().__init__()
        self.mix = nn.Linear(16, 16)
        self.back = back

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": self.mix(x), "same": x} if self.back else {"y": self.mix(x)}


class Named(nn.Module):
    """Calls its output what its input is called."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.mix = nn.Linear(16, 16)
        self.name = name

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {self.name: self.mix(x)}


class Tokens(nn.Module):
    """Reads token ids."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(32, 16)
        self.mix = nn.Linear(16, 16)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        return {"y": self.mix(self.table(ids))}


def loud(factor: float) -> Graph:
    """One weight of the first layer is large, so its output has outliers."""
    graph = odd(functional.linear, (1, 64, 128), w=torch.eye(128) + 0.01)
    linear: Any = graph.module.get_submodule("encoder.linear")
    with torch.no_grad():
        linear.weight[3] *= factor
        linear.bias[3] = 0.0
    inputs = graph.inputs["x"]
    inputs[0, 5] *= factor
    return graph


INDEX = torch.tensor([3, 1, 2, 0, 4, 5, 7, 6])


def written(x: Tensor) -> Tensor:
    """A cache that is written at a position which the values give."""
    position = x[0, 0, :1].abs().long().clamp(max=7)
    return x.index_copy(1, position, x[:, :1] * 2)


def zero_diagonal(x: Tensor) -> Tensor:
    x.diagonal().mul_(2.0)
    return x


def until_large(x: Tensor) -> Tensor:
    """A loop whose length depends on values, which no pass writes out."""
    result: Tensor = while_loop(lambda y: y.sum() < 9, lambda y: (y + 1,), (x,))[0]
    return result


while_loop: Any = torch_while_loop
OPERATIONS: tuple[tuple[str, Function, tuple[str, ...]], ...] = (
    ("erfinv", lambda x: torch.erfinv(torch.tanh(x)), ENGINES),
    ("inverse", lambda x: torch.inverse(x[:, :, :8] + 9 * torch.ones(8).diag()), ENGINES),
    ("places of a pool", lambda x: torch.nn.functional.max_pool1d(x, 2, return_indices=True), ("tensorrt", "litert")),
    (
        "places of an adaptive pool",
        lambda x: torch.nn.functional.adaptive_max_pool2d(x, (3, 4), return_indices=True),
        ENGINES,
    ),
    (
        "scatter of a long index",
        lambda x: x.scatter(1, INDEX.repeat(2)[None, :, None].expand(1, 16, 16), torch.cat([x, x], 1)),
        ("tensorrt",),
    ),
    ("det", lambda x: torch.det(x[:, :, :8]), ("openvino", "tensorrt", "litert")),
    ("bits of integers", lambda x: (x * 10).long() | 3, ("tensorrt", "litert")),
    ("logcumsumexp", lambda x: torch.logcumsumexp(x, -1), ("litert",)),
    ("diagonal filled", lambda x: (x * 1).reshape(8, 16).fill_diagonal_(0.0), ENGINES),
    ("diagonal written", lambda x: zero_diagonal(x[0, :, :8] * 1), ENGINES),
    ("place of a median", lambda x: x.median(-1), ENGINES),
    ("while_loop", until_large, ("litert",)),
)
"""Name, a module that calls it, engines that it cannot reach."""


CASES: Mapping[str, Case] = {
    "branch on values": Case("untraceable", lambda: odd(chosen_by_sum), plain, everywhere("stops"), place=""),
    "slice of a length that values give": Case(
        "untraceable",
        lambda: odd(lambda x: x[:, : int(x.argmax()) % 4 + 1].sum(1)),
        plain,
        everywhere("stops"),
        place="",
    ),
    "mask as index": Case(
        "value-dependent-shape",
        lambda: odd(lambda x: x[x > 0]),
        lambda: odd(lambda x: torch.where(x > 0, x, 0.0)),
        everywhere("stops"),
    ),
    "nonzero": Case("value-dependent-shape", lambda: odd(lambda x: torch.nonzero(x > 0)), plain, everywhere("stops")),
    "masked_select": Case(
        "value-dependent-shape", lambda: odd(lambda x: torch.masked_select(x, x > 0)), plain, everywhere("stops")
    ),
    "unique": Case("value-dependent-shape", lambda: odd(lambda x: torch.unique(x.round())), plain, everywhere("stops")),
    "nonzero inside": Case(
        "value-dependent-shape",
        lambda: odd(lambda x: torch.nonzero(x > 0).float().sum(0)),
        plain,
        {"litert": "stops", "tensorrt": "stops", "onnxruntime": "risk", "openvino": "risk"},
    ),
    **{
        f"operation {name}": Case(
            "unsupported-operation", functools.partial(odd, function), plain, everywhere("stops", *engines)
        )
        for name, function, engines in OPERATIONS
    },
    "complex tanh": Case(
        "complex-number",
        lambda: odd(lambda x: torch.fft.rfft(x).tanh().abs()),
        lambda: odd(lambda x: torch.fft.rfft(x).exp().abs()),
        everywhere("stops"),
    ),
    "cache written by index": Case(
        "cache-update",
        lambda: odd(written),
        lambda: odd(lambda x: torch.cat([x, x[:, :1] * 2], 1)[:, -8:]),
        everywhere("slow", "litert", "tensorrt"),
    ),
    "transposed convolution with output padding": Case(
        "litert-forms",
        lambda: odd(lambda x, w: functional.conv_transpose1d(x, w, None, 2, 1, 1), w=torch.randn(8, 2, 3)),
        lambda: odd(lambda x, w: functional.conv_transpose1d(x, w, None, 2), w=torch.randn(8, 2, 3)),
        everywhere("handled", "litert"),
    ),
    "sum by index": Case(
        "cache-update",
        lambda: odd(lambda x: x.scatter_add(1, INDEX[None, :, None].expand(1, 8, 16), x * 2)),
        plain,
        everywhere("slow", "litert", "tensorrt"),
    ),
    "many partitions": Case(
        "litert-partitions",
        lambda: odd(lambda x: torch.sin(torch.where(torch.sin(torch.where(x > 0, x, -x)) > 0.5, x, x * 2)).argmax(-1)),
        plain,
        everywhere("slow", "litert"),
    ),
    "five axes": Case(
        "high-rank",
        lambda: odd(lambda x: x.reshape(1, 2, 4, 4, 4) @ x.reshape(1, 2, 4, 4, 4)),
        plain,
        everywhere("risk", "litert"),
    ),
    "mask of two axes": Case(
        "mask-of-other-rank",
        lambda: odd(lambda x, m: attention(x.reshape(1, 4, 8, 4), mask=m.tanh() * x[0, 0, 0]), m=torch.randn(8, 8)),
        lambda: odd(lambda x: attention(x.reshape(1, 4, 8, 4))),
        everywhere("risk", "litert"),
    ),
    "scale on scores": Case(
        "scaled-scores",
        lambda: odd(lambda x: attention(x.reshape(1, 4, 8, 4), scale=0.5)),
        lambda: odd(lambda x: attention(x.reshape(1, 4, 8, 4))),
        everywhere("handled", "tensorrt"),
    ),
    "computed scale on scores": Case(
        "scaled-scores",
        lambda: odd(lambda x: attention(x.reshape(1, 4, 8, 4), scale=x.abs().mean())),
        lambda: odd(lambda x: attention(x.reshape(1, 4, 8, 4))),
        everywhere("slow", "tensorrt"),
    ),
    "heads repeated by expand": Case(
        "grouped-expand",
        lambda: odd(lambda x: x.reshape(1, 4, 8, 4)[:, :1, None].expand(1, 1, 40, 8, 4).reshape(1, 40, 8, 4) * 2.0),
        lambda: odd(lambda x: attention(x.reshape(1, 4, 8, 4))),
        everywhere("risk", "litert"),
    ),
    "nine axes": Case(
        "high-rank",
        lambda: odd(lambda x: x.reshape(1, 2, 2, 2, 2, 2, 2, 2, 1).permute(0, 2, 1, 3, 5, 4, 6, 7, 8) * 2.0),
        plain,
        everywhere("stops", "tensorrt", "litert"),
    ),
    "untried operation": Case(
        "untried-operation", lambda: odd(lambda x: torch.special.entr(x.abs() + 1)), plain, everywhere("risk")
    ),
    "pooled padding": Case(
        "padded-positions", lambda: pooled(nested=True), lambda: pooled(nested=False), everywhere("handled"), place=""
    ),
    "int64 token ids": Case(
        "wide-integers",
        lambda: Graph(Tokens(), {"ids": torch.arange(8)[None]}),
        lambda: Graph(Tokens(), {"ids": torch.arange(8, dtype=torch.int32)[None]}),
        {"litert": "handled", "tensorrt": "risk"},
        place="",
    ),
    "position table of a stream": Case(
        "position-table", lambda: stepped(True), lambda: stepped(False), everywhere("risk"), place="wpe"
    ),
    "input handed through": Case(
        "passed-through",
        lambda: Graph(Handed(True), {"x": torch.randn(1, 16)}),
        lambda: Graph(Handed(False), {"x": torch.randn(1, 16)}),
        everywhere("handled"),
        place="",
    ),
    "one name twice": Case(
        "one-name-twice",
        lambda: Graph(Named("x"), {"x": torch.randn(1, 16)}),
        lambda: Graph(Named("y"), {"x": torch.randn(1, 16)}),
        everywhere("handled", *EXPORTED),
        place="",
    ),
    "loud norm written out": Case(
        "decomposed-norm",
        lambda: odd(lambda x: rms_norm(x * 100)),
        lambda: odd(lambda x: functional.layer_norm(x, (16,))),
        everywhere("risk", "tensorrt"),
        ("fp16",),
    ),
    "norm written out": Case(
        "decomposed-norm", lambda: odd(rms_norm), plain, everywhere("handled", "tensorrt"), ("fp16",)
    ),
    "LayerNorm written out": Case(
        "decomposed-norm", lambda: odd(layer_norm), plain, everywhere("handled", "tensorrt"), ("fp16",)
    ),
    "square beyond float16": Case(
        "large-square",
        lambda: odd(lambda x: (x * 400).pow(2).mean(-1).sqrt()),
        lambda: odd(lambda x: (x * 4).pow(2).mean(-1).sqrt()),
        everywhere("risk", "tensorrt", "onnxruntime"),
        ("fp16",),
    ),
    "value beyond float16": Case(
        "large-value",
        lambda: odd(lambda x: torch.relu(x * 1e6) * 1e-6),
        plain,
        everywhere("risk", "tensorrt", "onnxruntime"),
        ("fp16",),
    ),
    "constant beyond float16": Case(
        "large-constant-value",
        lambda: odd(lambda x, c: x * c, c=torch.full((16,), 1e6)),
        lambda: odd(lambda x, c: x * c, c=torch.full((16,), 10.0)),
        everywhere("risk", "tensorrt", "onnxruntime"),
        ("fp16",),
    ),
    "scores beyond a mask": Case(
        "hidden-scores",
        lambda: odd(lambda x: attention(x.reshape(1, 4, 8, 4) * 400)),
        lambda: odd(lambda x: attention(x.reshape(1, 4, 8, 4) * 4)),
        everywhere("risk"),
    ),
    "large scores": Case(
        "softmax-range",
        lambda: odd(lambda x: attention(x.reshape(1, 4, 8, 4) * 40)),
        lambda: odd(lambda x: attention(x.reshape(1, 4, 8, 4))),
        everywhere("risk", "tensorrt", "onnxruntime"),
        ("fp16",),
    ),
    "outliers": Case(
        "residual-outliers",
        lambda: loud(100.0),
        lambda: loud(1.0),
        everywhere("risk", "openvino", "tensorrt", "onnxruntime"),
        ("fp32", "int8"),
    ),
    "narrow layers only": Case(
        "small-product",
        lambda: odd(lambda x: x, (1, 8, 8)),
        lambda: odd(lambda x: x, (1, 8, 32)),
        everywhere("stops", *EXPORTED),
        ("int8",),
        place="",
    ),
    "no data for int8": Case(
        "missing-calibration", plain, plain, everywhere("stops", *EXPORTED), ("int8",), place="", calibrated=False
    ),
}
