"""What an optimizer wrote: read, exported again for engines that lack it, left as it is where they have it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="sources need edgeattn[convert]")
pytest.importorskip("onnxruntime", reason="ONNX sources need edgeattn[convert]")

import onnx
from onnx import helper, numpy_helper

from edgeattn.errors import UnsupportedError
from edgeattn.sources import load_model
from edgeattn.sources.onnx.handed import not_handed
from edgeattn.sources.onnx.imported import ImportedModel

RNG = np.random.default_rng(0)
GAMMA = RNG.standard_normal(16).astype(np.float32)


def write(path: Path, node: onnx.NodeProto, held: dict[str, np.ndarray], opset: int = 14) -> onnx.ModelProto:
    """A file with one node that reads x (1, 4, 16)."""
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 4, 16])],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(array, name) for name, array in held.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=9)
    onnx.save(model, path)
    return model


@pytest.mark.parametrize("name", ["SimplifiedLayerNormalization", "LayerNormalization"])
def test_norms_that_the_optimizer_puts_into_the_standards_domain_are_read(tmp_path: Path, name: str) -> None:
    # The standard has no such operator, or none in this opset. load_model compares with ONNX Runtime to 1e-4.
    path = tmp_path / "m.onnx"
    write(path, helper.make_node(name, ["x", "g"], ["y"], axis=-1, epsilon=1e-5), {"g": GAMMA})
    assert isinstance(load_model(str(path)).modules["main"], ImportedModel)


def test_a_fused_operator_is_exported_again_for_every_engine_and_that_is_told(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    write(path, helper.make_node("QuickGelu", ["x"], ["y"], domain="com.microsoft"), {})
    model = load_model(str(path))
    assert not model.onnx
    assert model.notes == ("exported again for every engine: QuickGelu written with plain operators",)


def test_what_is_newer_than_the_engines_is_exported_again(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    write(path, helper.make_node("RMSNormalization", ["x", "g"], ["y"]), {"g": GAMMA}, opset=23)
    assert not load_model(str(path)).onnx
    write(path, helper.make_node("Gelu", ["x"], ["y"]), {}, opset=20)
    assert load_model(str(path)).onnx


def test_packed_weights_stay_packed_for_the_engines_that_read_them(tmp_path: Path) -> None:
    codes = RNG.integers(0, 255, (5, 1, 8)).astype(np.uint8)
    node = helper.make_node(
        "MatMulNBits", ["x", "b", "s"], ["y"], domain="com.microsoft", K=16, N=5, bits=4, block_size=16
    )
    model = write(tmp_path / "m.onnx", node, {"b": codes, "s": GAMMA[:5]})
    assert not_handed(model) == ()
    assert load_model(str(tmp_path / "m.onnx")).onnx


def test_an_operator_that_onnx_runtime_has_for_gpus_alone_is_refused_as_such(tmp_path: Path) -> None:
    node = helper.make_node("MultiHeadAttention", ["p"], ["y"], domain="com.microsoft", num_heads=2)
    packed = helper.make_node("Reshape", ["x", "sizes"], ["p"])
    model = write(tmp_path / "m.onnx", packed, {"sizes": np.array([1, 4, 2, 3, -1])})
    model.graph.node.append(node)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 24
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(UnsupportedError, match="not implemented for CPU"):
        load_model(str(tmp_path / "m.onnx"))
