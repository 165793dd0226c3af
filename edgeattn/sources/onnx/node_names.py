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


def renamed(node: onnx.NodeProto, mapping: Mapping[str, str], outputs: bool = False) -> onnx.NodeProto:
    """A node that reads other names, also inside its bodies; a copy if anything changes."""
    import onnx

    names = {*node.input, *captured(node), *(node.output if outputs else ())}
    if not any(name in mapping for name in names):
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
