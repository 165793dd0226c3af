"""What a forward returns, as tensors by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgeattn.errors import ModelError

if TYPE_CHECKING:
    import torch


def name_outputs(result: Any) -> dict[str, torch.Tensor]:
    """What a forward returned by name: ``output``, keys of a dict or ModelOutput, fields of a dataclass or named tuple.

    Of any other tuple ``output_0``, ``output_1`` ... Inside an output, tuples are numbered (``hidden_states_0``), and
    what has names is dotted (``head.scores``). None is left out,
    and of transformers' own also caches and the outputs of towers, whose tensors are parts of others.

    Raises:
        ModelError: for anything else.
    """
    import torch

    if isinstance(result, torch.Tensor):
        return {"output": result}
    fields = _fields(result)
    if fields is not None:
        items = fields
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
    fields = _fields(value)
    if fields is not None:
        for key, item in fields.items():
            flat |= _flat(f"{name}.{key}", item)
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            flat |= _flat(f"{name}_{index}", item)
    else:
        raise ModelError(f"output {name!r} of forward must be a tensor, got {type(value).__name__}")
    return flat


def _fields(value: Any) -> dict[str, Any] | None:
    """The parts of a mapping, a dataclass or a named tuple by their names; None for anything else."""
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    return None


def _left_out(value: Any) -> bool:
    """A cache or a ModelOutput of transformers, known by its class's names: nothing is imported to ask."""
    return any(kind.__name__ in ("ModelOutput", "Cache") for kind in type(value).__mro__)
