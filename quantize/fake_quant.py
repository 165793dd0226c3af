"""Rounding in torch as the engines round, with gradients through it: a module runs as its int8 artifact will.

Rounding is put around products while the module runs, whatever kind of module it is: torch hands every call of its
functions to a mode first. A product is known by the content of its weight, as in an engine's file; see
:func:`edgeattn.graphs.layers.fingerprint`.
"""

from __future__ import annotations

import copy
import types
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from edgeattn.engines import Treatment
from edgeattn.errors import UnsupportedError
from edgeattn.graphs.layers import LinearLayer, fingerprint
from edgeattn.quantize.qdq import GROUP, INT4_MAX, INT8_MAX, MIN_SCALE

if TYPE_CHECKING:
    import onnx

INT8_MIN = -128  # QuantizeLinear saturates there; only weights leave it out

Product = Callable[[int, Tensor, Tensor, "Tensor | None", int], "tuple[Tensor, Tensor]"]
"""Number of the product in its forward, activation, two-dimensional second operand, bias, axis of the output channels
-> the two operands to multiply."""


@dataclass(frozen=True)
class Signature:
    """Names of a function's arguments in their order, which of them are multiplied, and the axis of output channels."""

    names: tuple[str, ...]
    activation: int
    weight: int
    bias: int | None
    axis: int


_MATMUL = Signature(("input", "other"), 0, 1, None, 1)
PRODUCTS = {
    "linear": Signature(("input", "weight", "bias"), 0, 1, 2, 0),
    "matmul": _MATMUL,
    "__matmul__": _MATMUL,
    "mm": Signature(("input", "mat2"), 0, 1, None, 1),
    "addmm": Signature(("input", "mat1", "mat2"), 1, 2, 0, 1),
}
ALIASES = {"self": "input"}  # as aten names it
NORMS = ("layer_norm", "native_layer_norm", "rms_norm", "group_norm", "native_group_norm")


class Products(TorchFunctionMode):
    """Hands every product with a two-dimensional second operand to a function, and every normalisation to another.

    Products of two activations of one sample are among them. The same module on inputs of the same shapes makes the
    same products in the same order.
    """

    def __init__(self, product: Product, norm: Callable[[Sequence[Tensor]], None] | None = None) -> None:
        super().__init__()
        self.product = product
        self.norm = norm
        self.made = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch in place of ``func``, the mode itself switched off."""
        named = kwargs or {}
        if func is functional.multi_head_attention_forward:
            with self:
                return _without_overrides(func)(*args, **named)
        name = str(getattr(func, "__name__", "")).partition(".")[0]  # linear.default is aten's own
        if name in NORMS and self.norm is not None:
            self.norm([value for value in (*args, *named.values()) if isinstance(value, Tensor)])
        if name not in PRODUCTS:
            return func(*args, **named)
        signature = PRODUCTS[name]
        given = dict(enumerate(args)) | {
            signature.names.index(ALIASES.get(key, key)): value
            for key, value in named.items()
            if ALIASES.get(key, key) in signature.names
        }
        others = {key: value for key, value in named.items() if ALIASES.get(key, key) not in signature.names}
        x, weight = given.get(signature.activation), given.get(signature.weight)
        if not (isinstance(x, Tensor) and isinstance(weight, Tensor) and weight.ndim == 2):
            return func(*args, **named)
        index, self.made = self.made, self.made + 1
        bias = None if signature.bias is None else given.get(signature.bias)
        given[signature.activation], given[signature.weight] = self.product(index, x, weight, bias, signature.axis)
        return func(*(given[place] for place in sorted(given)), **others)


def _without_overrides(func: Any) -> Any:
    """A function of torch written in Python, that does not ask for modes as a whole, so that its parts do."""
    made = types.FunctionType(
        func.__code__,
        {**func.__globals__, "has_torch_function": lambda _: False},
        func.__name__,
        func.__defaults__,
        func.__closure__,
    )
    made.__kwdefaults__ = func.__kwdefaults__
    return made


# --- rounding ---------------------------------------------------------------------------------------------------------


class _StraightThrough(torch.autograd.Function):
    """The second tensor forward, the gradient to the first (Bengio et al. 2013, arXiv 1308.3432)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor) -> Tensor:  # noqa: ARG004
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        return gradient, None


class _LearnedStep(torch.autograd.Function):
    """Round to int8 with a step that is learned (Esser et al. 2020, arXiv 1902.08153, equations 1 to 3)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        steps = x / scale
        ctx.save_for_backward(steps)
        return torch.clamp(torch.round(steps), INT8_MIN, INT8_MAX) * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        (steps,) = ctx.saved_tensors
        integers = torch.clamp(torch.round(steps), INT8_MIN, INT8_MAX)
        inside = (steps >= INT8_MIN) & (steps <= INT8_MAX)
        by_scale = torch.where(inside, integers - steps, integers)
        share = 1.0 / (steps.numel() * INT8_MAX) ** 0.5  # section 2.2: steps of scales and weights become comparable
        return gradient * inside, (gradient * by_scale).sum() * share


def rounded_activation(x: Tensor, scale: Tensor) -> Tensor:
    """An activation rounded to int8 as QuantizeLinear and DequantizeLinear do.

    Args:
        x: float32, any shape.
        scale: float32, shape (), real units per integer step; it gets LSQ's gradient.
    """
    return cast(Tensor, _LearnedStep.apply(x, scale))  # type: ignore[no-untyped-call]


def rounded_rows(x: Tensor) -> Tensor:
    """An activation rounded to int8, each row by its own largest |x|, as engines do that quantize as they run.

    Args:
        x: float32, (..., K).
    """
    detached = x.detach()
    largest = detached.abs().amax(-1, keepdim=True)
    scale = torch.where(largest > 0, largest / INT8_MAX, torch.ones_like(largest))
    return cast(Tensor, _StraightThrough.apply(x, torch.round(detached / scale) * scale))  # type: ignore[no-untyped-call]


def rounded_weight(weight: Tensor, axis: int, treatment: Treatment) -> Tensor:
    """A weight as it is stored: scales are those of :mod:`edgeattn.quantize.qdq`, computed from the weight as it is.

    Args:
        weight: float32, (N, K) for axis 0, (K, N) for axis 1.
        axis: of the output channels.
        treatment: ``float`` gives the weight back.

    Returns:
        float32, the same shape, without a gradient.
    """
    weight = weight.detach()
    if treatment == "float":
        return weight
    rows = weight if axis == 0 else weight.t()
    limit = INT8_MAX
    if treatment == "int4-weights":
        rows, limit = rows.reshape(rows.shape[0], -1, GROUP), INT4_MAX
    scale = (rows.abs().amax(-1, keepdim=True) / limit).clamp_min(MIN_SCALE)
    restored = (torch.clamp(torch.round(rows / scale), -limit, limit) * scale).reshape(rows.shape[0], -1)
    return restored if axis == 0 else restored.t()


def straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    """``rounded``, whose gradient goes to ``x``."""
    return cast(Tensor, _StraightThrough.apply(x, rounded))  # type: ignore[no-untyped-call]


# --- which product is which layer -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reached:
    """The layers of one graph in its module.

    Attributes:
        layers: number of the product in forward -> its layer.
        weights: number of the product -> the parameter that holds its weights; absent where they are a buffer or
            computed.
        affine: biases of these layers, weights and biases of normalisations.
        missing: paths of layers that no product has the weights of.
    """

    layers: Mapping[int, LinearLayer]
    weights: Mapping[int, nn.Parameter]
    affine: tuple[nn.Parameter, ...]
    missing: tuple[str, ...]


def reach(
    module: nn.Module, inputs: Mapping[str, Tensor], model: onnx.ModelProto, layers: Sequence[LinearLayer]
) -> Reached:
    """Find the layers of an exported graph in the module that it came from, by running it once.

    Where weights are tied, products and layers with the same weights are paired in their order.

    Args:
        inputs: one full input set.
        model: the ONNX that was exported from ``module``.
        layers: :func:`~edgeattn.graphs.layers.linear_layers` of it.
    """
    import onnx

    owners = {p.untyped_storage().data_ptr(): p for p in module.parameters()}
    found: dict[str, list[tuple[int, nn.Parameter | None, nn.Parameter | None]]] = {}
    affine: dict[int, nn.Parameter] = {}

    def owner(tensor: Tensor | None) -> nn.Parameter | None:
        return None if tensor is None else owners.get(tensor.untyped_storage().data_ptr())

    def product(index: int, x: Tensor, weight: Tensor, bias: Tensor | None, axis: int) -> tuple[Tensor, Tensor]:
        if weight.dtype == torch.float32:
            key = fingerprint(weight.detach().numpy(), axis)
            found.setdefault(key, []).append((index, owner(weight), owner(bias)))
        return x, weight

    def norm(tensors: Sequence[Tensor]) -> None:
        affine.update({id(p): p for p in map(owner, tensors) if p is not None})

    with torch.no_grad(), Products(product, norm):
        module(**inputs)
    arrays = {tensor.name: tensor for tensor in model.graph.initializer}
    wanted: dict[str, list[LinearLayer]] = {}
    for layer in layers:
        key = fingerprint(onnx.numpy_helper.to_array(arrays[layer.weight]), layer.axis)
        wanted.setdefault(key, []).append(layer)
    reached: dict[int, LinearLayer] = {}
    weights: dict[int, nn.Parameter] = {}
    missing: list[str] = []
    for key, same in wanted.items():
        products = found.get(key, [])
        pairs = list(zip(products, same if len(same) > 1 else same * len(products), strict=False))
        if not products or len(pairs) < max(len(products), len(same)):
            missing.extend(layer.path for layer in same)
            continue
        for (index, weight, bias), layer in pairs:
            reached[index] = layer
            if weight is not None:
                weights[index] = weight
            if bias is not None:
                affine[id(bias)] = bias
    return Reached(reached, weights, tuple(affine.values()), tuple(dict.fromkeys(missing)))


# --- copies -----------------------------------------------------------------------------------------------------------


class _FakesShared(TorchFunctionMode):
    """Lets a program of torch.export be copied: its nodes carry tensors without values, which cannot be."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch in place of ``func``."""
        if func is Tensor.__deepcopy__ and type(args[0]) not in (Tensor, nn.Parameter):
            return args[0]
        return func(*args, **(kwargs or {}))


def copied(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Copies of the modules of a model; what they share, the copies share.

    Raises:
        UnsupportedError: for a module that cannot be copied, as one that runs in ONNX Runtime.
    """
    for graph, module in modules.items():
        if not any(True for _ in module.parameters()):
            reason = getattr(module, "unsupported", "it has no parameters")
            raise UnsupportedError(f"graph {graph!r} cannot be trained: {reason}")
    try:
        with _FakesShared(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch copies its own trees by their old names
            return copy.deepcopy(dict(modules))
    except Exception as error:
        raise UnsupportedError(
            f"the modules cannot be copied for training ({type(error).__name__}: {error}); a module that copy.deepcopy "
            "takes can be trained"
        ) from error


def unique(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Each parameter once, in their order."""
    return list({id(parameter): parameter for parameter in parameters}.values())
