"""Linear layers of an ONNX graph: their paths, their sizes, and the fingerprints that find them again."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from edgeattn.converters.onnx import export_onnx
from edgeattn.graphs.layers import MODULE_KEY, LinearLayer, fingerprint, fingerprints, layer_path, linear_layers
from tests.converters.samples import as_model, converted_stream, stream_model


class Two(nn.Module):
    """Layers in a list, one of them called twice, and a product of two activations."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.blocks[0](torch.tanh(self.blocks[1](torch.tanh(self.blocks[0](x)))))
        return {"scores": hidden @ hidden.transpose(-1, -2), "y": self.head(hidden)}


def graph_of(*nodes: onnx.NodeProto, **weights: np.ndarray) -> onnx.GraphProto:
    """Nodes that read ``x``, (2, 3, 4), and constants, and write ``y``."""
    return helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, 3, 4))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )


def test_layers_have_the_paths_of_their_modules_and_their_sizes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = as_model("two", Two(), x=torch.randn(2, 7, 16))
    layers = linear_layers(onnx.load(export_onnx(model, tmp_path)["main"]).graph)
    assert [layer.path for layer in layers] == ["blocks.0", "blocks.1", "blocks.0", "head"]
    assert [(layer.rows, layer.inner, layer.outer) for layer in layers] == [*[(14, 16, 16)] * 3, (14, 16, 5)]
    assert layers[3].flops == 2 * 14 * 16 * 5


def test_the_stream_has_a_layer_for_each_linear_module() -> None:
    layers = linear_layers(onnx.load(converted_stream().onnx["step"]).graph)
    linears = [m for m in stream_model().modules["step"].modules() if isinstance(m, nn.Linear)]
    assert len({layer.path for layer in layers}) == len(layers) == len(linears)
    assert {"subsampling.project", "blocks.1.attention.query", "blocks.0.ffn2.contract"} <= {la.path for la in layers}


def test_both_ways_to_lay_weights_are_read() -> None:
    weight = np.zeros((4, 6), np.float32)
    flat = [helper.make_node("Reshape", ["x", "shape"], ["rows"])]
    shape = np.array([6, 4], np.int64)
    value = helper.make_tensor_value_info("rows", TensorProto.FLOAT, (6, 4))
    for transposed, given_weight in ((0, weight), (1, weight.T.copy())):
        graph = graph_of(
            *flat,
            helper.make_node("Gemm", ["rows", "w"], ["y"], "gemm", transB=transposed),
            shape=shape,
            w=given_weight,
        )
        graph.value_info.append(value)
        assert linear_layers(graph) == (
            LinearLayer(
                path="gemm",
                node=1,
                name="gemm",
                activation="rows",
                weight="w",
                axis=1 - transposed,
                rows=6,
                inner=4,
                outer=6,
            ),
        )


def test_what_is_no_linear_layer_is_left_out() -> None:
    weight = np.zeros((4, 6), np.float32)
    assert linear_layers(graph_of(helper.make_node("MatMul", ["x", "w"], ["y"]), w=weight)) != ()
    for node, constants in (
        (helper.make_node("MatMul", ["w", "x"], ["y"]), {"w": weight}),  # constant on the left
        (helper.make_node("MatMul", ["x", "w"], ["y"]), {"w": np.zeros((2, 4, 6), np.float32)}),  # a batch of weights
        (helper.make_node("MatMul", ["x", "z"], ["y"]), {}),  # of two activations
        (helper.make_node("Add", ["x", "w"], ["y"]), {"w": weight}),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transA=1), {"w": weight}),
    ):
        assert linear_layers(graph_of(node, **constants)) == ()


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("/blocks/0/ffn/MatMul", "blocks.0.ffn"),
        ("/blocks/0/ffn/MatMul_1", "blocks.0.ffn"),
        ("/model/head/Gemm", "model.head"),
        ("/encoder/attention/product", "encoder.attention.product"),
        ("MatMul_7", "MatMul_7"),
        ("node_linear", "node_linear"),
    ],
)
def test_without_modules_the_name_of_the_node_is_the_path(name: str, path: str) -> None:
    assert layer_path(helper.make_node("MatMul", ["x", "w"], ["y"], name)) == path


def test_without_a_name_the_output_is_the_path() -> None:
    assert layer_path(helper.make_node("MatMul", ["x", "w"], ["y"])) == "y"


def test_the_module_goes_before_the_name() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "/blocks/0/MatMul")
    node.metadata_props.add(key=MODULE_KEY, value="layers.3.fc")
    assert layer_path(node) == "layers.3.fc"
    scoped = helper.make_node("MatMul", ["x", "w"], ["y"], "n")
    scoped.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'layers', 'layers.3', 'matmul']")
    assert layer_path(scoped) == "layers.3"


def test_the_older_exporter_of_torch_names_the_same_paths(tmp_path: Path) -> None:
    torch.manual_seed(0)
    example = torch.randn(2, 7, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Two().eval(), (example,), str(tmp_path / "old.onnx"), dynamo=False)
    model = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "old.onnx"))
    assert {layer.path for layer in linear_layers(model.graph)} == {"blocks.0", "blocks.1", "head"}


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_a_fingerprint_does_not_depend_on_how_weights_lie(rows: int, columns: int, seed: int) -> None:
    weight = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    assert fingerprint(weight, 0) == fingerprint(weight.T.copy(), 1) == fingerprint(np.asfortranarray(weight), 0)
    other = weight.copy()
    other[-1, -1] = np.nextafter(other[-1, -1], np.float32(np.inf))
    assert fingerprint(other, 0) != fingerprint(weight, 0)


def test_the_shape_is_part_of_a_fingerprint() -> None:
    assert len({fingerprint(np.zeros(shape, np.float32), 0) for shape in ((2, 6), (6, 2), (3, 4), (4, 3))}) == 4


def test_a_fingerprint_is_of_two_dimensions() -> None:
    with pytest.raises(ValueError, match=r"must be two-dimensional, got \(3,\)"):
        fingerprint(np.zeros(3, np.float32), 0)


def test_tied_weights_have_several_paths() -> None:
    weight = np.arange(16, dtype=np.float32).reshape(4, 4)
    graph = graph_of(
        helper.make_node("MatMul", ["x", "w"], ["h"], "/first/MatMul"),
        helper.make_node("MatMul", ["x", "copy"], ["y"], "/second/MatMul"),
        helper.make_node("MatMul", ["x", "w"], ["z"], "/first/MatMul_1"),
        helper.make_node("MatMul", ["x", "turned"], ["v"], "/third/MatMul"),
        w=weight,
        copy=weight.copy(),
        turned=weight.T.copy(),
    )
    found = fingerprints(helper.make_model(graph))
    assert found == {fingerprint(weight, 1): ("first", "second"), fingerprint(weight.T, 1): ("third",)}


def projected(width: int, blocks: int) -> onnx.ModelProto:
    """Raw features through a Transpose into a projection, then wider layers."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("Transpose", ["x"], ["turned"], name="turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["turned", "w"], ["h0"], name="project"),
    ]
    weights = [onnx.numpy_helper.from_array(np.ones((16, width), np.float32), "w")]
    for i in range(blocks):
        weights.append(onnx.numpy_helper.from_array(np.ones((width, width), np.float32), f"w{i}"))
        nodes.append(helper.make_node("MatMul", [f"h{i}", f"w{i}"], [f"h{i + 1}"], name=f"block{i}"))
    inputs = [helper.make_tensor_value_info("x", kind, (1, 16, 8))]
    outputs = [helper.make_tensor_value_info(f"h{blocks}", kind, (1, 8, width))]
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, weights))
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def test_the_first_projection_of_raw_inputs_is_told_where_it_is_little_of_the_work() -> None:
    assert [layer.raw for layer in linear_layers(projected(64, 6).graph)] == [True, *([False] * 6)]
    assert not any(layer.raw for layer in linear_layers(projected(64, 2).graph))  # an eighth of the work
