"""What products cost in multiply-adds, and tensors in memory: the same for traced programs and engines' files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Shape = Sequence[int]


def attention_macs(queries: Shape, keys: Shape, values: Shape) -> int:
    """Of softmax(Q K^T) V, heads and batch in front.

    >>> attention_macs((1, 2, 3, 4), (1, 2, 5, 4), (1, 2, 5, 6))
    300
    """
    return math.prod(queries[:-1]) * keys[-2] * (queries[-1] + values[-1])


def einsum_macs(equation: str, shapes: Iterable[Shape]) -> int:
    """Of an einsum computed in one step: every combination of its indices once.

    >>> einsum_macs("bqd, bkd -> bqk", [(2, 3, 4), (2, 5, 4)])
    120
    """
    sizes: dict[str, int] = {}
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    for term, shape in zip(terms, shapes, strict=False):
        sizes.update(zip(term, shape, strict=False))
    return math.prod(sizes.values())


def recurrent_macs(steps: Shape, weights: Iterable[Shape]) -> int:
    """Of an LSTM, GRU or RNN: every weight once per step of every sequence."""
    return math.prod(steps) * sum(math.prod(shape) for shape in weights)


def convolution_macs(result: Shape, weight: Shape) -> int:
    """Of a convolution whose weight is OI..., I being the channels of one group.

    >>> convolution_macs((1, 8, 10, 10), (8, 4, 3, 3))
    28800
    """
    return math.prod(result) * math.prod(weight[1:])


def transposed_convolution_macs(data: Shape, weight: Shape) -> int:
    """Of a transposed convolution whose weight is IO..., O being the channels of one group."""
    return math.prod(data) * math.prod(weight[1:])


@dataclass(frozen=True, kw_only=True)
class Lifetime:
    """One operation, as far as memory is concerned.

    Attributes:
        outputs: name -> bytes.
        views: the tensor whose memory its only output shows; None for an operation that writes.
    """

    inputs: Sequence[str]
    outputs: Mapping[str, int]
    views: str | None = None


def peak_bytes(steps: Sequence[Lifetime], inputs: Mapping[str, int], outputs: Iterable[str]) -> int:
    """Bytes of the tensors that live at once at the worst moment; inputs and outputs are bound all the time.

    Args:
        steps: in the order in which they run.
        inputs: name -> bytes, states included.
        outputs: names, of inputs or of what the steps give.
    """
    owner: dict[str, str] = {}
    last: dict[str, int] = {}
    size = dict(inputs)
    for index, step in enumerate(steps):
        if step.views is not None:
            owner.update(dict.fromkeys(step.outputs, owner.get(step.views, step.views)))
        else:
            size.update(step.outputs)
        for name in step.inputs:
            last[owner.get(name, name)] = index
    bound = {owner.get(name, name) for name in (*inputs, *outputs)}
    live = peak = 0
    alive: dict[str, int] = {}
    for index, step in enumerate(steps):
        for name in step.outputs if step.views is None else ():
            if name not in bound:
                alive[name] = size[name]
                live += size[name]
        peak = max(peak, live)
        for name in [name for name in alive if last.get(name, index) <= index]:
            live -= alive.pop(name)
    return peak + sum(size.get(name, 0) for name in bound)
