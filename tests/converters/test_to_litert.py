"""torch -> TFLite."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeattn.converters import litert_forms
from edgeattn.converters.litert import halve_tflite, to_tflite
from edgeattn.errors import ConversionError, InputError, UnsupportedError
from edgeattn.model import Artifact, EdgeModel
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
    half = to_tflite(stream_model(), files.new_directory("tflite-fp16"), "fp16")
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


class Infinite(nn.Module):
    """A table with -inf that is added to what is returned, and rows that see nothing behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(4, 6).masked_fill(torch.eye(4, 6, dtype=torch.bool), float("-inf")))

    def forward(self, x: Tensor, seen: Tensor) -> dict[str, Tensor]:
        scores = x + self.get_buffer("table")
        hidden = scores.masked_fill(~seen, float("-inf"))
        return {
            "scores": scores,
            "logs": hidden.log_softmax(-1),
            "mended": torch.nan_to_num(hidden.softmax(-1)),
            "weights": hidden.softmax(-1),
        }


def test_infinities_and_rows_that_see_nothing_are_torchs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = as_model("infinite", Infinite(), x=torch.randn(4, 6), seen=torch.ones(4, 6, dtype=torch.bool))
    artifact = to_tflite(model, tmp_path, "fp32")
    example = dict(model.example["main"])
    example["seen"] = example["seen"].copy()
    example["seen"][2] = False
    blind = replace(model, example={"main": example})
    got = deployed_once(artifact, blind)
    for output, expected in blind.run(example).items():
        np.testing.assert_allclose(got[output], expected, atol=1e-6, err_msg=output)
    assert np.isnan(got["weights"][2]).all()
    assert (got["mended"][2] == 0).all()


class Counting(nn.Module):
    """int64 in, out and as a state."""

    def forward(self, ids: Tensor, count: Tensor) -> dict[str, Tensor]:
        return {"next_ids": ids + 1, "best": (ids * 2).float(), "next_count": count + ids.sum()}


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> tuple[EdgeModel, Artifact]:
    model = as_model("counting", Counting(), ids=torch.tensor([[3, 1, 2]]), count=torch.tensor([7]))
    return model, to_tflite(model, tmp_path_factory.mktemp("counting"), "fp32")


def test_int64_is_int32_in_the_file_and_int64_for_the_caller(counting: tuple[EdgeModel, Artifact]) -> None:
    model, artifact = counting
    reader: Any = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(str(artifact.models["main"]))
    assert all(detail["dtype"] is not np.int64 for detail in reader.get_tensor_details())
    got = deployed_once(artifact, model)
    expected = model.run(model.example["main"])
    for name, value in expected.items():
        assert got[name].dtype == value.dtype
        np.testing.assert_array_equal(got[name], value)


def test_a_number_beyond_int32_is_refused_by_name(counting: tuple[EdgeModel, Artifact]) -> None:
    model, artifact = counting
    inputs = {"ids": np.array([[0, 2**31, 1]]), "count": np.array([0])}
    with (
        open_session("litert", artifact.models, model.spec, threads=1) as session,
        pytest.raises(InputError, match=r"input 'ids' holds 0\.\.2147483648; this engine computes with int32"),
    ):
        session.run(inputs)


def test_float16_comes_from_the_float32_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, model = converted_stream(), stream_model()
    monkeypatch.setattr("edgeattn.converters.litert._convert", lambda *_: pytest.fail("converted again"))
    before = files.tflite.models[GRAPH].read_bytes()
    half = halve_tflite(model, files.tflite, tmp_path)
    assert half.precision == "fp16"
    assert half.models[GRAPH].stat().st_size <= 0.7 * len(before)
    assert files.tflite.models[GRAPH].read_bytes() == before
    with pytest.raises(UnsupportedError, match="starts from float32 TFLite, got litert fp16"):
        halve_tflite(model, half, tmp_path)


def test_a_constant_that_float16_cannot_hold_stays_float32(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weight = torch.randn(32, 32)
    model = nested(lambda x: (x @ weight[:8, :8]) * torch.full((8,), 1e6) * 1e-6)
    got = deployed_once(to_tflite(model, tmp_path, "fp16"), model)
    np.testing.assert_allclose(got["y"], model.run(model.example["main"])["y"], atol=2e-2)


def test_a_module_that_only_another_engine_can_run_is_refused_with_its_reason(tmp_path: Path) -> None:
    model = generic_models()["attention"]
    model.modules["main"].unsupported = "operator Det (node 'det') has no torch form"  # type: ignore[assignment]
    with pytest.raises(UnsupportedError, match="graph 'main': operator Det"):
        to_tflite(model, tmp_path, "fp32")


def test_what_converts_and_does_not_run_is_a_conversion_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeattn.converters.litert_forms.FORMS", {})  # litert-torch's own scatter has no kernel
    index = torch.arange(8)
    with pytest.raises(ConversionError, match="LiteRT converts this model and cannot run it: Only update, Add"):
        to_tflite(nested(lambda x: x.index_add(0, index, x)), tmp_path, "fp32")


class Ordered(nn.Module):
    """The largest, the least, everything in order: along the last axis and another, with places."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        most, where = torch.topk(x, 3)
        least, rows = torch.topk(x, 2, dim=1, largest=False)
        ordered, places = torch.sort(x, dim=1, descending=True)
        ranks = torch.argsort(x, dim=-1, stable=True)
        kept = torch.softmax(x.masked_fill(x < most[..., -1:], -1e4), -1)  # hard attention
        return {
            "most": most, "where": where, "least": least, "rows": rows, "ordered": ordered, "places": places,
            "ranks": ranks, "kept": kept,
        }  # fmt: skip


def test_the_largest_and_the_order_come_out_as_in_torch_ties_included(tmp_path: Path) -> None:
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    x[0, 0, 5] = x[0, 0, 2]  # a tie: a stable order takes the first
    model = as_model("ordered", Ordered(), x=x)
    got = deployed_once(to_tflite(model, tmp_path, "fp32"), model)
    for output, expected in model.run(model.example["main"]).items():
        np.testing.assert_allclose(got[output], expected, atol=1e-6, err_msg=output)


def test_litert_torch_is_left_as_it_was(tmp_path: Path) -> None:
    from litert_torch.fx_infra import decomp

    before = decomp.pre_convert_decomp(), decomp.pre_lower_decomp()
    to_tflite(as_model("ordered", Ordered(), x=torch.randn(1, 3, 4)), tmp_path, "fp32")
    assert (decomp.pre_convert_decomp(), decomp.pre_lower_decomp()) == before


def test_an_operation_without_lowering_is_named_with_its_module(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"'linalg_eig' \(aten\.linalg_eig\.default\) of module encoder\.odd: "):
        to_tflite(nested(lambda x: torch.linalg.eigvals(x).real), tmp_path, "fp32")
    assert not list(tmp_path.iterdir())


def test_an_operation_without_kernel_is_named_with_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(litert_forms, "litert_forms", contextlib.nullcontext)
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


def test_a_single_head_repeated_for_all_queries_keeps_its_shape(tmp_path: Path) -> None:
    class MultiQuery(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            queries = x.view(2, 6, 2, 4).transpose(1, 2)
            keys = x[..., :4].unsqueeze(1).repeat_interleave(2, 1)
            repeated = x[..., 4:].unsqueeze(1).repeat_interleave(2, 1)
            return {"scores": queries @ keys.mT, "both": repeated @ keys.transpose(-1, -2)}

    model = as_model("multi-query", MultiQuery(), x=torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0)))
    got = deployed_once(to_tflite(model, tmp_path, "fp32"), model)
    for name, expected in model.run(model.example["main"]).items():
        np.testing.assert_allclose(got[name], expected, atol=1e-5)
