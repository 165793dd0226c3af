"""How far outputs are from those of the whole model, and random sums whose gradients tell what a part is worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from edgeattn.distillation import measured_loss
from edgeattn.model import Arrays
from edgeattn.pruning.anatomy import Prunable
from edgeattn.pruning.calls import call, measuring, spread_evenly, tensors
from edgeattn.spec import HIDDEN

SCALE_SAMPLES = 16  # that tell the scale of an output

Hook = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Tensor]
"""Outputs, inputs with ``target_NAME`` among them -> a loss, shape (); of one sample, in training of a batch."""


@dataclass(frozen=True)
class GraphLoss:
    """How the outputs of one graph are compared.

    Attributes:
        scores: outputs that are a distribution over their last axis.
        scales: RMS of every other float output and next state.
        hook: the user's loss, instead of both.
    """

    graph: str
    scores: tuple[str, ...]
    scales: Mapping[str, float] = field(default_factory=dict)
    hook: Hook | None = None


def graph_loss(given: Prunable, graph: str, rows: Sequence[Arrays], hook: Hook | None = None) -> GraphLoss:
    """Which outputs are distributions, and the scales of the others, from a few samples.

    Distributions are those of :func:`~edgeattn.distillation.measured_loss`.
    """
    stream = given.model.spec.stream
    few = spread_evenly(list(rows), SCALE_SAMPLES)
    with measuring(given), torch.no_grad():
        outputs = ((graph, call(given, graph, tensors(row)[0])) for row in few)
        found = measured_loss(outputs, None if stream is None else stream.scores)
    names = [name for _, name in found.power]
    scores = tuple(name for name in names if (graph, name) in found.scores)
    scales = {name: found.power[graph, name] ** 0.5 for name in names if name not in scores}
    return GraphLoss(graph, scores, scales, hook)


def surrogate(loss: GraphLoss, outputs: Mapping[str, Tensor], rows: int, rng: torch.Generator) -> Tensor:
    """A random sum of outputs whose squared gradient is, on average, twice the rise of :func:`distance`.

    Args:
        outputs: of ``rows`` samples in one batch; the gradients of different samples do not touch.
    """
    parts = [torch.zeros(())]
    for name in loss.scores:
        value = outputs[name]
        positions = value.numel() / value.shape[-1] / rows
        finite = torch.where(value.isfinite(), value, value.detach().new_tensor(HIDDEN))
        root = functional.softmax(finite.detach(), -1).sqrt()
        signed = root * _signs(value, rng)
        direction = signed - root**2 * signed.sum(-1, keepdim=True)  # its second moment is diag(p) - p p'
        parts.append((direction * finite).sum() / positions**0.5)
    for name, scale in loss.scales.items():
        value = outputs[name]
        size = value.numel() / rows * len(loss.scales)
        finite = torch.where(value.isfinite(), value, 0.0)
        parts.append((_signs(value, rng) * finite).sum() / (scale * size**0.5))
    return torch.stack(parts).sum()


def _signs(like: Tensor, rng: torch.Generator) -> Tensor:
    return torch.randint(0, 2, like.shape, generator=rng).to(like.dtype) * 2 - 1


def distance(loss: GraphLoss, wanted: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> float:
    """How far outputs are from those of the whole model, a mean over samples.

    It is the Kullback-Leibler divergence per position, in nats, of the outputs that are a distribution, plus half the
    squared error of the others relative to their mean square, averaged over them.
    """
    total = 0.0
    for name in loss.scores:
        classes = wanted[name].shape[-1]
        p = functional.log_softmax(_bounded(wanted[name]).reshape(-1, classes), -1)
        q = functional.log_softmax(_bounded(got[name]).reshape(-1, classes), -1)
        total += float(functional.kl_div(q, p, reduction="batchmean", log_target=True))
    for name, scale in loss.scales.items():
        error = torch.where(wanted[name].isfinite(), got[name] - wanted[name], 0.0)
        total += 0.5 * float((error**2).mean()) / scale**2 / len(loss.scales)
    return total


def _bounded(value: Tensor) -> Tensor:
    return torch.where(value.isfinite(), value, value.new_tensor(HIDDEN))
