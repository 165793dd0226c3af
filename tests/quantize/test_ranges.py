"""The range scan: what overflows float16 is named, the rest is not, and the named nodes mend the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from edgeattn.converters.half import to_half
from edgeattn.converters.onnx import export_onnx
from edgeattn.converters.tensorrt import to_tensorrt
from edgeattn.errors import DataError
from edgeattn.models.streaming_conformer import GRAPH
from edgeattn.quantize.qdq import quantize_onnx
from edgeattn.quantize.ranges import Island, half_islands
from edgeattn.spec import HALF_MAX
from tests.converters.samples import Arrays, as_model, calibration, stream_model

OUTLIER = 1418.0 * 60  # 1418 is what a ViT's residual stream holds; 60 times that is beyond float16 by itself
FLOAT = TensorProto.FLOAT
X = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)


class Residual(nn.Module):
    """Two blocks on a residual stream with massive activations in two channels, normalised in pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(32, 32)
        self.blocks = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
        self.head = nn.Linear(32, 16)
        with torch.no_grad():
            self.embed.weight[3] *= OUTLIER / 4
            self.embed.bias[5] = -OUTLIER

    def norm(self, x: Tensor) -> Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        stream = self.embed(x)
        for block in self.blocks:
            stream = stream + torch.tanh(block(self.norm(stream)))
        return {"y": self.head(self.norm(stream))}


class Plain(nn.Module):
    """Large features between two linear layers, and no norm at all."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 32), nn.Linear(32, 16)
        with torch.no_grad():
            self.up.weight.mul_(2e5)
            self.down.weight.mul_(1e-5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": self.down(torch.relu(self.up(x)))}


class Gram(nn.Module):
    """|x| of 1418, which float16 holds, and products of x with itself, which it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(32, 32)
        with torch.no_grad():
            self.lift.weight.mul_(1418 / 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        stream = self.lift(x)
        return {"y": torch.tanh(stream @ stream.transpose(-1, -2) * 1e-6)}


MODELS = {"residual": Residual, "plain": Plain, "gram": Gram}


def samples_of(count: int, seed: int) -> list[Arrays]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((1, 20, 32)).astype(np.float32)} for _ in range(count)]


def exported(name: str, folder: Path) -> Path:
    torch.manual_seed(0)
    return export_onnx(as_model(name, MODELS[name](), x=torch.randn(1, 20, 32)), folder)["main"]


def run(model: onnx.ModelProto | Path, sample: Arrays) -> np.ndarray:
    # Not ONNX Runtime: its CPU has few float16 kernels, computes the others in float32 and drops the Casts between
    # them, whatever optimisation it is told to leave out. Nothing overflows there. numpy rounds every tensor.
    loaded = model if isinstance(model, onnx.ModelProto) else onnx.load(model)
    with np.errstate(all="ignore"):
        (y,) = ReferenceEvaluator(loaded).run(None, sample)
    return np.asarray(y)


def sqnr_db(expected: np.ndarray, got: np.ndarray) -> float:
    if not np.isfinite(got).all():
        return -np.inf
    noise = float(((expected.astype(np.float64) - got) ** 2).sum())
    return float(10 * np.log10(float((expected.astype(np.float64) ** 2).sum()) / max(noise, 1e-300)))


def halved(path: Path, islands: tuple[Island, ...]) -> onnx.ModelProto:
    model = onnx.load(path)
    to_half(model, [island.node for island in islands])
    return model


@pytest.mark.parametrize("name", MODELS)
def test_what_overflows_float16_is_right_with_its_islands_and_wrong_without(name: str, tmp_path: Path) -> None:
    path = exported(name, tmp_path)
    islands = half_islands(path, samples_of(4, seed=1))
    unseen = samples_of(1, seed=2)[0]
    expected = run(path, unseen)
    assert sqnr_db(expected, run(halved(path, ()), unseen)) < 20  # the control
    assert sqnr_db(expected, run(halved(path, islands), unseen)) >= 50
    assert max(island.largest for island in islands) > HALF_MAX


def test_the_island_tells_module_and_reason(tmp_path: Path) -> None:
    islands = half_islands(exported("plain", tmp_path), samples_of(4, seed=1))
    assert {island.path for island in islands} >= {"up", "down"}
    first = islands[0]
    assert first.op in ("MatMul", "Gemm")
    assert first.reason == f"gives |x| up to {first.largest:.3g}, float16 ends at 65504"
    assert "reads" in islands[-1].reason


@pytest.mark.parametrize("name", ["residual", "plain"])
def test_the_islands_of_a_source_hold_for_its_quantized_file(name: str, tmp_path: Path) -> None:
    # The DQ before an island gives what float16 cannot hold as well.
    path = exported(name, tmp_path)
    (tmp_path / "int8").mkdir()
    samples = samples_of(4, seed=1)
    made = quantize_onnx({"main": path}, {"main": samples}, tmp_path / "int8").models["main"]
    islands = half_islands(path, samples)
    unseen = samples_of(1, seed=2)[0]
    single = onnx.load(made)
    single.opset_import[0].version = 19  # from here on the evaluator knows Q/DQ; they mean the same
    expected = run(single, unseen)
    assert sqnr_db(expected, run(halved(made, ()), unseen)) < 20
    assert sqnr_db(expected, run(halved(made, islands), unseen)) >= 35  # a rounding that falls the other way is a step


@pytest.mark.slow
def test_nothing_is_named_in_the_streaming_model(tmp_path: Path) -> None:
    # Its attention bias of -1e4 included: half of the samples have a cache that is still empty in part.
    path = export_onnx(stream_model(), tmp_path)[GRAPH]
    assert half_islands(path, calibration()[GRAPH]) == ()


def test_the_recipe_counts_the_nodes_of_the_scan(tmp_path: Path) -> None:
    path = exported("plain", tmp_path)
    names = {"main": [island.node for island in half_islands(path, samples_of(4, seed=1))]}
    (tmp_path / "half").mkdir()
    recipe = to_tensorrt({"main": path}, tmp_path / "half", "fp16", islands=names).recipe
    assert "5 of 5 nodes kept float32, 5 of them by the range scan" in recipe  # a bias goes with its product
    with pytest.raises(ValueError, match="unknown graph of islands 'encoder'"):
        to_tensorrt({"main": path}, tmp_path / "half", "fp16", islands={"encoder": names["main"]})
    with pytest.raises(ValueError, match="the model has no nodes elsewhere"):
        to_tensorrt({"main": path}, tmp_path / "half", "fp16", islands={"main": ["elsewhere"]})


def graph_of(path: Path, nodes: list[onnx.NodeProto], **constants: np.ndarray | np.generic) -> Path:
    """A file with inputs x and mask (4, 8) and output y of the last node, opset 18."""
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info(name, FLOAT, [4, 8]) for name in ("x", "mask")],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(model, strict_mode=True), path)
    return path


def node(kind: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], name=f"make_{output}", **attributes)


def named(path: Path, x: np.ndarray = X, mask: np.ndarray | None = None) -> dict[str, str]:
    hidden = np.zeros((4, 8), np.float32) if mask is None else mask
    return {island.node: island.reason for island in half_islands(path, [{"x": x, "mask": hidden}])}


def masked(hidden: float, rows: slice) -> np.ndarray:
    mask = np.zeros((4, 8), np.float32)
    mask[rows] = hidden
    mask[:, 5:] = hidden
    return mask


def test_squares_count_wherever_they_are_made(tmp_path: Path) -> None:
    axes = np.array([-1])
    nodes = [
        node("Mul", "x x", "square"),
        node("Pow", "x two", "power"),
        node("ReduceSumSquare", "x axes", "sum"),
        node("ReduceL2", "x axes", "length"),
        node("LayerNormalization", "x gain", "normed", axis=-1),
        node("Add", "x mask", "y"),
    ]
    path = graph_of(tmp_path / "m.onnx", nodes, two=np.float32(2), axes=axes, gain=np.ones(8, np.float32))
    assert named(path, 10 * X) == {}
    found = named(path, 1418 * X)
    assert found.keys() == {"make_square", "make_power", "make_sum", "make_length"}
    assert found["make_length"].startswith("squares or sums up to")


def test_a_mean_is_a_sum_before_it_is_divided(tmp_path: Path) -> None:
    path = graph_of(tmp_path / "m.onnx", [node("ReduceMean", "x axes", "y")], axes=np.array([-1]))
    assert named(path, np.full((4, 8), 9e3, np.float32)).keys() == {"make_y"}
    assert named(path, np.full((4, 8), 4e3, np.float32)) == {}


@pytest.mark.parametrize(
    ("constant", "reason"),
    [
        (1e6, "a constant of 1e+06 is beyond float16"),
        (-np.inf, "a constant is infinite"),
        (1e-12, "|x| up to 1e-12 is 0 in float16"),
        (1e-5, None),
        (3e4, None),
    ],
)
def test_constants_that_float16_cannot_hold_are_named(tmp_path: Path, constant: float, reason: str | None) -> None:
    path = graph_of(tmp_path / "m.onnx", [node("Max", "x k", "y")], k=np.float32(constant))
    assert named(path).get("make_y") == reason


def test_a_tensor_that_vanishes_as_a_whole_is_named(tmp_path: Path) -> None:
    nodes = [node("Mul", "x k", "tiny"), node("Div", "tiny k", "y")]
    path = graph_of(tmp_path / "m.onnx", nodes, k=np.float32(1e-7))
    assert named(path) == {}
    assert set(named(path, 0.01 * X)) == {"make_tiny", "make_y"}


SCORES = [node("Add", "x mask", "scores"), node("Softmax", "scores", "y", axis=-1)]


@pytest.mark.parametrize("hidden", [-1e4, -1e9, float(np.finfo(np.float32).min), -np.inf])
def test_hidden_positions_on_the_way_to_a_softmax_are_no_overflow(tmp_path: Path, hidden: float) -> None:
    path = graph_of(tmp_path / "m.onnx", SCORES)
    assert named(path, mask=masked(hidden, slice(0))) == {}


def test_a_row_that_is_hidden_as_a_whole_needs_float32(tmp_path: Path) -> None:
    # -inf everywhere is NaN after a softmax; -1e9 everywhere is an even spread.
    path = graph_of(tmp_path / "m.onnx", SCORES)
    mask = masked(-1e9, slice(2))
    assert named(path, mask=mask).keys() == {"make_scores", "make_y"}
    islands = half_islands(path, [{"x": X, "mask": mask}])
    assert np.isfinite(run(halved(path, islands), {"x": X, "mask": mask})).all()
    assert named(path, mask=masked(-1e4, slice(2))) == {}


def test_scores_beyond_float16_are_named(tmp_path: Path) -> None:
    path = graph_of(tmp_path / "m.onnx", SCORES)
    assert named(path, 8e4 * np.abs(X)).keys() == {"make_scores", "make_y"}


def test_a_large_negative_activation_is_no_mask(tmp_path: Path) -> None:
    path = graph_of(tmp_path / "m.onnx", [node("Add", "x mask", "h"), node("Relu", "h", "y")])
    x = X.copy()
    x[1, 2] = -8e4
    assert named(path, x).keys() == {"make_h", "make_y"}


def test_a_mask_that_something_else_reads_too_is_an_overflow_there(tmp_path: Path) -> None:
    nodes = [*SCORES[:1], node("Softmax", "scores", "s", axis=-1), node("Mul", "scores x", "y")]
    path = graph_of(tmp_path / "m.onnx", nodes)
    assert "make_scores" in named(path, mask=masked(-1e9, slice(0)))


def test_a_node_without_a_name_is_found_by_its_output(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "mask"], ["h"]), helper.make_node("Mul", ["h", "k"], ["y"])]
    path = graph_of(tmp_path / "m.onnx", nodes, k=np.float32(1e-5))
    sample = {"x": 1e5 * X, "mask": X}
    islands = half_islands(path, [sample])
    assert [island.node for island in islands] == ["h", "y"]
    assert sqnr_db(run(path, sample), run(halved(path, islands), sample)) > 60


def test_slices_of_tensors_find_the_same_as_all_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = exported("residual", tmp_path)
    whole = half_islands(path, samples_of(2, seed=1))
    monkeypatch.setattr("edgeattn.quantize.ranges.SLICE_BYTES", 10_000)
    assert half_islands(path, samples_of(2, seed=1)) == whole


def test_a_scan_without_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a range scan needs samples and got none"):
        half_islands(graph_of(tmp_path / "m.onnx", SCORES), [])
