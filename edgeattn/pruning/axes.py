"""Which axes of what an operator of ONNX reads and makes run together, and where groups lie along them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

VENDOR = "com.microsoft."

ELEMENTWISE = (
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitShift", "BitwiseAnd", "BitwiseNot",
    "BitwiseOr", "BitwiseXor", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Div", "Dropout", "Elu",
    "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity",
    "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg",
    "Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh",
    "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor",
    "com.microsoft.BiasGelu", "com.microsoft.FastGelu", "com.microsoft.Gelu", "com.microsoft.QuickGelu",
)  # fmt: skip
RESHAPING = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
NORMALIZING = (
    "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization",
    f"{VENDOR}SimplifiedLayerNormalization",
)  # fmt: skip
SOFTMAX = ("Softmax", "LogSoftmax", "Hardmax")
ATTENTION = ("Attention", f"{VENDOR}Attention", f"{VENDOR}MultiHeadAttention")

Shape = tuple[int, ...]
Letters = list["Hashable | None"]
"""One name per axis; axes of one name run together, an axis of None is repeated along the others'."""


@dataclass(frozen=True)
class Lie:
    """How groups lie along an axis: entry ``(part * groups + group) * inner + i`` is of that group."""

    axis: int
    parts: int
    inner: int


class MixedError(Exception):
    """Groups cannot be followed through a step; the message says why."""


def reshaped(lie: Lie, shape: Shape, wanted: Shape, groups: int) -> Lie:
    """Where groups lie once their tensor has other axes.

    Raises:
        MixedError: if no single axis holds them.
    """
    parts = math.prod(shape[: lie.axis]) * lie.parts
    inner = lie.inner * math.prod(shape[lie.axis + 1 :])
    for axis, size in enumerate(wanted):
        before, after = math.prod(wanted[:axis]), math.prod(wanted[axis + 1 :])
        if parts % before == 0 and inner % after == 0 and (parts // before) * groups * (inner // after) == size:
            return Lie(axis, parts // before, inner // after)
    raise MixedError("spreads them over several axes")


def letters(
    op: str, attributes: Mapping[str, Any], given: Sequence[Shape | None], made: Sequence[Shape | None]
) -> tuple[list[Letters], list[Letters], set[Hashable]]:
    """Which axes of what an operator reads and makes run together.

    Args:
        op: an operator of ONNX.
        attributes: of the node; integers that are an input under ``input_1``.
        given: shapes of the inputs, None of those that do not matter.
        made: shapes of the outputs.

    Returns:
        letters of each input, of each output, and those along which entries are mixed or chosen.

    Raises:
        MixedError: for an operator that is not known to keep any axis apart.
    """
    first = next((shape for shape in given if shape is not None), ())
    out = next((shape for shape in made if shape is not None), ())
    plain: list[Letters] = [list(range(len(out))) if shape is not None else [] for shape in made]
    if op in ELEMENTWISE:
        return [_aligned(shape, out) for shape in given], plain, set()
    if op in ("MatMul", f"{VENDOR}FusedMatMul"):
        return _product(attributes, given, out)
    if op == "Einsum":
        return _einsum(attributes, given)
    same: list[Letters] = [list(range(len(first))), *[[] for _ in given[1:]]]
    if op == "Transpose":
        order = list(attributes.get("perm") or reversed(range(len(first))))
        return same, [list(order)], set()
    if op == "Concat":
        return [list(range(len(shape or ()))) for shape in given], plain, {_axis(attributes, first)}
    if op == "Gather":
        axis = _axis(attributes, first, 0)
        rows: Letters = [None] * (len(out) - len(first) + 1)
        return same, [[*range(axis), *rows, *range(axis + 1, len(first))]], {axis}
    if op.startswith("Reduce"):
        axes = {a % len(first) for a in _ints(attributes, "axes", 1) or range(len(first))}
        kept = attributes.get("keepdims", 1)
        return same, [[a for a in range(len(first)) if kept or a not in axes]], set(axes)
    mixed = _mixed(op, attributes, first, out)
    if mixed is None:
        raise MixedError("is not known to keep them apart")
    return same, plain, set(mixed)


def _mixed(op: str, attributes: Mapping[str, Any], shape: Shape, out: Shape) -> Iterator[int] | set[int] | None:
    """Axes that an operator on one tensor, which keeps their order, mixes; None for another operator."""
    rank = len(shape)
    if op in SOFTMAX:
        old = attributes.get("opset", 13) < 13
        axis = _axis(attributes, shape, 1 if old else -1)
        return set(range(axis, rank)) if old else {axis}
    if op in NORMALIZING:
        return set(range(_axis(attributes, shape, -1), rank))
    if op == "LpNormalization":
        return {_axis(attributes, shape, -1)}
    if op == "CumSum":
        return {a % rank for a in attributes.get("input_1", range(rank))}
    if op == "Trilu":
        return {rank - 2, rank - 1}
    if op in ("Slice", "Split"):
        axes = _ints(attributes, "axes", 3) if op == "Slice" else [attributes.get("axis", 0)]
        return {a % rank for a in axes or range(rank)}
    if op == "Pad":
        pads, axes = _ints(attributes, "pads", 1), _ints(attributes, "axes", 3) or list(range(rank))
        if pads is None:
            return set(range(rank))
        return {a % rank for i, a in enumerate(axes) if pads[i] or pads[i + len(axes)]}
    if op == "Tile":
        return {a for a in range(rank) if shape[a] != out[a]}
    if op == "RotaryEmbedding" and rank == 4:
        return {0, 2, 3}
    return None


def _ints(attributes: Mapping[str, Any], name: str, index: int) -> list[int] | None:
    value = attributes.get(name, attributes.get(f"input_{index}"))
    return None if value is None else [int(v) for v in value]


def _axis(attributes: Mapping[str, Any], shape: Shape, default: int = 0) -> int:
    return int(attributes.get("axis", default)) % max(1, len(shape))


def _aligned(shape: Shape | None, out: Shape) -> Letters:
    """Letters of an input that is repeated to a shape, that shape's being its axes."""
    if shape is None:
        return []
    more = len(out) - len(shape)
    return [axis + more if size == out[axis + more] else None for axis, size in enumerate(shape)]


def _product(
    attributes: Mapping[str, Any], given: Sequence[Shape | None], out: Shape
) -> tuple[list[Letters], list[Letters], set[Hashable]]:
    left, right = given[0], given[1] if len(given) > 1 else None
    if left is None or right is None or len(left) < 2 or len(right) < 2:
        raise MixedError("is not known to keep them apart")
    batch = out[:-2]
    rows, columns = len(batch), len(batch) + 1
    a: Letters = [rows, "inner"]
    b: Letters = ["inner", columns]
    if attributes.get("transA"):
        a.reverse()
    if attributes.get("transB"):
        b.reverse()
    letters_ = [[*_aligned(left[:-2], batch), *a], [*_aligned(right[:-2], batch), *b]]
    return letters_, [list(range(len(out)))], set()


def _einsum(
    attributes: Mapping[str, Any], given: Sequence[Shape | None]
) -> tuple[list[Letters], list[Letters], set[Hashable]]:
    equation = attributes["equation"]
    text = (equation.decode() if isinstance(equation, bytes) else str(equation)).replace(" ", "")
    terms, arrow, result = text.partition("->")
    if "." in text or not arrow:
        raise MixedError("is not known to keep them apart")
    return [list(term) for term, _ in zip(terms.split(","), given, strict=True)], [list(result)], set()
