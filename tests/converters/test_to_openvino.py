"""ONNX -> OpenVINO IR."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeattn.converters.onnx import export_onnx
from edgeattn.converters.openvino import to_openvino
from edgeattn.errors import ConversionError, UnsupportedError
from edgeattn.models.streaming_conformer import GRAPH
from tests.converters.samples import (
    as_model,
    converted_stream,
    deployed_once,
    deployed_stream,
    generic_models,
    nested,
    reference_stream,
    sqnr_db,
    worst_difference,
)
from tests.converters.test_onnx_export import borders


def test_500_carried_state_steps_match_torch() -> None:
    files = converted_stream()
    artifact = to_openvino(files.onnx, files.new_directory("openvino-fp32"), "fp32")
    assert worst_difference(reference_stream()[1], deployed_stream(artifact)) <= 1e-4


def test_fp16_halves_the_file_and_keeps_50_db() -> None:
    files = converted_stream()
    single = to_openvino(files.onnx, files.new_directory("openvino-fp32"), "fp32")
    half = to_openvino(files.onnx, files.new_directory("openvino-fp16"), "fp16")
    ratios = sqnr_db(reference_stream()[1], deployed_stream(half))
    assert min(ratios.values()) >= 50, ratios
    sizes = [artifact.models[GRAPH].with_suffix(".bin").stat().st_size for artifact in (single, half)]
    assert sizes[1] <= 0.55 * sizes[0]


@pytest.mark.parametrize("name", ["tokens", "recurrent", "translation", "attention", "borders"])
def test_any_torch_module_gets_through(name: str, tmp_path: Path) -> None:
    module, inputs = borders()
    model = as_model("borders", module, **inputs) if name == "borders" else generic_models()[name]
    got = deployed_once(to_openvino(export_onnx(model, tmp_path), tmp_path, "fp32"), model)
    for output, expected in model.run(model.example["main"]).items():
        np.testing.assert_allclose(got[output], expected, atol=1e-5)


def test_an_operation_that_openvino_lacks_is_named_with_its_module(tmp_path: Path) -> None:
    model = nested(lambda x: torch.linalg.det(x.reshape(4, 4, 4))[:, None] * torch.ones(2, 1, 1) * torch.ones(8))
    # Only the shape of the output matters to the exporter; (2, 4, 8) is what this one has.
    model = as_model("determinant", model.modules["main"], x=torch.randn(8, 8))
    onnx = export_onnx(model, tmp_path)
    with pytest.raises(ConversionError, match=r"\(Det\) of module encoder\.odd: it has no such operation"):
        to_openvino(onnx, tmp_path, "fp32")


def test_an_unknown_precision_is_refused_with_the_valid_ones(tmp_path: Path) -> None:
    precision: Any = "fp61"
    with pytest.raises(UnsupportedError, match="did you mean 'fp16'"):
        to_openvino(converted_stream().onnx, tmp_path, precision)
    assert not list(tmp_path.iterdir())


def test_nothing_is_printed_and_no_consent_file_is_needed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    to_openvino(converted_stream().onnx, tmp_path, "fp32")
    assert capfd.readouterr() == ("", "")
    from openvino_telemetry.main import ConsentCheckResult, OptInChecker

    assert OptInChecker().check(enable_opt_in_dialog=False) == ConsentCheckResult.DECLINED


def test_of_equal_values_the_lower_place_comes_first(tmp_path: Path) -> None:
    class Ranked(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            falling = x.sort(dim=-1, descending=True, stable=True)[1]
            return {"places": torch.cat((x.argsort(dim=-1, stable=True), falling, x.argmax(-1, keepdim=True)), -1)}

    model = as_model("ranked", Ranked(), x=torch.tensor([[2.0, 1, 1, 2, 0, 0, 1, 2], [3.0] * 8]))
    artifact = to_openvino(export_onnx(model, tmp_path), tmp_path, "fp32")
    got = deployed_once(artifact, model)["places"]
    np.testing.assert_array_equal(got, model.run(model.example["main"])["places"])


def test_a_square_weight_read_plainly_and_transposed_is_right_both_times(tmp_path: Path) -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(32, 32))

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            inner = x @ self.weight
            return {"inner": inner, "y": torch.nn.functional.linear(x + 1, self.weight)}

    torch.manual_seed(0)
    model = as_model("tied", Tied(), x=torch.randn(2, 32))
    got = deployed_once(to_openvino(export_onnx(model, tmp_path), tmp_path, "fp32"), model)
    for output, expected in model.run(model.example["main"]).items():
        np.testing.assert_allclose(got[output], expected, atol=1e-4)


def test_additive_attention_with_a_soft_cap_loads(tmp_path: Path) -> None:
    class Additive(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vector = torch.nn.Parameter(torch.randn(8))

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            scores = torch.tanh(x.unsqueeze(-2) + x.unsqueeze(-3)) @ self.vector
            return {"y": torch.softmax(torch.tanh(scores / 30) * 30, -1) @ x}

    torch.manual_seed(0)
    model = as_model("additive", Additive(), x=torch.randn(2, 5, 8))
    got = deployed_once(to_openvino(export_onnx(model, tmp_path), tmp_path, "fp32"), model)
    np.testing.assert_allclose(got["y"], model.run(model.example["main"])["y"], atol=1e-5)
