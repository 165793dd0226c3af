"""Example inputs of any form as tensors by name: ``*args``, lists and dicts of tensors, flags beside them.

An engine takes tensors by name and nothing else. What a forward is given in other forms is taken apart here, and put
together again in front of every call: tensors keep the name of their parameter, inside a list or ``*args`` they are
numbered (``xs_0``), inside a dict dotted (``batch.ids``). Everything that is no tensor (a flag, a number, a word, None)
is part of the program from then on, as if forward had it written down.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn.errors import ModelError, UnsupportedError
from edgeattn.model import Graph

if TYPE_CHECKING:
    import torch

SCRIPTED = "is compiled by torch.jit, and only its Python code can be traced: give the nn.Module that it was made of"


def with_named_tensors(graph: Graph) -> tuple[Graph, tuple[str, ...]]:
    """A graph whose example inputs are tensors by name; the graph itself where they are.

    Returns:
        the graph, and what its user should know.

    Raises:
        ModelError: for inputs that forward does not take, or without a tensor.
    """
    given = graph.inputs
    _refuse_scripted(graph.module)
    if _is_tensor(given) or not isinstance(given, (tuple, list, Mapping)):
        return graph, ()
    signature = inspect.signature(graph.module.forward)
    starred = any(p.kind in (p.VAR_POSITIONAL, p.POSITIONAL_ONLY) for p in signature.parameters.values())
    values = list(given.values()) if isinstance(given, Mapping) else list(given)
    if all(_is_tensor(value) for value in values) and not (starred and not isinstance(given, Mapping)):
        return graph, ()
    kind = type(graph.module).__name__
    try:
        bound = signature.bind(**given) if isinstance(given, Mapping) else signature.bind(*given)
    except TypeError as error:
        raise ModelError(f"{kind}: forward{signature} does not take the example inputs: {error}") from error
    tensors: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    arguments: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        open_ended = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        arguments[name] = _taken_apart("" if open_ended else name, value, tensors, constants)
    if not tensors:
        key, value = next(iter(constants.items()), ("", None))
        raise ModelError(f"{kind}: example input {key!r} must be a tensor, got {type(value).__name__}")
    notes = (f"constants of forward: {', '.join(f'{k}={v!r:.40}' for k, v in constants.items())}",) if constants else ()
    return replace(graph, module=arguments_module(graph.module, signature, arguments), inputs=tensors), notes


def _refuse_scripted(module: torch.nn.Module) -> None:
    import torch

    for path, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            name = f"module {path} ({part.original_name})" if path else part.original_name
            raise UnsupportedError(f"{name} {SCRIPTED}")


def arguments_module(
    module: torch.nn.Module, signature: inspect.Signature, arguments: Mapping[str, Any]
) -> torch.nn.Module:
    """A module that takes tensors by name and calls ``module`` with the arguments that they are parts of."""
    import torch

    class Arguments(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, **given: torch.Tensor) -> Any:
            bound = inspect.BoundArguments(signature, {})
            bound.arguments.update({name: _put_together(value, given) for name, value in arguments.items()})
            return self.inner(*bound.args, **bound.kwargs)

    return Arguments().eval()


class _Place(str):
    """Where a tensor stands among arguments: its name."""

    __slots__ = ()


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, (torch.Tensor, np.ndarray))


def _taken_apart(name: str, value: Any, tensors: dict[str, Any], constants: dict[str, Any]) -> Any:
    """The value with a place in place of each tensor, which goes to ``tensors``."""
    if _is_tensor(value):
        tensors[name] = value
        return _Place(name)
    if isinstance(value, Mapping):
        dot = f"{name}." if name else ""
        parts = {key: _taken_apart(f"{dot}{key}", item, tensors, constants) for key, item in value.items()}
        return _like(value, parts)
    if isinstance(value, (tuple, list)):
        items = [_taken_apart(f"{name}_{index}", item, tensors, constants) for index, item in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        made = copy.copy(value)
        for field in dataclasses.fields(value):
            part = _taken_apart(f"{name}.{field.name}", getattr(value, field.name), tensors, constants)
            object.__setattr__(made, field.name, part)  # it may be frozen
        return made
    constants[name] = value
    return value


def _put_together(value: Any, given: Mapping[str, Any]) -> Any:
    if isinstance(value, _Place):
        return given[value]
    if isinstance(value, Mapping):
        return _like(value, {key: _put_together(item, given) for key, item in value.items()})
    if isinstance(value, (tuple, list)):
        items = [_put_together(item, given) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        made = copy.copy(value)
        for field in dataclasses.fields(value):
            object.__setattr__(made, field.name, _put_together(getattr(value, field.name), given))
        return made
    return value


def _like(value: Mapping[Any, Any], parts: dict[Any, Any]) -> Any:
    """A mapping of the kind of another one, such as transformers' BatchEncoding; a dict where it cannot be made."""
    if type(value) is dict:
        return parts
    try:
        return type(value)(parts)  # type: ignore[call-arg]
    except TypeError:
        return parts


def as_module(function: Callable[..., Any]) -> torch.nn.Module:
    """A function as a module: a method of one, a partial, or a function that uses modules of the scope around it."""
    import torch

    class Called(torch.nn.Module):
        def __init__(self, called: Callable[..., Any]) -> None:
            super().__init__()
            self.forward = called
            for place, part in enumerate(_modules_of(called)):
                self.add_module("inner" if not place else f"inner_{place}", part)

        def __deepcopy__(self, memo: dict[int, Any]) -> Any:
            return type(self)(_copied(self.forward, memo))

    return Called(function)


def _modules_of(function: Any) -> list[torch.nn.Module]:
    import torch

    if isinstance(function, functools.partial):
        held = [function.func, *function.args, *function.keywords.values()]
    elif isinstance(function, types.MethodType):
        held = [function.__self__]
    else:
        held = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    found: list[torch.nn.Module] = []
    for value in held:
        if isinstance(value, torch.nn.Module):
            found.append(value)
        elif isinstance(value, (functools.partial, types.MethodType, types.FunctionType)):
            found += _modules_of(value)
    return list(dict.fromkeys(found))


def _copied(function: Any, memo: dict[int, Any]) -> Any:
    """A function with copies of the modules that it uses."""
    if isinstance(function, types.FunctionType) and function.__closure__:
        cells = tuple(types.CellType(copy.deepcopy(cell.cell_contents, memo)) for cell in function.__closure__)
        made = types.FunctionType(
            function.__code__, function.__globals__, function.__name__, function.__defaults__, cells
        )
        made.__kwdefaults__ = function.__kwdefaults__
        return made
    return copy.deepcopy(function, memo)
