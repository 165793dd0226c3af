"""Removing what a cut says, for good: smaller tensors, and modules that know of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgeattn.errors import UnsupportedError
from edgeattn.pruning.anatomy import Anatomy, Slice, Stack, Unit
from edgeattn.pruning.cut import Cut, check_cut, without_dropped


def remove(network: nn.Module, anatomy: Anatomy, cut: Cut) -> None:
    """Remove groups and layers from a network, in place.

    A tensor that several modules share is cut once and stays shared. Nothing is changed if the cut does not fit.

    Raises:
        InputError: if it does not fit.
        UnsupportedError: if two units share a tensor and the cut asks different things of them.
    """
    check_cut(anatomy, cut)
    cut = without_dropped(anatomy, cut)
    kept = {anatomy.unit(key).key: groups for key, groups in cut.groups.items()}
    remove_groups(network, [(anatomy.unit(key), groups) for key, groups in kept.items()])
    for path, numbers in cut.layers.items():
        remove_layers(network, anatomy.stack(path), numbers)


def remove_groups(network: nn.Module, cuts: Sequence[tuple[Unit, tuple[int, ...]]]) -> None:
    """Remove all but the named groups of each unit."""
    # By the tensor, not by its name: tied weights are one tensor under several names.
    wanted: dict[tuple[int, int], dict[int, Tensor]] = {}
    tensors: dict[int, Tensor] = {}
    for unit, groups in cuts:
        for piece in unit.slices:
            tensor = getattr(network.get_submodule(piece.module), piece.tensor)
            tensors[id(tensor)] = tensor
            rows = _rows(piece, groups)
            sections = wanted.setdefault((id(tensor), piece.axis), {})
            if piece.start in sections and not torch.equal(sections[piece.start], rows):
                raise UnsupportedError(
                    f"{unit.path}: it shares {piece.tensor} of {piece.module or 'the network'} with another unit, and "
                    "both must keep the same groups: tied weights change together"
                )
            sections[piece.start] = rows
    lengths = _section_lengths(network, cuts)
    fresh: dict[int, Tensor] = {}
    for (number, axis), sections in wanted.items():
        tensor = fresh.get(number, tensors[number])
        index = _index(tensor.shape[axis], sections, lengths[number, axis])
        fresh[number] = tensor.detach().index_select(axis, index)
    _replace(network, {number: (tensors[number], tensor) for number, tensor in fresh.items()})
    for unit, groups in cuts:
        for setting in unit.settings:
            setattr(network.get_submodule(setting.module), setting.attribute, setting.per_group * len(groups))
    for module in network.modules():
        _follow(module)


def _rows(piece: Slice, groups: Sequence[int]) -> Tensor:
    starts = torch.tensor(groups)[:, None] * piece.width + piece.start
    return (starts + torch.arange(piece.width)[None, :]).reshape(-1)


def _section_lengths(
    network: nn.Module, cuts: Sequence[tuple[Unit, tuple[int, ...]]]
) -> Mapping[tuple[int, int], dict[int, int]]:
    """Tensor and axis -> first entry of each section that is cut -> how long the section is before the cut."""
    lengths: dict[tuple[int, int], dict[int, int]] = {}
    for unit, _ in cuts:
        for piece in unit.slices:
            tensor = getattr(network.get_submodule(piece.module), piece.tensor)
            lengths.setdefault((id(tensor), piece.axis), {})[piece.start] = unit.groups * piece.width
    return lengths


def _index(size: int, sections: Mapping[int, Tensor], lengths: Mapping[int, int]) -> Tensor:
    """Entries of an axis that stay: what no section covers, and of each section what was chosen."""
    parts, place = [], 0
    for start in sorted(sections):
        parts += [torch.arange(place, start), sections[start]]
        place = start + lengths[start]
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
    """Make a linear layer's own sizes those of its weight; a Conv1D of transformers has ``nf`` and ``nx``."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Linear) and isinstance(weight, Tensor):
        module.out_features, module.in_features = weight.shape
    elif type(module).__name__ == "Conv1D" and isinstance(weight, Tensor):
        module.nx, module.nf = weight.shape  # type: ignore[assignment]


def remove_layers(network: nn.Module, stack: Stack, kept: Sequence[int]) -> None:
    """Leave layers out of a stack and number the others anew."""
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
        owner: Any = network.get_submodule(setting.module)
        for part in setting.attribute.split(".")[:-1]:
            owner = getattr(owner, part)
        setattr(owner, setting.attribute.rpartition(".")[2], setting.per_group * len(left))
