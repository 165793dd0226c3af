"""Names that a node reads, bodies included, and the same node under other names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def captured(node: onnx.NodeProto) -> Iterable[str]:
    """Names that the bodies of a node read from outside."""
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
            own = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
            for inner in body.node:
                yield from (name for name in (*inner.input, *captured(inner)) if name and name not in own)
                own.update(inner.output)
            yield from (value.name for value in body.output if value.name not in own)


def renamed(
    node: onnx.NodeProto, mapping: Mapping[str, str], outputs: bool = False, copied: bool = False
) -> onnx.NodeProto:
    """A node that reads other names, also inside its bodies; a copy if anything changes, or if one is wanted."""
    import onnx

    names = {*node.input, *captured(node), *(node.output if outputs else ())}
    if not copied and not any(name in mapping for name in names):
        return node

    def final(name: str) -> str:
        seen = set()
        while name in mapping and name not in seen:
            seen.add(name)
            name = mapping[name]
        return name

    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [final(name) for name in node.input]
    if outputs:
        copy.output[:] = [final(name) for name in node.output]
    for attribute in copy.attribute:
        for body in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
            own = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
            own.update(name for inner in body.node for name in inner.output)
            read = {name for inner in body.node for name in (*inner.input, *captured(inner))}
            read.update(value.name for value in body.output)
            outer = {name: final(name) for name in read if name in mapping and name not in own}
            fresh = [renamed(inner, outer) for inner in body.node]
            del body.node[:]
            body.node.extend(fresh)
            for value in body.output:
                if value.name in outer:
                    identity = onnx.helper.make_node("Identity", [final(value.name)], [f"{value.name}.out"])
                    body.node.append(identity)
                    value.name = f"{value.name}.out"
    return copy


def unshadow(graph: onnx.GraphProto, outside: tuple[set[str], ...] = ()) -> None:
    """Give names inside bodies that stand outside, too, names of their own, in place.

    Optimum's merged decoders name what a branch makes like what the If makes. A body reads the outer name until it has
    made its own.
    """
    made = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    made.update(name for node in graph.node for name in node.output if name)
    around = (*outside, made)
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                _rename_inside(body, around)
                unshadow(body, around)


def _rename_inside(body: onnx.GraphProto, around: tuple[set[str], ...]) -> None:
    own = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
    own.update(name for node in body.node for name in node.output if name)
    clashes = {name for name in own if any(name in names for names in around)}
    if not clashes:
        return
    taken = own.union(*around)
    fresh = {}
    for name in sorted(clashes):
        number = len(around)
        while f"{name}.inner{number}" in taken:
            number += 1
        fresh[name] = f"{name}.inner{number}"
    mapping = {}
    for held in (*body.input, *body.initializer):
        if held.name in fresh:
            mapping[held.name] = fresh[held.name]
            held.name = fresh[held.name]
    for value in body.value_info:
        value.name = fresh.get(value.name, value.name)
    nodes = []
    for node in body.node:
        reads = renamed(node, mapping, copied=True)
        mapping.update({name: fresh[name] for name in node.output if name in fresh})
        reads.output[:] = [fresh.get(name, name) for name in node.output]
        nodes.append(reads)
    del body.node[:]
    body.node.extend(nodes)
    for value in body.output:
        value.name = mapping.get(value.name, value.name)
