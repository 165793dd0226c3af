"""int8 for OpenVINO through NNCF."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from edgeattn.converters.onnx import export_onnx
from edgeattn.errors import ConversionError, InputError, UnsupportedError
from edgeattn.graphs.layers import linear_layers
from edgeattn.model import Artifact
from edgeattn.models.streaming_conformer import GRAPH
from edgeattn.quantize import int8_nncf, openvino
from edgeattn.quantize.plan import Plan, Rule
from edgeattn.runtimes import open_session
from edgeattn.runtimes.agreement import SQNR_LIMIT
from tests.converters.samples import (
    as_model,
    calibration,
    converted_stream,
    deployed_stream,
    reference_stream,
    sqnr_db,
    stream_model,
)

PLAIN = (-1.0,)  # without SmoothQuant, and without a search


@functools.cache
def quantized() -> Artifact:
    files = converted_stream()
    return int8_nncf(files.onnx, calibration(), files.new_directory("openvino-int8"))


def products(artifact: Artifact) -> dict[str, int]:
    """How many linear layers compute in each dtype."""
    with open_session("openvino", artifact.models, stream_model().spec, threads=1) as session:
        return session.executed()["FullyConnected"]


@pytest.mark.slow
def test_the_stream_keeps_20_db_and_does_not_drift() -> None:
    expected, got = reference_stream()[1], deployed_stream(quantized())
    ratios = sqnr_db(expected, got)
    assert min(ratios.values()) >= 20, ratios
    first, last = sqnr_db(expected[50:150], got[50:150]), sqnr_db(expected[-100:], got[-100:])
    for name in ratios:
        assert last[name] >= first[name] - 3, name


def test_linear_layers_are_quantized_and_norms_and_convolutions_are_not() -> None:
    text = quantized().models[GRAPH].read_text()
    assert text.count('type="FakeQuantize"') > 10
    with open_session("openvino", quantized().models, stream_model().spec, threads=1) as session:
        census = session.executed()
    assert census["MVN"].keys() == {"float32"}
    assert census["Convolution"].keys() == {"float32"}
    assert "float32" not in census["FullyConnected"]
    assert set(quantized().treatments.values()) == {"int8"}
    assert len(quantized().treatments) == sum(census["FullyConnected"].values())


def test_the_weights_shrink_on_disk() -> None:
    single = sum(path.stat().st_size for path in converted_stream().onnx.values())
    assert quantized().models[GRAPH].with_suffix(".bin").stat().st_size <= 0.55 * single


def test_the_alpha_that_loses_least_is_taken_and_all_are_told() -> None:
    scores = {float(a): float(db) for a, db in re.findall(r"(-?[\d.]+): (-?[\d.]+)", quantized().recipe)}
    assert scores.keys() == set(openvino.ALPHAS)
    best = max(scores, key=lambda alpha: scores[alpha])
    assert ("no SmoothQuant" if best == -1 else f"SmoothQuant alpha {best:g}") in quantized().recipe
    assert scores[0.95] < scores[best]  # NNCF's own choice


def test_layers_that_the_plan_keeps_float_execute_in_float_and_the_others_in_int8(tmp_path: Path) -> None:
    plan = Plan("int8", (Rule("blocks.0.ffn1.*", "float"),))
    few = {GRAPH: calibration()[GRAPH][::6]}
    artifact = int8_nncf(converted_stream().onnx, few, tmp_path, plan, PLAIN)
    kept = [path for path, treatment in artifact.treatments.items() if treatment == "float"]
    assert kept == ["blocks.0.ffn1.expand", "blocks.0.ffn1.contract"]
    counts = products(artifact)
    assert counts.pop("float32") == 2
    assert sum(counts.values()) == len(artifact.treatments) - 2
    assert "2 layers float" in artifact.recipe


class Flat(nn.Module):
    """Two layers on rows without a batch, which ONNX writes as Gemm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 48), nn.Linear(48, 32)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": self.second(torch.relu(self.first(x)))}


def flat_files(directory: Path) -> tuple[dict[str, Path], dict[str, list[dict[str, np.ndarray]]]]:
    torch.manual_seed(0)
    files = dict(export_onnx(as_model("flat", Flat(), x=torch.randn(20, 32)), directory))
    rng = np.random.default_rng(0)
    return files, {"main": [{"x": rng.standard_normal((20, 32)).astype(np.float32)} for _ in range(6)]}


def test_a_gemm_is_found_behind_the_operations_that_openvino_makes_of_it(tmp_path: Path) -> None:
    files, samples = flat_files(tmp_path)
    assert {node.op_type for node in onnx.load(files["main"]).graph.node} >= {"Gemm"}
    (tmp_path / "int8").mkdir()
    plan = Plan("int8", (Rule("second", "float"),))
    artifact = int8_nncf(files, samples, tmp_path / "int8", plan, PLAIN)
    assert artifact.treatments == {"first": "int8", "second": "float"}


@pytest.mark.parametrize(("narrow", "least", "most"), [(True, 60, 64), (False, 120, 128)])
def test_narrow_weights_have_seven_bits(narrow: bool, least: int, most: int, tmp_path: Path) -> None:
    files, samples = flat_files(tmp_path)
    (tmp_path / "int8").mkdir()
    artifact = int8_nncf(files, samples, tmp_path / "int8", alphas=PLAIN, narrow=narrow)
    import openvino as engine

    model = engine.Core().read_model(artifact.models["main"])
    constants = [op for op in model.get_ops() if op.get_type_name() == "Constant"]
    integers = [op.data.astype(int) for op in constants if op.get_element_type().get_type_name() == "i8"]
    assert len(integers) == 2
    assert all(least <= np.abs(values).max() <= most for values in integers)
    assert ("7-bit weights" in artifact.recipe) == narrow


def test_one_sample_is_enough_to_choose_an_alpha(tmp_path: Path) -> None:
    files, samples = flat_files(tmp_path)
    (tmp_path / "int8").mkdir()
    artifact = int8_nncf(files, {"main": samples["main"][:1]}, tmp_path / "int8", alphas=(-1.0, 0.5))
    assert "dB of each alpha: -1: " in artifact.recipe


@pytest.mark.parametrize("count", [1, 2, 3, 24, 60, 500])
def test_a_trial_is_judged_by_samples_that_it_has_not_seen(count: int) -> None:
    samples = [{"x": np.array([float(i)])} for i in range(count)]
    built, judges = openvino._split(samples)
    seen, others = ({float(s["x"][0]) for s in part} for part in (built, judges))
    assert 1 <= len(built) <= openvino.TRIAL_SAMPLES
    assert 1 <= len(judges) <= openvino.TRIAL_SAMPLES
    assert count == 1 or not seen & others


def test_sqnr_is_the_mean_over_outputs_of_all_samples() -> None:
    rng = np.random.default_rng(0)
    expected = [[rng.standard_normal(50), rng.standard_normal((3, 4))] for _ in range(5)]
    got = [[a + 0.1 * rng.standard_normal(a.shape) for a in arrays] for arrays in expected]
    ratios = []
    for place in (0, 1):
        signal = np.concatenate([arrays[place].ravel() for arrays in expected])
        noise = signal - np.concatenate([arrays[place].ravel() for arrays in got])
        ratios.append(10 * np.log10((signal**2).sum() / (noise**2).sum()))
    assert openvino._mean_sqnr_db(expected, got) == pytest.approx(np.mean(ratios))
    assert openvino._mean_sqnr_db(expected, expected) == SQNR_LIMIT
    got[2][0][3] = np.nan
    assert openvino._mean_sqnr_db(expected, got) == -SQNR_LIMIT


def test_weights_alone_are_not_quantized_by_this_recipe(tmp_path: Path) -> None:
    plan = Plan("int8", (Rule("classify", "int4-weights"),))
    with pytest.raises(UnsupportedError, match=r"asks for classify \(int4-weights\): say int8 or float"):
        int8_nncf(converted_stream().onnx, calibration(), tmp_path, plan)


def test_a_plan_without_int8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="leaves every linear layer float; ship fp16"):
        int8_nncf(converted_stream().onnx, calibration(), tmp_path, Plan("float"))


def test_a_pattern_without_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no layer matches 'encoder"):
        int8_nncf(converted_stream().onnx, calibration(), tmp_path, Plan("int8", (Rule("encoder.*", "float"),)))


def test_no_alpha_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one strength of SmoothQuant"):
        int8_nncf(converted_stream().onnx, calibration(), tmp_path, alphas=())


@pytest.mark.slow
def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    few = {GRAPH: calibration()[GRAPH][:2]}
    int8_nncf(converted_stream().onnx, few, tmp_path, alphas=(-1.0, 0.5))
    assert capfd.readouterr() == ("", "")


def test_an_ir_that_does_not_compile_is_no_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> dict[str, str]:
        raise RuntimeError("Check 'convert->constant_fold(...)' failed")

    monkeypatch.setattr(openvino, "safe_properties", refuse)
    few = {GRAPH: calibration()[GRAPH][:2]}
    with pytest.raises(ConversionError, match=r"cannot compile its int8 model: Check .* failed; ship fp16"):
        int8_nncf(converted_stream().onnx, few, tmp_path, alphas=PLAIN)


def test_every_layer_of_the_stream_is_found_in_openvino() -> None:
    import openvino as engine

    path = converted_stream().onnx[GRAPH]
    graph = onnx.load(path).graph
    outputs = [graph.node[layer.node].output[0] for layer in linear_layers(graph)]
    found = openvino._products(engine.Core().read_model(path), outputs)
    assert found.keys() == set(outputs)
