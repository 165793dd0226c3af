"""What a forward returns, as tensors by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgeattn.errors import ModelError

if TYPE_CHECKING:
    import torch


def name_outputs(result: Any) -> dict[str, torch.Tensor]:
    """What a forward returned by name: ``output``, the keys of a dict or ModelOutput, ``output_0``, ``output_1`` ...

    Inside an output, tuples are numbered (``hidden_states_0``) and dicts dotted (``head.scores``). None is left out,
    and of transformers' own also caches and the outputs of towers, whose tensors are parts of others.

    Raises:
        ModelError: for anything else.
    """
    import torch

    if isinstance(result, torch.Tensor):
        return {"output": result}
    if isinstance(result, Mapping):
        items = {str(key): value for key, value in result.items()}
    elif isinstance(result, (tuple, list)):
        items = {f"output_{index}": value for index, value in enumerate(result)}
    else:
        raise ModelError(f"forward must return a tensor, or a dict or tuple of tensors; got {type(result).__name__}")
    tensors: dict[str, torch.Tensor] = {}
    for key, value in items.items():
        tensors |= _flat(key, value)
    if not tensors:
        raise ModelError("forward returned no tensor")
    return tensors


def _flat(name: str, value: Any) -> dict[str, torch.Tensor]:
    import torch

    if value is None or _left_out(value):
        return {}
    if isinstance(value, torch.Tensor):
        return {name: value}
    flat: dict[str, torch.Tensor] = {}
    if isinstance(value, Mapping):
        for key, item in value.items():
            flat |= _flat(f"{name}.{key}", item)
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            flat |= _flat(f"{name}_{index}", item)
    else:
        raise ModelError(f"output {name!r} of forward must be a tensor, got {type(value).__name__}")
    return flat


def _left_out(value: Any) -> bool:
    """A cache or a ModelOutput of transformers, known by its class's names: nothing is imported to ask."""
    return any(kind.__name__ in ("ModelOutput", "Cache") for kind in type(value).__mro__)
