"""Arithmetic, comparison, logic, activations, casts: operators that work value by value."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from edgeattn.sources.onnx.ops.node import Function, Node, NotImportableError, op, torch_type

Unary = Callable[[Tensor], Tensor]
Binary = Callable[[Tensor, Tensor], Tensor]


def _mish(x: Tensor) -> Tensor:
    return x * torch.tanh(F.softplus(x))


def _round(x: Tensor) -> Tensor:
    return torch.round(x)  # half to even, as ONNX asks


UNARY: dict[str, Unary] = {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin,
    "Asinh": torch.asinh, "Atan": torch.atan, "Atanh": torch.atanh, "BitwiseNot": torch.bitwise_not,
    "Ceil": torch.ceil, "Cos": torch.cos, "Cosh": torch.cosh, "Erf": torch.erf,
    "Exp": torch.exp, "Floor": torch.floor, "HardSwish": F.hardswish, "IsNaN": torch.isnan,
    "Log": torch.log, "Mish": _mish, "Neg": torch.neg, "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal, "Relu": torch.relu, "Round": _round, "Sigmoid": torch.sigmoid,
    "Sign": torch.sign, "Sin": torch.sin, "Sinh": torch.sinh, "Softplus": F.softplus,
    "Softsign": F.softsign, "Sqrt": torch.sqrt, "Tan": torch.tan, "Tanh": torch.tanh,
}  # fmt: skip

BINARY: dict[str, Binary] = {
    "Add": torch.add, "And": torch.logical_and, "BitwiseAnd": torch.bitwise_and, "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor, "Equal": torch.eq, "Greater": torch.gt, "GreaterOrEqual": torch.ge,
    "Less": torch.lt, "LessOrEqual": torch.le, "Mul": torch.mul, "Or": torch.logical_or,
    "PRelu": lambda x, slope: torch.where(x < 0, x * slope, x), "Sub": torch.sub, "Xor": torch.logical_xor,
}  # fmt: skip

for _name, _unary in UNARY.items():
    op(_name)(lambda _node, function=_unary: function)  # type: ignore[misc]
for _name, _binary in BINARY.items():
    op(_name)(lambda _node, function=_binary: function)  # type: ignore[misc]


@op("Identity", "Dropout")
def _identity(node: Node) -> Function:
    if node.op == "Dropout":
        if node.has(2) and bool(node.static(2).reshape(-1)[0]):
            raise NotImportableError("training_mode is on: export the model in inference mode")
        if node.has(1):
            node.taken.add(1)
        if len(node.outputs) > 1 and node.outputs[1]:
            return lambda x, *_: (x, torch.ones_like(x, dtype=torch.bool))
    return lambda x, *_: x


@op("Div")
def _divide(node: Node) -> Function:
    if node.dtype().is_floating_point:
        return torch.div
    return lambda a, b: torch.div(a, b, rounding_mode="trunc")  # as C does


@op("Mod")
def _modulo(node: Node) -> Function:
    return torch.fmod if node.integer("fmod") else torch.remainder


@op("Pow")
def _power(node: Node) -> Function:
    kept = node.dtype()
    if 1 in node.constants and node.constants[1].size == 1 and len(node.constants[1].shape) <= node.rank():
        exponent = float(node.static(1).reshape(-1)[0])
        if exponent == 2.0:
            return lambda x, _: x * x  # engines know a product better than a power
        if exponent == 0.5 and kept.is_floating_point:
            return lambda x, _: torch.sqrt(x)
        return lambda x, _: torch.pow(x, exponent).to(kept)
    return lambda x, y: torch.pow(x, y).to(kept)


@op("BitShift")
def _bit_shift(node: Node) -> Function:
    left = node.text("direction") == "LEFT"
    return torch.bitwise_left_shift if left else torch.bitwise_right_shift


@op("Max", "Min", "Sum", "Mean")
def _variadic(node: Node) -> Function:
    pair: Binary = {"Max": torch.maximum, "Min": torch.minimum}.get(node.op, torch.add)
    scale = len(node.shapes)

    def apply(*inputs: Tensor) -> Tensor:
        total = functools.reduce(pair, inputs)
        return total / scale if node.op == "Mean" else total

    return apply


@op("Clip")
def _clip(node: Node) -> Function:
    if node.opset < 11 or "min" in node.attributes or "max" in node.attributes:
        low, high = node.attributes.get("min"), node.attributes.get("max")
        return lambda x: torch.clamp(x, low, high)
    known = [not node.has(i) or i in node.constants for i in (1, 2)]
    if all(known):
        bounds = [node.static(i).reshape(-1)[0].item() if node.has(i) else None for i in (1, 2)]
        if bounds == [None, None]:
            return lambda x, *_: x
        return lambda x, *_: torch.clamp(x, bounds[0], bounds[1])

    def apply(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
        x = x if low is None else torch.maximum(x, low)
        return x if high is None else torch.minimum(x, high)

    return apply


@op("Where")
def _where(_node: Node) -> Function:
    return torch.where


@op("IsInf")
def _is_inf(node: Node) -> Function:
    positive, negative = node.integer("detect_positive", 1), node.integer("detect_negative", 1)
    if positive and negative:
        return torch.isinf
    infinity = math.inf if positive else -math.inf
    return lambda x: (x == infinity) if positive or negative else torch.zeros_like(x, dtype=torch.bool)


FEW_BITS = (21, 22, 25, 26)  # element types that torch holds as 8-bit ones


@op("Cast")
def _cast(node: Node) -> Function:
    if node.integer("to") in FEW_BITS:
        raise NotImportableError("a cast to integers of 2 or 4 bits is not imported, QuantizeLinear to them is")
    return _caster(node.dtype(), torch_type(node.integer("to")))


@op("CastLike")
def _cast_like(node: Node) -> Function:
    node.taken.add(1)
    apply = _caster(node.dtype(), node.dtype(1))
    return lambda x, _: apply(x)


def _caster(source: torch.dtype, wanted: torch.dtype) -> Function:
    if source == wanted:
        return lambda x: x
    if wanted == torch.bool:
        return lambda x: x != 0
    return lambda x: x.to(wanted)


@op("LeakyRelu")
def _leaky_relu(node: Node) -> Function:
    alpha = node.number("alpha", 0.01)
    return lambda x: F.leaky_relu(x, alpha)


@op("Elu")
def _elu(node: Node) -> Function:
    alpha = node.number("alpha", 1.0)
    return lambda x: F.elu(x, alpha)


@op("Celu")
def _celu(node: Node) -> Function:
    alpha = node.number("alpha", 1.0)
    return lambda x: F.celu(x, alpha)


@op("Selu")
def _selu(node: Node) -> Function:
    alpha, gamma = node.number("alpha", 1.67326319217681884765625), node.number("gamma", 1.05070102214813232421875)
    return lambda x: gamma * F.elu(x, alpha)


@op("ThresholdedRelu")
def _thresholded_relu(node: Node) -> Function:
    alpha = node.number("alpha", 1.0)
    return lambda x: torch.where(x > alpha, x, torch.zeros_like(x))


@op("HardSigmoid")
def _hard_sigmoid(node: Node) -> Function:
    alpha, beta = node.number("alpha", 0.2), node.number("beta", 0.5)
    return lambda x: torch.clamp(alpha * x + beta, 0.0, 1.0)


@op("Shrink")
def _shrink(node: Node) -> Function:
    bias, edge = node.number("bias"), node.number("lambd", 0.5)

    def apply(x: Tensor) -> Tensor:
        zero = torch.zeros_like(x)
        return torch.where(x < -edge, x + bias, torch.where(x > edge, x - bias, zero))

    return apply


@op("Gelu")
def _gelu(node: Node) -> Function:
    approximate = node.text("approximate", "none")
    return lambda x: F.gelu(x, approximate=approximate)


@op("Swish")
def _swish(node: Node) -> Function:
    alpha = node.number("alpha", 1.0)
    return F.silu if alpha == 1.0 else lambda x: x * torch.sigmoid(alpha * x)


@op("BitCast")
def _bit_cast(node: Node) -> Function:
    wanted = torch_type(node.integer("to"))
    if wanted.itemsize != node.dtype().itemsize:  # a double is read as float32
        raise NotImportableError(f"the bits of {node.dtype()} are none of {wanted}")
    return lambda x: x.view(wanted)
