"""Operators that work value by value, along an axis, or as products (schema.fbs, reference kernels of LiteRT)."""

from __future__ import annotations

import math

import numpy as np

from edgeattn.sources.tflite.builder import Builder, op

UNARY = {
    "ABS": "Abs", "NEG": "Neg", "EXP": "Exp", "LOG": "Log", "SQRT": "Sqrt", "SIN": "Sin", "COS": "Cos", "TANH": "Tanh",
    "LOGISTIC": "Sigmoid", "RELU": "Relu", "FLOOR": "Floor", "CEIL": "Ceil", "ROUND": "Round", "SIGN": "Sign",
    "LOGICAL_NOT": "Not", "HARD_SWISH": "HardSwish", "ELU": "Elu",
}  # fmt: skip
BINARY = {
    "ADD": "Add", "SUB": "Sub", "MUL": "Mul", "DIV": "Div", "MAXIMUM": "Max", "MINIMUM": "Min", "POW": "Pow",
    "LOGICAL_AND": "And", "LOGICAL_OR": "Or", "EQUAL": "Equal", "LESS": "Less", "LESS_EQUAL": "LessOrEqual",
    "GREATER": "Greater", "GREATER_EQUAL": "GreaterOrEqual",
}  # fmt: skip
REDUCTIONS = {
    "MEAN": "ReduceMean", "SUM": "ReduceSum", "REDUCE_MAX": "ReduceMax", "REDUCE_MIN": "ReduceMin",
    "REDUCE_PROD": "ReduceProd", "REDUCE_ANY": "ReduceMax", "REDUCE_ALL": "ReduceMin",
}  # fmt: skip


@op(*UNARY)
def _unary(b: Builder) -> None:
    b.give(b.add(UNARY[b.operator.kind], [b.value()]))


@op(*BINARY)
def _binary(b: Builder) -> None:
    b.finish(b.add(BINARY[b.operator.kind], [b.value(0), b.value(1)]))


@op("NOT_EQUAL")
def _not_equal(b: Builder) -> None:
    b.give(b.add("Not", [b.add("Equal", [b.value(0), b.value(1)])]))


@op("ADD_N")
def _sum(b: Builder) -> None:
    b.give(b.add("Sum", [b.value(i) for i in range(len(b.operator.inputs))]))


@op("SQUARED_DIFFERENCE")
def _squared_difference(b: Builder) -> None:
    difference = b.add("Sub", [b.value(0), b.value(1)])
    b.give(b.add("Mul", [difference, difference]))


@op("SQUARE")
def _square(b: Builder) -> None:
    b.give(b.add("Mul", [b.value(), b.value()]))


@op("RSQRT")
def _rsqrt(b: Builder) -> None:
    b.give(b.add("Reciprocal", [b.add("Sqrt", [b.value()])]))


@op("FLOOR_MOD", "FLOOR_DIV")
def _floor(b: Builder) -> None:
    """To the lower whole number, also of integers; the remainder has the divisor's sign."""
    left, right, whole = b.value(0), b.value(1), b.dtype().kind in "iu"
    if whole:
        rest = b.add("Mod", [left, right])
        quotient = b.add("Div", [b.add("Sub", [left, rest]), right])
    else:
        quotient = b.add("Floor", [b.add("Div", [left, right])])
        rest = b.add("Sub", [left, b.add("Mul", [quotient, right])])
    b.give(quotient if b.operator.kind == "FLOOR_DIV" else rest)


@op("RELU6", "RELU_N1_TO_1", "RELU_0_TO_1")
def _clipped(b: Builder) -> None:
    b.give(b.activation(b.operator.kind, b.value()))


@op("LEAKY_RELU")
def _leaky_relu(b: Builder) -> None:
    b.give(b.add("LeakyRelu", [b.value()], alpha=float(b.option("Alpha", 0.2))))


@op("PRELU")
def _prelu(b: Builder) -> None:
    b.give(b.add("PRelu", [b.value(0), b.value(1)]))


@op("GELU")
def _gelu(b: Builder) -> None:
    x = b.value()
    if b.option("Approximate", False):
        cube = b.add("Mul", [b.add("Mul", [x, x]), x])
        inner = b.add("Add", [x, b.add("Mul", [cube, b.number(0.044715)])])
        curve = b.add("Tanh", [b.add("Mul", [inner, b.number(math.sqrt(2 / math.pi))])])
    else:
        curve = b.add("Erf", [b.add("Mul", [x, b.number(math.sqrt(0.5))])])
    half = b.add("Mul", [x, b.number(0.5)])
    b.give(b.add("Mul", [half, b.add("Add", [curve, b.number(1.0)])]))


@op("SOFTMAX")
def _softmax(b: Builder) -> None:
    x, beta = b.value(), float(b.option("Beta", 1.0))
    b.give(b.add("Softmax", [x if beta == 1.0 else b.add("Mul", [x, b.number(beta)])], axis=-1))


@op("LOG_SOFTMAX")
def _log_softmax(b: Builder) -> None:
    b.give(b.add("LogSoftmax", [b.value()], axis=-1))


@op("L2_NORMALIZATION")
def _l2(b: Builder) -> None:
    """Along the last axis, the norm at least 1e-6 (tflite/kernels/internal/reference/l2normalization.h)."""
    x = b.value()
    norm = b.add("ReduceL2", [x], axes=[-1], keepdims=1)
    b.finish(b.add("Div", [x, b.add("Max", [norm, b.number(1e-6)])]))


@op("SELECT", "SELECT_V2")
def _select(b: Builder) -> None:
    condition, shape = b.value(0), b.shape(0)
    if b.operator.kind == "SELECT" and len(shape) == 1 and len(b.shape(1)) > 1:  # a row each
        condition = b.reshaped(condition, [*shape, *[1] * (len(b.shape(1)) - 1)])
    b.give(b.add("Where", [condition, b.value(1), b.value(2)]))


@op("QUANTIZE", "DEQUANTIZE")
def _real(b: Builder) -> None:
    """Both hand on what the integers stand for."""
    value = b.known(0)
    if value is not None:  # weights of 16 or 8 bits that are widened on the device
        b.folded[b.operator.outputs[0]] = value
    b.give(b.add("Identity", [b.value()]))


@op("CAST")
def _cast(b: Builder) -> None:
    b.give(b.cast(b.value(), b.out_dtype()))


@op("ZEROS_LIKE")
def _zeros(b: Builder) -> None:
    b.give(b.constant(np.zeros(b.out_shape(), b.out_dtype()), "zeros"))


@op(*REDUCTIONS)
def _reduction(b: Builder) -> None:
    kind, axes, keep = REDUCTIONS[b.operator.kind], b.axes(1), int(b.option("KeepDims", False))
    logical = b.operator.kind in ("REDUCE_ANY", "REDUCE_ALL")
    x = b.cast(b.value(), np.dtype(np.int32)) if logical else b.value()
    if not axes:
        made = x
    elif kind == "ReduceSum":  # its axes are an input since opset 13
        made = b.add(kind, [x, b.constant(axes, "axes")], keepdims=keep)
    else:
        made = b.add(kind, [x], axes=axes, keepdims=keep)
    b.give(b.cast(made, np.dtype(bool)) if logical else made)


@op("ARG_MAX", "ARG_MIN")
def _arg(b: Builder) -> None:
    (axis,) = b.axes(1)
    kind = "ArgMax" if b.operator.kind == "ARG_MAX" else "ArgMin"
    b.give(b.cast(b.add(kind, [b.value()], axis=axis, keepdims=0), b.out_dtype()))


@op("CUMSUM")
def _cumsum(b: Builder) -> None:
    axis = b.constant(np.array(b.axes(1)[0], np.int64), "axis")
    options = {"exclusive": int(b.option("Exclusive", False)), "reverse": int(b.option("Reverse", False))}
    b.give(b.add("CumSum", [b.value(), axis], **options))


@op("TOPK_V2")
def _top_k(b: Builder) -> None:
    values, places = b.several("TopK", [b.value(), b.constant([b.static(1)[0]], "k")], 2, axis=-1)
    b.give(values, b.cast(places, b.out_dtype(1)))


@op("FULLY_CONNECTED")
def _fully_connected(b: Builder) -> None:
    if b.option("WeightsFormat"):
        raise b.refuse("shuffled weights are not read")
    x, (rows, columns) = b.value(), b.shape(1)
    if b.shape()[-1:] != (columns,):
        x = b.reshaped(x, [-1, columns])
    made = b.add("MatMul", [x, transposed(b, 1)])
    if b.has(2):
        made = b.add("Add", [made, b.value(2)])
    made = b.activated(made)
    plain = (*b.shape()[:-1], rows)
    b.give(made if plain == b.out_shape() and b.shape()[-1:] == (columns,) else b.reshaped(made, b.out_shape()))


def transposed(b: Builder, position: int) -> str:
    """A matrix with its last two axes exchanged; a constant is stored so."""
    value, rank = b.known(position), len(b.shape(position))
    if value is not None:
        return b.constant(np.ascontiguousarray(np.swapaxes(value, -1, -2)), "weight")
    return b.add("Transpose", [b.value(position)], perm=[*range(rank - 2), rank - 1, rank - 2])


@op("BATCH_MATMUL")
def _batch_matmul(b: Builder) -> None:
    sides = [transposed(b, i) if b.option(flag, False) else b.value(i) for i, flag in enumerate(("AdjX", "AdjY"))]
    b.give(b.add("MatMul", sides))
