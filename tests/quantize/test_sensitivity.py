"""Sensitivity: one layer quantized at a time costs what numpy and the quantizer's own files say it does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from edgeattn.converters.onnx import export_onnx
from edgeattn.engines import Treatment
from edgeattn.errors import DataError, InputError, UnsupportedError
from edgeattn.evaluation.data import spread
from edgeattn.graphs.layers import linear_layers
from edgeattn.model import EdgeModel
from edgeattn.models.streaming_conformer import GRAPH
from edgeattn.quantize.plan import Plan, Rule
from edgeattn.quantize.probe import Arrays, probe
from edgeattn.quantize.qdq import CLIPS, QdqOptions, quantize_onnx
from edgeattn.quantize.sensitivity import (
    Sensitivity,
    SensitivityOptions,
    SensitivityReport,
    block_of,
    quantize_all,
    rank,
    sensitivity,
    steps,
)
from edgeattn.runtimes.agreement import SQNR_LIMIT, sqnr_db
from tests.converters.samples import as_model, calibration, stream_model

ON_GRID: tuple[Treatment, ...] = ("int8", "int8-weights")


def nothing() -> None:
    """No progress."""


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return export_onnx(stream_model(), tmp_path_factory.mktemp("stream"))


@pytest.fixture(scope="module")
def report(stream: Mapping[str, Path]) -> SensitivityReport:
    return sensitivity(stream, calibration(), SensitivityOptions(), None, nothing)


def costs(model: EdgeModel, samples: list[Arrays], room: Path, options: SensitivityOptions) -> dict[str, Sensitivity]:
    found = sensitivity(export_onnx(model, room), {"main": samples}, options, None, nothing)
    return {row.path: row for row in found.layers}


class One(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(48, 32)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": self.linear(x)}


def test_the_sqnr_of_one_layer_is_that_of_a_numpy_simulation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = One()
    model = as_model("one", module, x=torch.randn(1, 20, 48))
    rng = np.random.default_rng(0)
    samples = [{"x": rng.standard_normal((1, 20, 48)).astype(np.float32)} for _ in range(5)]
    found = costs(model, samples, tmp_path, SensitivityOptions())["linear"]

    x = np.concatenate([sample["x"] for sample in samples]).astype(np.float64)
    weight, bias = module.linear.weight.detach().numpy(), module.linear.bias.detach().numpy()

    def fake(values: np.ndarray, scale: np.ndarray | float) -> np.ndarray:
        return np.asarray(np.clip(np.rint(values / scale), -127, 127) * scale)

    scales = [share * np.abs(x).max() / 127 for share in CLIPS]
    scale = min(scales, key=lambda step: float(((fake(x, step) - x) ** 2).mean()))
    got = fake(x, scale) @ fake(weight, np.abs(weight).max(axis=1, keepdims=True) / 127).T + bias
    assert found.sqnr_db == pytest.approx(sqnr_db(x @ weight.T + bias, got), abs=0.1)
    assert (found.parameters, found.flops) == (48 * 32, 2 * 20 * 48 * 32)


class Two(nn.Module):
    """``outlier`` reads a channel far beyond the others, which its weights ignore; ``plain`` does not."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.outlier = nn.Linear(32, 32), nn.Linear(32, 32)
        self.gain = nn.Parameter(torch.ones(32))
        with torch.no_grad():
            self.gain[5] = 1000.0
            self.outlier.weight[:, 5] = 0.0

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": self.plain(x) + self.outlier(x * self.gain)}


@pytest.fixture(scope="module")
def two() -> EdgeModel:
    torch.manual_seed(0)
    return as_model("two", Two(), x=torch.randn(1, 20, 32))


def test_the_layer_that_reads_an_outlier_is_the_most_harmful(two: EdgeModel, tmp_path: Path) -> None:
    found = sensitivity(
        export_onnx(two, tmp_path), {"main": [two.example["main"]]}, SensitivityOptions(), None, nothing
    )
    assert rank(found) == ("outlier", "plain")
    harmful, harmless = (next(row for row in found.layers if row.path == path) for path in rank(found))
    assert harmless.sqnr_db - harmful.sqnr_db > 20


def test_weights_and_inputs_on_the_grid_cost_nothing(two: EdgeModel, tmp_path: Path) -> None:
    module = two.modules["main"]
    assert isinstance(module, Two)
    rng = np.random.default_rng(0)
    steps_of = rng.integers(-126, 127, (32, 32))
    steps_of[:, 0] = 127  # each output channel uses its whole range
    kept = module.plain.weight.detach().clone()
    x = rng.integers(-126, 127, (1, 20, 32)).astype(np.float32)
    x[0, 0, 0] = 127.0
    with torch.no_grad():
        module.plain.weight.copy_(torch.from_numpy(steps_of / 64.0))
    try:
        for treatment in ON_GRID:
            room = tmp_path / treatment
            room.mkdir()
            found = costs(two, [{"x": x}], room, SensitivityOptions(treatment))
            assert found["plain"].sqnr_db > 110  # float32 rounding alone
            assert found["outlier"].sqnr_db < 70
    finally:
        with torch.no_grad():
            module.plain.weight.copy_(kept)


@pytest.mark.parametrize(
    "path", ["subsampling.project", "blocks.0.attention.key", "blocks.1.ffn2.contract", "classify"]
)
def test_a_layer_alone_costs_what_a_file_with_it_alone_quantized_loses(
    stream: Mapping[str, Path], report: SensitivityReport, path: str, tmp_path: Path
) -> None:
    plan = Plan("float", (Rule(path, "int8"),))
    alone = onnx.load(quantize_onnx(stream, calibration(), tmp_path, QdqOptions(plan)).models[GRAPH])
    source = onnx.load(stream[GRAPH])
    outputs = [value.name for value in source.graph.output]
    samples = spread(calibration()[GRAPH], 16)
    expected = list(probe(source, outputs, samples, optimize=False))
    got = list(probe(alone, outputs, samples, optimize=False))
    worst = min(sqnr_db(np.stack([e[n] for e in expected]), np.stack([g[n] for g in got])) for n in outputs)
    assert next(row.sqnr_db for row in report.layers if row.path == path) == pytest.approx(worst, abs=0.01)


def test_every_layer_and_every_block_has_a_row_in_the_order_of_the_graph(
    stream: Mapping[str, Path], report: SensitivityReport
) -> None:
    layers = linear_layers(onnx.load(stream[GRAPH]).graph)
    assert [row.path for row in report.layers] == [layer.path for layer in layers]
    assert [row.path for row in report.blocks] == ["subsampling.project", "blocks.0", "blocks.1", "classify"]
    assert {row.treatment for row in report.layers} == {"int8"}
    for attribute in ("parameters", "flops"):
        total = sum(getattr(row, attribute) for row in report.layers)
        assert sum(getattr(row, attribute) for row in report.blocks) == total == getattr(report.whole, attribute)
    assert report.samples == 16
    block = next(row for row in report.blocks if row.path == "blocks.0")
    inside = [row.sqnr_db for row in report.layers if row.block == "blocks.0"]
    assert block.sqnr_db < min(inside) + 1  # noise of its layers adds up, in other outputs at best
    assert report.whole.sqnr_db < min(row.sqnr_db for row in report.blocks)
    assert set(rank(report)) == {row.path for row in report.layers}


def test_the_metric_is_asked_of_files_with_one_layer_or_one_block_quantized(two: EdgeModel, tmp_path: Path) -> None:
    files = export_onnx(two, tmp_path)
    samples = {"main": [two.example["main"]]}
    seen: list[tuple[int, bool]] = []

    def evaluate(given: Mapping[str, Path]) -> float:
        model = onnx.load(given["main"])
        onnx.checker.check_model(model, full_check=True)
        pairs = [node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
        seen.append((len(pairs), "x" in pairs))  # of the two layers, plain reads x
        return 3.0 if pairs == ["x"] else 1.0

    ticks: list[None] = []
    found = sensitivity(files, samples, SensitivityOptions(), evaluate, lambda: ticks.append(None))
    assert sorted(seen) == [(1, False), (1, True), (2, True)]  # a block of one layer is that layer: measured once
    assert [row.drop for row in (*found.layers, found.whole)] == [3.0, 1.0, 1.0]
    assert rank(found) == ("plain", "outlier")  # by the metric, whatever SQNR says
    (tmp_path / "int8").mkdir()
    assert steps(quantize_all(files, samples, tmp_path / "int8", SensitivityOptions())) == len(ticks) == 3


class Narrow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(32, 32), nn.Linear(32, 4)])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": self.blocks[1](torch.tanh(self.blocks[0](x)))}


def test_a_layer_too_small_to_quantize_costs_nothing_and_is_not_ranked(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = as_model("narrow", Narrow(), x=torch.randn(1, 20, 32))
    files = export_onnx(model, tmp_path)
    found = sensitivity(files, {"main": [model.example["main"]]}, SensitivityOptions(), lambda _: 2.0, nothing)
    small = found.layers[1]
    assert (small.path, small.treatment, small.sqnr_db, small.drop) == ("blocks.1", "float", SQNR_LIMIT, 0.0)
    assert rank(found) == ("blocks.0",)


def test_a_pattern_measures_its_layers_alone(stream: Mapping[str, Path], report: SensitivityReport) -> None:
    options = SensitivityOptions(layers="blocks.1.ffn2.*")
    found = sensitivity(stream, calibration(), options, None, nothing)
    assert [row.path for row in found.layers if row.treatment == "int8"] == [
        "blocks.1.ffn2.expand",
        "blocks.1.ffn2.contract",
    ]
    before = {row.path: row.sqnr_db for row in report.layers}
    for path in rank(found):
        assert next(row.sqnr_db for row in found.layers if row.path == path) == pytest.approx(before[path], abs=0.01)


def test_what_cannot_be_measured_is_refused(stream: Mapping[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs calibration samples"):
        sensitivity(stream, {}, SensitivityOptions(), None, nothing)
    with pytest.raises(InputError, match=r"no layer matches 'decoder\.\*'"):
        sensitivity(stream, calibration(), SensitivityOptions(layers="decoder.*"), None, nothing)
    model = as_model("small", nn.Sequential(nn.Linear(8, 8), Named()), input=torch.randn(1, 4, 8))
    with pytest.raises(UnsupportedError, match="no linear layer is left"):
        sensitivity(
            export_onnx(model, tmp_path), {"main": [model.example["main"]]}, SensitivityOptions(), None, nothing
        )


class Named(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": torch.tanh(x)}


def test_what_an_inner_graph_reads_is_kept_alive(tmp_path: Path) -> None:
    """The branches of If read a tensor made before the block that is run again."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((32, 32)).astype(np.float32), f"weight_{index}") for index in (0, 1)
    ]
    yes = numpy_helper.from_array(np.array(True), "yes")
    shape = [1, 20, 32]

    def branch(name: str, kind: str) -> onnx.GraphProto:
        node = helper.make_node(kind, ["first", "second"], [name])
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)])

    nodes = [
        helper.make_node("MatMul", ["x", "weight_0"], ["first"], name="/blocks/0/MatMul"),
        helper.make_node("Tanh", ["first"], ["squashed"]),
        helper.make_node("MatMul", ["squashed", "weight_1"], ["second"], name="/blocks/1/MatMul"),
        helper.make_node("If", ["yes"], ["y"], then_branch=branch("sum", "Add"), else_branch=branch("less", "Sub")),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "main", ends[:1], ends[1:], [*weights, yes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(onnx.shape_inference.infer_shapes(model), tmp_path / "main.onnx")
    samples = {"main": [{"x": rng.standard_normal(shape).astype(np.float32)}]}
    found = sensitivity({"main": tmp_path / "main.onnx"}, samples, SensitivityOptions(), None, nothing)
    assert [row.path for row in found.layers] == ["blocks.0", "blocks.1"]
    assert all(25 < row.sqnr_db < 60 for row in found.layers)  # 8 bits


@pytest.mark.parametrize(
    ("path", "block"),
    [
        ("encoder.layer.3.attention.self.query", "encoder.layer.3"),
        ("blocks.0.ffn1.expand", "blocks.0"),
        ("stages.0.blocks.1.mlp", "stages.0"),
        ("head.2", "head.2"),
        ("classify", "classify"),
        ("ffn1.expand", "ffn1.expand"),  # no component is a number
    ],
)
def test_a_block_ends_at_the_first_number_of_a_path(path: str, block: str) -> None:
    assert block_of(path) == block


def test_even_samples_are_spread_over_all() -> None:
    assert spread(range(10), 3) == [0, 3, 6]
    assert spread(range(2), 16) == [0, 1]
    assert spread([], 16) == []
