"""Least squares after removal: what is left of a unit takes over as much of what was removed as it can.

Every exit of a pruned unit gets the weight and bias that bring its output closest to that of the whole model, on the
same samples and in the order in which the units run, each seeing the inputs that the pruned model gives it (the mask
tuning of Kwon et al. 2022, arXiv 2204.09656, section 4.3, with a full weight in place of one scale per group; He et al.
2017, arXiv 1707.06168, eq. 3). It is linear algebra: no step size, no epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeattn.errors import DataError
from edgeattn.model import Arrays, EdgeModel
from edgeattn.pruning.anatomy import Anatomy, Unit, layer_of
from edgeattn.pruning.apply import Subject, copied, masked_cut
from edgeattn.pruning.cut import Cut, without_dropped
from edgeattn.pruning.importance import batches, call, graph_loss, measuring, spread_evenly, surrogate, tensors

KEPT_BYTES = 2**28  # of the whole model's outputs at the exits, computed in as many passes as that takes
Rows = dict[str, list[list[Tensor]]]
"""Graph -> batch -> what a layer gave in each of its calls, (rows, ...)."""


@dataclass(frozen=True)
class ReconstructOptions:
    """How to solve.

    Attributes:
        samples: of each graph, spread evenly.
        batch: samples per call, where the model takes several.
        ridge: pull toward the old weight, as a share of the mean square of the exit's inputs.
        weighted: rows count as much as the loss depends on them: padding, which it does not depend on, not at all.
        seed: of the random signs that tell how much.
    """

    samples: int = 128
    batch: int = 16
    ridge: float = 1e-3
    weighted: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.samples, self.batch) < 1 or not 0 <= self.ridge < np.inf:
            raise ValueError(f"samples and batch must be at least 1, ridge finite and at least 0, got {self}")


@dataclass(frozen=True)
class Rebuilt:
    """One exit.

    Attributes:
        key: of its unit.
        before: squared error of its outputs over their energy, once its groups were removed.
        after: the same with the new weight.
        rows: that were seen.
    """

    key: str
    before: float
    after: float
    rows: int


def reconstruct(
    given: Subject,
    cut: Cut,
    pruned: EdgeModel,
    samples: Mapping[str, Sequence[Arrays]],
    options: ReconstructOptions,
    on_step: Callable[[float], None],
) -> tuple[Rebuilt, ...]:
    """Give the exits of a pruned model new weights, in place.

    States among the samples are the whole model's; what removed heads left in them is not read.

    Args:
        cut: that made it; of low-rank and 2:4 layers the exits are left as they are.
        pruned: from :func:`~edgeattn.pruning.apply.prune` of the same subject.
        samples: graph -> full input sets, states included.

    Returns:
        the units that were cut, in the order in which they run.

    Raises:
        DataError: without samples, or for outputs at an exit that are not finite.
    """
    assert pruned.network is not None, "prune() makes it of a network"
    assert given.model.rebuild is not None, "checked by subject()"
    rows = {graph: spread_evenly(list(own), options.samples) for graph, own in samples.items() if own}
    if not rows:
        raise DataError(f"{given.model.spec.name}: reconstruction needs samples, inputs like those of use; give --data")
    cut = without_dropped(given.anatomy, cut)
    # What is pruned runs as the whole network with masks: its states and paths are then those of the samples.
    network = copied(given.network)
    stand_in = Subject(given.model.rebuild(network), given.anatomy)
    with measuring(given):
        plan = {graph: batches(given, graph, own, options.batch) for graph, own in rows.items()}
        inputs = {
            graph: [tensors(*(rows[graph][number] for number in numbers))[0] for numbers in own]
            for graph, own in plan.items()
        }
        counts = {graph: [len(numbers) for numbers in own] for graph, own in plan.items()}
        units, weights = _weights(given, cut, rows, inputs, counts, options)
        solver = _Solver(given, stand_in, cut, inputs, weights, options)
        found = []
        for done, unit in enumerate(units):
            rebuilt, weight, bias = solver.solve(unit, units)
            _write(pruned.network, given.anatomy, cut, unit, weight, bias)
            found.append(rebuilt)
            on_step((done + 1) / len(units))
    return tuple(found)


def path_after(anatomy: Anatomy, cut: Cut, unit: Unit, path: str) -> str:
    """A module's path once layers before it are left out."""
    place = layer_of(anatomy, unit)
    if place is None or place[0] not in cut.layers:
        return path
    head = f"{place[0]}.{place[1]}"
    return f"{place[0]}.{cut.layers[place[0]].index(place[1])}{path[len(head) :]}"


def _write(network: nn.Module, anatomy: Anatomy, cut: Cut, unit: Unit, weight: Tensor, bias: Tensor | None) -> None:
    """Put columns (outputs, kept inputs) where the pruned network has them."""
    module = network.get_submodule(path_after(anatomy, cut, unit, unit.exit))
    own = weight if isinstance(module, nn.Linear) else weight.T
    parameters = dict(module.named_parameters(recurse=False))
    with torch.no_grad():
        parameters["weight"].copy_(own.to(parameters["weight"].dtype))
        if bias is not None:
            parameters["bias"].copy_(bias.to(parameters["bias"].dtype))


# --- what the whole model does ----------------------------------------------------------------------------------------


class _Stop(Exception):  # noqa: N818 no error
    """The exit has been seen; the rest of the network need not run."""


def _weights(
    given: Subject,
    cut: Cut,
    rows: Mapping[str, Sequence[Arrays]],
    inputs: Mapping[str, Sequence[dict[str, Tensor]]],
    counts: Mapping[str, Sequence[int]],
    options: ReconstructOptions,
) -> tuple[list[Unit], dict[str, Rows]]:
    """Units to solve in the order in which they run; and, of each, the weights of its rows, (rows,)."""
    left = {*cut.ranks, *cut.sparse}
    wanted: dict[str, Unit] = {}
    for key in cut.groups:  # an exit that units share is solved once
        unit = given.anatomy.unit(key)
        if unit.exit not in left:
            wanted.setdefault(unit.exit, unit)
    order: dict[str, Unit] = {}
    weights: dict[str, Rows] = {unit.key: {graph: [] for graph in rows} for unit in wanted.values()}
    rng = torch.Generator().manual_seed(options.seed)
    for graph, batches_ in inputs.items():
        loss = graph_loss(given, graph, rows[graph])
        for batch, count in zip(batches_, counts[graph], strict=True):
            seen: dict[str, list[Tensor]] = {unit.key: [] for unit in wanted.values()}

            def hook(unit: Unit, seen: dict[str, list[Tensor]] = seen) -> Callable[..., Any]:
                def after(_: nn.Module, __: Any, output: Tensor) -> Tensor:
                    order.setdefault(unit.key, unit)
                    shift = torch.zeros_like(output, requires_grad=True)
                    seen[unit.key].append(shift)
                    return output + shift

                return after

            handles = [given.network.get_submodule(u.exit).register_forward_hook(hook(u)) for u in wanted.values()]
            try:
                value = surrogate(loss, call(given, graph, batch), count, rng)
            finally:
                for handle in handles:
                    handle.remove()
            shifts = [shift for own in seen.values() for shift in own]
            found = iter(
                torch.autograd.grad(value, shifts, allow_unused=True)
                if shifts and value.requires_grad and options.weighted
                else [None] * len(shifts)
            )
            for key, own in seen.items():
                weights[key][graph].append([_row_weights(next(found), shift, options.weighted) for shift in own])
    return list(order.values()), weights


def _row_weights(gradient: Tensor | None, output: Tensor, weighted: bool) -> Tensor:
    shape = output.reshape(-1, output.shape[-1])
    if not weighted:
        return torch.ones(len(shape))
    return torch.zeros(len(shape)) if gradient is None else (gradient.reshape(shape.shape) ** 2).sum(-1)


# --- solving ----------------------------------------------------------------------------------------------------------


class _Solver:
    """Solves unit by unit; those solved so far are in place in the stand-in for the next ones."""

    def __init__(
        self,
        given: Subject,
        stand_in: Subject,
        cut: Cut,
        inputs: Mapping[str, Sequence[dict[str, Tensor]]],
        weights: Mapping[str, Rows],
        options: ReconstructOptions,
    ) -> None:
        self.given, self.stand_in, self.cut = given, stand_in, cut
        self.inputs, self.weights, self.options = inputs, weights, options
        self.targets: dict[str, Rows] = {}

    def solve(self, unit: Unit, units: Sequence[Unit]) -> tuple[Rebuilt, Tensor, Tensor | None]:
        """Errors, and the new weight (outputs, kept inputs) and bias."""
        if unit.key not in self.targets:
            self._look(units[units.index(unit) :])
        targets = self.targets.pop(unit.key)
        kept = torch.tensor(self.cut.groups[unit.key])[:, None] * unit.width + torch.arange(unit.width)
        columns = kept.reshape(-1)
        module: Any = self.stand_in.network.get_submodule(unit.exit)
        weight = module.weight.detach() if isinstance(module, nn.Linear) else module.weight.detach().T
        bias = None if getattr(module, "bias", None) is None else module.bias.detach()
        system = _Normal(weight[:, columns], bias)
        with masked_cut(self.stand_in, self.cut):
            for graph, own in self.inputs.items():
                for batch, wanted, weights in zip(own, targets[graph], self.weights[unit.key][graph], strict=True):
                    seen = self._inputs(module, graph, batch, len(wanted))
                    for x, y, w in zip(seen, wanted, weights, strict=True):
                        system.add(x.reshape(-1, x.shape[-1])[:, columns], y.reshape(-1, y.shape[-1]), w)
        if not system.finite:
            raise DataError(f"{unit.path}: what it gives is not finite; leave out the samples that lead to it")
        before = system.error(system.old)
        solved = system.solved(self.options.ridge)
        after = system.error(solved)
        if not after < before:
            solved, after = system.old, before
        new_weight = solved[: len(columns)].T.float()
        new_bias = None if bias is None else solved[-1].float()
        with torch.no_grad():
            full = module.weight if isinstance(module, nn.Linear) else module.weight.T
            full[:, columns] = new_weight
            if new_bias is not None:
                module.bias.copy_(new_bias)
        return Rebuilt(unit.key, before, after, system.rows), new_weight, new_bias

    def _look(self, units: Sequence[Unit]) -> None:
        """Outputs of the whole model at as many of the next exits as memory is meant for."""
        taken: list[Unit] = []
        size = 0
        for unit in units:
            weight = self.given.network.get_submodule(unit.exit).get_parameter("weight")
            outputs = weight.numel() // (unit.groups * unit.width)
            count = sum(len(w) for own in self.weights[unit.key].values() for calls in own for w in calls)
            size += 4 * outputs * count
            if taken and size > KEPT_BYTES:
                break
            taken.append(unit)
        for unit in taken:
            self.targets[unit.key] = {graph: [] for graph in self.inputs}

        def hook(unit: Unit, graph: str) -> Callable[..., None]:
            def after(_: nn.Module, __: Any, output: Tensor) -> None:
                self.targets[unit.key][graph][-1].append(output.detach().clone())

            return after

        for graph, own in self.inputs.items():
            network = self.given.network
            handles = [network.get_submodule(unit.exit).register_forward_hook(hook(unit, graph)) for unit in taken]
            try:
                for batch in own:
                    for unit in taken:
                        self.targets[unit.key][graph].append([])
                    with torch.no_grad():
                        call(self.given, graph, batch)
            finally:
                for handle in handles:
                    handle.remove()

    def _inputs(self, module: nn.Module, graph: str, batch: dict[str, Tensor], calls: int) -> list[Tensor]:
        """Inputs of an exit of the stand-in in each of its calls; what follows the last is not run."""
        seen: list[Tensor] = []
        if not calls:
            return seen

        def before(_: nn.Module, args: tuple[Any, ...]) -> None:
            seen.append(args[0].detach())
            if len(seen) == calls:
                raise _Stop

        handle = module.register_forward_pre_hook(before)
        try:
            with torch.no_grad():
                call(self.stand_in, graph, batch)
        except _Stop:
            pass
        finally:
            handle.remove()
        return seen


class _Normal:
    """Normal equations of weighted rows, float64: memory does not grow with them."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.biased = bias is not None
        parts = [weight.T.double()] + ([bias.double()[None]] if bias is not None else [])
        self.old = torch.cat(parts)  # (inputs, outputs)
        inputs, outputs = self.old.shape
        self.gram = torch.zeros(inputs, inputs, dtype=torch.float64)
        self.cross = torch.zeros(inputs, outputs, dtype=torch.float64)
        self.energy = 0.0
        self.rows = 0

    def add(self, x: Tensor, y: Tensor, weights: Tensor) -> None:
        """x: (rows, inputs), y: (rows, outputs), weights: (rows,)."""
        shown = weights > 0
        x, y, root = x[shown].double(), y[shown].double(), weights[shown].double().sqrt()[:, None]
        if self.biased:
            x = torch.cat([x, x.new_ones(len(x), 1)], 1)
        x, y = x * root, y * root
        self.gram += x.T @ x
        self.cross += x.T @ y
        self.energy += float((y**2).sum())
        self.rows += len(x)

    @property
    def finite(self) -> bool:
        """Whether everything that was added is."""
        return bool(self.gram.isfinite().all() and self.cross.isfinite().all()) and bool(np.isfinite(self.energy))

    def error(self, weight: Tensor) -> float:
        """Squared error over the energy of the outputs."""
        squares = float((weight * (self.gram @ weight - 2 * self.cross)).sum()) + self.energy
        return max(0.0, squares) / max(self.energy, np.finfo(np.float64).tiny)

    def solved(self, ridge: float) -> Tensor:
        """The weight of least error plus ``ridge`` times its distance to the old one, the bias's not counted."""
        rest = self.cross - self.gram @ self.old
        diagonal = self.gram.diagonal()
        inputs = len(diagonal) - self.biased
        pull = torch.full_like(diagonal, ridge * float(diagonal[:inputs].mean()))
        if self.biased:
            pull[-1] = 0.0
        values, vectors = torch.linalg.eigh(self.gram + torch.diag(pull))
        # Directions that the samples do not show are left as they were.
        inverse = torch.where(values > 1e-12 * values.max().clamp_min(1e-300), 1 / values, 0.0)
        step: Tensor = vectors @ (inverse[:, None] * (vectors.T @ rest))
        return self.old + step
