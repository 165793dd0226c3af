"""One traced graph with the place and the shapes of every operation, and the ways from one to the next."""

from __future__ import annotations

import math
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edgeattn
from edgeattn.converters.trace import strip_wrapper, wrapper_prefix
from edgeattn.spec import GraphSpec

if TYPE_CHECKING:
    import torch

FRAME = re.compile(r'File "(.+?)", line (\d+)')
VIEWS = frozenset((
    "view", "reshape", "_reshape_alias", "transpose", "permute", "t", "numpy_T", "unsqueeze", "squeeze", "expand",
    "slice", "select", "detach", "alias", "contiguous", "flatten", "unflatten", "split", "split_with_sizes", "chunk",
    "unbind", "narrow", "movedim", "dropout", "getitem", "_assert_tensor_metadata", "lift_fresh_copy", "expand_as",
    "view_as",
))  # fmt: skip
"""Operations that move no data in an engine, or none that it keeps beside its input."""


SOFTMAX = ("softmax", "_softmax")
PRODUCTS = frozenset(("linear", "matmul", "mm", "bmm", "baddbmm", "addmm", "einsum", "addbmm", "mv", "dot"))


@dataclass(frozen=True, kw_only=True)
class Call:
    """One operation of a traced graph.

    Attributes:
        op: short name, ``linear`` for ``aten.linear.default``.
        module: path of the torch module that called it, empty for the model itself.
        line: ``file.py:12``, the line outside torch that called it; empty where unknown.
        outputs: (dtype, shape) of each tensor it makes; a size that depends on values is None.
        inputs: nodes that it reads, constants included, in order.
        overload: the full name, ``aten.linear.default``.
    """

    name: str
    op: str
    overload: str
    module: str
    line: str
    outputs: tuple[tuple[str, tuple[int | None, ...]], ...]
    inputs: tuple[str, ...]
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Of the first output; empty for none."""
        return self.outputs[0][1] if self.outputs else ()

    @property
    def dtype(self) -> str:
        """Of the first output, as torch prints it without its prefix; empty for none."""
        return self.outputs[0][0] if self.outputs else ""

    @property
    def nbytes(self) -> int:
        """Of all outputs; sizes that depend on values count as 1."""
        return sum(math.prod(size or 1 for size in shape) * _itemsize(dtype) for dtype, shape in self.outputs)


@dataclass(frozen=True, kw_only=True)
class TracedGraph:
    """The operations of a graph; empty for one that could not be traced.

    Attributes:
        calls: in order, those of nested graphs included.
        constants: node -> tensor, weights and lifted constants alike.
        constant_names: node -> name in the user's module, of the same.
        inputs: node -> name in the spec.
        outputs: node -> name in the spec.
    """

    spec: GraphSpec
    calls: tuple[Call, ...] = ()
    constants: Mapping[str, torch.Tensor] = field(default_factory=dict)
    constant_names: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)

    def maker(self, name: str) -> Call | None:
        """The call that makes a node; None for inputs and constants."""
        return self._by_name.get(name)

    def readers(self, name: str) -> Sequence[Call]:
        """The calls that read a node."""
        return self._readers.get(name, ())

    def shape_of(self, name: str) -> tuple[int | None, ...]:
        """Of a node, an input or a constant; empty if unknown."""
        made = self.maker(name)
        if made is not None:
            return made.shape
        if name in self.constants:
            return tuple(self.constants[name].shape)
        known = {tensor.name: tensor.shape for tensor in self.spec.all_inputs}
        return known.get(self.inputs.get(name, ""), ())

    @cached_property
    def _by_name(self) -> Mapping[str, Call]:
        return {call.name: call for call in self.calls}

    @cached_property
    def _readers(self) -> Mapping[str, Sequence[Call]]:
        readers: dict[str, list[Call]] = {}
        for call in self.calls:
            for name in dict.fromkeys(call.inputs):
                readers.setdefault(name, []).append(call)
        return readers


def traced_graph(program: torch.export.ExportedProgram, graph: GraphSpec, module: torch.nn.Module) -> TracedGraph:
    """Read a program.

    Args:
        module: that was traced; places are told as paths inside it.
    """
    prefix, signature = wrapper_prefix(module), program.graph_signature
    constants = constants_of(program)
    names = {spec.arg.name: str(spec.target or spec.arg.name) for spec in signature.input_specs}
    return TracedGraph(
        spec=graph,
        calls=tuple(_calls(program.graph_module, prefix)),
        constants=constants,
        constant_names={name: strip_wrapper(names[name], prefix) for name in constants},
        inputs=dict(zip(map(str, signature.user_inputs), graph.input_names, strict=False)),
        outputs=dict(zip(map(str, signature.user_outputs), graph.output_names, strict=False)),
    )


def constants_of(program: torch.export.ExportedProgram) -> dict[str, torch.Tensor]:
    """Weights, buffers and lifted constants of a program, by node."""
    import torch

    found = {}
    for spec in program.graph_signature.input_specs:
        if spec.target is not None:
            value = program.state_dict.get(spec.target, program.constants.get(spec.target))
            if isinstance(value, torch.Tensor):
                found[spec.arg.name] = value.detach()
    return found


def _calls(module: torch.fx.GraphModule, prefix: str) -> Iterator[Call]:
    import torch

    for node in module.graph.nodes:
        if node.op == "get_attr":
            inner = getattr(module, str(node.target), None)
            if isinstance(inner, torch.fx.GraphModule):  # the body of a no_grad block, or of torch.cond
                yield from _calls(inner, prefix)
        if node.op != "call_function":
            continue
        stack: Mapping[str, Any] = node.meta.get("nn_module_stack") or {}
        yield Call(
            name=node.name,
            op=short_name(node.target),
            overload=str(node.target),
            module=strip_wrapper(str(list(stack.values())[-1][0]), prefix) if stack else "",
            line=_line(FRAME.findall(str(node.meta.get("stack_trace") or ""))),
            outputs=tuple(_tensors(node.meta.get("val"))),
            inputs=tuple(inner.name for inner in node.all_input_nodes),
            arguments=tuple(torch.fx.node.map_arg(node.args, str)),
            options=dict(torch.fx.node.map_arg(dict(node.kwargs), str)),
        )


def _is_overload(target: Any) -> bool:
    import torch

    return isinstance(target, torch._ops.OpOverload)  # noqa: SLF001  # no public name for the type


def short_name(target: Any) -> str:
    """``linear`` for ``aten.linear.default``."""
    return str(target.overloadpacket.__name__) if _is_overload(target) else str(getattr(target, "__name__", target))


def _tensors(value: Any) -> Iterator[tuple[str, tuple[int | None, ...]]]:
    import torch

    if isinstance(value, torch.Tensor):
        sizes: tuple[Any, ...] = tuple(value.shape)  # SymInt where a size depends on values
        shape = tuple(size if isinstance(size, int) else None for size in sizes)
        yield str(value.dtype).removeprefix("torch."), shape
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


def _itemsize(dtype: str) -> int:
    import torch

    return int(getattr(torch, dtype).itemsize)


def _line(frames: list[tuple[str, str]]) -> str:
    """The deepest frame that is neither torch's nor edgeattn's."""
    import torch

    here = Path(__file__).parents[1]  # the room of the converters, which is a link in a checkout
    foreign = tuple(map(str, (Path(torch.__file__).parent, Path(edgeattn.__file__).parent, here, here.resolve())))
    own = [(path, line) for path, line in frames if not path.startswith(foreign) and path.startswith("/")]
    return f"{Path(own[-1][0]).name}:{own[-1][1]}" if own else ""


def line_of_error(error: BaseException) -> str:
    """The user's line that an error came from, ``file.py:12``; empty where there is none."""
    link: BaseException | None = error
    frames: list[tuple[str, str]] = []
    while link is not None:
        frames = [(f.filename, str(f.lineno)) for f in traceback.extract_tb(link.__traceback__)] or frames
        found = _line(frames)
        if found:
            return found
        link = link.__cause__
    return ""
