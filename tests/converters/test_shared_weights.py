"""Weights of several files stored once: what is read back is what was there before."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.converters.shared_weights import ALIGNMENT, ONNX_WEIGHTS, Blob, share_ir, share_onnx
from edgeattn.runtimes.openvino import SHARED_WEIGHTS

onnx = pytest.importorskip("onnx", reason="needs edgeattn[convert]")


@given(st.lists(st.binary(max_size=200)))
def test_equal_bytes_are_stored_once_and_every_place_holds_its_bytes(pieces: list[bytes]) -> None:
    file = io.BytesIO()
    blob = Blob(file)
    places = [(piece, blob.place(piece)) for piece in pieces]
    stored = file.getvalue()
    for piece, offset in places:
        assert stored[offset : offset + len(piece)] == piece
        assert offset % ALIGNMENT == 0
    assert len(stored) <= sum(len(piece) + ALIGNMENT for piece in set(pieces))


def weights(seed: int, size: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((size, size)).astype(np.float32)


def write_onnx(path: Path, tensors: dict[str, np.ndarray], typed: bool = False, external: bool = False) -> Path:
    """X [1, 64] through a product with each tensor."""
    nodes, before = [], "x"
    initializers = []
    for name, value in tensors.items():
        nodes.append(onnx.helper.make_node("MatMul", [before, name], [f"{name}_out"]))
        before = f"{name}_out"
        if typed:
            made = onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, value.shape, value.ravel().tolist())
        else:
            made = onnx.numpy_helper.from_array(value, name)
        initializers.append(made)
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 64])
    y = onnx.helper.make_tensor_value_info(before, onnx.TensorProto.FLOAT, [1, 64])
    graph = onnx.helper.make_graph(nodes, "g", [x], [y], initializers)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data", size_threshold=0)
    return path


@pytest.mark.parametrize("kind", ["raw", "typed", "external"])
def test_onnx_files_share_equal_weights_and_stay_the_same_models(tmp_path: Path, kind: str) -> None:
    shared, own = weights(0), weights(1)
    paths = {
        "a": write_onnx(tmp_path / "a.onnx", {"w": shared}, kind == "typed", kind == "external"),
        "b": write_onnx(tmp_path / "b.onnx", {"other_name": shared, "v": own}, kind == "typed", kind == "external"),
    }
    share_onnx(paths)
    assert {path.name for path in tmp_path.iterdir()} == {"a.onnx", "b.onnx", ONNX_WEIGHTS}
    assert (tmp_path / ONNX_WEIGHTS).stat().st_size == 2 * shared.nbytes
    for graph, wanted in (("a", {"w": shared}), ("b", {"other_name": shared, "v": own})):
        model = onnx.load(paths[graph])
        onnx.checker.check_model(model)
        for tensor in model.graph.initializer:
            np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), wanted[tensor.name])


def test_a_single_file_and_small_tensors_stay_as_they_are(tmp_path: Path) -> None:
    alone = write_onnx(tmp_path / "a.onnx", {"w": weights(0)})
    before = alone.read_bytes()
    share_onnx({"a": alone, "b": alone})
    assert alone.read_bytes() == before
    model = onnx.load(alone)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(3, np.float32), "small"))
    onnx.save(model, alone)
    share_onnx({"a": alone, "b": write_onnx(tmp_path / "b.onnx", {"w": weights(0)})})
    kept = {t.name: t for t in onnx.load(alone, load_external_data=False).graph.initializer}
    assert kept["small"].raw_data
    assert not kept["w"].raw_data


def test_ir_files_share_one_file_of_weights(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="needs edgeattn[openvino]")
    core, models, expected = openvino.Core(), {}, {}
    x = np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)
    for name, tensors in (("a", {"w": weights(0)}), ("b", {"w": weights(0), "v": weights(1)})):
        source = write_onnx(tmp_path / f"{name}.onnx", tensors)
        models[name] = tmp_path / f"{name}.xml"
        openvino.save_model(core.read_model(source), models[name], compress_to_fp16=False)
        expected[name] = x
        for value in tensors.values():
            expected[name] = expected[name] @ value
    share_ir(models)
    assert not (tmp_path / "a.bin").exists()
    assert (tmp_path / SHARED_WEIGHTS).stat().st_size < 2.1 * weights(0).nbytes
    for name, path in models.items():
        compiled = core.compile_model(
            core.read_model(path, tmp_path / SHARED_WEIGHTS), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        (got,) = compiled(x).values()
        np.testing.assert_allclose(got, expected[name], rtol=1e-5, atol=1e-3)  # sums of 64 products in another order
