"""Fourier transforms as products with matrices of cosines and sines.

No engine for edge devices has complex tensors, and few have a transform. Up to :data:`MAX_MATRIX` places a transform is
one product with a constant matrix; longer ones are split in two factors (Cooley and Tukey, 1965), each of which is a
product, with a turn by constants in between. Matrices are computed in float64.

Complex tensors are pairs of real ones here, :data:`Parts`; the imaginary part may be None for zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch

from edgeattn.converters.passes.graph import Writer, size

aten = torch.ops.aten
Node: TypeAlias = torch.fx.Node
Parts: TypeAlias = tuple[Node, Node | None]
MAX_MATRIX = 1024  # places; a matrix of twice as many columns has 8 MB then
MAX_PRIME = 2048  # places of a transform without factors


class UnsupportedTransformError(Exception):
    """Why a transform cannot be written; the pass leaves it, and preflight tells."""


def waves(length: int, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """The cos and sin of 2 pi n k / length, float64 (length, bins); zeros are exact."""
    turns = np.outer(np.arange(length), np.arange(bins)) % length
    angles = 2 * np.pi * turns / length
    cos, sin = np.cos(angles), np.sin(angles)
    cos[4 * turns % length == 0] = np.round(cos[4 * turns % length == 0])
    sin[4 * turns % length == 0] = np.round(sin[4 * turns % length == 0])
    return cos, sin


def scale_of(norm: str | None, length: int, inverse: bool) -> float:
    """The factor of a transform, by torch's names: "backward" (None), "ortho" and "forward"."""
    if norm == "ortho":
        return 1 / math.sqrt(length)
    return 1 / length if inverse == (norm != "forward") else 1.0


def constant(write: Writer, values: np.ndarray, like: Node) -> Node:
    """A constant of the type of a node."""
    return write.constant(torch.from_numpy(np.ascontiguousarray(values)).to(like.meta["val"].dtype))


def transform(write: Writer, parts: Parts, inverse: bool, scale: float, bins: int | None = None) -> Parts:
    """The transform along the last axis.

    Args:
        inverse: with the other sign of the angle.
        scale: of the result.
        bins: how many of the result's places are wanted, from the first; all by default.

    Raises:
        UnsupportedTransformError: for more than :data:`MAX_PRIME` places without fitting factors.
    """
    length = size(parts[0])[-1]
    wanted = length if bins is None else bins
    factor = _factor(length)
    if factor is not None:
        whole = _by_factors(write, parts, factor, inverse, scale)
        return tuple(_first(write, part, wanted) for part in whole)  # type: ignore[return-value]
    cos, sin = (scale * wave for wave in waves(length, wanted))
    sin = sin if inverse else -sin
    both = _product(write, parts, np.hstack([cos, sin]), np.hstack([-sin, cos]))
    return _split(write, both, wanted)


def half_spectrum(write: Writer, real: Node, scale: float) -> Parts:
    """The first half of the spectrum of a real signal, along the last axis; the other mirrors it."""
    return transform(write, (real, None), False, scale, size(real)[-1] // 2 + 1)


def from_half_spectrum(write: Writer, parts: Parts, length: int, scale: float) -> Node:
    """The real signal of ``length`` places that has this half spectrum, along the last axis.

    As in torch, the imaginary parts of its ends count for nothing.
    """
    bins = length // 2 + 1
    if _factor(length) is not None:
        real, imaginary = parts
        given = real, write(aten.zeros_like.default, real) if imaginary is None else imaginary
        back = [write(aten.flip.default, _span(write, part, 1, length - bins + 1), [-1]) for part in given]
        mirrored = back[0], write(aten.neg.default, back[1])
        whole = [write(aten.cat.default, list(pair), -1) for pair in zip(given, mirrored, strict=True)]
        return transform(write, (whole[0], whole[1]), True, scale)[0]
    return _product(write, parts, *real_waves(length, scale))


def real_waves(length: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """What a half spectrum's real and imaginary parts are multiplied by, float64 (length // 2 + 1, length) each."""
    bins = length // 2 + 1
    cos, sin = (scale * wave.T for wave in waves(length, bins))
    twice = np.full((bins, 1), 2.0)  # each stands for its mirror image too
    twice[0] = 1.0
    if length % 2 == 0:
        twice[-1] = 1.0
    return twice * cos, -twice * sin


def resized(write: Writer, node: Node, axis: int, length: int) -> Node:
    """Cut, or filled with zeros at the end."""
    shape = size(node)
    if shape[axis] > length:
        return write(aten.slice.Tensor, node, axis, 0, length)
    if shape[axis] < length:
        filling = [*shape[:axis], length - shape[axis], *shape[axis + 1 :]]
        zeros = write(aten.zeros.default, filling, dtype=node.meta["val"].dtype)
        return write(aten.cat.default, [node, zeros], axis)
    return node


def _by_factors(write: Writer, parts: Parts, factor: int, inverse: bool, scale: float) -> Parts:
    """With n = columns * i + j and k = a + factor * b: over i, then a turn, then over j."""
    *outer, length = size(parts[0])
    columns, rows = length // factor, math.prod(outer)
    grid = _each(parts, lambda part: write(aten.reshape.default, part, [rows, factor, columns]))
    first = transform(write, _turned(write, grid), inverse, scale)  # (rows, columns, factor): j, a
    cos, sin = (wave[:columns, :factor] for wave in waves(length, factor))
    turns = constant(write, cos, first[0]), constant(write, sin if inverse else -sin, first[0])
    second = transform(write, _turned(write, times(write, first, turns)), inverse, 1.0)  # (rows, factor, columns): a, b
    return _each(_turned(write, second), lambda part: write(aten.reshape.default, part, [*outer, length]))


def times(write: Writer, left: tuple[Any, Any], right: tuple[Any, Any]) -> Parts:
    """The product of two complex numbers; an imaginary part that is None is zero."""
    (a, b), (c, d) = left, right
    if d is None:
        return _multiplied(write, a, c), None if b is None else _multiplied(write, b, c)
    if b is None:
        return _multiplied(write, a, c), _multiplied(write, a, d)
    real = write(aten.sub.Tensor, _multiplied(write, a, c), _multiplied(write, b, d))
    return real, write(aten.add.Tensor, _multiplied(write, a, d), _multiplied(write, b, c))


def _multiplied(write: Writer, left: Any, right: Any) -> Node:
    if not isinstance(left, torch.fx.Node):
        left, right = right, left
    return write(aten.mul.Tensor, left, right)


def _product(write: Writer, parts: Parts, of_real: np.ndarray, of_imaginary: np.ndarray) -> Node:
    """``real @ of_real + imaginary @ of_imaginary`` as one product."""
    real, imaginary = parts
    if imaginary is None:
        return write(aten.matmul.default, real, constant(write, of_real, real))
    both = write(aten.cat.default, [real, imaginary], -1)
    return write(aten.matmul.default, both, constant(write, np.vstack([of_real, of_imaginary]), real))


def _split(write: Writer, both: Node, bins: int) -> Parts:
    return _span(write, both, 0, bins), _span(write, both, bins, 2 * bins)


def _span(write: Writer, node: Node, first: int, end: int) -> Node:
    return write(aten.slice.Tensor, node, len(size(node)) - 1, first, end)


def _first(write: Writer, node: Node | None, wanted: int) -> Node | None:
    return node if node is None or size(node)[-1] == wanted else _span(write, node, 0, wanted)


def _turned(write: Writer, parts: Parts) -> Parts:
    return _each(parts, lambda part: write(aten.transpose.int, part, -1, -2))


def _each(parts: Parts, change: Callable[[Node], Node]) -> Parts:
    real, imaginary = parts
    return change(real), None if imaginary is None else change(imaginary)


def _factor(length: int) -> int | None:
    """The factor nearest to the square root of a length that is too long for one matrix; None for others."""
    if length <= MAX_MATRIX:
        return None
    found = next((f for f in range(math.isqrt(length), 1, -1) if length % f == 0), 1)
    if max(found, length // found) <= MAX_PRIME and found > 1:
        return found
    if length <= MAX_PRIME:
        return None
    raise UnsupportedTransformError(f"a transform of {length} places, which has no factors between 2 and {MAX_PRIME}")
