"""ONNX models with fields of other kinds, sizes and names."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.attacks import bases
from tests.attacks.values import texts

SIZES = (0, -1, 1, 2**31 - 1, 2**31, 2**40, 2**62, -(2**63))
OPS = ("Loop", "If", "Scan", "Attention", "FusedConv", "PythonOp", "Einsum", "Cast", "Reshape", "Expand", "Range")


@dataclass(frozen=True)
class Draw:
    """What a change takes its values from."""

    rng: random.Random
    name: str

    def size(self) -> int:
        """Of an axis, an offset, a loop."""
        return self.rng.choice(SIZES)


def attacked_model(rng: random.Random, mark: str) -> bytes:
    """The bytes of a model with one to three changes."""
    import onnx

    model = onnx.ModelProto()
    model.ParseFromString(bases.model_bytes())
    for _ in range(rng.choice([1, 1, 2, 3])):
        name = rng.choice(texts(mark)).encode("utf-8", "replace").decode()
        rng.choice(CHANGES)(model, Draw(rng, name))
    data: bytes = model.SerializeToString()
    return data


def _op(model: Any, draw: Draw) -> None:
    draw.rng.choice(model.graph.node).op_type = draw.rng.choice([draw.name, *OPS])


def _domain(model: Any, draw: Draw) -> None:
    draw.rng.choice(model.graph.node).domain = draw.name


def _node_name(model: Any, draw: Draw) -> None:
    draw.rng.choice(model.graph.node).name = draw.name


def _input_name(model: Any, draw: Draw) -> None:
    tensor = draw.rng.choice(model.graph.input)
    old, tensor.name = tensor.name, draw.name
    for node in model.graph.node:
        for at, used in enumerate(node.input):
            if used == old and draw.rng.random() < 0.9:
                node.input[at] = draw.name


def _output_name(model: Any, draw: Draw) -> None:
    tensor = draw.rng.choice(model.graph.output)
    for node in model.graph.node:
        for at, made in enumerate(node.output):
            if made == tensor.name:
                node.output[at] = draw.name
    tensor.name = draw.name


def _shape(model: Any, draw: Draw) -> None:
    shape = draw.rng.choice([*model.graph.input, *model.graph.output]).type.tensor_type.shape
    if draw.rng.random() < 0.5 and shape.dim:
        draw.rng.choice(shape.dim).dim_value = draw.size()
    else:
        shape.dim.add().dim_param = draw.name


def _element(model: Any, draw: Draw) -> None:
    tensor = draw.rng.choice([*model.graph.input, *model.graph.output])
    tensor.type.tensor_type.elem_type = draw.rng.choice([0, 2, 8, 11, 16, 99, -1])


def _dims(model: Any, draw: Draw) -> None:
    draw.rng.choice(model.graph.initializer).dims[:] = [draw.size() for _ in range(draw.rng.choice([0, 1, 2, 9]))]


def _external(model: Any, draw: Draw) -> None:
    tensor = draw.rng.choice(model.graph.initializer)
    tensor.data_location = 1
    places = [draw.name, "../../etc/passwd", "/etc/passwd", "net.onnx", ".", "/dev/zero"]
    tensor.external_data.add(key="location", value=draw.rng.choice(places))
    tensor.external_data.add(key="offset", value=draw.rng.choice(["0", "-1", "9" * 30, "x"]))
    tensor.external_data.add(key="length", value=draw.rng.choice(["0", "-1", "9" * 30, "8"]))


def _raw(model: Any, draw: Draw) -> None:
    tensor = draw.rng.choice(model.graph.initializer)
    whole = tensor.raw_data
    tensor.raw_data = draw.rng.choice([b"", whole[:-1], bytes(2**20), b"\xff" * len(whole)])


def _dtype(model: Any, draw: Draw) -> None:
    draw.rng.choice(model.graph.initializer).data_type = draw.rng.choice([0, 2, 6, 7, 8, 10, 14, 16, 17, 22, 99])


def _attribute(model: Any, draw: Draw) -> None:
    attribute = draw.rng.choice(model.graph.node).attribute.add()
    attribute.name = draw.rng.choice([draw.name, "axis", "perm", "to", "body"])
    attribute.type = draw.rng.choice([1, 2, 3, 5, 7])
    attribute.i, attribute.s = draw.size(), draw.name.encode()
    attribute.ints.extend(draw.size() for _ in range(draw.rng.choice([0, 3, 1_000])))


def _wires(model: Any, draw: Draw) -> None:
    node = draw.rng.choice(model.graph.node)
    ends = [*node.input, draw.name, *model.graph.node[-1].output]
    node.input[:] = [draw.rng.choice(ends) for _ in range(draw.rng.choice([0, 1, 3, 40]))]


def _opset(model: Any, draw: Draw) -> None:
    opset = draw.rng.choice(model.opset_import)
    opset.version = draw.rng.choice([0, -1, 1, 7, 18, 23, 99, 2**31 - 1])
    opset.domain = draw.rng.choice(["", "", draw.name])


def _loop(model: Any, draw: Draw) -> None:
    """The last output goes through a loop that does nothing, very often."""
    from onnx import TensorProto, helper

    trips = helper.make_tensor("trips", TensorProto.INT64, [], [draw.rng.choice([1, 2**31, 2**62])])
    infos = {"i": TensorProto.INT64, "go_in": TensorProto.BOOL, "in": TensorProto.FLOAT, "go_out": TensorProto.BOOL,
             "out": TensorProto.FLOAT}  # fmt: skip
    made = {name: helper.make_tensor_value_info(name, kind, None) for name, kind in infos.items()}
    nodes = [helper.make_node("Identity", ["go_in"], ["go_out"]), helper.make_node("Identity", ["in"], ["out"])]
    body = helper.make_graph(nodes, "b", [made["i"], made["go_in"], made["in"]], [made["go_out"], made["out"]])
    last = next((node for node in reversed(model.graph.node) if node.output), None)
    if last is None:
        return
    source, last.output[0] = last.output[0], "looped"
    model.graph.initializer.append(trips)
    model.graph.node.append(helper.make_node("Loop", ["trips", "", "looped"], [source], body=body))


def _nested(model: Any, draw: Draw) -> None:
    """Graphs in graphs in graphs."""
    inner = model.graph
    for _ in range(draw.rng.choice([2, 40, 150])):
        held = inner.node.add(op_type="If").attribute.add()
        held.name, held.type = "then_branch", 5
        inner = held.g


def _words(model: Any, draw: Draw) -> None:
    model.metadata_props.add(key=draw.name, value=draw.name)
    model.ir_version = draw.rng.choice([0, 9, 99, -1, 2**62])
    model.producer_name = model.graph.name = draw.name


CHANGES: tuple[Callable[[Any, Draw], None], ...] = (
    _op, _domain, _node_name, _input_name, _output_name, _shape, _element, _dims, _external, _raw, _dtype, _attribute,
    _wires, _opset, _loop, _nested, _words,
)  # fmt: skip
