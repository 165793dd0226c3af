"""Integers of 8 and 16 bits become int32 inside the graph, and go back to their own type where they leave it.

Cameras give uint8 and microphones int16; engines take these types as they come and do little else with them. TensorRT
reads a uint8 input and knows a Cast alone, LiteRT takes 8 bits for a quantized tensor, ONNX Runtime has few kernels for
16 bits. What is only cast to another type is left as it is: weights that are stored in int8 stay small.

Torch's integers wrap around: where a result may leave its type, it is brought back into it, as torch does.
"""

from __future__ import annotations

import operator
from typing import Any

import torch

from edgeattn.converters.passes.graph import Program, Writer

aten = torch.ops.aten
SMALL = (torch.uint8, torch.int8, torch.int16)
CASTS = (aten.to.dtype, aten._to_copy.default, aten.to.dtype_layout)
WRAPPING = frozenset((
    "add", "sub", "rsub", "mul", "neg", "abs", "pow", "square", "bitwise_not", "__lshift__", "bitwise_left_shift",
    "addcmul", "addmm", "matmul", "mm", "bmm", "linear", "dot", "einsum", "to", "_to_copy",
))  # fmt: skip
"""Operations whose result may not fit the type of its operands."""
CLAMPS = (aten.clamp.default, aten.clip.default, aten.hardtanh.default)


def whole_numbers(program: Program) -> int:
    """Rewrite what computes in small integers; returns how many operations did."""
    wide: dict[torch.fx.Node, torch.dtype] = {}  # node that is int32 now -> the type that it had
    changed = 0
    for node in list(program.graph.nodes):
        if node.op == "placeholder" and _dtype(node) in SMALL:
            users = [user for user in node.users if user.op != "output" and not _is_cast(user)]
            if users:
                changed += 1
                _widen_input(program, node, users, wide)
        elif node.op == "call_function" and not _mutable(node):
            changed += _widen(program, node, wide)
        elif node.op == "output":
            _narrow_outputs(program, node, wide)
    return changed


def _widen_input(
    program: Program, node: torch.fx.Node, users: list[torch.fx.Node], wide: dict[torch.fx.Node, torch.dtype]
) -> None:
    first = next(user for user in program.graph.nodes if user in users)
    cast = Writer(program, first)(aten.to.dtype, node, torch.int32)
    for user in users:
        user.replace_input_with(node, cast)
    wide[cast] = node.meta["val"].dtype


def _widen(program: Program, node: torch.fx.Node, wide: dict[torch.fx.Node, torch.dtype]) -> int:
    """Let an operation give int32 where it gives a small integer; whether it did."""
    small = _dtype(node)
    from_wide = any(source in wide for source in node.all_input_nodes)
    parts = node.meta.get("val")
    if isinstance(parts, (tuple, list)) and from_wide:
        Writer(program, node).finish(node.target, *node.args, **node.kwargs)
        return 1
    if small not in SMALL:
        return 0
    if node.target is operator.getitem:
        source: Any = node.args[0]
        node.meta["val"] = source.meta["val"][node.args[1]]
        if _dtype(node) is torch.int32:
            wide[node] = small
        return 0
    if not from_wide and all(user.op == "output" for user in node.users):
        return 0  # made and handed on
    args, kwargs = torch.fx.node.map_aggregate(
        (node.args, dict(node.kwargs)), lambda leaf: torch.int32 if leaf in SMALL else leaf
    )
    Writer(program, node).finish(node.target, *args, **kwargs)
    result = _wrapped(program, node, small) if _may_wrap(node) else node
    wide[result] = small
    return 1


def _may_wrap(node: torch.fx.Node) -> bool:
    target: Any = node.target
    name = target.overloadpacket.__name__ if isinstance(target, torch._ops.OpOverload) else ""
    source = node.all_input_nodes[0] if node.all_input_nodes else None
    if name in ("to", "_to_copy") and source is not None:
        return _dtype(source) is not torch.bool and source.target not in CLAMPS
    return name in WRAPPING


def _wrapped(program: Program, node: torch.fx.Node, kind: torch.dtype) -> torch.fx.Node:
    """The value brought back into its type, as a node behind it."""
    limits = torch.iinfo(kind)
    span, least = int(limits.max - limits.min + 1), int(limits.min)
    users = list(node.users)
    write = Writer(program, node.next)
    shifted = write(aten.sub.Tensor, node, least) if least else node
    result = write(aten.remainder.Scalar, shifted, span)
    if least:
        result = write(aten.add.Tensor, result, least)
    for user in users:
        user.replace_input_with(node, result)
    return result


def _narrow_outputs(program: Program, output: torch.fx.Node, wide: dict[torch.fx.Node, torch.dtype]) -> None:
    write = Writer(program, output)
    for node in dict.fromkeys(output.all_input_nodes):
        if node in wide:
            cast = write(aten.to.dtype, node, wide[node])
            output.replace_input_with(node, cast)
            for spec in program.exported.graph_signature.output_specs:
                if spec.arg.name == node.name:
                    spec.arg.name = cast.name


def _is_cast(node: torch.fx.Node) -> bool:
    return node.target in CASTS and _dtype(node) not in SMALL


def _dtype(node: torch.fx.Node) -> torch.dtype | None:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, torch.Tensor) else None


def _mutable(node: torch.fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
