"""An .onnx file made to keep its reader busy: every step, every size and every name is bounded."""

# ruff: noqa: E501 - one case a line
from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="sources need edgeattn[convert]")
pytest.importorskip("onnxruntime", reason="ONNX sources need edgeattn[convert]")

import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeattn.errors import EdgeattnError, ModelError, UnsupportedError
from edgeattn.sources.onnx import file as onnx_file
from edgeattn.sources.onnx import read as onnx_read
from edgeattn.sources.onnx import static as onnx_static

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
Node = onnx.NodeProto


def info(name: str, shape: Sequence[int | str] | None, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def write(
    path: Path,
    nodes: Sequence[Node],
    constants: dict[str, np.ndarray] | None = None,
    inputs: Sequence[onnx.ValueInfoProto] = (info("x", [1, 4]),),
) -> str:
    stored = [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()]
    graph = helper.make_graph(nodes, "main", inputs, [info("y", None)], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return str(path)


def body(nodes: Sequence[Node], output: str, condition: str = "c") -> onnx.GraphProto:
    """Of a loop: carries one tensor."""
    return helper.make_graph(
        nodes,
        "body",
        [info("i", [], INT64), info("c", [], BOOL), info("v", None)],
        [info(condition, [], BOOL), info(output, None)],
    )


def loop(inner: onnx.GraphProto, trip: str = "n", condition: str = "go") -> Node:
    return helper.make_node("Loop", [trip, condition, "x"], ["y"], body=inner)


ENDLESS = {"n": np.array(2**62), "go": np.array(True)}


def test_a_loop_of_endless_steps_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx", [loop(body([], "v"))], ENDLESS)
    assert Path(path).stat().st_size < 300
    with pytest.raises(UnsupportedError, match=r"more than 100000 nodes after unrolling loops"):
        onnx_file.load(path)


@pytest.mark.parametrize("kind", ["folded", "kept", "nested", "no count"])
def test_no_form_of_an_endless_loop_is_walked(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_static, "MAX_NODES", 2_000)  # seconds otherwise
    constants = dict(ENDLESS)
    node = helper.make_node("Relu", ["v"], ["w"])
    if kind == "folded":
        inner = body([helper.make_node("Add", ["i", "i"], ["j"]), helper.make_node("Identity", ["v"], ["w"])], "w")
    elif kind == "nested":
        constants["n"] = np.array(100)
        deep = helper.make_node("Loop", ["n", "go", "v"], ["w"], body=helper.make_graph(
            [], "deep", [info("k", [], INT64), info("d", [], BOOL), info("u", None)], [info("d", [], BOOL), info("u", None)]
        ))  # fmt: skip
        inner = body([deep], "w")
    else:
        inner = body([node], "w")
    with pytest.raises(UnsupportedError, match="after unrolling loops"):
        onnx_file.load(write(tmp_path / "net.onnx", [loop(inner, "" if kind == "no count" else "n")], constants))


def test_a_loop_that_only_runs_in_onnx_runtime_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "RUN_SECONDS", 0.5)
    nodes = [
        helper.make_node("ReduceMax", ["v"], ["m"], keepdims=0),
        helper.make_node("Less", ["m", "high"], ["d"]),
        helper.make_node("Identity", ["v"], ["w"]),
    ]
    constants = {**ENDLESS, "high": np.array(np.float32(1e30))}
    path = write(tmp_path / "net.onnx", [loop(body(nodes, "w", "d"))], constants)
    started = time.monotonic()
    with pytest.raises(EdgeattnError, match=r"longer than 0\.5 s"):
        onnx_file.load(path)
    assert time.monotonic() - started < 60  # it would not end


HUGE = 2**40
GROWING = {
    "pad": ([helper.make_node("Pad", ["x", "s"], ["y"])], {"s": np.array([0, 0, 0, HUGE])}),
    "pad by what is there": ([helper.make_node("Pad", ["x", "s"], ["y"], mode="edge")], {"s": np.array([0, 0, 0, HUGE])}),
    "tile": ([helper.make_node("Tile", ["x", "s"], ["y"])], {"s": np.array([HUGE, HUGE])}),
    "expand": ([helper.make_node("Expand", ["x", "s"], ["y"])], {"s": np.array([HUGE, 4])}),
    "filled": ([helper.make_node("ConstantOfShape", ["s"], ["z"]), helper.make_node("Add", ["x", "z"], ["y"])], {"s": np.array([HUGE, 4])}),
    "range": (
        [helper.make_node("Range", ["a", "s", "b"], ["z"]), helper.make_node("Add", ["x", "z"], ["y"])],
        {"a": np.array(0.0, np.float32), "s": np.array(1e18, np.float32), "b": np.array(1.0, np.float32)},
    ),
    "resize": ([helper.make_node("Resize", ["q", "", "", "s"], ["y"])], {"q": np.ones((1, 1, 2, 2), np.float32), "s": np.array([1, 1, HUGE, 2])}),
    "resize, linear": (
        [helper.make_node("Resize", ["q", "", "", "s"], ["y"], mode="linear", coordinate_transformation_mode="asymmetric")],
        {"q": np.ones((1, 1, 2, 2), np.float32), "s": np.array([1, 1, 2**30, 2])},
    ),
    "split": ([helper.make_node("Split", ["x"], ["y"], axis=1, num_outputs=HUGE)], {}),
    "broadcast": (
        [helper.make_node("Max", [f"a{i}" for i in range(8)], ["z"]), helper.make_node("Add", ["x", "z"], ["y"])],
        {f"a{i}": np.ones([64 if i == j else 1 for j in range(8)], np.float32) for i in range(8)},
    ),
    "convolution": (
        [helper.make_node("Conv", ["q", "w"], ["z"], pads=[2**30] * 4), helper.make_node("Add", ["x", "z"], ["y"])],
        {"q": np.ones((1, 1, 2, 2), np.float32), "w": np.ones((1, 1, 1, 1), np.float32)},
    ),
    "pooling": (
        [helper.make_node("AveragePool", ["q"], ["y"], kernel_shape=[HUGE, HUGE], pads=[HUGE] * 4)],
        {"q": np.ones((1, 1, 2, 2), np.float32)},
    ),
    "normalisation": ([helper.make_node("LRN", ["q"], ["y"], size=2**31 - 1)], {"q": np.ones((1, 1, 2, 2), np.float32)}),
    "one-hot": (
        [helper.make_node("OneHot", ["i", "s", "v"], ["y"])],
        {"i": np.array([0]), "s": np.array(HUGE), "v": np.array([0.0, 1.0], np.float32)},
    ),
    "einsum": (
        [helper.make_node("Einsum", [f"a{i}" for i in range(6)], ["z"], equation="a,b,c,d,e,f->abcdef"), helper.make_node("Add", ["x", "z"], ["y"])],
        {f"a{i}": np.ones(64, np.float32) for i in range(6)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(GROWING))
def test_a_node_that_makes_more_than_memory_is_refused_by_name(tmp_path: Path, case: str) -> None:
    nodes, constants = GROWING[case]
    with pytest.raises(EdgeattnError, match=r"[nN]ode") as raised:
        onnx_file.load(write(tmp_path / "net.onnx", nodes, constants))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "shape", [[1, 2**31], [2**16, 2**16], [2**62], [1] * 5_000, ["a + " + "9" * 5_000], ["²+²", 4]]
)
def test_an_input_that_no_edge_model_takes_is_refused(tmp_path: Path, shape: list[int | str]) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    path = write(tmp_path / "net.onnx", nodes, inputs=[info("x", shape)])
    if shape == ["²+²", 4]:
        assert onnx_file.load(path).spec.graph().inputs[0].shape[1] == 4
        return
    with pytest.raises(ModelError, match=r"more than|at most"):
        onnx_file.load(path)


def field(number: int, content: bytes) -> bytes:
    """A protobuf field of bytes."""
    size, coded = len(content), b""
    while size >= 128:
        coded, size = coded + bytes([size % 128 + 128]), size // 128
    return bytes([8 * number + 2]) + coded + bytes([size]) + content


@pytest.mark.parametrize("depth", [18, 30, 33, 40, 3_000])
def test_bodies_within_bodies_are_refused(tmp_path: Path, depth: int) -> None:
    inner = helper.make_graph([helper.make_node("Relu", ["x"], ["r"])], "b", [], [info("r", None)]).SerializeToString()
    for level in range(depth):
        out = b"r%d" % level
        attribute = field(1, b"then_branch") + bytes([160, 1, 5]) + field(6, inner)
        node = field(1, b"go") + field(2, out) + field(4, b"If") + field(5, attribute)
        inner = field(1, node) + field(2, b"b") + field(12, field(1, out))
    graph = helper.make_graph(
        [], "main", [info("x", [1, 4])], [info("y", None)], [numpy_helper.from_array(np.array(True), "go")]
    )
    nested = field(
        1,
        field(1, b"go")
        + field(2, b"y")
        + field(4, b"If")
        + field(5, field(1, b"then_branch") + bytes([160, 1, 5]) + field(6, inner)),
    )
    version = helper.make_model(
        helper.make_graph([], "", [], []), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    path = tmp_path / "net.onnx"
    path.write_bytes(
        field(7, graph.SerializeToString() + nested)
        + field(8, version.opset_import[0].SerializeToString())
        + bytes([8, 8])
    )
    with pytest.raises(ModelError, match=r"net\.onnx: .*(nested|Exceeded|branch)") as raised:
        onnx_file.load(str(path))
    assert "\n" not in str(raised.value)


def test_a_name_without_end_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx", [helper.make_node("Relu", ["x"], ["y"], name="n" * 100_000)])
    with pytest.raises(ModelError, match="a name in it has 100000 bytes") as raised:
        onnx_file.load(path)
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize("kind", ["Relu\n\x1b[31m", "\u202e", "x" * 3_000])
def test_what_a_node_is_called_is_shown_as_text(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "net.onnx", [helper.make_node(kind, ["x"], ["y"])])
    with pytest.raises(EdgeattnError) as raised:
        onnx_file.load(path)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 1_500


def test_nodes_and_ports_are_counted_before_they_are_walked(tmp_path: Path) -> None:
    many = [helper.make_node("Relu", ["x"], [f"y{i}"]) for i in range(onnx_read.MAX_NODES + 1)]
    with pytest.raises(ModelError, match="100001 nodes"):
        onnx_file.load(write(tmp_path / "net.onnx", many))
    inputs = [info(f"x{i}", [1]) for i in range(onnx_read.MAX_PORTS + 1)]
    with pytest.raises(ModelError, match="1001 inputs"):
        onnx_file.load(write(tmp_path / "net.onnx", [helper.make_node("Relu", ["x0"], ["y"])], inputs=inputs))


def test_functions_that_unfold_to_gigabytes_are_refused(tmp_path: Path) -> None:
    weight = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(np.ones(2**18, np.float32)))
    outer = "x"
    function = helper.make_function("f", "fat", ["a"], ["b"], [weight, helper.make_node("Add", ["a", "w"], ["b"])], [helper.make_opsetid("", 17)])  # fmt: skip
    nodes = []
    for i in range(5_000):
        nodes.append(helper.make_node("fat", [outer], [f"t{i}"], domain="f"))
        outer = f"t{i}"
    nodes.append(helper.make_node("Identity", [outer], ["y"]))
    graph = helper.make_graph(nodes, "main", [info("x", [1, 2**18])], [info("y", None)])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8, functions=[function])
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="unfold to"):
        onnx_file.load(str(tmp_path / "net.onnx"))


def test_a_chain_that_makes_its_weights_anew_stays_within_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_static, "SPARE_BYTES", 0)
    weight = np.ones((1024, 1024), np.float32)
    nodes = [helper.make_node("Neg", ["w" if i == 0 else f"w{i - 1}"], [f"w{i}"]) for i in range(40)]
    nodes.append(helper.make_node("MatMul", ["x", "w39"], ["y"]))
    graph = helper.make_graph(
        nodes, "main", [info("x", [1, 1024])], [info("y", None)], [numpy_helper.from_array(weight, "w")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    import torch

    from edgeattn.sources.onnx.values import Value

    static = onnx_static.make_static(model, {"x": Value((1, 1024), torch.float32)})
    assert len([node for node in static.graph.node if node.op_type == "Neg"]) == 36  # four copies were folded


def test_example_inputs_that_unpack_to_gigabytes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeattn.sources.onnx import example as onnx_inputs

    monkeypatch.setattr(onnx_inputs, "MAX_BYTES", 2**20)
    np.savez_compressed(tmp_path / "net.npz", x=np.zeros((1, 2**20), np.float32))
    path = write(tmp_path / "net.onnx", [helper.make_node("Relu", ["x"], ["y"])], inputs=[info("x", [1, "n"])])
    with pytest.raises(ModelError, match=r"net\.npz: not an npz with example inputs: .* at most 1048576 are read"):
        onnx_file.load(path)
