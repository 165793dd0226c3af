"""MODEL as an .onnx file: what becomes of sound ones, and one clear line for every other."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="sources need edgeattn[convert]")
pytest.importorskip("onnxruntime", reason="ONNX sources need edgeattn[convert]")

import hypothesis
import onnx
import onnxruntime
import torch
from hypothesis import strategies
from onnx import TensorProto, helper, numpy_helper

from edgeattn.errors import ConversionError, EdgeattnError, ModelError, UnsupportedError
from edgeattn.model import EdgeModel
from edgeattn.sources import load_model
from edgeattn.sources.onnx.imported import ImportedModel
from edgeattn.sources.onnx.reference import OnnxRuntimeModule

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
RNG = np.random.default_rng(0)
TABLE = RNG.standard_normal((7, 4)).astype(np.float32)
WEIGHT = RNG.standard_normal((4, 5)).astype(np.float32)
Tensors = dict[str, np.ndarray]


def info(name: str, shape: Sequence[int | str | None] | None, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto] | None = None,
    outputs: Sequence[str] = ("y",),
    constants: Tensors | None = None,
    opset: int = 17,
    functions: Sequence[onnx.FunctionProto] = (),
    **domains: int,
) -> onnx.ModelProto:
    """A model with input x (1, 4)."""
    graph = helper.make_graph(
        nodes,
        "main",
        inputs if inputs is not None else [info("x", [1, 4])],
        [info(name, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    imports = [helper.make_opsetid("", opset)]
    imports += [helper.make_opsetid(name.replace("_", "."), version) for name, version in domains.items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, functions=functions)


def product(name: str = "product") -> onnx.NodeProto:
    return helper.make_node("MatMul", ["x", "w"], ["y"], name=name)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write a model; its reference."""

    def make(model: onnx.ModelProto | bytes, name: str = "net.onnx") -> str:
        path = tmp_path / name
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        return str(path)

    return make


Write = Callable[..., str]


def runtime(model: onnx.ModelProto, inputs: Tensors) -> list[np.ndarray]:
    """The oracle."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, inputs)]


def same_as_runtime(reference: str, model: onnx.ModelProto, tolerance: float = 1e-5) -> None:
    loaded = load_model(reference)
    example = dict(loaded.example["main"])
    got = loaded.run(example)
    for value, expected in zip(model.graph.output, runtime(model, example), strict=True):
        np.testing.assert_allclose(got[value.name], expected, atol=tolerance, rtol=tolerance)


# --- what is read ------------------------------------------------------------------------------------------------


def test_a_file_keeps_the_names_of_its_inputs_and_outputs(write: Write) -> None:
    model = model_of([product()], constants={"w": WEIGHT})
    loaded = load_model(write(model, "my_net.onnx"))
    graph = loaded.spec.graphs[0]
    assert (loaded.spec.name, graph.name) == ("my-net", "main")
    assert [(t.name, t.shape) for t in graph.inputs] == [("x", (1, 4))]
    assert [(t.name, t.shape) for t in graph.outputs] == [("y", (1, 5))]
    assert loaded.source_size_bytes == WEIGHT.nbytes
    assert isinstance(loaded.modules["main"], ImportedModel)
    same_as_runtime(write(model), model)


def test_the_source_is_known_by_its_weights_and_nodes(write: Write) -> None:
    first = load_model(write(model_of([product()], constants={"w": WEIGHT}))).source_sha256
    assert load_model(write(model_of([product()], constants={"w": WEIGHT}))).source_sha256 == first
    assert load_model(write(model_of([product()], constants={"w": 2 * WEIGHT}))).source_sha256 != first
    other = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    assert load_model(write(model_of(other, constants={"w": WEIGHT}))).source_sha256 != first


def test_weights_become_parameters_of_torchs_own_layers_under_readable_names(write: Write) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "onnx::MatMul_7"], ["h"], name="/encoder/layer.0/query/MatMul"),
        helper.make_node("Add", ["h", "encoder.layer.0.query.bias"], ["y"], name="/encoder/layer.0/query/Add"),
    ]
    constants = {"onnx::MatMul_7": WEIGHT, "encoder.layer.0.query.bias": WEIGHT[0]}
    module = load_model(write(model_of(nodes, constants=constants))).modules["main"]
    layer = module.get_submodule("encoder.layer.0.query")
    assert isinstance(layer, torch.nn.Linear)
    assert sorted(dict(module.named_parameters())) == ["encoder.layer.0.query.bias", "encoder.layer.0.query.weight"]
    np.testing.assert_array_equal(layer.weight.numpy(), WEIGHT.T)


def test_a_table_that_is_also_the_output_layer_is_one_parameter(write: Write) -> None:
    table = RNG.standard_normal((300, 8)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["h"]),
        helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["h", "turned"], ["y"]),
    ]
    loaded = load_model(write(model_of(nodes, [info("ids", [1, 3], INT64)], constants={"table": table})))
    assert sum(p.numel() for p in loaded.modules["main"].parameters()) == table.size


def test_shape_arithmetic_and_conditions_on_shapes_disappear(write: Write) -> None:
    body = helper.make_graph([helper.make_node("Neg", ["r"], ["n"])], "then", [], [info("n", None)])
    other = helper.make_graph([helper.make_node("Abs", ["r"], ["a"])], "else", [], [info("a", None)])
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "one"], ["d"]),
        helper.make_node("Concat", ["minus", "d"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["r"]),
        helper.make_node("Equal", ["d", "four"], ["c"]),
        helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=other),
    ]
    constants = {"one": np.array([1]), "minus": np.array([-1]), "four": np.array([4])}
    model = model_of(nodes, [info("x", ["batch", 4])], constants=constants)
    loaded = load_model(write(model))
    assert [node.op_type for node in loaded.onnx["main"].graph.node] == ["Neg"]
    same_as_runtime(write(model), model)


def test_a_loop_of_known_length_is_unrolled(write: Write) -> None:
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["h_in", "w"], ["h_out"]),
            helper.make_node("Identity", ["c_in"], ["c_out"]),
            helper.make_node("Mul", ["h_out", "two"], ["row"]),
        ],
        "body",
        [info("i", [], INT64), info("c_in", [], TensorProto.BOOL), info("h_in", [1, 4])],
        [info("c_out", [], TensorProto.BOOL), info("h_out", [1, 4]), info("row", [1, 4])],
    )
    nodes = [helper.make_node("Loop", ["trip", "go", "x"], ["last", "rows"], body=body)]
    constants = {
        "trip": np.array(3), "go": np.array(True), "w": 0.5 * WEIGHT[:, :4], "two": np.array(2, np.float32),
    }  # fmt: skip
    model = model_of(nodes, outputs=["last", "rows"], constants=constants)
    loaded = load_model(write(model))
    assert "Loop" not in {node.op_type for node in loaded.onnx["main"].graph.node}
    assert loaded.spec.graphs[0].outputs[1].shape == (3, 1, 4)
    same_as_runtime(write(model), model)


def test_local_functions_are_inlined(write: Write) -> None:
    double = helper.make_function(
        "mine", "Double", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    nodes = [helper.make_node("Double", ["x"], ["h"], domain="mine"), helper.make_node("Relu", ["h"], ["y"])]
    model = model_of(nodes, functions=[double], mine=1)
    same_as_runtime(write(model), model)


def test_initializers_may_stand_among_the_inputs(write: Write) -> None:
    model = model_of([product()], [info("x", [1, 4]), info("w", [4, 5])], constants={"w": WEIGHT})
    assert [t.name for t in load_model(write(model)).spec.graphs[0].inputs] == ["x"]


def test_nodes_out_of_order_are_sorted(write: Write) -> None:
    nodes = [helper.make_node("Relu", ["h"], ["y"]), helper.make_node("MatMul", ["x", "w"], ["h"])]
    loaded = load_model(write(model_of(nodes, constants={"w": WEIGHT})))
    assert [node.op_type for node in loaded.onnx["main"].graph.node] == ["MatMul", "Relu"]


@pytest.mark.parametrize("opset", [11, 12, 13, 16])
def test_older_opsets_become_17_and_mean_the_same(write: Write, opset: int) -> None:
    old = opset < 13
    axes: dict[str, Any] = {"axes": [0]} if old else {}
    sizes: dict[str, Any] = {"split": [1, 2]} if old else {}
    nodes = [
        helper.make_node("Unsqueeze", ["x"] if old else ["x", "zero"], ["u"], **axes),
        helper.make_node("Softmax", ["u"], ["s"], axis=1),
        helper.make_node("ReduceSum", ["s"] if old else ["s", "zero"], ["r"], keepdims=0, **axes),
        helper.make_node("Split", ["r"] if old else ["r", "sizes"], ["a", "b"], axis=0, **sizes),
        helper.make_node("Squeeze", ["a"] if old else ["a", "zero"], ["y"], **axes),
    ]  # fmt: skip
    constants = {} if old else {"zero": np.array([0]), "sizes": np.array([1, 2])}
    model = model_of(nodes, [info("x", [3, 4])], ["y", "b"], constants, opset)
    loaded = load_model(write(model))
    assert loaded.onnx["main"].opset_import[0].version == 17
    got = runtime(loaded.onnx["main"], dict(loaded.example["main"]))
    for ours, expected in zip(got, runtime(model, dict(loaded.example["main"])), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-6)
    same_as_runtime(write(model), model)


def test_float16_files_are_widened(write: Write) -> None:
    half = model_of([product()], [info("x", [1, 4], TensorProto.FLOAT16)], constants={"w": WEIGHT.astype(np.float16)})
    loaded = load_model(write(half))
    assert loaded.spec.graphs[0].inputs[0].dtype == "float32"
    assert "widened" in loaded.notes[0]
    x = loaded.example["main"]["x"]
    np.testing.assert_allclose(loaded.run({"x": x})["y"], x @ WEIGHT.astype(np.float16).astype(np.float32), atol=1e-6)


def test_an_infinite_mask_is_no_broken_weight(write: Write) -> None:
    mask = np.where(np.tri(4, dtype=bool), 0, -np.inf).astype(np.float32)
    nodes = [helper.make_node("Add", ["x", "mask"], ["h"]), helper.make_node("Softmax", ["h"], ["y"])]
    model = model_of(nodes, [info("x", [4, 4])], constants={"mask": mask})
    same_as_runtime(write(model), model)


# --- sizes and example inputs ------------------------------------------------------------------------------------


def dynamic() -> onnx.ModelProto:
    nodes = [helper.make_node("Gather", ["table", "ids"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    inputs = [info("ids", ["batch", "seq"], INT64)]
    return model_of(nodes, inputs, constants={"table": TABLE, "w": WEIGHT})


def test_named_dimensions_get_an_example_size_and_stay_open(write: Write) -> None:
    loaded = load_model(write(dynamic()))
    ids = loaded.example["main"]["ids"]
    assert ids.shape == (1, 16)
    assert ids.max() < 7  # an id is a row of the table
    assert loaded.dims == {"main": {"ids": {0: "batch", 1: "seq"}}}


def test_a_file_is_made_anew_for_another_size_with_the_same_weights(write: Write) -> None:
    loaded = load_model(write(dynamic()))
    assert loaded.resize is not None
    ids = np.array([[1, 2, 3, 4, 5]])
    module, graph = loaded.resize("main", {"ids": ids})
    assert graph is not None
    np.testing.assert_allclose(module(ids=torch.from_numpy(ids))["y"].numpy(), runtime(dynamic(), {"ids": ids})[0],
                               atol=1e-5)  # fmt: skip
    assert [d.dim_value for d in graph.graph.output[0].type.tensor_type.shape.dim] == [1, 5, 5]
    ours = {id(p) for p in loaded.modules["main"].parameters()}
    assert {id(p) for p in module.parameters()} == ours


def test_a_size_that_the_graph_does_not_take_is_refused(write: Write) -> None:
    nodes = [helper.make_node("Add", ["x", "places"], ["y"])]
    loaded = load_model(write(model_of(nodes, [info("x", ["n", 4])], constants={"places": WEIGHT[:, :4].copy()})))
    assert loaded.resize is not None
    with pytest.raises(ModelError, match=r"does not take x \[3, 4\]: .*Add"):
        loaded.resize("main", {"x": np.zeros((3, 4), np.float32)})


@pytest.mark.parametrize(
    ("name", "size"),
    [("batch_size", 1), ("sequence_length", 16), ("past_sequence_length + 1", 17), ("height", 224), ("whatever", 16)],
)
def test_sizes_follow_the_names_that_exporters_use(name: str, size: int) -> None:
    from edgeattn.sources.onnx.example import declared_inputs, example_shapes

    graph = model_of([product()], [info("x", [2, name])]).graph
    assert example_shapes(declared_inputs(graph)) == {"x": (2, size)}


def test_example_inputs_may_lie_beside_the_file(write: Write, tmp_path: Path) -> None:
    reference = write(dynamic())
    np.savez(tmp_path / "net.npz", ids=np.array([[6, 5, 4]]))
    np.testing.assert_array_equal(load_model(reference).example["main"]["ids"], [[6, 5, 4]])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"tokens": np.array([[1]])}, r"has no array 'ids'; it has tokens"),
        ({"ids": np.array([1])}, r"'ids' is int64\[1\], the model takes int64\['batch', 'seq'\]"),
        ({"ids": np.ones((1, 2), np.float32)}, "'ids' is float32"),
    ],
)
def test_example_inputs_that_do_not_fit_are_refused(
    write: Write, tmp_path: Path, arrays: Tensors, message: str
) -> None:
    reference = write(dynamic())
    np.savez(tmp_path / "net.npz", allow_pickle=False, **arrays)
    with pytest.raises(ModelError, match=message):
        load_model(reference)


# --- external data -----------------------------------------------------------------------------------------------


def external(tmp_path: Path, **changed: str) -> str:
    """A model whose weight lies beside it."""
    model = model_of([product()], constants={"w": WEIGHT})
    tensor = model.graph.initializer[0]
    entries = {"location": "net.bin", "offset": "16", "length": str(WEIGHT.nbytes), **changed}
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    (tmp_path / "net.bin").write_bytes(bytes(16) + WEIGHT.tobytes())
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    return str(tmp_path / "net.onnx")


def test_weights_beside_the_file_are_read(tmp_path: Path) -> None:
    loaded = load_model(external(tmp_path))
    x = loaded.example["main"]["x"]
    np.testing.assert_allclose(loaded.run({"x": x})["y"], x @ WEIGHT, atol=1e-6)


def test_a_cache_made_of_links_is_read(tmp_path: Path) -> None:
    # Hugging Face's cache: snapshots/x/model.onnx -> ../../blobs/hash, and the data likewise.
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    external(blobs)
    for name in ("net.onnx", "net.bin"):
        (snapshot / name).symlink_to(blobs / name)
    load_model(str(snapshot / "net.onnx"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"location": "missing.bin"}, "tensor 'w': external data missing: .*missing.bin: no such file"),
        ({"location": "../net.bin"}, "outside the model's folder: refused"),
        ({"location": "/etc/passwd"}, "outside the model's folder: refused"),
        ({"location": "C:\\net.bin"}, "outside the model's folder: refused"),
        ({"location": "link.bin"}, "links outside the model's folder: refused"),
        ({"location": "pipe"}, "not a regular file"),
        ({"location": ""}, "outside the model's folder: refused"),
        ({"offset": "17"}, "bytes 17 to 97 of net.bin, which has 96: the file is cut off"),
        ({"offset": "-1"}, "offset of its external data is '-1', expected a number of bytes"),
        ({"length": "40"}, "40 bytes of external data, its shape needs 80"),
    ],
)
def test_external_data_that_is_not_there_or_not_ours_is_refused(
    tmp_path: Path, changed: dict[str, str], message: str
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "net.bin").write_bytes(bytes(200))
    (folder / "link.bin").symlink_to(tmp_path / "net.bin")
    os.mkfifo(folder / "pipe")
    with pytest.raises(ModelError, match=message) as caught:
        load_model(external(folder, **changed))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


# --- what is refused ---------------------------------------------------------------------------------------------


def nested(depth: int) -> onnx.ModelProto:
    body = helper.make_graph([helper.make_node("Neg", ["x"], ["n"])], "leaf", [], [info("n", None)])
    for level in range(depth):
        leaf = helper.make_graph([helper.make_node("Neg", ["x"], [f"e{level}"])], "e", [], [info(f"e{level}", None)])
        node = helper.make_node("If", ["c"], [f"n{level}"], then_branch=body, else_branch=leaf)
        body = helper.make_graph([node], f"b{level}", [], [info(f"n{level}", None)])
    return model_of(list(body.node), outputs=[f"n{depth - 1}"], constants={"c": np.array(True)})


def nested_bytes(depth: int) -> bytes:
    """ModelProto.graph.node.attribute.g.node ... as bytes: protobuf's own writer refuses to make it."""
    data = b""
    for _ in range(depth):
        for field in (6, 5, 1):  # AttributeProto.g, NodeProto.attribute, GraphProto.node
            data = _field(field, data)
    return b"\x08\x08" + _field(7, data)


def _field(number: int, data: bytes) -> bytes:
    size, length = b"", len(data)
    while length > 127:
        size, length = size + bytes([length % 128 + 128]), length // 128
    return bytes([number * 8 + 2]) + size + bytes([length]) + data


def bomb(depth: int = 40) -> onnx.ModelProto:
    """Functions that call the one below twice: 2^40 nodes."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    functions = [helper.make_function("mine", "f0", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])], imports)]
    for level in range(1, depth):
        calls = [
            helper.make_node(f"f{level - 1}", ["a"], ["h"], domain="mine"),
            helper.make_node(f"f{level - 1}", ["h"], ["b"], domain="mine"),
        ]
        functions.append(helper.make_function("mine", f"f{level}", ["a"], ["b"], calls, imports))
    node = helper.make_node(f"f{depth - 1}", ["x"], ["y"], domain="mine")
    return model_of([node], functions=functions, mine=1)


def huge(data: bytes = b"") -> onnx.ModelProto:
    model = model_of([product()], constants={"w": WEIGHT})
    tensor = model.graph.initializer[0]
    tensor.dims[:] = [2**40, 2**20]
    tensor.raw_data = data
    return model


def recursive() -> onnx.ModelProto:
    call = helper.make_node("f", ["a"], ["b"], domain="mine")
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    function = helper.make_function("mine", "f", ["a"], ["b"], [call], imports)
    return model_of([helper.make_node("f", ["x"], ["y"], domain="mine")], functions=[function], mine=1)


def node(kind: str, *inputs: str, domain: str = "", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, list(inputs), ["y"], name="odd", domain=domain, **attributes)


GOOD = model_of([product()], constants={"w": WEIGHT}).SerializeToString()
SIZES = {"s": np.array([10**6, 10**7])}
BROKEN: list[tuple[str, onnx.ModelProto | bytes, str]] = [
    ("empty", b"", "not an ONNX model"),
    ("text", b"<html>not found</html>", "not an ONNX model"),
    ("git lfs", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer, not the model"),
    ("cut off", GOOD[: len(GOOD) // 2], "not an ONNX model, cut off"),
    ("cut at a field", GOOD[: GOOD.rfind(b"\x42\x04")] if b"\x42\x04" in GOOD else GOOD[:-2], "cut off|no opset"),
    ("deep", nested_bytes(2000), "nested too deep"),
    ("rather deep", nested(20), "nested more than 16 deep"),
    ("a bomb of functions", bomb(), r"unfold to \d+ nodes"),
    ("a function in itself", recursive(), "function 'f' calls itself"),
    ("terabytes of weights", huge(), r"tensor 'w': 0 bytes, its shape .* needs"),
    ("terabytes from a shape", model_of([node("ConstantOfShape", "s")], constants=SIZES), r"node 'odd' .*GiB"),
    ("terabytes from a product", model_of([node("MatMul", "a", "b")], [info("a", [2**20, 1]), info("b", [1, 2**20])]),
     r"node 'odd' \(MatMul\) makes 'y' of shape .*GiB"),
    ("negative sizes", model_of([product()], [info("x", [1, -4])], constants={"w": WEIGHT}), "axis 1 has size -4"),
    ("a size of zero", model_of([product()], [info("x", [0, 4])], constants={"w": WEIGHT}), "axis 0 has size 0"),
    ("no shape", model_of([product()], [info("x", None)], constants={"w": WEIGHT}), "input 'x' has no shape"),
    ("a cycle", model_of([helper.make_node("Add", ["x", "y"], ["h"], name="one"),
                          helper.make_node("Neg", ["h"], ["y"], name="two")]), r"node '\w+' .* is part of a cycle"),
    ("a name made twice", model_of([product(), product("again")], constants={"w": WEIGHT}),
     r"node 'again' \(MatMul\) makes 'y', which is there already"),
    ("two inputs of one name", model_of([product()], [info("x", [1, 4])] * 2, constants={"w": WEIGHT}),
     "two inputs are named 'x'"),
    ("a dangling input", model_of([product()]), r"node 'product' \(MatMul\) reads 'w', which nothing makes"),
    ("a dangling output", model_of([product()], outputs=["z"], constants={"w": WEIGHT}),
     "output 'z' is made by no node"),
    ("shapes that do not fit", model_of([product()], [info("x", [1, 3])], constants={"w": WEIGHT}),
     r"node 'product' \(MatMul\) does not fit inputs of shape \[1, 3\]"),
    ("NaN in a weight", model_of([product()], constants={"w": np.where(WEIGHT > 1, np.float32(np.nan), WEIGHT)}),
     r"tensor 'w', read by node 'product' \(MatMul\) at position 0, output 'y', holds NaN at 5 of 20 places"),
    ("random numbers", model_of([node("RandomNormalLike", "x")]),
     r"outputs change between calls: node 'odd' \(RandomNormalLike\) draws random numbers"),
    ("dropout left on", model_of([node("Dropout", "x", "r", "t")], constants={
        "r": np.array(0.5, np.float32), "t": np.array(True)}), r"node 'odd' \(Dropout\) is left on, training_mode"),
    ("batch statistics", model_of([node("BatchNormalization", "x", "w", "w", "w", "w", training_mode=1)], constants={
        "w": WEIGHT[:4, 0].copy()}), r"node 'odd' \(BatchNormalization\) is left on, training_mode"),
    ("an attribute of the wrong type", model_of([node("Softmax", "x", axis="last")]), "axis"),
]  # fmt: skip
FOREIGN: list[tuple[str, onnx.ModelProto, str]] = [
    ("an old opset", model_of([product()], constants={"w": WEIGHT}, opset=5), "opset 5 is older than 6"),
    ("a future opset", model_of([product()], constants={"w": WEIGHT}, opset=999), "opset 999 is newer than"),
    ("a custom domain", model_of([node("Magic", "x", domain="acme.ops")], acme_ops=1),
     r"node 'odd' \(acme.ops.Magic\) is of the custom domain 'acme.ops'"),
    ("an operator that is none", model_of([node("Sofmax", "x")]),
     r"node 'odd' \(Sofmax\): unknown operator 'Sofmax', did you mean 'Softmax'"),
    ("training", model_of([node("SoftmaxCrossEntropyLoss", "x", "t")], [info("x", [1, 4]), info("t", [1], INT64)]),
     "is for training only"),
    ("a sequence", model_of([node("SequenceConstruct", "x")]), "output 'y' is a sequence; edge engines give tensors"),
    ("a sequence as input", model_of([node("SequenceAt", "s", "i")], [
        helper.make_tensor_sequence_value_info("s", FLOAT, [1, 4]), info("i", [], INT64)]),
     "input 's' is of sequence type"),
    ("text", model_of([helper.make_node("Identity", ["x"], ["y"])], [info("x", [1], TensorProto.STRING)]),
     "input 'x' is string; edge engines take"),
    ("a shape that depends on values", model_of([node("NonZero", "x")]), r"node 'odd' \(NonZero\).*constant"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "message"), [c[1:] for c in BROKEN], ids=[c[0] for c in BROKEN])
def test_a_broken_file_is_refused_in_one_line(write: Write, model: onnx.ModelProto | bytes, message: str) -> None:
    _refused(write(model), ModelError, message, 2)


@pytest.mark.parametrize(("model", "message"), [c[1:] for c in FOREIGN], ids=[c[0] for c in FOREIGN])
def test_what_has_no_place_in_an_edge_model_is_named(write: Write, model: onnx.ModelProto, message: str) -> None:
    _refused(write(model), UnsupportedError, message, 4)


def _refused(reference: str, kind: type[EdgeattnError], message: str, code: int) -> None:
    with pytest.raises(kind, match=message) as caught:
        load_model(reference)
    assert caught.value.exit_code == code
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(reference)
    assert str(caught.value).count(reference) == 1


def test_infinity_in_a_weight_is_refused_by_name(write: Write) -> None:
    weight = np.where(WEIGHT > 1, np.inf, WEIGHT).astype(np.float32)
    with pytest.raises(ModelError, match=r"parameter \w+\.weight of graph 'main' holds NaN or infinity"):
        load_model(write(model_of([product()], constants={"w": weight})))


def test_an_example_that_the_user_gave_is_kept_also_where_it_hides(tmp_path: Path, write: Write) -> None:
    nodes = [
        helper.make_node("Cast", ["mask"], ["seen"], to=TensorProto.BOOL),
        helper.make_node("MatMul", ["x", "w"], ["scores"]),
        helper.make_node("Where", ["seen", "scores", "lowest"], ["masked"]),
        helper.make_node("Identity", ["masked"], ["logits"]),
        helper.make_node("LogSoftmax", ["masked"], ["logs"]),
        helper.make_node("Softmax", ["masked"], ["y"]),
    ]
    inputs = [info("x", [1, 4]), info("mask", [1, 5], INT64)]
    constants = {"w": WEIGHT, "lowest": np.array(-np.inf, np.float32)}
    model = model_of(nodes, inputs, ("logits", "logs", "y"), constants)
    mask = np.array([[1, 0, 1, 0, 1]])
    np.savez(tmp_path / "net.npz", x=np.ones((1, 4), np.float32), mask=mask)
    loaded = load_model(write(model))
    np.testing.assert_array_equal(loaded.example["main"]["mask"], mask)
    outputs = loaded.run(loaded.example["main"])
    for name in ("logits", "logs"):
        np.testing.assert_array_equal(np.isneginf(outputs[name]), mask == 0)
    np.savez(tmp_path / "net.npz", x=np.ones((1, 4), np.float32), mask=np.zeros_like(mask))
    with pytest.raises(ModelError, match=r"is (NaN|infinite)"):  # told, never silently replaced
        load_model(write(model))


def test_nan_is_told_by_its_node_also_without_names_and_one_that_where_puts_is_data(write: Write) -> None:
    missing = numpy_helper.from_array(np.array([np.nan], np.float32))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Constant", [], ["nothing"], value=missing),
        helper.make_node("Greater", ["h", "limit"], ["far"]),
        helper.make_node("Where", ["far", "nothing", "h"], ["kept"]),
        helper.make_node("IsNaN", ["kept"], ["lost"]),
        helper.make_node("Where", ["lost", "limit", "kept"], ["y"]),
    ]
    constants = {"w": WEIGHT, "limit": np.array(1e6, np.float32)}
    assert _finite(load_model(write(model_of(nodes, [info("x", [1, 4])], constants=constants))))
    nodes[3:] = [helper.make_node("Add", ["h", "nothing"], ["y"])]
    with pytest.raises(ModelError, match=r"value of node 'nothing' \(Constant\) at position 1 holds NaN at 1 of 1"):
        load_model(write(model_of([*nodes[:2], nodes[3]], [info("x", [1, 4])], constants=constants)))


def _finite(model: EdgeModel) -> bool:
    return bool(np.isfinite(model.run(model.example["main"])["y"]).all())


ATTENTION = helper.make_graph(
    [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("Shape", ["e"], ["s"]),
        helper.make_node("Reshape", ["e", "s"], ["h"]),
        helper.make_node("Transpose", ["h"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["h", "t"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "h"], ["y"]),
    ],
    "attention",
    [info("ids", ["batch", "seq"], INT64)],
    [info("y", ["batch", "seq", 4])],
    [numpy_helper.from_array(TABLE, "table")],
)
SOUND = helper.make_model(ATTENTION, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


@pytest.mark.slow
@hypothesis.given(
    place=strategies.integers(0, len(SOUND) - 1), removed=strategies.integers(0, 8), added=strategies.binary(max_size=8)
)
def test_whatever_is_changed_in_a_file_it_loads_or_says_why_in_one_line(place: int, removed: int, added: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        path.write_bytes(SOUND[:place] + added + SOUND[place + removed :])
        said = ""
        try:
            load_model(str(path))
        except EdgeattnError as error:
            said = str(error)
        assert "\n" not in said


def test_a_pipe_is_no_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "net.onnx")
    with pytest.raises(ModelError, match="not a regular file"):
        load_model(str(tmp_path / "net.onnx"))


# --- changed networks --------------------------------------------------------------------------------------------


def open_model() -> onnx.ModelProto:
    """A product over x (1, open, 4)."""
    return model_of([product()], inputs=[info("x", [1, "time", 4])], constants={"w": WEIGHT})


def test_graphs_for_other_sizes_have_the_same_linear_layers(write: Write) -> None:
    loaded = load_model(write(open_model()))
    assert loaded.resize is not None
    other, _ = loaded.resize("main", {"x": np.zeros((1, 9, 4), np.float32)})
    modules = (other, loaded.modules["main"])
    layers = [[part for part in module.modules() if isinstance(part, torch.nn.Linear)] for module in modules]
    assert layers[0] == layers[1]
    assert len(layers[0]) == 1


def test_a_changed_network_is_a_model_that_the_file_no_longer_tells(write: Write) -> None:
    loaded = load_model(write(open_model()))
    network = copy.deepcopy(loaded.network)
    assert isinstance(network, ImportedModel)
    (layer,) = [module for module in network.modules() if isinstance(module, torch.nn.Linear)]
    with torch.no_grad():
        layer.weight.mul_(2.0)
    assert loaded.rebuild is not None
    changed = loaded.rebuild(network)
    assert not changed.onnx
    assert changed.resize is not None
    for rows in (5, 9):  # the second is read from the file again
        x = RNG.standard_normal((1, rows, 4)).astype(np.float32)
        module, _ = changed.resize("main", {"x": x})
        got = module(x=torch.from_numpy(x))["y"].detach().numpy()
        np.testing.assert_allclose(got, x @ (2.0 * WEIGHT), rtol=1e-5, atol=1e-6)
    x = loaded.example["main"]["x"]
    np.testing.assert_allclose(loaded.run({"x": x})["y"], x @ WEIGHT, rtol=1e-5, atol=1e-6)


# --- operators that the importer does not know -------------------------------------------------------------------


def test_an_unknown_operator_is_named_and_runs_in_onnx_runtime(write: Write) -> None:
    model = model_of([product(), helper.make_node("Unique", ["y"], ["u"], name="odd")], outputs=["u"],
                     constants={"w": WEIGHT})  # fmt: skip
    loaded = load_model(write(model))
    module = loaded.modules["main"]
    assert isinstance(module, OnnxRuntimeModule)
    assert module.unsupported.startswith("node 'odd' (Unique) cannot be expressed in torch")
    assert any("node 'odd' (Unique)" in note for note in loaded.notes)
    same_as_runtime(write(model), model)
    with pytest.raises(Exception, match="node 'odd'"):
        torch.export.export(module, (torch.zeros(1, 4),), strict=False)


def test_a_wrong_importer_is_found_by_the_first_node_that_differs(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeattn.sources.onnx.ops import TABLE

    monkeypatch.setitem(TABLE, ("", "Tanh"), lambda _node: torch.sin)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="right"),
        helper.make_node("Tanh", ["h"], ["t"], name="wrong"),
        helper.make_node("Exp", ["t"], ["y"], name="later"),
    ]
    with pytest.raises(ConversionError, match=r"differs from ONNX Runtime's by .*; first at node 'wrong' \(Tanh\)"):
        load_model(write(model_of(nodes, constants={"w": WEIGHT})))


def test_an_error_in_forward_names_the_node(write: Write) -> None:
    module = load_model(write(model_of([product()], constants={"w": WEIGHT}))).modules["main"]
    with pytest.raises(RuntimeError, match=r"node 'product' \(MatMul\): .*shapes"):
        module(x=torch.zeros(1, 3))
