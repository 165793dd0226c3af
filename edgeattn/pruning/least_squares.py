"""Least squares after removal: what is left of a unit takes over as much of what was removed as it can.

Every exit of a pruned unit gets the weight and bias that bring its output closest to that of the whole model, on the
same samples and in the order in which the units run, each seeing the inputs that the pruned model gives it (the mask
tuning of Kwon et al. 2022, arXiv 2204.09656, section 4.3, with a full weight in place of one scale per group; He et al.
2017, arXiv 1707.06168, eq. 3). It is linear algebra: no step size, no epochs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeattn.errors import DataError
from edgeattn.model import Arrays, EdgeModel
from edgeattn.pruning.anatomy import Anatomy, Prunable, Unit, exits, layer_of
from edgeattn.pruning.apply import masked_cut
from edgeattn.pruning.calls import batches, call, measuring, spread_evenly, tensors
from edgeattn.pruning.cut import Cut
from edgeattn.pruning.forms import without_dropped
from edgeattn.pruning.graph_loss import graph_loss, surrogate
from edgeattn.pruning.surgery import copied

KEPT_BYTES = 2**29  # of the whole model's outputs at the exits, computed in as many passes as that takes
BLOCK = 4_096  # rows that are added in float64 at once


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
class ExitFit:
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
    given: Prunable,
    cut: Cut,
    pruned: EdgeModel,
    samples: Mapping[str, Sequence[Arrays]],
    options: ReconstructOptions,
    on_step: Callable[[float], None],
) -> tuple[ExitFit, ...]:
    """Give the exits of a pruned model new weights, in place.

    States among the samples are the whole model's; what removed heads left in them is not read.

    Args:
        cut: that made it, of groups and layers alone: what other forms change comes afterwards.
        pruned: from :func:`~edgeattn.pruning.apply.prune` of the same subject.
        samples: graph -> full input sets, states included.

    Returns:
        the units that were cut, in the order in which they run.

    Raises:
        DataError: without samples, or for outputs at an exit that are not finite.
    """
    assert pruned.network is not None, "prune() makes it of a network"
    assert given.model.rebuild is not None, "checked by prunable()"
    rows = {graph: spread_evenly(list(own), options.samples) for graph, own in samples.items() if own}
    if not rows:
        raise DataError(f"{given.model.spec.name}: reconstruction needs samples, inputs like those of use; give --data")
    cut = without_dropped(given.anatomy, cut)
    # What is pruned runs as the whole network with masks: its states and paths are then those of the samples.
    stand_in = Prunable(given.model.rebuild(copied(given.network)), given.anatomy)
    with measuring(given):
        solver = _Solver(given, stand_in, cut, rows, options)
        found: list[ExitFit] = []
        for solved in solver.run():
            _write(pruned.network, given.anatomy, cut, solved)
            found.append(solved.fit)
            on_step(len(found) / len(solver.units))
    return tuple(found)


def path_after(anatomy: Anatomy, cut: Cut, unit: Unit, path: str) -> str:
    """A module's path once layers before it are left out."""
    place = layer_of(anatomy, unit)
    if place is None or place[0] not in cut.layers:
        return path
    head = f"{place[0]}.{place[1]}"
    return f"{place[0]}.{cut.layers[place[0]].index(place[1])}{path[len(head) :]}"


@dataclass(frozen=True)
class _Solution:
    """New weight (outputs, kept inputs) and bias of an exit."""

    unit: Unit
    fit: ExitFit
    weight: Tensor
    bias: Tensor | None


def _write(network: nn.Module, anatomy: Anatomy, cut: Cut, solved: _Solution) -> None:
    """Put the new weight where the pruned network has it."""
    module = network.get_submodule(path_after(anatomy, cut, solved.unit, solved.unit.exit))
    own = solved.weight if isinstance(module, nn.Linear) else solved.weight.T
    parameters = dict(module.named_parameters(recurse=False))
    with torch.no_grad():
        parameters["weight"].copy_(own)
        if solved.bias is not None:
            parameters["bias"].copy_(solved.bias)


# --- the passes -------------------------------------------------------------------------------------------------------


class _Stop(Exception):  # noqa: N818 no error
    """The exit has been seen; the rest of the network need not run."""


@dataclass
class _Target:
    """What an exit of the whole model gave, over graphs, batches and calls.

    Attributes:
        outputs: of each batch and call, float32 (rows that count, outputs).
        weights: of these rows, (rows that count,).
        shown: which rows count, (rows,).
    """

    outputs: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    shown: list[Tensor] = field(default_factory=list)


class _Solver:
    """Solves unit by unit; those solved so far are in place in the stand-in for the next ones."""

    def __init__(
        self,
        given: Prunable,
        stand_in: Prunable,
        cut: Cut,
        rows: Mapping[str, Sequence[Arrays]],
        options: ReconstructOptions,
    ) -> None:
        self.given, self.stand_in, self.cut, self.rows, self.options = given, stand_in, cut, rows, options
        self.inputs = self._inputs(options.batch)
        self.calls: dict[str, int] = {}  # of an exit, in the first batch of each graph
        self.sizes: dict[str, int] = {}  # values of an exit's output over all samples
        self.units = self._order()
        self.targets: dict[str, _Target] = {}
        self.rng = torch.Generator().manual_seed(options.seed)

    def _inputs(self, most: int) -> dict[str, list[tuple[dict[str, Tensor], int]]]:
        """Graph -> its batches, and how many samples are in each."""
        return {
            graph: [tensors(*(own[number] for number in numbers)) for numbers in batches(self.given, graph, own, most)]
            for graph, own in self.rows.items()
        }

    def _order(self) -> list[Unit]:
        """Units to solve in the order in which they run; an exit that units share is solved once."""
        wanted: dict[str, Unit] = {}
        for key in self.cut.groups:
            unit = self.given.anatomy.unit(key)
            wanted.setdefault(unit.exit, unit)
        order: dict[str, Unit] = {}
        share = 1.0

        def see(unit: Unit, output: Tensor) -> None:
            order.setdefault(unit.key, unit)
            self.calls[unit.key] = self.calls.get(unit.key, 0) + 1
            self.sizes[unit.key] = self.sizes.get(unit.key, 0) + int(output.numel() * share)

        for graph, own in self.inputs.items():
            inputs, count = own[0]
            share = len(self.rows[graph]) / count
            with _outputs(self.given, list(wanted.values()), see), torch.no_grad():
                call(self.given, graph, inputs)
        return list(order.values())

    def run(self) -> Iterator[_Solution]:
        """Every unit in turn: in one pass where all samples fit into one batch, else in a pass for each."""
        whole = self._one_batch()
        if whole is None:
            for unit in self.units:
                with masked_cut(self.stand_in, self.cut):
                    solved = self._solved(unit, self._seen(unit))
                yield solved
            return
        found: list[_Solution] = []

        def solve(unit: Unit) -> Callable[..., None]:
            def before(_: nn.Module, args: tuple[Any, ...]) -> None:
                found.append(self._solved(unit, [args[0].detach()]))

            return before

        graph, inputs = whole
        with masked_cut(self.stand_in, self.cut), contextlib.ExitStack() as stack, torch.no_grad():
            for unit in self.units:  # after the hooks of the masks, which come first
                module = self.stand_in.network.get_submodule(unit.exit)
                stack.callback(module.register_forward_pre_hook(solve(unit)).remove)
            call(self.stand_in, graph, inputs)
        yield from found

    def _one_batch(self) -> tuple[str, dict[str, Tensor]] | None:
        """Graph and inputs of all samples, None where that is more than one call of an exit or too large."""
        if len(self.rows) > 1 or any(calls > 1 for calls in self.calls.values()):
            return None
        widest = max((unit.groups * unit.width for unit in self.units), default=0)
        narrowest = min((self._outs(unit) for unit in self.units), default=1)
        if 4 * widest * max(self.sizes.values(), default=0) / narrowest > KEPT_BYTES:
            return None
        ((graph, own),) = self._inputs(self.options.samples).items()
        return (graph, own[0][0]) if len(own) == 1 else None

    def _outs(self, unit: Unit) -> int:
        weight = self.given.network.get_submodule(unit.exit).get_parameter("weight")
        return weight.numel() // (unit.groups * unit.width)

    def _seen(self, unit: Unit) -> Iterator[Tensor]:
        """Inputs of an exit of the stand-in, over graphs, batches and calls; what follows the last is not run."""
        for graph, own in self.inputs.items():
            for inputs, _ in own:
                seen: list[Tensor] = []

                def look(_: str, x: Tensor, seen: list[Tensor] = seen) -> None:
                    seen.append(x.detach())
                    if len(seen) == self.calls[unit.key] and len(self.inputs) == 1:
                        raise _Stop

                with contextlib.suppress(_Stop), exits(self.stand_in.network, {unit.key: unit}, look), torch.no_grad():
                    call(self.stand_in, graph, inputs)
                yield from seen

    def _solved(self, unit: Unit, inputs: Iterable[Tensor]) -> _Solution:
        """Solve one exit and put the result into the stand-in."""
        if unit.key not in self.targets:
            self._look(self.units[self.units.index(unit) :])
        target = self.targets.pop(unit.key)
        shown, outputs, weights = (torch.cat(own) for own in (target.shown, target.outputs, target.weights))
        kept = torch.tensor(self.cut.groups[unit.key])[:, None] * unit.width + torch.arange(unit.width)
        columns = kept.reshape(-1)
        module: Any = self.stand_in.network.get_submodule(unit.exit)
        full = module.weight.detach() if isinstance(module, nn.Linear) else module.weight.detach().T
        bias = None if getattr(module, "bias", None) is None else module.bias.detach()
        system = _Normal(full[:, columns], bias)
        place = taken = 0
        for x in inputs:
            flat = x.reshape(-1, x.shape[-1])
            chosen = flat[shown[place : place + len(flat)]][:, columns]
            system.add(chosen, outputs[taken : taken + len(chosen)], weights[taken : taken + len(chosen)])
            place, taken = place + len(flat), taken + len(chosen)
        assert place == len(shown), "the pruned model runs its exits as often as the whole one"
        if not system.finite:
            raise DataError(f"{unit.path}: what it gives is not finite; leave out the samples that lead to it")
        before, solved = system.error(system.old), system.solved(self.options.ridge)
        after = system.error(solved)
        if not after < before:
            solved, after = system.old, before
        weight = solved[: len(columns)].T.to(full.dtype)
        new_bias = None if bias is None else solved[-1].to(bias.dtype)
        with torch.no_grad():
            full[:, columns] = weight
            if bias is not None and new_bias is not None:
                bias.copy_(new_bias)
        return _Solution(unit, ExitFit(unit.key, before, after, system.rows), weight, new_bias)

    def _look(self, units: Sequence[Unit]) -> None:
        """Outputs and weights of rows in the whole model, at as many of the next exits as memory is meant for."""
        taken, size = [units[0]], 4 * self.sizes[units[0].key]
        for unit in units[1:]:
            size += 4 * self.sizes[unit.key]
            if size > KEPT_BYTES:
                break
            taken.append(unit)
        self.targets.update({unit.key: _Target() for unit in taken})
        for graph, own in self.inputs.items():
            loss = graph_loss(self.given, graph, self.rows[graph])
            for inputs, count in own:
                seen: list[tuple[Unit, Tensor]] = []

                def see(unit: Unit, output: Tensor, seen: list[tuple[Unit, Tensor]] = seen) -> Tensor | None:
                    # A network whose parameters want no gradient has none to give at its first exit.
                    leaf = output if output.requires_grad else output.detach().requires_grad_(self.options.weighted)
                    seen.append((unit, leaf))
                    return leaf

                with _outputs(self.given, taken, see), torch.set_grad_enabled(self.options.weighted):
                    value = surrogate(loss, call(self.given, graph, inputs), count, self.rng)
                leaves = [output for _, output in seen]
                gradients: Sequence[Tensor | None] = [None] * len(leaves)
                if leaves and value.requires_grad:
                    gradients = torch.autograd.grad(value, leaves, allow_unused=True)
                for (unit, output), gradient in zip(seen, gradients, strict=True):
                    self._keep(unit, output, gradient)

    def _keep(self, unit: Unit, output: Tensor, gradient: Tensor | None) -> None:
        flat = output.detach().reshape(-1, output.shape[-1])
        if not self.options.weighted:
            weights = torch.ones(len(flat))
        elif gradient is None:
            weights = torch.zeros(len(flat))
        else:
            weights = (gradient.reshape(flat.shape) ** 2).sum(-1)
        target, shown = self.targets[unit.key], weights != 0
        target.shown.append(shown)
        target.outputs.append(flat[shown])
        target.weights.append(weights[shown])


@contextlib.contextmanager
def _outputs(given: Prunable, units: Sequence[Unit], see: Callable[[Unit, Tensor], Tensor | None]) -> Iterator[None]:
    """While open, ``see`` gets the output of every exit, and may replace it."""

    def hook(unit: Unit) -> Callable[..., Tensor | None]:
        return lambda _module, _args, output: see(unit, output)

    with contextlib.ExitStack() as stack:
        for unit in units:
            module = given.network.get_submodule(unit.exit)
            stack.callback(module.register_forward_hook(hook(unit)).remove)
        yield


# --- solving ----------------------------------------------------------------------------------------------------------


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
        for start in range(0, len(x), BLOCK):
            part = slice(start, start + BLOCK)
            root = weights[part].double().sqrt()[:, None]
            ones = [root] if self.biased else []
            own, wanted = torch.cat([x[part].double() * root, *ones], 1), y[part].double() * root
            self.gram += own.T @ own
            self.cross += own.T @ wanted
            self.energy += float((wanted**2).sum())
            self.rows += len(own)

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
