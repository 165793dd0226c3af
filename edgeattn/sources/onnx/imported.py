"""The torch module that an ONNX graph becomes: its steps, its nodes, and how one import follows another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgeattn.converters.trace import first_line
from edgeattn.errors import UnsupportedError
from edgeattn.graphs.layers import ROUNDING
from edgeattn.sources.onnx.values import (
    Value,
    outputs_of,
)

SIZES = ("target", "sizes", "starts", "ends")  # of modules in onnx_ops.shapes: what changes with heads and neurons


@dataclass(frozen=True)
class Step:
    """One call in a forward: a module, what it reads and what it makes.

    Attributes:
        path: of the module.
        inputs: names of values, empty where one is absent or is kept by the module.
        outputs: names of values, empty where one is not wanted.
        label: for messages.
        op: the operator, ``com.microsoft.Attention`` if it is not of the standard's domain.
        attributes: of the node, ``opset``, and of attention ``head_sizes`` (query, key, value) and ``share``, the query
            heads of a key/value head; integers that a newer opset gives as an input are under ``input_1``.
    """

    path: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    label: str
    op: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)


class ImportedModel(nn.Module):
    """The torch module of an ONNX graph. It takes the graph's inputs by name or in order, and returns a dict.

    Attributes:
        rounds: whether activations are rounded to integers, which engines may do by single steps otherwise.
    """

    def __init__(
        self, inputs: Mapping[str, Value], outputs: Sequence[str], steps: Sequence[Step], root: nn.Module
    ) -> None:
        super().__init__()
        self._given = {name: (value.shape, value.dtype) for name, value in inputs.items()}
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.steps = tuple(steps)
        self.rounds = any(step.op.rpartition(".")[2] in ROUNDING for step in steps)
        for name, child in root.named_children():
            self.add_module(name, child)
        last = {name: i for i, step in enumerate(steps) for name in step.inputs}
        self._done = [
            tuple(n for n in {*s.inputs, *s.outputs} if last.get(n, i) <= i and n not in outputs)
            for i, s in enumerate(steps)
        ]
        self.follow()

    def follow(self) -> None:
        """Call what is at the steps' paths now: after a module was replaced by another."""
        self._calls = [self.get_submodule(step.path) for step in self.steps]

    def forward(self, *args: Tensor, **named: Tensor) -> dict[str, Tensor]:
        """Run the graph."""
        return self._run({**dict(zip(self.inputs, args, strict=False)), **named})

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name of every value -> its shape, by a run on zeros."""
        given = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in self._given.items()}
        seen = {name: tuple(tensor.shape) for name, tensor in given.items()}
        with torch.no_grad():
            self._run(given, seen)
        return seen

    def _run(self, given: Mapping[str, Tensor], seen: dict[str, tuple[int, ...]] | None = None) -> dict[str, Tensor]:
        values: dict[str, Any] = {**given, "": None}
        for step, call, done in zip(self.steps, self._calls, self._done, strict=True):
            try:
                result = call(*[values[name] for name in step.inputs])
            except Exception as error:
                raise RuntimeError(f"{step.label}: {first_line(error)}") from error
            made = dict(outputs_of(result, list(step.outputs)))
            if seen is not None:
                seen.update({name: tuple(tensor.shape) for name, tensor in made.items()})
            values.update(made)
            for name in done:
                if name:
                    values.pop(name, None)
        return {name: values[name] for name in self.outputs}


def change_alike(before: nn.Module, after: nn.Module, other: nn.Module) -> None:
    """Change an import of a graph for other sizes of its inputs as the first import was changed, in place.

    Args:
        before: the graph as it was imported.
        after: a changed copy, in which parameters and sizes have other values or modules are others.
        other: the same graph for other sizes. It shares the parameters and the linear layers of ``after``.

    Raises:
        UnsupportedError: for what depends on the sizes of the inputs and was changed.
    """
    assert isinstance(before, ImportedModel), type(before)
    assert isinstance(other, ImportedModel), type(other)
    if [step.path for step in before.steps] != [step.path for step in other.steps]:
        raise UnsupportedError("for these sizes its graph has other steps")
    for path in {step.path: None for step in before.steps}:
        old, new, theirs = (network.get_submodule(path) for network in (before, after, other))
        same = [dict(module.named_parameters(recurse=False)) for module in (old, theirs)]
        whole = isinstance(old, nn.Linear) and all(torch.equal(same[0][n], same[1][n]) for n in same[0])
        if whole or type(new) is not type(old):
            parent, _, name = path.rpartition(".")
            setattr(other.get_submodule(parent), name, new)
            continue
        for part, module in old.named_modules():
            _change_module(path, module, new.get_submodule(part), theirs.get_submodule(part))
    other.follow()


def _change_module(path: str, old: nn.Module, new: nn.Module, other: nn.Module) -> None:
    for named, register in (("named_parameters", "register_parameter"), ("named_buffers", "register_buffer")):
        tensors, theirs = (dict(getattr(module, named)(recurse=False)) for module in (new, other))
        for name, was in getattr(old, named)(recurse=False):
            if name in theirs and theirs[name].shape == was.shape and torch.equal(theirs[name], was):
                getattr(other, register)(name, tensors[name])
            elif tensors[name].shape != was.shape or not torch.equal(tensors[name], was):
                raise UnsupportedError(f"{path}.{name} depends on them")
    for name in SIZES:
        sizes: list[Any] = [getattr(module, name, None) for module in (old, new, other)]
        if all(isinstance(size, list) for size in sizes):
            setattr(other, name, [_scaled(path, *three) for three in zip(*sizes, strict=True)])


def _scaled(path: str, before: int, after: int, other: int) -> int:
    """A size changed by as much as another one was: it is a multiple of the heads or neurons that are left."""
    if before == after:
        return other
    if not before or other * after % before:
        raise UnsupportedError(f"a size of {path} depends on them")
    return other * after // before


class OnnxNode(nn.Module):
    """A node that is no torch module of its own: a function, and the constants among its inputs.

    Attributes:
        constants: input -> name of the parameter or buffer that is read there.
        hidden: input -> a scalar or a mask of infinities, which is no weight.
    """

    def __init__(self, function: Callable[..., Any], given: Mapping[int, tuple[str, Tensor]]) -> None:
        super().__init__()
        if isinstance(function, nn.Module):
            self.layer = function
        self._function = function
        self.constants: dict[int, str] = {}
        self.hidden: dict[int, Tensor] = {}
        for index, (name, tensor) in given.items():
            if _is_mask(tensor) or tensor.numel() == 1:
                self.hidden[index] = tensor
                continue
            unique = name if not hasattr(self, name) else f"{name}_{index}"
            self.constants[index] = unique
            if tensor.is_floating_point():
                self.register_parameter(unique, nn.Parameter(tensor, requires_grad=False))
            else:
                self.register_buffer(unique, tensor)

    def forward(self, *inputs: Tensor | None) -> Any:
        """Apply the function, constants in their places."""
        given = list(inputs)
        for index, name in self.constants.items():
            given[index] = getattr(self, name)
        for index, tensor in self.hidden.items():
            given[index] = tensor
        return self._function(*given)


def _is_mask(tensor: Tensor) -> bool:
    """Infinity by design, as in the bias of hidden positions: no broken weight."""
    if not tensor.is_floating_point() or not bool(torch.isinf(tensor).any()):
        return False
    finite = tensor[~torch.isinf(tensor)]
    return finite.numel() == 0 or bool((finite == finite.flatten()[0]).all())


class OnnxConstants(nn.Module):
    """Constants that are outputs of the graph."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        for index, tensor in enumerate(tensors):
            self.register_buffer(f"value_{index}", tensor)

    def forward(self) -> tuple[Tensor, ...]:
        """Copies of them."""
        return tuple(buffer.clone() for buffer in self.buffers())
