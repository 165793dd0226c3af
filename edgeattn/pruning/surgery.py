"""Removing groups and layers for good: smaller tensors, and modules that know of it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from edgeattn.errors import UnsupportedError
from edgeattn.pruning.anatomy import Setting, Slice, Stack, Unit


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


def remove_groups(network: nn.Module, cuts: Sequence[tuple[Unit, tuple[int, ...]]]) -> None:
    """Remove all but the named groups of each unit.

    Raises:
        UnsupportedError: before anything is changed, if a tensor is not the network's own, or two units share one and
            the cuts ask different things of it.
    """
    # By the tensor, not by its name: tied weights are one tensor under several names.
    sections: dict[tuple[int, int], dict[int, _Section]] = {}
    tensors: dict[int, Tensor] = {}
    for unit, groups in cuts:
        for piece in unit.slices:
            tensor = _held(network, piece)
            tensors[id(tensor)] = tensor
            wanted = _Section(piece.start + piece.width * unit.groups, _rows(piece, groups))
            there = sections.setdefault((id(tensor), piece.axis), {}).setdefault(piece.start, wanted)
            if there.end != wanted.end or not torch.equal(there.rows, wanted.rows):
                raise UnsupportedError(
                    f"{unit.path}: it shares {piece.tensor} of {piece.module or 'the network'} with another unit, and "
                    "both must keep the same groups: tied weights change together"
                )
    _check_sections(tensors, sections)
    fresh: dict[int, Tensor] = {}
    for (number, axis), parts in sections.items():
        tensor = fresh.get(number, tensors[number])
        fresh[number] = tensor.detach().index_select(axis, _index(tensor.shape[axis], parts).to(tensor.device))
    _replace(network, {number: (tensors[number], tensor) for number, tensor in fresh.items()})
    for unit, groups in cuts:
        for setting in unit.settings:
            set_number(network, setting, setting.per_group * len(groups))
    for module in network.modules():
        _follow(module)


@dataclass(frozen=True)
class _Section:
    """A run of entries of an axis that holds the groups of a unit: where it ends, and which entries stay."""

    end: int
    rows: Tensor


def _held(network: nn.Module, piece: Slice) -> Tensor:
    """The parameter or buffer that a slice names."""
    module = network.get_submodule(piece.module)
    for tensors in (module.named_parameters, module.named_buffers):
        for name, tensor in tensors(recurse=False, remove_duplicate=False):
            if name == piece.tensor:
                return tensor
    raise UnsupportedError(
        f"{piece.module or 'the network'} has no parameter {piece.tensor!r} of its own: it is computed from others at "
        "every call; take that parametrization off before pruning"
    )


def _check_sections(tensors: Mapping[int, Tensor], sections: Mapping[tuple[int, int], Mapping[int, _Section]]) -> None:
    for (number, axis), parts in sections.items():
        place = 0
        for start in sorted(parts):
            if start < place or parts[start].end > tensors[number].shape[axis]:
                raise UnsupportedError(
                    f"a weight of shape {tuple(tensors[number].shape)} is shared by units that hold their groups at "
                    f"different places of axis {axis}"
                )
            place = parts[start].end


def _rows(piece: Slice, groups: Sequence[int]) -> Tensor:
    starts = torch.tensor(groups)[:, None] * piece.width + piece.start
    return (starts + torch.arange(piece.width)[None, :]).reshape(-1)


def _index(size: int, sections: Mapping[int, _Section]) -> Tensor:
    """Entries of an axis that stay: what no section covers, and of each section what was chosen."""
    parts, place = [], 0
    for start in sorted(sections):
        parts += [torch.arange(place, start), sections[start].rows]
        place = sections[start].end
    return torch.cat([*parts, torch.arange(place, size)])


def _replace(network: nn.Module, fresh: Mapping[int, tuple[Tensor, Tensor]]) -> None:
    """Put new tensors where the old ones are, everywhere in the network; a parameter stays one."""
    made: dict[int, Tensor] = {}
    for number, (old, new) in fresh.items():
        contiguous = new.contiguous()
        made[number] = nn.Parameter(contiguous, old.requires_grad) if isinstance(old, nn.Parameter) else contiguous
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if id(parameter) in made:
                setattr(module, name, made[id(parameter)])
        for name, buffer in list(module.named_buffers(recurse=False, remove_duplicate=False)):
            if id(buffer) in made:
                setattr(module, name, made[id(buffer)])


def _follow(module: nn.Module) -> None:
    """Make a layer's own sizes those of its weight; a Conv1D of transformers has ``nf`` and ``nx``."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Linear) and isinstance(weight, Tensor):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif type(module).__name__ == "Conv1D" and isinstance(weight, Tensor):
        module.nx, module.nf = weight.shape  # type: ignore[assignment]


def remove_layers(network: nn.Module, stack: Stack, kept: Sequence[int]) -> None:
    """Leave layers out of a stack and renumber the others."""
    parent_path, _, name = stack.path.rpartition(".")
    layers = network.get_submodule(stack.path)
    assert isinstance(layers, nn.ModuleList), stack.path
    left = [layers[number] for number in kept]
    setattr(network.get_submodule(parent_path), name, nn.ModuleList(left))
    for number, layer in enumerate(left):
        for module in layer.modules():
            for attribute in stack.numbered:
                if isinstance(getattr(module, attribute, None), int):
                    setattr(module, attribute, number)
    for setting in stack.settings:
        set_number(network, setting, setting.per_group * len(left))
    for path, attribute in stack.lists:
        holder, name = _holder(network.get_submodule(path), attribute)
        entries = getattr(holder, name)
        setattr(holder, name, type(entries)(entries[number] for number in kept))


def set_number(network: nn.Module, setting: Setting, value: int) -> None:
    """Set an attribute of a module, or of a config that hangs on it; a frozen config is replaced by a changed one."""
    module = network.get_submodule(setting.module)
    holder, attribute = _holder(module, setting.attribute)
    if isinstance(holder, list):
        holder[int(attribute)] = value
    elif holder is not module and is_dataclass(holder) and getattr(type(holder), "__dataclass_params__").frozen:  # noqa: B009
        setattr(module, setting.attribute.rpartition(".")[0], replace(cast(Any, holder), **{attribute: value}))
    else:
        setattr(holder, attribute, value)


def _holder(owner: Any, attribute: str) -> tuple[Any, str]:
    """What holds an attribute whose name may have dots, and the last part of the name."""
    *parts, last = attribute.split(".")
    for part in parts:
        owner = getattr(owner, part)
    return owner, last
