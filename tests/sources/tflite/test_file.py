"""MODEL as a .tflite file: what our own converter wrote is read back, and every damaged file is one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="sources need edgeattn[convert]")
pytest.importorskip("onnxruntime", reason="sources need edgeattn[convert]")
pytest.importorskip("ai_edge_litert.interpreter", reason="the oracle is LiteRT: edgeattn[tflite]")

import torch

from edgeattn.errors import ConversionError, InputError, ModelError
from edgeattn.sources import Examples, load_model, read_model
from edgeattn.sources.onnx.imported import ImportedModel
from edgeattn.sources.onnx.reference import difference
from edgeattn.sources.tflite import file
from edgeattn.sources.tflite.read import Tensor, read_tflite
from tests.conversions import small_conversion
from tests.once import shared_root
from tests.sources.damaged import refusals
from tests.sources.tflite.files import Written, normal, write

LINEAR = Written("FULLY_CONNECTED", [(1, 4), normal(3, 4), normal(3)], [(1, 3)])


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["fp32", "fp16", "int8-dynamic"])
def test_what_our_converter_wrote_is_read_back(recipe: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    converted = small_conversion(shared_root(tmp_path_factory))
    path = converted.artifacts["litert", recipe].models["main"]
    source = load_model(str(path))  # in a child first
    module = source.modules["main"]
    assert isinstance(module, ImportedModel)
    original = read_model(converted.reference)
    assert source.spec.graphs[0].input_names == original.spec.graphs[0].input_names
    inputs = {name: normal(*array.shape) for name, array in original.example["main"].items()}
    expected, got = original.run(inputs), source.run(inputs)
    # float32: sums in another order; float16 weights have 11 bits; int8 weights 8, of activations left as they are.
    least = {"fp32": 1e-5, "fp16": 2e-3, "int8-dynamic": 5e-2}[recipe]
    for name, array in expected.items():
        assert difference(array, got[name]) <= least


def test_a_file_is_a_model_with_layers_and_names(tmp_path: Path) -> None:
    source = read_model(str(write(tmp_path / "my_net.tflite", LINEAR)))
    assert source.spec.name == "my-net"
    assert (source.spec.graphs[0].input_names, source.spec.graphs[0].output_names) == (("x0",), ("y0",))
    layers = [path for path, m in source.modules["main"].named_modules() if isinstance(m, torch.nn.Linear)]
    assert len(layers) == 1
    assert layers[0].startswith("fully_connected_0")
    assert source.onnx["main"].opset_import[0].version == 17


def test_an_input_may_be_bound_and_the_example_be_given(tmp_path: Path) -> None:
    path = write(tmp_path / "net.tflite", Written("ADD", [(1, 4), (1, 4)], [(1, 4)]))
    np.savez(tmp_path / "net.npz", x0=np.full((1, 4), 2, np.float32), x1=np.zeros((1, 4), np.float32))
    source = read_model(str(path), Examples(bound=("x1=3",)))
    assert source.spec.graphs[0].input_names == ("x0",)
    np.testing.assert_array_equal(source.example["main"]["x0"], [[2, 2, 2, 2]])
    np.testing.assert_array_equal(source.run(source.example["main"])["y0"], [[5, 5, 5, 5]])
    with pytest.raises(InputError, match="unknown input 'x2'"):
        read_model(str(path), Examples(bound=("x2=3",)))


def test_integers_stand_for_numbers_and_numbers_for_integers() -> None:
    none = np.zeros(0)
    one = Tensor(name="", kind="INT8", shape=(3,), data=None, scales=np.array([0.5]), zeros=np.array([-3.0]), axis=0)
    np.testing.assert_array_equal(one.real(np.array([-3, 1, 127], np.int8)), [0, 2, 65])
    np.testing.assert_array_equal(one.stored(np.array([0.24, -999, 65], np.float32)), [-3, -128, 127])
    rows = Tensor(name="", kind="INT8", shape=(2, 2), data=None, scales=np.array([1, 2]), zeros=np.zeros(2), axis=0)
    np.testing.assert_array_equal(rows.real(np.array([[1, 2], [3, 4]], np.int8)), [[1, 2], [6, 8]])
    plain = Tensor(name="", kind="INT32", shape=(1,), data=None, scales=none, zeros=none, axis=0)
    assert plain.real(np.array([7], np.int32)).dtype == np.int32


@pytest.mark.parametrize(
    "case",
    [
        Written("QUANTIZE", [(2, 64)], [(2, 64)], quantized={"y0": (0.03, 5)}),
        Written("DEQUANTIZE", [(2, 64)], [(2, 64)], quantized={"x0": (0.03, 5)}),
        Written("ADD", [(2, 64), (2, 64)], [(2, 64)], table="AddOptions",
                quantized={"x0": (0.03, 2), "x1": (0.02, -4), "y0": (0.05, 0)}),
    ],
    ids=("quantize", "dequantize", "add"),
)  # fmt: skip
def test_an_integer_file_is_read_as_the_numbers_it_stands_for(case: Written, tmp_path: Path) -> None:
    path = write(tmp_path / "net.tflite", case)
    source = read_model(str(path))
    assert {tensor.dtype for tensor in source.spec.graphs[0].inputs} == {"float32"}
    assert any("the file's integers are taken for the numbers that they stand for" in note for note in source.notes)
    inputs = {name: 0.5 * array for name, array in case.free().items()}
    expected = file.interpreted(path, read_tflite(path), inputs)["y0"]
    steps = sum(scale for scale, _ in case.quantized.values())  # each rounds by half of its own
    assert np.abs(source.run(inputs)["y0"] - expected).max() <= steps


def test_a_wrong_reading_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "net.tflite", LINEAR)
    monkeypatch.setattr(file, "interpreted", lambda *_: {"y0": np.zeros((1, 3), np.float32)})
    with pytest.raises(ConversionError, match=r"as it was read it differs from LiteRT's by .*; please report"):
        read_model(str(path))


def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path) -> None:
    assert refusals(read_tflite, write(tmp_path / "net.tflite", LINEAR), 400) > 100


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "lacks the mark TFL3"), (b"\x00" * 4 + b"TFL3" + b"\xff" * 64, "it has no graph|damaged or cut off")],
)
def test_what_is_no_tflite_is_told(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=message):
        read_model(str(path))
