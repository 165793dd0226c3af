"""A model with a cut applied: copied, cut, made a model again, and compared with the masked original."""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from edgeattn.errors import UnsupportedError
from edgeattn.model import EdgeModel
from edgeattn.pruning import imported
from edgeattn.pruning.anatomy import Anatomy, Unit, Unknown, exits, masked, skipped
from edgeattn.pruning.cut import Cut, check_cut, without_dropped
from edgeattn.pruning.families import find
from edgeattn.pruning.forms import Guide, form, has_forms
from edgeattn.pruning.prepare import prepare
from edgeattn.pruning.surgery import remove
from edgeattn.spec import GraphSpec

ORACLE = 1e-4  # largest difference of an output of the pruned and the masked network, relative to its largest beyond 1


@dataclass(frozen=True)
class Subject:
    """A model that can be cut, and what was found in it.

    Attributes:
        model: the source; where some of its blocks cannot be cut as they are, ``nn.MultiheadAttention`` for one, a copy
            with others that compute the same.
    """

    model: EdgeModel
    anatomy: Anatomy

    @property
    def network(self) -> nn.Module:
        """The module that is cut."""
        assert self.model.network is not None, "checked by subject()"
        return self.model.network


def subject(model: EdgeModel) -> Subject:
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


def _prepared(model: EdgeModel) -> tuple[Subject, str]:
    """The model, or one that computes the same with blocks that can be cut; and why not, where that was tried."""
    assert model.network is not None, "checked by subject()"
    assert model.rebuild is not None, "checked by subject()"
    as_it_is = Subject(model, _found(model))
    network = copied(model.network)
    graph = imported.is_graph(network)
    if not (imported.release(network, as_it_is.anatomy) if graph else prepare(network)):
        return as_it_is, ""
    try:
        made = model.rebuild(network)
        difference = oracle_difference(as_it_is, Cut(), made)
    except Exception as error:  # noqa: BLE001 - any exception means that the network needs its own blocks
        return as_it_is, f"with blocks that can be cut it does not run ({_line(error)})"
    if not difference <= ORACLE:
        return as_it_is, f"with blocks that can be cut its outputs are off by {difference:.1e}"
    return Subject(made, _found(made)), ""


def _found(model: EdgeModel) -> Anatomy:
    """What is in a model, by structure where it is an imported graph and by names where it is a module."""
    assert model.network is not None, "checked by subject()"
    return imported.find(model.network) if imported.is_graph(model.network) else find(model.network)


def _with_units_in_use(given: Subject) -> Subject:
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


def _unknown(given: Subject, unit: Unit, why: str) -> Unknown:
    return Unknown(unit.path, type(given.network.get_submodule(unit.path)).__name__, why)


def _with_units_that_run(given: Subject) -> Subject:
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


def _with_stacks_that_run(given: Subject) -> Subject:
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
    given: Subject, candidates: Sequence[T], beside: Sequence[T], trial: Callable[[Sequence[T]], Cut]
) -> tuple[list[T], dict[T, str]]:
    """The candidates that can be cut together, and why the others cannot: all at once, halved only where that fails.

    Args:
        beside: what is known to pass; every trial cuts it too, so that the result passes as a whole.
        trial: the cut that tries some of them.
    """
    cut = trial([*beside, *candidates])
    if not candidates or cut.empty:
        return list(candidates), {}
    _, why = _tried(given, cut)
    if not why:
        return list(candidates), {}
    if len(candidates) == 1:
        return [], {candidates[0]: why}
    half = len(candidates) // 2
    first, failed = _passing(given, candidates[:half], beside, trial)
    second, more = _passing(given, candidates[half:], [*beside, *first], trial)
    return [*first, *second], failed | more


def copied(network: nn.Module) -> nn.Module:
    """A copy of a network; the original keeps its weights.

    Raises:
        UnsupportedError: if it cannot be copied.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch copies its own trees by their old names
            return copy.deepcopy(network)
    except Exception as error:
        raise UnsupportedError(
            f"the network cannot be copied ({type(error).__name__}: {error}); pruning needs a module that "
            "copy.deepcopy takes"
        ) from error


def prune(given: Subject, cut: Cut, guide: Guide | None = None) -> EdgeModel:
    """The model with a cut applied; its outputs are those of the original with what was cut masked to zero.

    Merged heads, low rank, 2:4 and a shorter context come after that; see :mod:`edgeattn.pruning.forms`.

    Args:
        guide: what makes the other forms lose less.

    Raises:
        InputError: if the cut does not fit.
        UnsupportedError: if the pruned network does not run, or computes something else than the masked one: the family
            of the block is not understood, and nothing of it is kept.
    """
    pruned, why = _tried(given, cut)
    if pruned is None:
        raise UnsupportedError(f"{given.model.spec.name}: once {described(cut)} are cut, {why}; it is left whole")
    return form(pruned, given.anatomy, cut, guide, ORACLE) if has_forms(cut) else pruned


def _tried(given: Subject, cut: Cut) -> tuple[EdgeModel | None, str]:
    """The model with a cut applied, or why there is none.

    Raises:
        InputError: if the cut does not fit.
    """
    check_cut(given.anatomy, cut)
    network = copied(given.network)
    assert given.model.rebuild is not None, "checked by subject()"
    try:
        remove(network, given.anatomy, cut)
        pruned = given.model.rebuild(network)
        difference = oracle_difference(given, cut, pruned)
    except UnsupportedError as error:
        return None, str(error)
    except Exception as error:  # noqa: BLE001 - a network that is not understood fails in its own way
        return None, f"the network does not run ({_line(error)})"
    if not difference <= ORACLE:
        return None, (
            f"outputs differ from those with the same parts masked by {difference:.1e}: it computes otherwise than its "
            "layers' names say"
        )
    return pruned, ""


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def described(cut: Cut) -> str:
    """The places of a cut, in words."""
    places = [*(key.partition(":")[2] for key in cut.groups), *cut.layers]
    more = f" and {len(places) - 4} more" if len(places) > 4 else ""
    return f"{', '.join(places[:4])}{more}" or "no parts"


def oracle_difference(given: Subject, cut: Cut, pruned: EdgeModel) -> float:
    """The largest difference to the masked original over all outputs that both have, relative to the largest beyond 1.

    Inputs are the original's example. A graph with states makes two steps, the second from what the first one left; a
    state that changed its size is zero at first in both. Infinite where only one of them is not finite.
    """
    worst = 0.0
    for graph in pruned.spec.graphs:
        original = given.model.spec.graph(graph.name)
        before = _names_before(given.anatomy, cut, original, graph)
        whole, smaller = dict(given.model.example[graph.name]), {}
        for tensor in graph.all_inputs:
            value = whole[before[tensor.name]]
            if value.shape != tensor.shape:
                whole[before[tensor.name]] = np.zeros_like(value)
                value = np.zeros(tensor.shape, tensor.dtype)
            smaller[tensor.name] = value
        for _ in range(2 if graph.states else 1):
            with masked_cut(given, cut):
                wanted = given.model.run(whole, graph.name)
            got = pruned.run(smaller, graph.name)
            worst = max(worst, *(_difference(wanted[before[name]], got[name]) for name in graph.output_names), 0.0)
            whole |= {state.input: wanted[state.output] for state in original.states}
            smaller |= {state.input: got[state.output] for state in graph.states}
    return worst


def _names_before(anatomy: Anatomy, cut: Cut, original: GraphSpec, graph: GraphSpec) -> dict[str, str]:
    """Name of each input and output -> its name in the original.

    Where there is one for each layer they are numbered, as caches are, and without a layer those behind it count anew.
    """
    numbers: dict[str, list[dict[str, int]]] = {}
    for which, spec in enumerate((original, graph)):
        for name in (*(tensor.name for tensor in spec.all_inputs), *spec.output_names):
            stem = name.rstrip("0123456789")
            if stem != name:
                numbers.setdefault(stem, [{}, {}])[which][name] = int(name[len(stem) :])
    before = {name: name for name in (*(tensor.name for tensor in graph.all_inputs), *graph.output_names)}
    # The caches of an encoder-decoder are its decoder's.
    stacks = sorted(cut.layers, key=lambda path: "decoder" in path.split("."))
    for stem, (all_names, left) in numbers.items():
        for path in stacks:
            kept, layers = cut.layers[path], anatomy.stack(path).layers
            if set(all_names.values()) == set(range(layers)) and set(left.values()) == set(range(len(kept))):
                before |= {name: f"{stem}{kept[number]}" for name, number in left.items()}
    return before


def _difference(wanted: np.ndarray, got: np.ndarray) -> float:
    """The largest difference of two outputs, relative to the largest beyond 1; 0 where a cut changed their size."""
    if wanted.shape != got.shape or got.dtype.kind != "f" or not got.size:
        return 0.0
    finite = np.isfinite(wanted)
    if not np.array_equal(finite, np.isfinite(got)):
        return math.inf
    scale = max(1.0, float(np.abs(wanted[finite]).max(initial=0.0)))
    return float(np.abs(wanted[finite] - got[finite]).max(initial=0.0)) / scale


@contextlib.contextmanager
def masked_cut(given: Subject, cut: Cut) -> Iterator[None]:
    """While open, what a cut removes is masked in the original."""
    masks = cut_masks(given.anatomy, without_dropped(given.anatomy, cut))
    gone = {
        path: tuple(number for number in range(given.anatomy.stack(path).layers) if number not in kept)
        for path, kept in cut.layers.items()
    }
    with masked(given.network, given.anatomy, masks), skipped(given.network, gone):
        yield


def cut_masks(anatomy: Anatomy, cut: Cut) -> dict[str, torch.Tensor]:
    """Unit's key -> (groups,), 1 where a group stays."""
    masks: dict[str, torch.Tensor] = {}
    for key, kept in cut.groups.items():
        mask = torch.zeros(anatomy.unit(key).groups)
        mask[list(kept)] = 1.0
        masks[key] = mask
    return masks
