"""``edgeattn inspect``: a model before conversion, a bundle after it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeattn.cli.inspect import measured
from edgeattn.converters.preflight.judge import RULES
from tests.cli.conftest import Command
from tests.cli.test_commands import damage
from tests.conversions import Converted, write_model_and_data

FACTORY = """\
import torch
from torch import nn


class Sorter(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(16, 16)

    def forward(self, x):
        return {"y": torch.logcumsumexp(self.mix(x), -1)}


def model():
    return Sorter(), {"x": torch.randn(1, 8, 16)}
"""


@pytest.fixture
def doubler(tmp_path: Path) -> str:
    (tmp_path / "doubler.py").write_text(FACTORY)
    return "doubler.py"


def test_one_object_with_graphs_and_findings_of_every_target(edgeattn: Command, converted: Converted) -> None:
    outcome = edgeattn("inspect", converted.reference, "--target", "mobile", "--target", "jetson", "--json")
    assert outcome.code == 0, outcome.err
    told = outcome.json
    assert set(told) == {"schema", "model", "graphs", "notes", "targets", "prunable", "seconds"}
    (graph,) = told["graphs"]
    assert graph["inputs"] == [{"name": "tokens", "dtype": "float32", "shape": [1, 8, 16]}]
    assert (graph["attention"], graph["ranges"]) == ([""], "recorded") or graph["attention"]
    assert graph["parameters"] == converted.model.source_size_bytes // 4
    assert [(t["target"], t["engine"]) for t in told["targets"]] == [
        ("android-arm64", "litert"),
        ("jetson-orin-nano", "tensorrt"),
    ]
    for target in told["targets"]:
        for row in target["findings"]:
            assert row["rule"] in {*RULES, "rewritten"}
            assert row["target"] == target["target"]
            assert row["reason"]
            assert row["change"]


def test_a_table_for_people(edgeattn: Command, converted: Converted) -> None:
    outcome = edgeattn("inspect", converted.reference, "--target", "jetson")
    assert outcome.code == 0, outcome.err
    assert "missing-calibration" in outcome.out  # int8 is among the precisions of "auto", and there is no data
    assert "tokens float32[1, 8, 16]" in outcome.out


def test_data_takes_the_row_about_calibration_away(edgeattn: Command, converted: Converted) -> None:
    outcome = edgeattn("inspect", converted.reference, "--target", "jetson", "--data", converted.data, "--json")
    assert outcome.code == 0, outcome.err
    assert "missing-calibration" not in {row["rule"] for row in outcome.json["targets"][0]["findings"]}


def test_what_stops_exits_4_with_the_place(edgeattn: Command, doubler: str) -> None:
    outcome = edgeattn("inspect", doubler, "--target", "mobile", "--target", "cpu", "--json")
    assert outcome.code == 4
    stops = [row for target in outcome.json["targets"] for row in target["findings"] if row["severity"] == "stops"]
    assert [(row["target"], row["rule"], row["node"]) for row in stops] == [
        ("android-arm64", "unsupported-operation", "logcumsumexp")
    ]
    assert stops[0]["line"] == "doubler.py:11"


def test_convert_refuses_the_same_before_any_conversion(edgeattn: Command, doubler: str, tmp_path: Path) -> None:
    outcome = edgeattn("convert", doubler, "--target", "mobile", "--json")
    assert outcome.code == 4
    assert "preflight for litert on android-arm64" in outcome.error
    assert "doubler.py:11" in outcome.error
    assert "baseline" not in outcome.err
    assert not (tmp_path / "out").exists()


def test_the_rows_go_into_the_result(edgeattn: Command, kept: Converted) -> None:
    arguments = ("--precision", "fp32", "--duration", "0s", "--target", "jetson", "--json")
    outcome = edgeattn("convert", kept.reference, *arguments)
    assert outcome.code == 0, outcome.err
    inspected = edgeattn("inspect", kept.reference, "--precision", "fp32", "--target", "jetson", "--json")
    assert outcome.json["results"][0]["preflight"] == inspected.json["targets"][0]["findings"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["no-such-model"], 2),
        (["missing.edge"], 2),
        (["doubler.py", "--target", "no-such-target"], 2),
        (["doubler.py", "--backend", "tensorrt", "--target", "mobile"], 4),
        (["doubler.py", "--precision", "fp12"], 2),
        (["doubler.py", "--data", "missing.npz"], 2),
        (["doubler.py", "--sensitivity"], 2),
        (["doubler.py", "--plot", "costs.svg"], 2),
        (["doubler.py", "--sensitivity", "--plot", "costs.pdf"], 2),
        (["missing.edge", "--sensitivity"], 2),
    ],
)
def test_bad_input_is_one_error(edgeattn: Command, doubler: str, arguments: list[str], code: int) -> None:
    outcome = edgeattn("inspect", *arguments, "--json")
    assert outcome.code == code
    assert set(json.loads(outcome.out)) == {"schema", "error"}
    assert outcome.error


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The small attention module and its labelled samples."""
    return write_model_and_data(tmp_path_factory.mktemp("small"))


def test_sensitivity_is_one_more_key_and_a_picture(edgeattn: Command, small: tuple[str, str], tmp_path: Path) -> None:
    model, data = small
    arguments = ("--data", data, "--samples", "20", "--sensitivity", "--plot", "costs.svg", "--json")
    outcome = edgeattn("inspect", model, *arguments)
    assert outcome.code == 0, outcome.err
    assert set(outcome.json) == {"schema", "model", "graphs", "notes", "targets", "prunable", "seconds", "sensitivity"}
    told = outcome.json["sensitivity"]
    assert (told["metric"], told["source"], told["scored"], told["samples"]) == ("accuracy", 100.0, 20, 8)
    costs = {row["path"]: row for row in told["layers"]}
    # The head reads one row, its last layer has four outputs: neither is worth int8.
    assert {path: row["treatment"] for path, row in costs.items()} == {
        "embed": "int8", "qkv": "int8", "out": "int8", "head.0": "float", "head.2": "float"
    }  # fmt: skip
    assert sorted(told["ranking"]) == ["embed", "out", "qkv"]
    for row in (costs[path] for path in told["ranking"]):
        assert 30 < row["sqnr_db"] < 80
        assert 0.0 <= row["drop"] <= 100.0  # the labels are the model's own: nothing can be gained
    assert told["whole"]["sqnr_db"] < min(costs[path]["sqnr_db"] for path in told["ranking"])
    assert [head["head"] for head in told["attention"]["heads"]] == [0, 1, 2, 3]
    assert [row["path"] for row in told["attention"]["residuals"]] == ["norm"]
    assert "qkv" in (tmp_path / "costs.svg").read_text()


def test_sensitivity_as_tables_for_people(edgeattn: Command, small: tuple[str, str]) -> None:
    model, data = small
    outcome = edgeattn("inspect", model, "--data", data, "--sensitivity")
    assert outcome.code == 0, outcome.err
    for text in ("SQNR dB", "points lost", "head.2", "all layers", "JS divergence bits", "x median channel"):
        assert text in outcome.out, text
    assert "outputs compared on 8 samples of small_attention.npz; accuracy 100.00 % in float" in outcome.out


def test_sensitivity_without_data_says_what_is_needed(edgeattn: Command, small: tuple[str, str]) -> None:
    outcome = edgeattn("inspect", small[0], "--sensitivity")
    assert outcome.code == 2
    assert "give --data with inputs like those of use" in outcome.error
    assert outcome.out == ""


def test_a_bundle_tells_what_it_holds(edgeattn: Command, small_bundle: Path) -> None:
    outcome = edgeattn("inspect", small_bundle)
    assert outcome.code == 0, outcome.err
    assert "openvino" in outcome.out
    assert "all verified" in outcome.out
    assert "tokens float32[1, 8, 16]" in outcome.out
    told = edgeattn("inspect", small_bundle, "--json").json
    assert told["manifest"] == {
        key: value
        for key, value in json.loads((small_bundle / "manifest.json").read_text()).items()
        if "sha256" not in key
    }


def test_a_damaged_bundle_is_refused(edgeattn: Command, small_bundle: Path, tmp_path: Path) -> None:
    outcome = edgeattn("inspect", damage(small_bundle, tmp_path / small_bundle.name))
    assert outcome.code == 2
    assert "was changed" in outcome.error


def test_samples_of_a_function_tell_the_ranges(edgeattn: Command, doubler: str, tmp_path: Path) -> None:
    (tmp_path / "calls.py").write_text(
        "import numpy as np\n"
        "def samples():\n"
        "    for n in range(4):\n"
        "        yield {'x': np.full((8, 16), n, np.float32)}\n"
    )
    outcome = edgeattn("inspect", doubler, "--target", "jetson", "--data", "calls.py:samples", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["graphs"][0]["ranges"] == "recorded"
    refused = edgeattn("inspect", doubler, "--data", "calls.py:sample")
    assert (refused.code, "did you mean 'samples'" in refused.error) == (2, True)


def test_a_target_that_cannot_be_asked_leaves_the_others_their_findings(edgeattn: Command, doubler: str) -> None:
    outcome = edgeattn("inspect", doubler, "--target", "cpu", "--target", "mobile", "--backend", "openvino", "--json")
    assert outcome.code == 4
    told = {target["target"]: target["findings"] for target in outcome.json["targets"]}
    assert set(told) == {"cpu", "android-arm64"}
    assert [row["rule"] for row in told["android-arm64"]] == ["target"]
    assert "unknown engine 'openvino'" in told["android-arm64"][0]["reason"]


@pytest.mark.parametrize(
    "value",
    [
        "text",
        5,
        [1],
        {"p50_ms": "fast"},
        {"metric": "wer", "deployed": None},
        {"a": {}},
        {"metric": "wer", "deployed": 10**400},
    ],
)
@pytest.mark.parametrize("field", ["accuracy", "latency"])
def test_measured_figures_of_another_form_are_said_to_be_so(field: str, value: object) -> None:
    name = {"accuracy": "metric", "latency": "latency"}[field]
    assert measured({field: value, "device": "x"}) == {
        name: "in a form that this edgeattn does not know",
        "device": "x",
    }


@pytest.mark.slow
def test_an_input_that_is_bound_is_no_input_and_a_wrong_one_is_refused(edgeattn: Command, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    nodes = [onnx.helper.make_node("Mul", ["x", "gain"], ["y"])]
    ports = [onnx.helper.make_tensor_value_info(name, 1, [1, 4]) for name in ("x", "gain", "y")]
    graph = onnx.helper.make_graph(nodes, "main", ports[:2], ports[2:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), tmp_path / "net.onnx")
    outcome = edgeattn("inspect", "net.onnx", "--target", "cpu", "--set", "gain=2", "--json")
    assert outcome.code == 0, outcome.err
    assert [port["name"] for port in outcome.json["graphs"][0]["inputs"]] == ["x"]
    assert any("input gain is bound to 2" in note for note in outcome.json["notes"])
    refused = edgeattn("inspect", "net.onnx", "--set", "gains=2")
    assert refused.code == 2
    assert "unknown input 'gains'" in refused.error
