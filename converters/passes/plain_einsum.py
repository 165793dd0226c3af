"""``einsum`` of any form as transposes, reshapes and one matmul per pair of operands.

TensorRT's ONNX parser takes Einsum of at most two operands, without an ellipsis or a label that repeats inside one; the
checker of onnx wants ellipses of one rank; LiteRT's converter has no lowering for diagonals. Every engine has a fused
path for matmul, and attention written by einsum is found by the passes after this one.

Labels that only one operand has and the result has not are summed first, labels of size 1 that another operand has in
full are dropped there, diagonals become a slice with a step. Operands are taken two by two, in the order of the call's
own path if it has one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from edgeattn.converters.passes.graph import Program, Writer, size
from edgeattn.converters.passes.plain_diagonal import diagonal

aten = torch.ops.aten
ELLIPSIS = "..."
MAX_BATCH = 2  # axes of a batch that stay apart, such as batch and heads


@dataclass(frozen=True)
class _Term:
    """An operand with one label per axis."""

    node: Any
    labels: tuple[str, ...]

    def sizes(self) -> dict[str, int]:
        return dict(zip(self.labels, size(self.node), strict=True))


def plain_einsum(program: Program) -> int:
    """Rewrite each ``einsum``; returns how many there were."""
    calls = program.calls(aten.einsum.default)
    for node in calls:
        arguments: tuple[Any, ...] = node.args
        equation, operands = arguments[:2]
        write = Writer(program, node)
        given, wanted = _parsed(equation, operands)
        terms = [_with_diagonals(write, term) for term in given]
        terms = _without_ones(write, terms)
        path: Any = node.kwargs.get("path") or (node.args[2] if len(node.args) > 2 else None)
        for left, right in _pairs(len(terms), path):
            one, two = terms[left], terms[right]
            terms = [term for place, term in enumerate(terms) if place not in (left, right)]
            kept = {*wanted, *(label for term in terms for label in term.labels)}
            one, two = (_summed(write, a, kept | set(b.labels)) for a, b in ((one, two), (two, one)))
            terms.append(_product(write, one, two, [label for label in wanted if label in kept], kept))
        last = _summed(write, terms[0], set(wanted))
        order = [last.labels.index(label) for label in wanted]
        made = last.node if order == sorted(order) else write(aten.permute.default, last.node, order)
        node.kwargs = {}
        if made in operands:
            write.finish(aten.reshape.default, made, list(size(node)))
        else:
            write.finish(made.target, *made.args, **made.kwargs)
            program.graph.erase_node(made)
    return len(calls)


def _parsed(equation: str, operands: Sequence[Any]) -> tuple[list[_Term], list[str]]:
    """Operands and result with a label per axis; axes under an ellipsis are labelled from the right."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    texts = left.split(",")
    under = max(
        (len(size(o)) - len(t.replace(ELLIPSIS, "")) for t, o in zip(texts, operands, strict=True) if ELLIPSIS in t),
        default=0,
    )
    spread = [f"{ELLIPSIS}{place}" for place in range(under)]

    def labels(text: str, rank: int) -> list[str]:
        before, dots, after = text.partition(ELLIPSIS)
        covered = spread[len(spread) - (rank - len(before) - len(after)) :] if dots else []
        return [*before, *covered, *after]

    terms = [_Term(o, tuple(labels(t, len(size(o))))) for t, o in zip(texts, operands, strict=True)]
    if arrow:
        return terms, labels(right, len(right.replace(ELLIPSIS, "")) + under)
    letters = [letter for text in texts for letter in text.replace(ELLIPSIS, "")]
    return terms, [*spread, *sorted(letter for letter in set(letters) if letters.count(letter) == 1)]


def _pairs(count: int, path: Sequence[int] | None) -> list[tuple[int, int]]:
    """Places of the operands to multiply, one pair after the other; the product goes to the end of the list."""
    if path:
        return [(path[i], path[i + 1]) for i in range(0, len(path) - 1, 2)]
    return [(0, 1) if step == 0 else (count - step - 1, 0) for step in range(count - 1)]


def _with_diagonals(write: Writer, term: _Term) -> _Term:
    node, labels = term.node, list(term.labels)
    for label in term.labels:
        if labels.count(label) > 1:
            first = labels.index(label)
            second = labels.index(label, first + 1)
            node = diagonal(write, node, 0, first, second)
            labels = [one for place, one in enumerate(labels) if place not in (first, second)] + [label]
    return _Term(node, tuple(labels))


def _without_ones(write: Writer, terms: Sequence[_Term]) -> list[_Term]:
    """Terms without axes of size 1 whose label has its full size elsewhere."""
    full: dict[str, int] = {}
    for term in terms:
        for label, length in term.sizes().items():
            full[label] = max(full.get(label, 1), length)
    kept = []
    for term in terms:
        left = {label: length for label, length in term.sizes().items() if length == full[label]}
        if len(left) < len(term.labels):
            term = _Term(write(aten.reshape.default, term.node, list(left.values())), tuple(left))  # noqa: PLW2901
        kept.append(term)
    return kept


def _summed(write: Writer, term: _Term, kept: set[str]) -> _Term:
    axes = [axis for axis, label in enumerate(term.labels) if label not in kept]
    if not axes:
        return term
    return _Term(write(aten.sum.dim_IntList, term.node, axes), tuple(one for one in term.labels if one in kept))


def _product(write: Writer, one: _Term, two: _Term, order: Sequence[str], kept: set[str]) -> _Term:
    """Two terms as one; shared labels that are not kept are summed over."""
    shared = [label for label in one.labels if label in two.labels]
    batch = sorted((label for label in shared if label in kept), key=lambda label: _place(order, label, shared))
    inner = [label for label in shared if label not in kept]
    rows = [label for label in one.labels if label not in shared]
    columns = [label for label in two.labels if label not in shared]
    if rows and columns and _place(order, columns[0], columns) < _place(order, rows[0], rows):
        one, two, rows, columns = two, one, columns, rows  # as the result wants them: no transpose afterwards
    rows, columns = (sorted(part, key=lambda label: _place(order, label, part)) for part in (rows, columns))
    sizes = {**one.sizes(), **two.sizes()}
    outer = [sizes[label] for label in batch] if len(batch) <= MAX_BATCH else [math.prod(sizes[b] for b in batch)]
    flat = {
        name: math.prod(sizes[label] for label in part) for name, part in (("r", rows), ("i", inner), ("c", columns))
    }
    left = _laid_out(write, one, [*batch, *rows, *inner], [*outer, flat["r"], flat["i"]])
    right = _laid_out(write, two, [*batch, *inner, *columns], [*outer, flat["i"], flat["c"]])
    made = write(aten.matmul.default if inner else aten.mul.Tensor, left, right)
    labels = (*batch, *rows, *columns)
    shape = [sizes[label] for label in labels]
    return _Term(made if list(size(made)) == shape else write(aten.reshape.default, made, shape), labels)


def _place(order: Sequence[str], label: str, own: Sequence[str]) -> int:
    """Where the result has a label; what it has not comes last, in its own order."""
    return order.index(label) if label in order else len(order) + list(own).index(label)


def _laid_out(write: Writer, term: _Term, labels: Sequence[str], shape: Sequence[int]) -> Any:
    order = [term.labels.index(label) for label in labels]
    node = term.node
    if len(order) > 1 and order == [*range(len(order) - 2), len(order) - 1, len(order) - 2]:
        node = write(aten.transpose.int, node, -2, -1)  # as attention is written by hand
    elif order != sorted(order):
        node = write(aten.permute.default, node, order)
    return node if list(size(node)) == list(shape) else write(aten.reshape.default, node, list(shape))
