"""Calls replaced by what a function of plain torch does: its operations, traced, take the place of the call."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from edgeattn.converters.passes.graph import Program

Function = Callable[..., Any]
PLACE = ("nn_module_stack", "stack_trace", "source_fn_stack", "torch_fn")  # in a node's meta: where it comes from


def replace_calls(program: Program, functions: Mapping[Any, Function]) -> int:
    """Replace each call of an operator by a function of the same arguments; returns how many were replaced.

    See :func:`replace` for what a function may do.
    """
    return sum(replace(program, node, functions[node.target]) for node in program.calls(*functions))


def replace(program: Program, node: torch.fx.Node, function: Function) -> bool:
    """Replace one call by what a function of its arguments does; whether it was replaced.

    Args:
        node: a call of an operator.
        function: takes what the operator takes and gives what it gives, in the same shapes and dtypes; outputs that
            nobody reads may be None. It knows shapes and dtypes and no values, and changes no argument. A call that
            shall stay is answered by NotImplemented.
    """
    leaves, tree = pytree.tree_flatten((node.args, dict(node.kwargs)))
    inputs = [leaf for leaf in leaves if isinstance(leaf, torch.fx.Node)]
    fakes = [inner.meta["val"] for inner in inputs]
    if not fakes or any(not isinstance(n, int) for fake in fakes for n in fake.shape):  # a size that values give
        return False

    def apply(*tensors: torch.Tensor) -> Any:
        given = iter(tensors)
        args, kwargs = pytree.tree_unflatten(
            [next(given) if isinstance(leaf, torch.fx.Node) else leaf for leaf in leaves], tree
        )
        result = function(*args, **kwargs)
        if result is NotImplemented:
            raise _StaysError
        return result

    with fakes[0].fake_mode, torch.no_grad():
        try:
            traced = make_fx(apply, pre_dispatch=True)(*fakes)
        except _StaysError:
            return False
    _insert(program, node, traced, inputs)
    return True


class _StaysError(Exception):
    """The function leaves the call as it is."""


def _insert(
    program: Program, node: torch.fx.Node, traced: torch.fx.GraphModule, inputs: Sequence[torch.fx.Node]
) -> None:
    placeholders = [inner for inner in traced.graph.nodes if inner.op == "placeholder"]
    there = dict(zip(placeholders, inputs, strict=True))
    place = {key: node.meta[key] for key in PLACE if key in node.meta}
    with program.graph.inserting_before(node):
        for inner in traced.graph.nodes:
            if inner.op == "call_function":
                there[inner] = program.graph.node_copy(inner, there.__getitem__)
                there[inner].meta = {**place, "val": inner.meta["val"]}
    results: Any = torch.fx.node.map_arg(traced.graph.output_node().args[0], there.__getitem__)
    if isinstance(results, torch.fx.Node):
        node.replace_all_uses_with(results)
    else:
        for reader in list(node.users):  # getitem, once for each output that is read
            output: Any = reader.args[1]
            reader.replace_all_uses_with(results[output])
            program.graph.erase_node(reader)
    program.graph.erase_node(node)


def is_read(node: torch.fx.Node, output: int) -> bool:
    """Whether anything reads one of the outputs of a call that has several."""
    return any(reader.args[1] == output and reader.users for reader in node.users if reader.target is operator.getitem)
