"""What of a model can be cut: its units and stacks are found, and each kind is tried on the example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn

from edgeattn.errors import UnsupportedError
from edgeattn.model import EdgeModel
from edgeattn.pruning import imported
from edgeattn.pruning.anatomy import Anatomy, Prunable, Unit, Unknown, exits
from edgeattn.pruning.apply import ORACLE, failure_line, oracle_difference, removed
from edgeattn.pruning.cut import Cut
from edgeattn.pruning.families import find_anatomy
from edgeattn.pruning.flow import is_graph
from edgeattn.pruning.prepare import prepare
from edgeattn.pruning.repetitions import release
from edgeattn.pruning.surgery import copied


def prunable(model: EdgeModel) -> Prunable:
    """Look for what can be cut, and try it: one small cut of every kind of unit and of stack on the example.

    What does not run or does not equal its masking is in the anatomy's ``unknown``, with the reason, and never cut. So
    is what no graph runs: nothing would be known of it.

    Raises:
        UnsupportedError: for a model without modules of its own, or in which nothing can be cut.
    """
    if model.network is None or model.rebuild is None:
        raise UnsupportedError(f"{model.spec.name}: {_why_no_network(model)}")
    given, why = _prepared(model)
    given = _with_stacks_that_run(_with_units_that_run(_with_units_in_use(given)))
    if not given.anatomy.units:
        unknown = given.anatomy.unknown
        what = "; ".join(f"{found.path or 'the network'} ({found.kind}): {found.why}" for found in unknown)
        raise UnsupportedError(
            f"{model.spec.name}: no attention block or feed-forward that can be pruned was found"
            + "".join(f"; {reason}" for reason in (what, why) if reason)
        )
    return given


def _why_no_network(model: EdgeModel) -> str:
    """Why a model has no modules that can be cut, and what can be done."""
    unsupported = next((found for m in model.modules.values() if (found := getattr(m, "unsupported", ""))), "")
    if unsupported:  # an ONNX graph that is run by ONNX Runtime alone
        return (
            f"{unsupported}, so it has no layers to prune. Quantizing and converting it for OpenVINO, TensorRT and "
            "ONNX Runtime still work; to prune it, take the torch module or the Hugging Face directory that it was "
            "exported from, or export it without that operator"
        )
    return (
        "it came as a graph whose sizes are fixed, as a program of torch.export is; prune the torch module or the "
        "Hugging Face directory that it was exported from, or an ONNX file of it. Quantizing and converting it still "
        "work"
    )


def _prepared(model: EdgeModel) -> tuple[Prunable, str]:
    """The model, or one that computes the same with blocks that can be cut; and why not, where that was tried."""
    assert model.network is not None, "checked by prunable()"
    assert model.rebuild is not None, "checked by prunable()"
    as_it_is = Prunable(model, _found(model))
    network = copied(model.network)
    graph = is_graph(network)
    if not (release(network, as_it_is.anatomy) if graph else prepare(network)):
        return as_it_is, ""
    try:
        made = model.rebuild(network)
        difference = oracle_difference(as_it_is, Cut(), made)
    except Exception as error:  # noqa: BLE001 - any exception means that the network needs its own blocks
        return as_it_is, f"with blocks that can be cut it does not run ({failure_line(error)})"
    if not difference <= ORACLE:
        return as_it_is, f"with blocks that can be cut its outputs are off by {difference:.1e}"
    return Prunable(made, _found(made)), ""


def _found(model: EdgeModel) -> Anatomy:
    """What is in a model, by structure where it is an imported graph and by names where it is a module."""
    assert model.network is not None, "checked by prunable()"
    return imported.find(model.network) if is_graph(model.network) else find_anatomy(model.network)


def _with_units_in_use(given: Prunable) -> Prunable:
    """Units through whose exit something leaves, which of them read another sequence, and the stacks that hold any."""
    seen: dict[str, int] = {}
    tokens: dict[str, dict[str, int]] = {unit.key: {} for unit in given.anatomy.units}

    def note(key: str, x: torch.Tensor) -> None:
        seen[key] = x.shape[-1]

    def reader(key: str, path: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], torch.Tensor) and args[0].ndim > 1:
                tokens[key][path] = args[0].shape[-2]

        return hook

    handles = [
        given.network.get_submodule(path).register_forward_pre_hook(reader(unit.key, path))
        for unit in given.anatomy.units
        for path in unit.entries
        if unit.kind == "attention"
    ]
    try:
        with exits(given.network, {unit.key: unit for unit in given.anatomy.units}, note):
            for graph, example in given.model.example.items():
                given.model.run(example, graph)
    finally:
        for handle in handles:
            handle.remove()
    units, unknown = [], list(given.anatomy.unknown)
    for unit in given.anatomy.units:
        if seen.get(unit.key) == unit.groups * unit.width:
            units.append(replace(unit, cross=unit.cross or len(set(tokens[unit.key].values())) > 1))
        else:
            why = "nothing leaves through its last layer: no graph runs it, or it uses the weight without the layer"
            unknown.append(_unknown(given, unit, why))
    run = tuple(
        stack for stack in given.anatomy.stacks if any(unit.exit.startswith(f"{stack.path}.") for unit in units)
    )
    return replace(given, anatomy=Anatomy(tuple(units), run, tuple(unknown)))


def _unknown(given: Prunable, unit: Unit, why: str) -> Unknown:
    return Unknown(unit.path, type(given.network.get_submodule(unit.path)).__name__, why)


def _with_units_that_run(given: Prunable) -> Prunable:
    """Units of the kinds that pass a trial."""
    kinds: dict[tuple[Any, ...], list[Unit]] = {}
    for unit in given.anatomy.units:
        sizes = [tuple(given.network.get_submodule(path).get_parameter("weight").shape) for path in unit.entries]
        kind = type(given.network.get_submodule(unit.path)).__name__
        kinds.setdefault((unit.kind, unit.family, kind, unit.groups, unit.width, unit.cross, *sizes), []).append(unit)

    def trial(chosen: Sequence[tuple[Any, ...]]) -> Cut:
        numbered = [(number, unit) for kind in chosen for number, unit in enumerate(kinds[kind])]
        return Cut({unit.key: _trial_groups(unit.groups, number) for number, unit in numbered if unit.groups > 1})

    _, failed = _passing(given, list(kinds), [], trial)
    refused = {unit.key: why for kind, why in failed.items() for unit in kinds[kind]}
    units = tuple(unit for unit in given.anatomy.units if unit.key not in refused)
    unknown = tuple(_unknown(given, given.anatomy.unit(key), why) for key, why in refused.items())
    return replace(given, anatomy=replace(given.anatomy, units=units, unknown=(*given.anatomy.unknown, *unknown)))


def _trial_groups(groups: int, number: int) -> tuple[int, ...]:
    """Groups that stay in a trial: without both ends, or the one in the middle.

    In turn, because blocks that rely on others having as many as they have must fail.
    """
    gone = {groups // 2} if number % 2 else {0} if groups == 2 else {0, groups - 1}
    return tuple(group for group in range(groups) if group not in gone)


def _with_stacks_that_run(given: Prunable) -> Prunable:
    """Stacks that still compute what they should without one of their layers."""
    stacks = {
        stack.path: next((number for number in range(stack.layers) if number not in stack.pinned), None)
        for stack in given.anatomy.stacks
    }

    def trial(chosen: Sequence[str]) -> Cut:
        kept = {path: range(given.anatomy.stack(path).layers) for path in chosen}
        return Cut({}, {path: tuple(n for n in numbers if n != stacks[path]) for path, numbers in kept.items()})

    passed, failed = _passing(given, [path for path, number in stacks.items() if number is not None], [], trial)
    unknown = tuple(Unknown(path, "layers", why) for path, why in failed.items())
    return replace(
        given,
        anatomy=replace(
            given.anatomy,
            stacks=tuple(stack for stack in given.anatomy.stacks if stack.path in passed),
            unknown=(*given.anatomy.unknown, *unknown),
        ),
    )


T = TypeVar("T")


def _passing(
    given: Prunable, candidates: Sequence[T], beside: Sequence[T], trial: Callable[[Sequence[T]], Cut]
) -> tuple[list[T], dict[T, str]]:
    """The candidates that can be cut together, and why the others cannot: all at once, halved only where that fails.

    Args:
        beside: what is known to pass; every trial cuts it too, so that the result passes as a whole.
        trial: the cut that tries some of them.
    """
    cut = trial([*beside, *candidates])
    if not candidates or cut.empty:
        return list(candidates), {}
    _, why = removed(given, cut)
    if not why:
        return list(candidates), {}
    if len(candidates) == 1:
        return [], {candidates[0]: why}
    half = len(candidates) // 2
    first, failed = _passing(given, candidates[:half], beside, trial)
    second, more = _passing(given, candidates[half:], [*beside, *first], trial)
    return [*first, *second], failed | more
