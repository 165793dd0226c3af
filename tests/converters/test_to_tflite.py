"""torch -> TFLite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeattn.converters.tflite import to_tflite
from edgeattn.errors import ConversionError, UnsupportedError
from edgeattn.models.streaming_conformer import GRAPH
from edgeattn.runtimes import open_session
from tests.converters.samples import (
    as_model,
    converted_stream,
    deployed_once,
    deployed_stream,
    generic_models,
    nested,
    reference_stream,
    sqnr_db,
    stream_model,
    worst_difference,
)
from tests.converters.test_onnx_export import Renamed, borders


def test_500_carried_state_steps_match_torch() -> None:
    assert worst_difference(reference_stream()[1], deployed_stream(converted_stream().tflite)) <= 1e-4


def test_the_delegate_takes_the_graph_in_one_partition() -> None:
    artifact = converted_stream().tflite
    with open_session("litert", artifact.models, stream_model().spec, threads=1) as session:
        assert session.executed()["DELEGATE"] == {"partitions": 1}


def test_fp16_halves_the_file_and_keeps_50_db() -> None:
    files = converted_stream()
    half = to_tflite(stream_model(), files.room("tflite-fp16"), "fp16")
    ratios = sqnr_db(reference_stream()[1], deployed_stream(half))
    assert min(ratios.values()) >= 50, ratios
    assert half.models[GRAPH].stat().st_size <= 0.7 * files.tflite.models[GRAPH].stat().st_size


@pytest.mark.parametrize("name", ["tokens", "recurrent", "translation", "attention", "borders"])
def test_any_torch_module_gets_through(name: str, tmp_path: Path) -> None:
    module, inputs = borders()
    model = as_model("borders", module, **inputs) if name == "borders" else generic_models()[name]
    got = deployed_once(to_tflite(model, tmp_path, "fp32"), model)
    for output, expected in model.run(model.example["main"]).items():
        np.testing.assert_allclose(got[output], expected, atol=1e-5)


def test_one_name_for_input_and_output_is_fine(tmp_path: Path) -> None:
    model = as_model("renamed", Renamed(), x=torch.ones(3))
    np.testing.assert_array_equal(deployed_once(to_tflite(model, tmp_path, "fp32"), model)["x"], np.full(3, 2.0))


class Strided(nn.Module):
    """Weights of one shape that are views with strides, and a mask of infinities."""

    def __init__(self) -> None:
        super().__init__()
        for index in range(6):
            self.register_buffer(f"bias_{index}", torch.randn(40, 8).t())
        self.register_buffer("mask", torch.full((8, 40), float("-inf")).tril(-40))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        for index in range(6):
            x = torch.tanh(x + self.get_buffer(f"bias_{index}"))
        return {"y": torch.softmax(x + self.get_buffer("mask"), dim=-1)}


def test_weights_with_strides_stay_apart_and_the_module_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = as_model("strided", Strided(), x=torch.randn(8, 40))
    module = model.modules["main"]
    before = {name: (value.clone(), value.stride()) for name, value in module.named_buffers()}
    got = deployed_once(to_tflite(model, tmp_path, "fp32"), model)
    np.testing.assert_allclose(got["y"], model.run(model.example["main"])["y"], atol=1e-6)
    for name, value in module.named_buffers():
        assert torch.equal(value, before[name][0])
        assert value.stride() == before[name][1]


def test_an_operation_without_lowering_is_named_with_its_module(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"'linalg_eig' \(aten\.linalg_eig\.default\) of module encoder\.odd: "):
        to_tflite(nested(lambda x: torch.linalg.eigvals(x).real), tmp_path, "fp32")
    assert not list(tmp_path.iterdir())


def test_an_operation_without_kernel_is_named_with_its_module(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"no kernel for operation STABLEHLO_SORT of module encoder\.odd"):
        to_tflite(nested(lambda x: torch.sort(x, dim=-1)[0]), tmp_path, "fp32")


def test_a_branch_on_values_names_the_module(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"forward of module encoder\.odd \(Apply\)"):
        to_tflite(nested(lambda x: x * 2 if x.sum() > 0 else x), tmp_path, "fp32")


def test_an_unknown_precision_is_refused_with_the_valid_ones(tmp_path: Path) -> None:
    precision: Any = "int8"
    with pytest.raises(UnsupportedError, match="Valid: fp16, fp32"):
        to_tflite(stream_model(), tmp_path, precision)


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    to_tflite(generic_models()["attention"], tmp_path, "fp32")
    assert capfd.readouterr() == ("", "")
