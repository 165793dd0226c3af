"""Branches and loops of torch's higher-order operators as plain operators: no engine for edges has all of them.

- ``torch.cond``: both branches, and a choice between their results;
- ``while_loop`` whose condition depends on no input: as many bodies as it runs, at most :data:`MAX_STEPS`;
- ``scan`` and ``map``: one body for each element of the first axis.

Bodies may hold such operators themselves. A loop whose length depends on values is left as it is.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from edgeattn.converters.passes.graph import Program, Writer, size

aten = torch.ops.aten
MAX_STEPS = 512  # bodies that are written out for one loop
BRANCHES, LOOPS, SCANS, MAPS = "cond", "while_loop", "scan", "map_impl"


def plain_control(program: Program) -> int:
    """Write out branches and loops; returns how many there were."""
    written = 0
    for node in [node for node in program.graph.nodes if node.op == "call_function"]:
        write_out = KINDS.get(_name(node))
        if write_out is None:
            continue
        results = write_out(program, Writer(program, node), node.args)
        if results is not None and replace_items(program, node, results):
            written += 1
    return written


def _name(node: torch.fx.Node) -> str:
    """Of a higher-order operator; empty for all others."""
    return str(node.target) if isinstance(node.target, torch._ops.HigherOrderOperator) else ""


def replace_items(program: Program, node: torch.fx.Node, results: Sequence[Any]) -> bool:
    """Put results in place of the items of a node that gives several; false where an item has no result."""
    items = list(node.users)
    if any(results[item.args[1]] is None for item in items):  # type: ignore[index]
        return False
    for item in items:
        Writer(program, item).finish(aten.clone.default, results[item.args[1]])  # type: ignore[index]
    program.graph.erase_node(node)
    return True


def inline(write: Writer, body: Any, arguments: Sequence[Any]) -> list[Any] | None:
    """The operators of a body before the anchor; its results, or None where it holds what is no plain operator.

    Args:
        body: a graph module, or the ``get_attr`` node of one in the program.
        arguments: a node or number for each input of the body.
    """
    module: Any = _module(write.program.exported.graph_module, body) if isinstance(body, torch.fx.Node) else body
    graph = module.graph
    values: dict[torch.fx.Node, Any] = dict(
        zip((node for node in graph.nodes if node.op == "placeholder"), arguments, strict=True)
    )
    for node in graph.nodes:
        if node.op == "get_attr":
            values[node] = _module(module, node)
            if values[node] is None:  # a tensor of the body's own
                return None
        elif node.op == "call_function":
            args, kwargs = torch.fx.node.map_arg((node.args, dict(node.kwargs)), lambda inner: values[inner])
            if not _name(node):
                taken = node.target is operator.getitem and isinstance(args[0], list)
                values[node] = args[0][args[1]] if taken else write(node.target, *args, **kwargs)
                continue
            write_out = KINDS.get(_name(node))
            values[node] = None if write_out is None else write_out(write.program, write, args)
            if values[node] is None:
                return None
    results = next(node for node in graph.nodes if node.op == "output").args[0]
    results = results if isinstance(results, (tuple, list)) else (results,)
    return [values[result] if isinstance(result, torch.fx.Node) else result for result in results]


def _module(parent: Any, node: torch.fx.Node) -> Any:
    """The graph module that a ``get_attr`` node stands for; None where it is none."""
    found = getattr(parent, str(node.target), None)
    return found if isinstance(found, torch.fx.GraphModule) else None


def _cond(_: Program, write: Writer, args: Sequence[Any]) -> list[Any] | None:
    predicate, true, false, operands = args
    if not isinstance(predicate, torch.fx.Node):
        return inline(write, true if predicate else false, operands)
    one, other = inline(write, true, operands), inline(write, false, operands)
    if one is None or other is None:
        return None
    return [write(aten.where.self, predicate, left, right) for left, right in zip(one, other, strict=True)]


def _while(program: Program, write: Writer, args: Sequence[Any]) -> list[Any] | None:
    condition, body, carried, more = args
    values = list(carried)
    for _ in range(MAX_STEPS):
        asked = inline(write, condition, [*values, *more])
        known = None if asked is None else program.known(asked[0])
        if known is None:
            return None
        if not bool(known):
            return values
        after = inline(write, body, [*values, *more])
        if after is None:
            return None
        values = after
    return None


def _scan(_: Program, write: Writer, args: Sequence[Any]) -> list[Any] | None:
    body, carried, sequences, more = args
    count = size(sequences[0])[0]
    values, rows = list(carried), list[list[Any]]()
    for step in range(count):
        given = [write(aten.select.int, sequence, 0, step) for sequence in sequences]
        results = inline(write, body, [*values, *given, *more]) if count <= MAX_STEPS else None
        if results is None:
            return None
        values, row = results[: len(values)], results[len(values) :]
        rows.append(row)
    return [*values, *_stacked(write, rows)]


def _map(_: Program, write: Writer, args: Sequence[Any]) -> list[Any] | None:
    body, sequences, more = args
    count, rows = size(sequences[0])[0], list[list[Any]]()
    for step in range(count):
        given = [write(aten.select.int, sequence, 0, step) for sequence in sequences]
        row = inline(write, body, [*given, *more]) if count <= MAX_STEPS else None
        if row is None:
            return None
        rows.append(row)
    return _stacked(write, rows)


def _stacked(write: Writer, rows: Sequence[Sequence[Any]]) -> list[Any]:
    columns = zip(*rows, strict=True)
    return [write(aten.stack.default, list(column)) if column[0] is not None else None for column in columns]


KINDS: Mapping[str, Any] = {BRANCHES: _cond, LOOPS: _while, SCANS: _scan, MAPS: _map}
