"""Linear layers seen the same way: ``nn.Linear`` and transformers' ``Conv1D``, whose weight is transposed."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from edgeattn.errors import InputError, unknown_name


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer with one weight."""
    return isinstance(module, nn.Linear) or (
        type(module).__name__ == "Conv1D" and isinstance(getattr(module, "weight", None), Tensor)
    )


def linear_at(network: nn.Module, path: str) -> nn.Module:
    """The linear layer at a path.

    Raises:
        InputError: if there is none.
    """
    modules: dict[str, nn.Module] = dict(network.named_modules(remove_duplicate=False))
    if path in modules and is_linear(modules[path]):
        return modules[path]
    valid = [name for name, module in modules.items() if is_linear(module)]
    raise InputError(unknown_name("linear layer", path, valid))


def dense(layer: nn.Module) -> Tensor:
    """Weight of a linear layer as (outputs, inputs): a view that shares its memory."""
    weight = cast(Tensor, layer.weight).detach()
    return weight if isinstance(layer, nn.Linear) else weight.T


def bias_of(layer: nn.Module) -> Tensor | None:
    """Bias of a linear layer, (outputs,), None where it has none."""
    return cast("Tensor | None", layer.bias)


def owners(network: nn.Module, tensor: Tensor) -> tuple[str, ...]:
    """All names of a parameter or buffer: more than one where it is tied; a module under several paths counts once."""
    return tuple(
        f"{path}.{name}" if path else name
        for path, module in network.named_modules()
        for name, own in (
            *module.named_parameters(recurse=False, remove_duplicate=False),
            *module.named_buffers(recurse=False, remove_duplicate=False),
        )
        if own is tensor
    )


def put(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module where another is, under all of its paths."""
    for module in list(network.modules()):
        children = module._modules  # noqa: SLF001  # named_children leaves out second names
        for name in [name for name, child in children.items() if child is old]:
            setattr(module, name, new)


def fresh_parameter(old: Tensor, values: Tensor) -> nn.Parameter:
    """A parameter of other size in the place of an old one: same type and same wish for gradients."""
    return nn.Parameter(values.to(old.dtype).contiguous(), old.requires_grad)


def reorder(tensor: Tensor, axis: int, start: int, order: Tensor) -> None:
    """Put entries ``start ... start + len(order)`` of an axis in another order, in place."""
    with torch.no_grad():
        section = tensor.narrow(axis, start, len(order))
        section.copy_(section.index_select(axis, order))
