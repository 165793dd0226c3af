"""Parts of likelihoods that engines lack: log-gamma, digamma, triangular systems, cross-entropy of logits.

Policies and mixtures compute them through ``torch.distributions``. ``lgamma`` and ``digamma`` by Stirling's series
(Abramowitz and Stegun 6.1.41 and 6.3.18) from 8 on, brought there by their recurrences, and by reflection below 1/2; a
system of up to 32 rows row by row. The cross-entropy of a logit is max(x, 0) - x t + log(1 + exp(-|x|)): the exporters'
own takes the logarithm of a sigmoid, which is -inf where x is large.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from edgeattn.converters.passes.graph import Program, Writer, size

aten = torch.ops.aten
SHIFT = 8  # where the series holds to 1e-8
MAX_ROWS = 32
MEAN, SUM = 1, 2  # reductions as torch numbers them


def plain_likelihoods(program: Program) -> int:
    """Write out each of these operations; returns how many there were."""
    changed = 0
    for node in program.calls(*REWRITES):
        changed += REWRITES[node.target](program, Writer(program, node), node)
    return changed


def _in_halves(write: Writer, x: Any, above: Callable[[Any], Any], below: Callable[[Any, Any], Any]) -> tuple[Any, ...]:
    """The value from 1/2 on, of ``1 - x`` below, as the arguments of ``where``."""
    low = write(aten.lt.Scalar, x, 0.5)
    mirrored = write(aten.rsub.Scalar, x, 1.0)
    value = above(write(aten.where.self, low, mirrored, x))
    return low, below(x, value), value


def _lgamma(_: Program, write: Writer, node: torch.fx.Node) -> bool:
    pi = write.constant(torch.tensor(math.pi))

    def above(x: Any) -> Any:
        small = write(aten.lt.Scalar, x, float(SHIFT))
        product = x
        for step in range(1, SHIFT):
            product = write(aten.mul.Tensor, product, write(aten.add.Tensor, x, float(step)))
        product = write(aten.where.ScalarOther, small, product, 1.0)
        far = write(aten.where.self, small, write(aten.add.Tensor, x, float(SHIFT)), x)
        turned = write(aten.reciprocal.default, far)
        square = write(aten.mul.Tensor, turned, turned)
        series = write(aten.add.Tensor, write(aten.mul.Tensor, square, 1 / 1260), -1 / 360)
        series = write(aten.add.Tensor, write(aten.mul.Tensor, square, series), 1 / 12)
        log = write(aten.log.default, far)
        main = write(aten.mul.Tensor, write(aten.sub.Tensor, far, 0.5), write(aten.sub.Tensor, log, 1.0))
        main = write(aten.add.Tensor, main, 0.5 * math.log(2 * math.pi) - 0.5)
        main = write(aten.add.Tensor, main, write(aten.mul.Tensor, turned, series))
        return write(aten.sub.Tensor, main, write(aten.log.default, product))

    def below(x: Any, value: Any) -> Any:
        sine = write(aten.abs.default, write(aten.sin.default, write(aten.mul.Tensor, x, pi)))
        return write(aten.sub.Tensor, write(aten.rsub.Scalar, write(aten.log.default, sine), math.log(math.pi)), value)

    write.finish(aten.where.self, *_in_halves(write, node.args[0], above, below))
    return True


def _digamma(_: Program, write: Writer, node: torch.fx.Node) -> bool:
    def above(x: Any) -> Any:
        rest = write(aten.reciprocal.default, x)
        for step in range(1, SHIFT):
            rest = write(aten.add.Tensor, rest, write(aten.reciprocal.default, write(aten.add.Tensor, x, float(step))))
        far = write(aten.add.Tensor, x, float(SHIFT))
        turned = write(aten.reciprocal.default, far)
        square = write(aten.mul.Tensor, turned, turned)
        series = write(aten.add.Tensor, write(aten.mul.Tensor, square, 1 / 252), -1 / 120)
        series = write(aten.mul.Tensor, square, write(aten.add.Tensor, write(aten.mul.Tensor, square, series), 1 / 12))
        main = write(aten.sub.Tensor, write(aten.log.default, far), write(aten.mul.Tensor, turned, 0.5))
        return write(aten.sub.Tensor, write(aten.sub.Tensor, main, series), rest)

    def below(x: Any, value: Any) -> Any:
        angle = write(aten.mul.Tensor, x, math.pi)
        ratio = write(aten.div.Tensor, write(aten.cos.default, angle), write(aten.sin.default, angle))
        return write(aten.sub.Tensor, value, write(aten.mul.Tensor, ratio, math.pi))

    write.finish(aten.where.self, *_in_halves(write, node.args[0], above, below))
    return True


def _triangular(_: Program, write: Writer, node: torch.fx.Node) -> bool:
    """``linalg.solve_triangular(a, b)``, each row of the solution from those before it."""
    matrix, wanted = (node.args[0], node.args[1])
    upper = bool(node.kwargs.get("upper", node.args[2] if len(node.args) > 2 else False))
    rows = size(matrix)[-1]
    left, ones = bool(node.kwargs.get("left", True)), bool(node.kwargs.get("unitriangular", False))
    if not left or rows > MAX_ROWS:
        return False
    found: dict[int, Any] = {}
    for row in reversed(range(rows)) if upper else range(rows):
        own = write(aten.slice.Tensor, matrix, -2, row, row + 1)  # [..., 1, rows]
        value = write(aten.slice.Tensor, wanted, -2, row, row + 1)
        for other, solved in found.items():
            factor = write(aten.slice.Tensor, own, -1, other, other + 1)
            value = write(aten.sub.Tensor, value, write(aten.mul.Tensor, factor, solved))
        if not ones:
            value = write(aten.div.Tensor, value, write(aten.slice.Tensor, own, -1, row, row + 1))
        found[row] = value
    write.finish(aten.cat.default, [found[row] for row in range(rows)], -2)
    return True


def _cross_entropy(_: Program, write: Writer, node: torch.fx.Node) -> bool:
    given: list[Any] = [*node.args, *[None] * (5 - len(node.args))]
    x, target, weight, positive, reduction = given
    decay = write(aten.exp.default, write(aten.neg.default, write(aten.abs.default, x)))
    soft = write(
        aten.add.Tensor, write(aten.log1p.default, decay), write(aten.relu.default, write(aten.neg.default, x))
    )
    if positive is not None:  # softplus(-x) counts for what is there
        more = write(aten.mul.Tensor, write(aten.sub.Tensor, positive, 1.0), target)
        soft = write(aten.mul.Tensor, soft, write(aten.add.Tensor, more, 1.0))
    loss = write(aten.add.Tensor, write(aten.mul.Tensor, write(aten.rsub.Scalar, target, 1.0), x), soft)
    if weight is not None:
        loss = write(aten.mul.Tensor, loss, weight)
    reductions = {MEAN: aten.mean.default, SUM: aten.sum.default}
    write.finish(reductions.get(MEAN if reduction is None else reduction, aten.clone.default), loss)
    return True


REWRITES: dict[Any, Callable[[Program, Writer, torch.fx.Node], bool]] = {
    aten.lgamma.default: _lgamma,
    aten.digamma.default: _digamma,
    aten.linalg_solve_triangular.default: _triangular,
    aten.binary_cross_entropy_with_logits.default: _cross_entropy,
}
