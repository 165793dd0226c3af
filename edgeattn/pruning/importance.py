"""What each head, neuron and layer is worth: how much the loss is foreseen to rise once it is gone.

Near the trained network a loss rises by ``1/2 m' F m`` if the groups of ``m`` are removed, F the Fisher information of
masks at 1 (Kwon et al. 2022, "A Fast Post-Training Pruning Framework for Transformers", arXiv 2204.09656, eq. 6-8;
the gradients at a mask are those of Michel et al. 2019, arXiv 1905.10650). Without labels F is that of the model's own
distribution, not the empirical one (Kunstner et al. 2019, arXiv 1905.12558, sections 2 and 3): for a softmax it is the
Gauss-Newton matrix, whose inner part ``diag(p) - p p'`` is drawn from by random signs (Hutchinson 1990), which vary
less than labels drawn from p do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgeattn.distillation import Tensors
from edgeattn.errors import DataError
from edgeattn.model import Arrays
from edgeattn.pruning.anatomy import Prunable, Unit, exits, masked, skipped
from edgeattn.pruning.calls import batches, call, measuring, spread_evenly, tensors
from edgeattn.pruning.graph_loss import GraphLoss, Hook, distance, graph_loss, surrogate

MOST_INTERACTIONS = 4_096  # groups of a unit whose block of F is kept: 64 MiB
METHOD_FISHER, METHOD_EMPIRICAL = "fisher", "empirical fisher"


@dataclass(frozen=True)
class ImportanceOptions:
    """How to measure.

    Attributes:
        samples: of each graph that gradients are taken at, spread evenly over those given.
        layer_samples: of these, to measure each layer's absence with.
        batch: samples per call, where the model takes several.
        draws: of random signs at each sample: an output of many positions shows more of itself in several.
        seed: of the random signs.
        loss: the user's; None for the distance to the model's own outputs.
    """

    samples: int = 256
    layer_samples: int = 64
    batch: int = 16
    draws: int = 2
    seed: int = 0
    loss: Hook | None = None

    def __post_init__(self) -> None:
        if min(self.samples, self.layer_samples, self.batch, self.draws) < 1:
            raise ValueError(f"samples, layer_samples, batch and draws must be at least 1, got {self}")


@dataclass(frozen=True)
class Importance:
    """What was measured. The unit of all losses is that of the loss that was used; see :func:`distance`.

    Attributes:
        scores: unit's key -> float32 (groups,), the loss's foreseen rise if that group alone is removed.
        interactions: unit's key -> float32 (groups, groups), F of the unit; removing the groups of a 0/1 vector m is
            foreseen to cost ``m @ F @ m / 2``. Off the diagonal it is shrunk by what sampling alone explains (Schaefer
            and Strimmer 2005). Units of more than :data:`MOST_INTERACTIONS` groups have none.
        layers: stack's path -> float32 (layers,), the measured rise if that layer alone is left out; NaN where it must
            stay.
        redundancy: attention's key -> float32 (groups, groups), linear CKA (Kornblith et al. 2019, arXiv 1905.00414)
            of what two heads give, 0 to 1.
        samples: that gradients were taken at, over all graphs.
        method: "fisher", or "empirical fisher" with a user's loss.
    """

    scores: Mapping[str, np.ndarray]
    interactions: Mapping[str, np.ndarray]
    layers: Mapping[str, np.ndarray]
    redundancy: Mapping[str, np.ndarray]
    samples: int
    method: str


def measure_importance(
    given: Prunable,
    samples: Mapping[str, Sequence[Arrays]],
    options: ImportanceOptions,
    on_step: Callable[[float], None],
) -> Importance:
    """Measure what every group and every layer is worth.

    Args:
        samples: graph -> full input sets, states included; with a user's loss also its ``target_NAME`` arrays. Of
            several graphs the losses add up.
        on_step: called with the share that is done, 0 to 1.

    Raises:
        DataError: if there are no samples, or a gradient or loss is not finite: the sample and the unit are named.
    """
    rows = {graph: spread_evenly(list(own), options.samples) for graph, own in samples.items() if own}
    if not rows:
        raise DataError(
            f"{given.model.spec.name}: importance needs samples, inputs like those of use, and got none; give --data"
        )
    losses = {graph: graph_loss(given, graph, own, options.loss) for graph, own in rows.items()}
    work = sum(map(len, rows.values()))
    layers = sum(stack.layers - len(stack.pinned) for stack in given.anatomy.stacks)
    measured = sum(min(len(own), options.layer_samples) for own in rows.values())
    total, done = 3.0 * work + layers * measured, 0.0  # forward and backward are three times a forward

    def progress(units: float) -> None:
        nonlocal done
        done += units
        on_step(min(1.0, done / total))

    absent: dict[str, np.ndarray] = {}
    blocks: dict[str, list[np.ndarray]] = {unit.key: [] for unit in given.anatomy.units}
    heads = {unit.key: _Moments(unit) for unit in given.anatomy.units if unit.kind == "attention"}
    with measuring(given):
        rng = torch.Generator().manual_seed(options.seed)
        for graph, own in rows.items():
            for key, found in _gradients(given, own, losses[graph], options, rng, heads, progress).items():
                blocks[key].append(found)
            few = spread_evenly(own, options.layer_samples)
            for path, rises in _layer_losses(given, few, losses[graph], options, progress).items():
                absent[path] = absent[path] + rises if path in absent else rises
    fisher = {key: [_fisher(g) for g in found] for key, found in blocks.items()}
    return Importance(
        {key: np.float32(0.5) * _sum([f.diagonal for f in found]) for key, found in fisher.items()},
        {
            key: _sum([f.block for f in found if f.block is not None])
            for key, found in fisher.items()
            if all(f.block is not None for f in found)
        },
        absent,
        {key: moments.cka() for key, moments in heads.items()},
        work,
        METHOD_FISHER if options.loss is None else METHOD_EMPIRICAL,
    )


def _sum(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Of at least one array."""
    return np.asarray(np.sum(arrays, 0), np.float32)


def leave_out(
    given: Prunable,
    samples: Mapping[str, Sequence[Arrays]],
    count: int,
    options: ImportanceOptions,
    on_step: Callable[[float], None],
) -> dict[str, tuple[int, ...]]:
    """The layers to leave out, one after the other: each time that whose absence, beside the others', costs least.

    Layers that can each be spared may not be spared together, so what remains is measured again every time.

    Args:
        samples: as for :func:`measure_importance`; ``options.layer_samples`` of each graph are used.
        count: over all stacks; of each stack one layer stays.

    Returns:
        stack's path -> numbers of layers, ascending; fewer than ``count`` in all if no more can be left out.

    Raises:
        DataError: as :func:`measure_importance`.
    """
    rows = {graph: spread_evenly(list(own), options.layer_samples) for graph, own in samples.items() if own}
    losses = {graph: graph_loss(given, graph, own, options.loss) for graph, own in rows.items()}
    gone: dict[str, tuple[int, ...]] = {}
    with measuring(given):
        for number in range(count):
            totals: dict[tuple[str, int], float] = {}
            for graph, own in rows.items():
                for path, rises in _layer_losses(given, own, losses[graph], options, lambda _: None, gone).items():
                    for layer in np.flatnonzero(np.isfinite(rises)).tolist():
                        totals[path, layer] = totals.get((path, layer), 0.0) + float(rises[layer])
            if not totals:
                break
            path, layer = min(totals, key=lambda place: totals[place])
            gone[path] = tuple(sorted((*gone.get(path, ()), layer)))
            on_step((number + 1) / count)
    return gone


def magnitude(given: Prunable) -> dict[str, np.ndarray]:
    """Unit's key -> float32 (groups,): L2 norm of the weights that make a group and of those it leaves through."""
    norms: dict[str, np.ndarray] = {}
    for unit in given.anatomy.units:
        squares = torch.zeros(unit.groups, dtype=torch.float64)
        for piece in unit.slices:
            if piece.tensor == "weight" and piece.module in {*unit.entries, unit.exit}:
                weight = getattr(given.network.get_submodule(piece.module), piece.tensor).detach().double()
                own = weight.movedim(piece.axis, 0)[piece.start : piece.start + unit.groups * piece.width]
                squares += (own.reshape(unit.groups, -1) ** 2).sum(1)
        norms[unit.key] = squares.sqrt().float().numpy()
    return norms


def _gradients(
    given: Prunable,
    rows: Sequence[Arrays],
    loss: GraphLoss,
    options: ImportanceOptions,
    rng: torch.Generator,
    heads: Mapping[str, _Moments],
    progress: Callable[[float], None],
) -> dict[str, np.ndarray]:
    """Unit's key -> float32 (samples, groups), the gradient of each sample at masks of 1."""
    found: dict[str, list[np.ndarray]] = {unit.key: [] for unit in given.anatomy.units}
    most = 1 if loss.hook is not None else options.batch
    attention = {key: given.anatomy.unit(key) for key in heads}

    def look(key: str, x: Tensor) -> None:
        heads[key].add(x.detach())

    for numbers in batches(given, loss.graph, rows, most):
        inputs, count = tensors(*(rows[number] for number in numbers))
        masks = {unit.key: torch.ones(count, unit.groups, requires_grad=True) for unit in given.anatomy.units}
        shown = {key: mask[0] if count == 1 else mask for key, mask in masks.items()}
        with exits(given.network, attention, look), masked(given.network, given.anatomy, shown):
            outputs = call(given, loss.graph, inputs)
            values = _values(loss, outputs, inputs, count, options, rng)
        for number, value in enumerate(values):
            if not bool(torch.isfinite(value.detach()).all()):
                raise DataError(f"{_named(loss.graph, numbers)}: the loss is {float(value.detach())}; leave it out")
            gradients: Sequence[Tensor | None] = [None] * len(masks)
            if value.requires_grad:
                again = number + 1 < len(values)
                gradients = torch.autograd.grad(value, list(masks.values()), retain_graph=again, allow_unused=True)
            for (key, mask), gradient in zip(masks.items(), gradients, strict=True):
                own = torch.zeros_like(mask) if gradient is None else gradient
                bad = (~own.isfinite()).any(-1).nonzero()
                if len(bad):
                    place = [numbers[int(bad[0, 0])]]
                    raise DataError(
                        f"{_named(loss.graph, place)}: the gradient at {given.anatomy.unit(key).path} is not finite; "
                        "leave the sample out, or mend the loss"
                    )
                found[key].append(own.detach().numpy())
        progress(3.0 * count)
    return {key: np.concatenate(own) for key, own in found.items()}


def _values(
    loss: GraphLoss, outputs: Tensors, inputs: Tensors, rows: int, options: ImportanceOptions, rng: torch.Generator
) -> list[Tensor]:
    """What gradients are taken of: the user's loss, or a few random sums."""
    if loss.hook is not None:
        return [loss.hook(outputs, inputs)]
    return [surrogate(loss, outputs, rows, rng) for _ in range(options.draws)]


def _named(graph: str, numbers: Sequence[int]) -> str:
    which = f"sample {numbers[0]}" if len(numbers) == 1 else f"samples {numbers[0]} to {numbers[-1]}"
    return f"{which} of graph {graph!r}"


@dataclass(frozen=True)
class _Fisher:
    diagonal: np.ndarray
    block: np.ndarray | None


def _fisher(gradients: np.ndarray) -> _Fisher:
    """F of gradients (samples, groups), off its diagonal shrunk."""
    count, groups = gradients.shape
    diagonal = (gradients.astype(np.float64) ** 2).mean(0)
    if groups > MOST_INTERACTIONS:
        return _Fisher(diagonal.astype(np.float32), None)
    block = gradients.T @ gradients / np.float32(count)
    np.fill_diagonal(block, diagonal)
    return _Fisher(diagonal.astype(np.float32), shrunk(block, gradients))


def shrunk(block: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """A second moment with its off-diagonal pulled to 0 by the share that sampling explains.

    Of fewer samples than groups, sets of groups whose gradients cancel on just these samples would look free to
    remove. Schaefer and Strimmer 2005, "A Shrinkage Approach to Large-Scale Covariance Matrix Estimation", target D.

    Args:
        block: ``gradients.T @ gradients / samples``, (groups, groups).
        gradients: (samples, groups).
    """
    count = len(gradients)
    if count < 2:
        return np.diag(np.diag(block)).astype(np.float32)
    scale = np.sqrt(np.maximum(np.diag(block), np.finfo(np.float32).tiny))
    unit = gradients / scale
    correlation = block / scale[:, None] / scale[None, :]
    squares = (unit**2).T @ (unit**2) / count
    variance = np.maximum(squares - correlation**2, 0.0) / (count - 1)
    off = ~np.eye(len(block), dtype=bool)
    power = float((correlation[off].astype(np.float64) ** 2).sum())
    share = min(1.0, float(variance[off].astype(np.float64).sum()) / power) if power > 0 else 1.0
    result = np.where(off, (1.0 - share) * block, block)
    return np.asarray(result, np.float32)


def _layer_losses(
    given: Prunable,
    rows: Sequence[Arrays],
    loss: GraphLoss,
    options: ImportanceOptions,
    progress: Callable[[float], None],
    gone: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, np.ndarray]:
    """Stack's path -> float32 (layers,), the measured rise of a graph's loss without each layer.

    Args:
        gone: layers that are left out in any case; they, and the last one of a stack, are NaN.
    """
    out = gone or {}
    rises = {stack.path: np.zeros(stack.layers) for stack in given.anatomy.stacks}
    for stack in given.anatomy.stacks:
        rises[stack.path][list(stack.pinned)] = np.nan
        rises[stack.path][list(out.get(stack.path, ()))] = np.nan
        if len(out.get(stack.path, ())) == stack.layers - 1:
            rises[stack.path][:] = np.nan
    places = [(path, number) for path, own in rises.items() for number in np.flatnonzero(np.isfinite(own)).tolist()]
    if not places:
        return {}
    with torch.no_grad():
        for numbers in batches(given, loss.graph, rows, 1 if loss.hook is not None else options.batch):
            inputs, count = tensors(*(rows[number] for number in numbers))
            whole = call(given, loss.graph, inputs)
            for path, number in places:
                with skipped(given.network, {**out, path: (*out.get(path, ()), number)}):
                    without = call(given, loss.graph, inputs)
                rise = _rise(loss, whole, without, inputs)
                if not np.isfinite(rise):
                    raise DataError(
                        f"{_named(loss.graph, numbers)}: without layer {path}.{number} the loss is {rise}; "
                        "leave the sample out, or mend the loss"
                    )
                rises[path][number] += rise * count / len(rows)
                progress(float(count))
    return {path: own.astype(np.float32) for path, own in rises.items()}


def _rise(loss: GraphLoss, whole: Tensors, without: Tensors, inputs: Tensors) -> float:
    if loss.hook is None:
        return distance(loss, whole, without)
    return float(loss.hook(without, inputs)) - float(loss.hook(whole, inputs))


# --- redundancy -------------------------------------------------------------------------------------------------------


class _Moments:
    """First and second moments of what the groups of an attention give, over tokens."""

    def __init__(self, unit: Unit) -> None:
        size = unit.groups * unit.width
        self.groups, self.width, self.rows = unit.groups, unit.width, 0
        self.first = np.zeros(size)
        self.second = np.zeros((size, size))

    def add(self, x: Tensor) -> None:
        """x: (..., groups * width)."""
        rows = x.reshape(-1, x.shape[-1]).double().numpy()
        self.rows += len(rows)
        self.first += rows.sum(0)
        self.second += rows.T @ rows

    def cka(self) -> np.ndarray:
        """float32 (groups, groups), linear CKA."""
        mean = self.first / max(1, self.rows)
        covariance = self.second - self.rows * np.outer(mean, mean)
        blocks = covariance.reshape(self.groups, self.width, self.groups, self.width)
        norms = np.einsum("aibj,aibj->ab", blocks, blocks)
        own = np.sqrt(np.maximum(np.diag(norms), np.finfo(np.float64).tiny))
        return np.asarray(np.clip(norms / own[:, None] / own[None, :], 0.0, 1.0), np.float32)
