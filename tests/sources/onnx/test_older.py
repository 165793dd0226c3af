"""Files of opset 6 to 10: each form that opset 11 changed, against ONNX Runtime on the file as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="sources need edgeattn[convert]")
pytest.importorskip("onnxruntime", reason="the oracle is ONNX Runtime: edgeattn[convert]")

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from edgeattn.errors import UnsupportedError
from edgeattn.sources import read_model
from edgeattn.sources.onnx.imported import ImportedModel
from edgeattn.sources.onnx.reference import difference, runtime_session

RNG = np.random.default_rng(3)
IMAGE = (2, 3, 4, 6)
Arrays = dict[str, np.ndarray]


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    made: np.ndarray = np.abs(normal(*shape)) + np.float32(0.5)
    return made


@dataclass(frozen=True)
class Old:
    """One node of an older opset."""

    op: str
    opset: int
    shape: Sequence[int] = IMAGE
    constants: Arrays = field(default_factory=dict)
    outputs: int = 1
    attributes: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.op}-{self.opset}-" + "-".join(f"{k}={v}" for k, v in self.attributes.items()).replace(" ", "")

    def model(self) -> onnx.ModelProto:
        outputs = [f"y{i}" for i in range(self.outputs)]
        node = helper.make_node(self.op, ["x", *self.constants], outputs, **self.attributes)
        graph = helper.make_graph(
            [node],
            "main",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_value_info(name, onnx.TypeProto()) for name in outputs],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=3)


def old(op: str, opset: int, constants: Arrays | None = None, /, **attributes: Any) -> Old:
    return Old(op, opset, constants=constants or {}, attributes=attributes)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


STATISTICS = {"scale": positive(3), "bias": normal(3), "mean": normal(3), "variance": positive(3)}
PLACES = {"scale": positive(3, 4, 6), "bias": normal(3, 4, 6), "mean": normal(3, 4, 6), "variance": positive(3, 4, 6)}
CASES = (
    old("Upsample", 7, scales=[1.0, 1.0, 2.0, 3.0]),
    old("Upsample", 8, scales=[1.0, 1.0, 2.0, 2.0], mode="linear"),
    old("Upsample", 9, {"scales": floats(1, 1, 1.5, 2.5)}),
    old("Resize", 10, {"scales": floats(1, 1, 0.5, 0.6)}),
    old("Resize", 10, {"scales": floats(1, 1, 0.6, 1.7)}),
    old("Resize", 10, {"scales": floats(1, 1, 0.5, 1.5)}, mode="linear"),
    old("Slice", 7, starts=[1, -3], ends=[2**31 - 1, -1], axes=[2, 3]),
    old("Slice", 9, starts=[0, 1], ends=[1, 3]),
    old("Slice", 10, {"starts": np.array([3]), "ends": np.array([-9]), "axes": np.array([2]), "steps": np.array([-2])}),
    old("Clip", 7, min=-0.5, max=0.25),
    old("Clip", 10, max=0.25),
    old("Clip", 9),
    old("Pad", 7, pads=[0, 0, 1, 2, 0, 0, 0, 1], value=2.5),
    old("Pad", 10, pads=[0, 0, 1, 2, 0, 0, 0, -1], mode="reflect"),
    old("Pad", 9, pads=[0, 0, 1, 0, 0, 0, 3, 0], mode="edge"),
    Old("TopK", 7, (2, 9), outputs=2, attributes={"k": 3}),
    Old("TopK", 9, (5, 2), outputs=2, attributes={"k": 4, "axis": 0}),
    Old("TopK", 10, (2, 9), {"k": np.array([2])}, 2),
    Old("Scatter", 9, (3, 4), {"index": np.array([[1, 0, 2, 0]]), "updates": normal(1, 4)}),
    old("BatchNormalization", 7, STATISTICS, epsilon=1e-3),
    old("BatchNormalization", 8, PLACES, spatial=0),
    old("BatchNormalization", 9, STATISTICS),
    old("Dropout", 7, ratio=0.7),
    old("Dropout", 10, ratio=0.7),
    old("Softmax", 7),
    old("Softmax", 9, axis=2),
    old("LogSoftmax", 10, axis=3),
    old("Hardmax", 8, axis=1),
    old("ReduceSum", 8, axes=[1, 3], keepdims=0),
    old("ReduceMean", 7, axes=[2]),
    old("ReduceMax", 9),
    old("ReduceL2", 10, axes=[0, 1]),
    Old("Squeeze", 9, (2, 1, 3, 1), attributes={"axes": [1, 3]}),
    Old("Squeeze", 7, (2, 1, 3, 1)),
    Old("Unsqueeze", 7, (2, 3), attributes={"axes": [0, 3]}),
    Old("Split", 7, (2, 9), outputs=3, attributes={"axis": 1, "split": [2, 3, 4]}),
    Old("Split", 9, (2, 9), outputs=3, attributes={"axis": 1}),
    old("Flatten", 7, axis=2),
    old("PRelu", 7, {"slope": positive(3, 1, 1)}),
    old("MaxPool", 8, kernel_shape=[2, 3], strides=[2, 1], auto_pad="SAME_LOWER"),
    old("AveragePool", 7, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    old("AveragePool", 10, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    old("Conv", 7, {"w": normal(4, 3, 3, 3)}, auto_pad="SAME_UPPER", strides=[2, 2]),
    old("ConvTranspose", 7, {"w": normal(3, 2, 3, 3)}, strides=[2, 2], output_padding=[1, 1]),
    Old("Gemm", 7, (3, 4), {"b": normal(5, 4), "c": normal(5)}, attributes={"transB": 1, "alpha": 0.5}),
    old("Max", 8, {"b": normal(3, 1, 6)}),
    Old("Expand", 8, (3, 1), {"shape": np.array([2, 1, 6])}),
    old("Less", 9, {"b": normal(6)}),
    Old("Gather", 7, (4, 3), {"index": np.array([[2, 0]])}, attributes={"axis": 0}),
    Old("DepthToSpace", 7, (1, 8, 2, 3), attributes={"blocksize": 2}),
    Old(
        "LSTM", 7, (4, 2, 3), {"w": normal(1, 20, 3), "r": normal(1, 20, 5), "b": normal(1, 40)}, 2, {"hidden_size": 5}
    ),
    Old("GRU", 7, (4, 2, 3), {"w": normal(1, 15, 3), "r": normal(1, 15, 5)}, 2, {"hidden_size": 5}),
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_form_of_an_older_opset_gives_what_onnx_runtime_gives_on_the_file(case: Old, tmp_path: Path) -> None:
    # Sums in another order: 1e-5 of the largest value; no input is the example that reading compared on.
    path, model = tmp_path / "old.onnx", case.model()
    onnx.save(model, path)
    source = read_model(str(path))
    module, static = source.modules["main"], source.onnx["main"]
    assert isinstance(module, ImportedModel), module
    assert static.opset_import[0].version >= 17 or case.op == "Dropout"
    inputs = {"x": normal(*case.shape)}
    names = [value.name for value in model.graph.output]
    expected = dict(zip(names, runtime_session(model).run(names, inputs), strict=True))
    again = dict(zip(names, runtime_session(static).run(names, inputs), strict=True))
    with torch.inference_mode():
        got = {name: tensor.numpy() for name, tensor in module(x=torch.from_numpy(inputs["x"])).items()}
    for name, array in expected.items():
        assert difference(array, got[name]) <= 1e-5
        assert difference(array, again[name]) <= 1e-5


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (old("Add", 6, {"b": floats(1, 2, 3)}, broadcast=1, axis=1), lambda x: x + floats(1, 2, 3)[:, None, None]),
        (old("Mul", 6, {"b": floats(2)}, broadcast=1), lambda x: x * 2),
        (old("PRelu", 6, {"s": floats(0, 1, 2)}), lambda x: np.where(x < 0, x * floats(0, 1, 2)[:, None, None], x)),
        (old("Dropout", 6, is_test=1, ratio=0.5), lambda x: x),
        (
            old("BatchNormalization", 6, STATISTICS, is_test=1),
            lambda x: (x - STATISTICS["mean"][:, None, None]) / np.sqrt(STATISTICS["variance"][:, None, None] + 1e-5)
            * STATISTICS["scale"][:, None, None] + STATISTICS["bias"][:, None, None],
        ),
    ],
    ids=["Add", "Mul", "PRelu", "Dropout", "BatchNormalization"],
)  # fmt: skip
def test_opset_6_which_onnx_runtime_does_not_run_means_what_its_changelog_says(
    case: Old, expected: Callable[[np.ndarray], np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "old.onnx"
    onnx.save(case.model(), path)
    source = read_model(str(path))
    inputs = normal(*case.shape)
    with torch.inference_mode():
        got = source.modules["main"](x=torch.from_numpy(inputs))["y0"].numpy()
    assert difference(expected(inputs), got) <= 1e-5
    assert any("compared as opset 11" in note for note in source.notes)


def test_an_opset_that_nothing_runs_is_refused(tmp_path: Path) -> None:
    onnx.save(old("Softmax", 5).model(), tmp_path / "old.onnx")
    with pytest.raises(UnsupportedError, match="opset 5 is older than 6; export the model again"):
        read_model(str(tmp_path / "old.onnx"))
