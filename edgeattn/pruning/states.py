"""Which states of a stream hold the heads of which attention, and along which axis.

A cache has one slice per key/value head. Which one is found out by experiment, not by name: what the projections of one
head give is changed, with everything that leaves through the block's exit held at zero, and the next states that differ
are those that hold this head.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgeattn.pruning.anatomy import Anatomy, Unit, masked
from edgeattn.pruning.families import attention_unit, linear_sizes

Run = Callable[[], Mapping[str, Tensor]]
"""One step of a graph on inputs that stay the same: outputs by name."""


@dataclass(frozen=True)
class Owner:
    """Whose heads a state holds.

    Attributes:
        key: of the attention.
        axis: of the state, along which heads lie.
    """

    key: str
    axis: int


def state_owners(network: nn.Module, anatomy: Anatomy, run: Run, outputs: Mapping[str, str]) -> dict[str, Owner]:
    """The states that hold heads.

    Args:
        network: what ``run`` runs, or holds.
        run: one step.
        outputs: state -> output that becomes it.

    Returns:
        state -> its owner. States of another kind are not in it, nor those that several blocks share, nor those whose
        heads lie in a way that one axis does not describe.
    """
    found: dict[str, list[Owner]] = {}
    for unit in anatomy.units:
        if unit.kind != "attention" or unit.groups < 2:
            continue
        with torch.no_grad(), masked(network, anatomy, {unit.key: torch.zeros(unit.groups)}):
            before = run()
            after = []
            for group in (0, 1):
                with _shaken(network, unit, group):
                    after.append(run())
        for state, output in outputs.items():
            axis = _axis(before[output], [step[output] for step in after], unit.groups)
            if axis is not None:
                found.setdefault(state, []).append(Owner(unit.key, axis))
    return {state: several[0] for state, several in found.items() if len(several) == 1}


@contextlib.contextmanager
def _shaken(network: nn.Module, unit: Unit, group: int) -> Iterator[None]:
    """While open, what a unit's projections give for one group is another number."""

    def hook(first: int, end: int) -> Callable[..., Any]:
        def change(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
            changed = output.clone()
            changed[..., first:end] += 1.0
            return changed

        return change

    handles = [
        network.get_submodule(piece.module).register_forward_hook(
            hook(piece.start + group * piece.width, piece.start + (group + 1) * piece.width)
        )
        for piece in unit.slices
        if piece.module in unit.entries and piece.tensor == "weight"
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _axis(before: Tensor, after: list[Tensor], groups: int) -> int | None:
    """The axis of which group 0 changes the first entries alone, and group 1 those behind them."""
    changes = [~torch.isclose(before, other, rtol=0.0, atol=1e-6) for other in after]
    if not all(bool(change.any()) for change in changes):
        return None
    fitting = []
    for axis, size in enumerate(before.shape):
        if size % groups:
            continue
        width = size // groups
        touched = [change.movedim(axis, 0).flatten(1).any(1).nonzero().flatten().tolist() for change in changes]
        if all(number // width == group for group, numbers in enumerate(touched) for number in numbers):
            fitting.append(axis)
    return fitting[0] if len(fitting) == 1 else None


def groups_left(network: nn.Module, unit: Unit) -> int | None:
    """Groups that a unit has in a network from which some were removed; None if the unit went with its layer."""
    try:
        exit_layer = network.get_submodule(unit.exit)
    except AttributeError:
        return None
    now = attention_unit(network, unit.path, network.get_submodule(unit.path))
    if now is not None:
        return now.groups
    # Its layers may have another form by now, such as two of low rank; what leaves it has as many columns.
    inputs = next((sizes[0] for module in exit_layer.modules() if (sizes := linear_sizes(module))), 0)
    return inputs // unit.width
