"""One call of a traced program and the real and imaginary parts of what it reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch

from edgeattn.converters.passes.fourier import Node, Parts
from edgeattn.converters.passes.graph import Program, Writer

aten = torch.ops.aten
Result: TypeAlias = Any  # Parts, or one real node
REAL_OF = {torch.complex64: torch.float32, torch.complex128: torch.float64, torch.complex32: torch.float16}


class UnsupportedPartError(Exception):
    """Why a call cannot be told by parts."""


class UnreadPartError(UnsupportedPartError):
    """A call reads what another one, which has its own reason, was left as."""


class Reader:
    """One call, its arguments by name and their parts."""

    def __init__(self, program: Program, node: Node, known: Mapping[Node, Parts]) -> None:
        self.program, self.node, self.known = program, node, known
        self.write = Writer(program, node)
        self.args: tuple[Any, ...] = node.args
        target: Any = node.target
        names = [argument.name for argument in target._schema.arguments] if hasattr(target, "_schema") else []
        self.named: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}

    def parts(self, value: Any) -> tuple[Any, Any]:
        """(real, imaginary) of a node or a number; an imaginary part that is None is zero.

        Raises:
            UnreadPartError: for a complex tensor that no rule has taken apart.
        """
        if not isinstance(value, torch.fx.Node):
            return (value.real, value.imag) if isinstance(value, complex) else (value, None)
        if not is_complex(value):
            return value, None
        if value in self.known:
            return self.known[value]
        constant = self.program.known(value)
        if constant is None:
            raise UnreadPartError(value.name)
        constant = constant.resolve_conj()
        return self.write.constant(constant.real.clone()), self.write.constant(constant.imag.clone())

    def first(self) -> tuple[Any, Any]:
        """Of the first argument."""
        return self.parts(self.args[0])

    def full(self, value: Any) -> tuple[Any, Any]:
        """As :meth:`parts`, with zeros written out."""
        real, imaginary = self.parts(value)
        if imaginary is None:
            imaginary = self.write(aten.zeros_like.default, real) if isinstance(real, torch.fx.Node) else 0.0
        return real, imaginary


def is_complex(node: Node) -> bool:
    """Whether a node is a complex tensor, or several."""
    leaves = node.meta.get("val")
    return any(
        isinstance(leaf, torch.Tensor) and leaf.is_complex()
        for leaf in (leaves if isinstance(leaves, (tuple, list)) else [leaves])
    )
