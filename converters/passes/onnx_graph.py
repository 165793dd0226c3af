"""What the passes on ONNX files share: who makes and reads a tensor, what is constant, and writing nodes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx


class View:
    """Lookups in a graph; made again by each pass, kept right by its own methods while it changes the graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.graph = model.graph
        self.makers = {name: node for node in self.graph.node for name in node.output if name}
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        for node in self.graph.node:
            tensor = next((a.t for a in node.attribute if a.name == "value" and node.op_type == "Constant"), None)
            if tensor is not None:
                self.constants[node.output[0]] = tensor
        self.outputs = {value.name for value in self.graph.output}
        self.types = {value.name: value for value in (*self.graph.input, *self.graph.value_info, *self.graph.output)}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self._before: dict[int, list[onnx.NodeProto]] = {}

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        return int(next(entry.version for entry in self.model.opset_import if entry.domain in ("", "ai.onnx")))

    def maker(self, name: str, *op_types: str) -> onnx.NodeProto | None:
        """The node that makes a tensor, if it is of one of the types (any, without types)."""
        node = self.makers.get(name)
        return node if node is not None and (not op_types or node.op_type in op_types) else None

    def value(self, name: str) -> np.ndarray | None:
        """A constant's value."""
        tensor = self.constants.get(name)
        return None if tensor is None else np.asarray(onnx.numpy_helper.to_array(tensor))

    def number(self, name: str) -> float | None:
        """The number that a constant holds everywhere."""
        value = self.value(name)
        if value is None or value.size == 0 or value.dtype == np.bool_ or value.dtype.kind not in "fiu":
            return None
        first = value.reshape(-1)[0]
        return float(first) if value.size == 1 or bool((value == first).all()) else None

    def shape(self, name: str) -> tuple[int, ...] | None:
        """A tensor's shape, where the file tells a static one."""
        if name in self.constants:
            return tuple(self.constants[name].dims)
        value = self.types.get(name)
        if value is None or not value.type.tensor_type.HasField("shape"):
            return None
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        return None if any(size < 1 for size in dims) else tuple(dims)

    def only_reader(self, name: str) -> onnx.NodeProto | None:
        """The one node that reads a tensor, which is no output of the graph."""
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def new_name(self, wanted: str) -> str:
        """``wanted``, or with a number behind it if that is taken."""
        taken = self.makers.keys() | self.constants.keys() | self.types.keys()
        return next(n for n in (wanted, *(f"{wanted}_{i}" for i in range(1, len(taken) + 2))) if n not in taken)

    def constant(self, value: np.ndarray, wanted: str) -> str:
        """A new constant; its name."""
        name = self.new_name(wanted)
        tensor = onnx.numpy_helper.from_array(np.ascontiguousarray(value), name)
        self.graph.initializer.append(tensor)
        self.constants[name] = self.graph.initializer[-1]
        return name

    def before(self, anchor: onnx.NodeProto, op_type: str, inputs: list[str], like: str, wanted: str) -> str:
        """A new node before ``anchor``, with its module path; its output, which has the type of ``like``."""
        name = self.new_name(wanted)
        node = onnx.helper.make_node(op_type, inputs, [name], name=f"node_{name}")
        node.metadata_props.extend(anchor.metadata_props)
        position = next(i for i, other in enumerate(self.graph.node) if other is anchor or other == anchor)
        self.graph.node.insert(position, node)
        self.makers[name] = self.graph.node[position]
        if like in self.types:
            value = self.graph.value_info.add()
            value.CopyFrom(self.types[like])
            value.name = name
            self.types[name] = value
        return name

    def copied(self, node: onnx.NodeProto, inputs: list[str], anchor: onnx.NodeProto) -> str:
        """A copy of a node with one output that reads other inputs, before ``anchor``; its output."""
        name = self.before(anchor, node.op_type, inputs, node.output[0], f"{node.output[0]}_finite")
        self.makers[name].attribute.extend(node.attribute)
        del self.makers[name].metadata_props[:]
        self.makers[name].metadata_props.extend(node.metadata_props)
        return name

    def drop_unread(self) -> None:
        """Remove nodes and constants that nothing reads any more."""
        while True:
            read = {name for node in self.graph.node for name in (*node.input, *_captured(node))} | self.outputs
            kept = [node for node in self.graph.node if any(name in read for name in node.output)]
            if len(kept) == len(self.graph.node):
                break
            copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
            del self.graph.node[:]
            self.graph.node.extend(copies)
        for index in range(len(self.graph.initializer) - 1, -1, -1):
            if self.graph.initializer[index].name not in read:
                del self.graph.initializer[index]
        made = {name for node in self.graph.node for name in node.output}
        for index in range(len(self.graph.value_info) - 1, -1, -1):
            if self.graph.value_info[index].name not in made:
                del self.graph.value_info[index]


def axes_of(view: View, node: onnx.NodeProto) -> list[int] | None:
    """The axes of a reduction, from its attribute (to opset 17) or its input."""
    attribute = next((list(a.ints) for a in node.attribute if a.name == "axes"), None)
    if attribute is not None:
        return attribute
    value = view.value(node.input[1]) if len(node.input) > 1 else None
    return None if value is None else [int(axis) for axis in value.reshape(-1)]


def _captured(node: onnx.NodeProto) -> Iterable[str]:
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
            for inner in body.node:
                yield from inner.input
                yield from _captured(inner)
