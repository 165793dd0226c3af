"""``x.index_add_(...)`` becomes ``x = x.index_add(...)``: in-place forms are operators of their own names.

Exporters know them by turning the program into one without writes, after every pass has run; until then nobody sees
that ``scatter_add_`` is a ``scatter_add``. A tensor that nothing shares its memory with is replaced by the new value.
Where it is a view of another (``y[:, 0].add_(1)``), or others are views of it, the new value is copied into it, and
the exporters follow that copy.
"""

from __future__ import annotations

from typing import Any

import torch

from edgeattn.converters.passes.graph import Program, Writer

aten = torch.ops.aten
KEPT = ("copy_", "detach_", "set_", "resize_", "squeeze_", "unsqueeze_", "transpose_", "t_", "swapaxes_", "as_strided_")


def plain_writes(program: Program) -> int:
    """Rewrite each in-place call that has a form that gives a new tensor; returns how many there were."""
    changed = 0
    order = {node: number for number, node in enumerate(program.graph.nodes)}
    for node in program.calls(*{n.target for n in program.graph.nodes if n.op == "call_function"}):
        new = _without_write(node.target)
        if new is None or not isinstance(node.args[0], torch.fx.Node):
            continue
        written: Any = node.args[0]
        write = Writer(program, node)
        others = [reader for reader in written.users if reader is not node]
        alone = _is_fresh(written) and all(_gives_new(each) and order.get(each, -1) < order[node] for each in others)
        value = write(new, *node.args, **node.kwargs)
        before, after = node.meta["val"], value.meta["val"]
        if alone and before.shape == after.shape and before.dtype == after.dtype:
            node.replace_all_uses_with(value)
            order[value] = order[node]
            program.graph.erase_node(node)
        else:
            node.kwargs = {}
            write.finish(aten.copy_.default, written, value)
        changed += 1
    if changed:
        program.forget()
    return changed


def _without_write(target: Any) -> Any:
    """The overload that gives a new tensor in place of writing into its first argument; None for any other."""
    if not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
        return None
    if torch.Tag.nondeterministic_seeded in target.tags:
        return None
    name = target._schema.name.partition("::")[2]
    first = target._schema.arguments[0].alias_info if target._schema.arguments else None
    if not name.endswith("_") or name in KEPT or first is None or not first.is_write:
        return None
    return getattr(getattr(aten, name[:-1], None), target._overloadname, None)


def _is_fresh(node: torch.fx.Node) -> bool:
    """Whether a node makes a tensor that no other shares its memory with."""
    return node.op == "call_function" and _gives_new(node)


def _gives_new(node: torch.fx.Node) -> bool:
    """Whether the result of a call shares no memory with its arguments.

    Operators that torch composes of others (``dropout``, ``type_as``) may hand an argument through unsaid.
    """
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    composed = node.target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
    return not composed and all(result.alias_info is None for result in node.target._schema.returns)
